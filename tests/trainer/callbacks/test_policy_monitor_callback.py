import random
import sys
from pathlib import Path
from types import ModuleType

import pytest
from datasets import Dataset
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from tests.ppo_runs import logged, ppo_trainer, prompts
from tests.reward_runs import SETTINGS as REWARD_SETTINGS
from tests.reward_runs import SameText, preferences
from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp import RLPRewardConfig
from trl_rlp.data.anchors import AnchorComparison, SemanticAnchors
from trl_rlp.rewards.refinable_reward import RefinableReward
from trl_rlp.trainer.callbacks import PolicyMonitorCallback, RewardRefinementCallback
from trl_rlp.trainer.callbacks import policy_monitor_callback as module


EXACT = {
    "length_ratio": None,
    "finished": None,
    "kl": None,
    "outliers": None,
    "reward_length_correlation": None,
}
"""No limits, so that only the limits of a test cause alerts."""


def make_reward(seed: int = 3) -> RefinableReward:
    tokenizer = tiny_tokenizer()
    return RefinableReward(tiny_reward_model(tokenizer, seed=seed), tokenizer, [tokenizer.eos_token_id])


def make_pairs(count: int = 50) -> Dataset:
    sides = {"chosen": [f"c{row}" for row in range(count)], "rejected": [f"r{row}" for row in range(count)]}
    return Dataset.from_dict({"prompt": [f"p{row}:" for row in range(count)], **sides})


def arguments(folder, **settings) -> TrainingArguments:
    return TrainingArguments(str(folder), use_cpu=True, report_to="none", **settings)


def begin(monitor: PolicyMonitorCallback, args: TrainingArguments, state=None) -> tuple[TrainerState, TrainerControl]:
    state, control = state or TrainerState(), TrainerControl()
    monitor.on_train_begin(args, state, control, model=nn.Identity())
    return state, control


def roll_out(monitor, args, state, control, rows: list[dict], rewards: list[float] | None = None) -> None:
    """Records a rollout as the trainer would, without a model."""
    monitor.on_step_begin(args, state, control)
    rows = [{"finished": True, "reward": 0.0} | row for row in rows]
    monitor.reward._records.append(rows)
    monitor.reward.num_rollouts += 1
    monitor.on_optimizer_step(args, state, control)
    state.global_step += 1


def test_signals_of_recorded_completions_by_hand(tmp_path):
    """
    Four completions of two prompts: one of four is malformed. p0's anchor is "red", so one of its two completions
    means it, and p1 has none. Rewards 1, 2, 3, 3 and lengths 3, 4, 5, 5 grow together. The judge sees the first
    completion of p0 only, because p1 has no reference.
    """
    samples = Dataset.from_dict(
        {"prompt": ["p0", "p1"], "completions": [["red", "red"], ["a", "b"]], "finished": [[True] * 2] * 2}
    )
    asked = []

    def judge(*columns):
        asked.append(columns)
        return [0.25]

    monitor = PolicyMonitorCallback(
        make_reward(),
        comparison=AnchorComparison(SemanticAnchors.from_samples(samples, SameText(), threshold=0.6), SameText()),
        is_malformed=lambda prompt, completion: completion == "blue",
        judge=judge,
        references=Dataset.from_dict({"prompt": ["p0", "p9"], "completion": ["gold", "x"]}),
        judge_every=2,
        limits={"judge_win_rate": 0.5, "malformed": 0.1} | EXACT,
    )
    args = arguments(tmp_path)
    state, control = begin(monitor, args)
    texts = [("p0", "red", 1.0), ("p1", "blue", 2.0), ("p0", "green", 3.0), ("p1", "green", 3.0)]
    rows = [{"prompt": prompt, "completion": text, "reward": reward} for prompt, text, reward in texts]
    expected = {
        "malformed": 0.25,
        "same_as_anchor": 0.5,
        "reward_length_correlation": pytest.approx(1.0),
        "judge_win_rate": 0.25,
    }
    roll_out(monitor, args, state, control, rows)
    assert monitor.history == [{"step": 1, **expected}]
    assert asked == [(["p0"], ["red"], ["gold"])]
    metrics = {f"monitor/{name}": value for name, value in expected.items()}
    assert monitor.reward.pending_metrics == metrics | {"monitor/alerts": 0.0}
    roll_out(monitor, args, state, control, rows)
    assert monitor.num_alerts == 1 and len(asked) == 1
    assert len(monitor.reward.buffer) == 8  # the monitor removes nothing


def test_the_judge_is_asked_in_time_if_a_step_has_several_rollouts(tmp_path):
    """
    Two rollouts a step, and a judge for every third one: the rollouts 0, 3, 6 and 9 are in the steps 0, 1, 3 and 4.

    References may be messages. What the judge draws does not change the run.
    """
    seen = []

    def judge(prompts, firsts, seconds):
        seen.append((state.global_step, *firsts, *seconds, random.random()))
        return [0.5]

    prompt, answer = [{"role": "user", "content": "p"}], [{"role": "assistant", "content": "x"}]
    references = Dataset.from_dict({"prompt": [prompt], "completion": [answer]})
    monitor = PolicyMonitorCallback(make_reward(), judge=judge, references=references, judge_every=3)
    args = arguments(tmp_path)
    state, control = begin(monitor, args)
    before = random.getstate()
    for _ in range(5):
        monitor.on_step_begin(args, state, control)
        for _ in range(2):
            monitor.reward._records.append([{"prompt": prompt, "completion": "a", "finished": True, "reward": 0.0}])
            monitor.reward.num_rollouts += 1
        monitor.on_optimizer_step(args, state, control)
        state.global_step += 1
    assert [row[:3] for row in seen] == [(step, "a", "x") for step in (0, 1, 3, 4)]
    assert random.getstate() == before


def test_signals_of_the_log_by_hand(tmp_path, caplog):
    """10 tokens, then 15: a ratio of 1.5. 0.2 nats a token are 2 and 3 nats a completion."""
    monitor, args = PolicyMonitorCallback(limits={"kl": 2.5, "length_ratio": 1.2}), arguments(tmp_path)
    state, control = begin(monitor, args)
    for step, length in enumerate((10.0, 15.0, 15.0, 15.0), start=1):
        state.global_step = step
        logs = {"kl": 0.2, "completions/mean_length": length, "completions/clipped_ratio": 0.0}
        monitor.on_log(args, state, control, logs=logs)
    monitor.on_log(args, state, control, logs={"train_loss": 0.0})
    assert [row["length_ratio"] for row in monitor.history] == [1.0, 1.5, 1.5, 1.5]
    assert [row["kl"] for row in monitor.history] == pytest.approx([2.0, 3.0, 3.0, 3.0])
    alerts = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [alert.split("`")[1] for alert in alerts] == ["kl", "length_ratio"] and monitor.num_alerts == 2
    assert all("at step 3, above its limit of" in alert for alert in alerts)
    assert not control.should_training_stop


def test_a_failing_equivalence_leaves_a_signal_out(tmp_path, caplog):
    samples = Dataset.from_dict({"prompt": ["p0"], "completions": [["red", "red"]], "finished": [[True] * 2]})

    class Failing(SameText):
        def are_equivalent(self, *columns):
            raise ConnectionError("no server")

    monitor = PolicyMonitorCallback(
        make_reward(),
        comparison=AnchorComparison(SemanticAnchors.from_samples(samples, SameText(), threshold=0.6), Failing()),
    )
    args = arguments(tmp_path)
    state, control = begin(monitor, args)
    roll_out(monitor, args, state, control, [{"prompt": "p0", "completion": "blue"}])
    assert "same_as_anchor" not in monitor.history[0]
    assert (
        "The signal `same_as_anchor` could not be measured in this rollout: ConnectionError: no server" in caplog.text
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"reward": "r"}, TypeError, "`reward` must be a `RefinableReward`, got `str`"),
        ({"is_malformed": str}, ValueError, "`is_malformed` needs the completions of each rollout"),
        ({"human_pairs": make_pairs()}, ValueError, "`human_pairs` needs the completions of each rollout"),
        ({"reward": make_reward(), "judge": str}, ValueError, "`judge` and `references` belong together"),
        ({"judge_every": 0}, ValueError, "`judge_every` must be at least 1 rollout, got 0"),
        (
            {"reward": make_reward(), "human_pairs": make_pairs(49)},
            ValueError,
            "`human_pairs` has 49 pairs, but outliers need at least 50",
        ),
        ({"limits": {"entropy": 1.0}}, ValueError, "`limits` has the unknown signal 'entropy'"),
    ],
)
def test_what_a_signal_lacks_is_an_error(options, error, message):
    with pytest.raises(error, match=message):
        PolicyMonitorCallback(**options)


def test_callback_states_that_the_trainer_restores_are_refused(tmp_path):
    args = arguments(tmp_path, restore_callback_states_from_checkpoint=True)
    with pytest.raises(ValueError, match="`restore_callback_states_from_checkpoint` replaces this callback"):
        begin(PolicyMonitorCallback(), args)


def test_a_resumed_run_continues_to_count(tmp_path):
    """The first length, a limit that was crossed once and the checkpoint from before are kept."""
    args = arguments(tmp_path)
    first = PolicyMonitorCallback(limits={"length_ratio": 1.2}, stop=True)
    state, control = begin(first, args)
    first.on_log(args, state, control, logs={"completions/mean_length": 10.0})
    state.global_step = 5
    (tmp_path / "checkpoint-5").mkdir()
    first.on_save(args, state, control)
    first.on_log(args, state, control, logs={"completions/mean_length": 20.0})
    assert state.best_model_checkpoint == str(tmp_path / "checkpoint-5")
    second = PolicyMonitorCallback(limits={"length_ratio": 1.2}, stop=True)
    resumed = TrainerState(global_step=6, stateful_callbacks={"PolicyMonitorCallback": first.state()})
    state, control = begin(second, args, resumed)
    second.on_log(args, state, control, logs={"completions/mean_length": 20.0})
    assert second.num_alerts == 1 and control.should_training_stop
    assert state.best_model_checkpoint == str(tmp_path / "checkpoint-5")
    begin(second, args)  # a new run starts anew
    assert second.num_alerts == 0 and second.state()["attributes"]["crossings"] == {}


def test_a_checkpoint_is_protected_only_while_a_limit_is_crossed(tmp_path):
    monitor, args = PolicyMonitorCallback(limits={"kl": 1.0}, stop=True), arguments(tmp_path)
    state, control = begin(monitor, args)
    best = []
    for step, kl in enumerate((0.5, 2.0, 0.5, 2.0, 2.0), start=1):
        state.global_step = step
        (tmp_path / f"checkpoint-{step}").mkdir()
        monitor.on_log(args, state, control, logs={"objective/kl": kl})
        monitor.on_save(args, state, control)
        best.append(state.best_model_checkpoint and Path(state.best_model_checkpoint).name)
    assert best == [None, "checkpoint-1", None, "checkpoint-3", "checkpoint-3"]
    state = TrainerState(best_model_checkpoint="the user's")
    args = arguments(tmp_path, metric_for_best_model="reward")
    begin(monitor, args, state)
    monitor.on_log(args, state, control, logs={"objective/kl": 2.0})
    assert state.best_model_checkpoint == "the user's"


@pytest.mark.parametrize("fails", [False, True], ids=["sent", "failed"])
def test_alerts_go_to_trackio(tmp_path, monkeypatch, caplog, fails):
    sent, trackio = [], ModuleType("trackio")

    def alert(title, text):
        sent.append((title, text))
        if fails:
            raise RuntimeError("Call trackio.init() before trackio.alert().")

    trackio.alert = alert
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    monkeypatch.setattr(module, "is_trackio_available", lambda: True)
    monitor, args = PolicyMonitorCallback(limits={"kl": 1.0}), arguments(tmp_path)
    for report_to, count in (([], 0), (["trackio"], 1)):
        args.report_to = report_to
        state, control = begin(monitor, args)
        for _ in range(3):
            monitor.on_log(args, state, control, logs={"objective/kl": 2.0})
        assert len(sent) == count
    assert sent[0][0] == "Policy monitor: kl" and sent[0][1].startswith("The signal `kl` is 2 at step 0")
    assert ("`trackio.alert` failed: RuntimeError: Call trackio.init()" in caplog.text) is fails
    state.is_world_process_zero = False
    for kl in (0.0, 2.0, 2.0):
        monitor.on_log(args, state, control, logs={"objective/kl": kl})
    assert len(sent) == 1


TRL = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}


def trl_trainer(folder, name: str, reward, callbacks, **settings):
    trainer_class, config_class = TRL[name]
    tokenizer = tiny_tokenizer()
    defaults = {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 6, "max_steps": 4}
    defaults |= {"logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True, "bf16": False}
    defaults |= {"beta": 0.1, "learning_rate": 1e-2, "disable_tqdm": True, "dataloader_pin_memory": False}
    args = config_class(str(folder), **{**defaults, **settings})
    model = save(tiny_causal_lm(tokenizer), tokenizer, folder / "policy")  # the reference policy is loaded by name
    return trainer_class(model, reward, args, prompts(), callbacks=callbacks)


def without_monitor(trainer) -> list[dict]:
    rows = logged(trainer)
    return [{k: v for k, v in row.items() if not k.startswith("monitor/") and k != "train_runtime"} for row in rows]


def test_a_run_resumes_from_the_checkpoint_of_the_trainer(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    first, second = (PolicyMonitorCallback(make_reward(), limits=EXACT) for _ in range(2))
    trl_trainer(tmp_path, "grpo", first.reward, [first], **settings).train()
    resumed = trl_trainer(tmp_path, "grpo", second.reward, [second], **settings | {"max_steps": 3})
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    kept = second.state()["attributes"]
    assert kept["_num_rollouts"] == 3 and kept["_healthy_checkpoint"] == str(tmp_path / "checkpoint-3")
    assert kept["_first_length"] == first.state()["attributes"]["_first_length"] is not None
    assert [row["step"] for row in second.history if "kl" in row] == [3]


def test_a_monitor_can_be_added_to_a_resumed_run(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1}
    trl_trainer(tmp_path, "grpo", make_reward(), [], max_steps=2, **settings).train()
    for last, checkpoint in ((3, "checkpoint-2"), (4, "checkpoint-3")):
        monitor = PolicyMonitorCallback(make_reward(), limits=EXACT)
        trainer = trl_trainer(tmp_path, "grpo", monitor.reward, [monitor], max_steps=last, **settings)
        trainer.train(resume_from_checkpoint=str(tmp_path / checkpoint))
    assert monitor.state()["attributes"]["_num_rollouts"] == 2


@pytest.mark.parametrize("num_before", [0, 1, 2])
def test_each_of_two_monitors_continues_with_its_own_state(tmp_path, num_before):
    """All outputs are malformed, which only the first monitor minds. New monitors start in the second run."""

    def run(count, max_steps, checkpoint=None):
        limits = ({"malformed": 0.5} | EXACT, {"malformed": 2.0} | EXACT)[:count]
        reward = make_reward()
        monitors = [
            PolicyMonitorCallback(reward, is_malformed=lambda prompt, text: True, limits=one) for one in limits
        ]
        trainer = trl_trainer(tmp_path, "grpo", reward, monitors, max_steps=max_steps, **settings)
        trainer.train(resume_from_checkpoint=checkpoint)
        return [(monitor.num_alerts, monitor.state()["attributes"]["_num_rollouts"]) for monitor in monitors]

    settings = {"save_strategy": "steps", "save_steps": 1}
    assert run(num_before, 3) == [(1, 3), (0, 3)][:num_before]
    expected = [(1, 3) if num_before > 0 else (0, 0), (0, 3) if num_before > 1 else (0, 0)]
    for last in (4, 5):
        expected = [(alerts, rollouts + 1) for alerts, rollouts in expected]
        if expected[0][1] == 2:  # the second measurement of a monitor that is new
            expected[0] = (1, 2)
        assert run(2, last, str(tmp_path / f"checkpoint-{last - 1}")) == expected


@pytest.mark.parametrize("uses_reward", [True, False])
def test_a_second_call_may_begin_within_a_rollout(tmp_path, uses_reward):
    """A rollout lasts two steps. The first call ends within the second one, and the second call goes on there."""
    monitor = PolicyMonitorCallback(make_reward(), limits=EXACT)
    settings = {"save_strategy": "steps", "save_steps": 3, "num_iterations": 2, "max_steps": 3}
    trainer = trl_trainer(tmp_path, "grpo", monitor.reward, [monitor], **settings)
    trainer.train()
    assert monitor.reward.num_rollouts == 2
    trainer.args.max_steps = 6
    if not uses_reward:
        monitor.reward = make_reward()
        with pytest.raises(ValueError, match="scored nothing in the first rollout of the run"):
            trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
        assert trainer.state.global_step == 4
        return
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert monitor.reward.num_rollouts == 3 and trainer.state.global_step == 6


def test_a_run_without_an_alert_keeps_its_last_checkpoint(tmp_path):
    """The last rollout is malformed. One measurement outside a limit is no alert."""
    reward = make_reward()
    monitor = PolicyMonitorCallback(
        reward,
        is_malformed=lambda prompt, text: reward.num_rollouts >= 4,
        limits={"malformed": 0.5} | EXACT,
        stop=True,
    )
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "max_steps": 4}
    trl_trainer(tmp_path, "grpo", reward, [monitor], **settings).train()
    assert monitor.num_alerts == 0 and monitor.state()["attributes"]["crossings"] == {"malformed": 1}
    assert (tmp_path / "checkpoint-4/model.safetensors").exists()


def test_an_evaluation_that_would_count_as_a_rollout_is_refused_with_a_reward(tmp_path):
    settings = {"use_transformers_continuous_batching": True, "eval_strategy": "steps", "eval_steps": 1}
    args = GRPOConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none", **settings)
    begin(PolicyMonitorCallback(), args)
    with pytest.raises(ValueError, match="`use_transformers_continuous_batching` leaves the policy in training mode"):
        begin(PolicyMonitorCallback(make_reward()), args)


def test_a_resumed_run_that_stops_keeps_the_checkpoint_that_it_came_from(tmp_path):
    """Checkpoint 2 is healthy, but its own state names checkpoint 1, which is deleted. Steps 3 and 4 are malformed."""
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    for is_malformed, max_steps, checkpoint in ((False, 2, None), (True, 6, str(tmp_path / "checkpoint-2"))):
        monitor = PolicyMonitorCallback(
            make_reward(),
            is_malformed=lambda prompt, text, verdict=is_malformed: verdict,
            limits={"malformed": 0.5} | EXACT,
            stop=True,
        )
        trainer = trl_trainer(tmp_path, "grpo", monitor.reward, [monitor], max_steps=max_steps, **settings)
        trainer.train(resume_from_checkpoint=checkpoint)
    assert trainer.state.global_step == 4 and trainer.state.best_model_checkpoint == checkpoint
    assert list(tmp_path.glob("checkpoint-*")) == [Path(checkpoint)]


def test_a_reward_that_the_trainer_does_not_use_is_an_error(tmp_path):
    monitor = PolicyMonitorCallback(make_reward())
    with pytest.raises(ValueError, match="`reward` scored nothing in the first rollout of the run"):
        trl_trainer(tmp_path, "grpo", make_reward(), [monitor], max_steps=2).train()


def test_a_run_without_a_measurement_is_warned_of(tmp_path, caplog):
    monitor, args = PolicyMonitorCallback(), arguments(tmp_path)
    state, control = begin(monitor, args)
    monitor.on_log(args, state, control, logs={"loss": 1.0})
    monitor.on_train_end(args, state, control)
    assert "The policy monitor measured nothing" in caplog.text


@pytest.mark.parametrize("name", TRL)
def test_trl_trainers_are_watched_and_not_changed(name, tmp_path):
    """Four rollouts are measured, and those of the evaluation are not. Without the monitor the log is the same."""
    reward = make_reward()
    monitor = PolicyMonitorCallback(
        reward, is_malformed=lambda prompt, text: len(text) > 4, human_pairs=make_pairs(), limits={"malformed": 0.0}
    )
    watched = trl_trainer(tmp_path / "watched", name, reward, [monitor])
    watched.train()
    plain = trl_trainer(tmp_path / "plain", name, make_reward(), [])
    plain.train()
    assert without_monitor(watched) == without_monitor(plain)
    measured = [row for row in monitor.history if "malformed" in row]
    assert [row["step"] for row in measured] == [1, 2, 3, 4]
    assert all(0 <= row["outliers"] <= 1 for row in measured)
    read = [row for row in monitor.history if "kl" in row]
    assert len(read) == 4 and all({"kl", "length_ratio", "finished"} <= set(row) for row in read)
    rows = [row for row in watched.state.log_history if "monitor/alerts" in row]
    assert [row["monitor/malformed"] for row in rows] == [row["malformed"] for row in measured[:3]]
    alone = PolicyMonitorCallback()
    trl_trainer(tmp_path / "alone", name, make_reward(), [alone]).train()
    assert alone.history == read


def test_ppo_is_watched_and_not_changed(tmp_path):
    reward = make_reward()
    monitor = PolicyMonitorCallback(reward, is_malformed=lambda prompt, text: len(text) > 4, human_pairs=make_pairs())
    watched = ppo_trainer(tmp_path / "watched", reward_funcs=[reward], callbacks=[monitor])
    watched.train()
    plain = ppo_trainer(tmp_path / "plain", reward_funcs=[make_reward()])
    plain.train()
    assert without_monitor(watched) == without_monitor(plain)
    measured = [row for row in monitor.history if "malformed" in row]
    read = [row for row in monitor.history if "kl" in row]
    assert [row["step"] for row in measured] == [1, 3, 5] and [row["step"] for row in read] == [2, 4, 6]
    assert [row["kl"] for row in read] == [
        row["objective/kl"] for row in plain.state.log_history if "objective/kl" in row
    ]


@pytest.mark.parametrize("monitor_first", [True, False])
def test_monitor_and_refinement_work_together(tmp_path, monitor_first):
    """A refinement after every rollout clears the record, and the monitor sees every rollout in any order."""
    reward = make_reward()
    monitor = PolicyMonitorCallback(reward, is_malformed=lambda prompt, text: False, human_pairs=make_pairs())
    args = RLPRewardConfig(str(tmp_path / "reward"), method="spg", **REWARD_SETTINGS | {"max_steps": 1})
    refinement = RewardRefinementCallback(
        reward, preferences(40), args, eval_preference_dataset=preferences(8), equivalence=SameText(), every=1
    )
    order = [monitor, refinement] if monitor_first else [refinement, monitor]
    trainer = trl_trainer(tmp_path, "grpo", reward, order, max_steps=3)
    trainer.train()
    measured = [row for row in monitor.history if "malformed" in row]
    assert [row["step"] for row in measured] == [1, 2, 3]
    rows = [row for row in trainer.state.log_history if "refinement/count" in row]
    assert len(rows) == 2 and all("monitor/outliers" in row for row in rows)
    replaced, outliers = dict(reward.model.state_dict()), monitor._outliers
    reward.replace_weights(replaced, 0.0, 1.0, 0.0)
    assert outliers is not None and monitor._outliers is None


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_an_alert_stops_the_run_and_the_best_checkpoint_is_kept(tmp_path, caplog, kind):
    """
    The outputs turn malformed in the third rollout. The alert comes in the fourth, and the run would have six. Every
    rollout is saved, and `save_total_limit=1` keeps only one: that of the second rollout.
    """
    reward = make_reward()

    def is_malformed(prompt, text):
        return reward.num_rollouts >= 3

    limits = {"malformed": 0.5, "same_as_anchor": None} | EXACT
    monitor = PolicyMonitorCallback(reward, is_malformed=is_malformed, limits=limits, stop=True)
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    if kind == "ppo":
        trainer = ppo_trainer(tmp_path, reward_funcs=[reward], callbacks=[monitor], total_episodes=24, **settings)
        steps = trainer.args.steps_per_rollout
    else:
        trainer = trl_trainer(tmp_path, kind, reward, [monitor], max_steps=6, **settings)
        steps = 1
    trainer.train()
    assert trainer.state.global_step == 4 * steps and reward.num_rollouts == 4
    best = tmp_path / f"checkpoint-{2 * steps}"
    assert list(tmp_path.glob("checkpoint-*")) == [best] and (best / "model.safetensors").exists()
    (message,) = [record.getMessage() for record in caplog.records if "The signal" in record.getMessage()]
    assert message.endswith(f"The run stops. Best checkpoint: {best}")
