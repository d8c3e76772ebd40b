"""When a reward model is refined while a policy trains, and what the run sees of it."""

import logging
import re
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

import trl_rlp.trainer.callbacks.reward_refinement as refinement_module
import trl_rlp.trainer.callbacks.reward_refinement_callback as callback_module
from tests.ppo_runs import has_changed, ppo_trainer, prompts, weights
from tests.refinement_runs import SameParity, anchors, policy_trainer, refinable_reward, refinement
from tests.reward_runs import preferences, synthetic_preferences
from tests.tiny_models import tiny_reward_model, tiny_tokenizer
from trl_rlp.data.anchors.comparison import AnchorComparison
from trl_rlp.rewards.refinable_reward import RefinableReward
from trl_rlp.rewards.semantic_anchor_reward import SemanticAnchorReward
from trl_rlp.trainer.callbacks.reward_refinement_callback import RewardRefinementCallback


KINDS = ("grpo", "rloo", "ppo")
CLOCK = ("time", "runtime", "second", "eps")


def build_trainer(folder, kind: str, reward_funcs, callbacks=None, **settings):
    """Builds a trainer of four rollouts with two completions for each of two prompts."""
    if kind == "ppo":
        arguments = {"total_episodes": 16, "num_generations": 2, "callbacks": callbacks, "kl_coef": 0.1}
        return ppo_trainer(folder, reward_funcs=reward_funcs, **{**arguments, **settings})
    return policy_trainer(folder, reward_funcs, kind, callbacks=callbacks, **{"max_steps": 4, **settings})


def get_log(trainer) -> list[dict]:
    """Returns the log of the policy's run without timings and without what refinements add."""
    return [
        {name: value for name, value in row.items() if "refinement" not in name and not any(c in name for c in CLOCK)}
        for row in trainer.state.log_history
    ]


def refinement_logs(trainer) -> list[dict]:
    """Returns the metrics of refinements, by the number of the log entry."""
    prefix = "refinement/"
    rows = [{k.removeprefix(prefix): v for k, v in row.items() if prefix in k} for row in trainer.state.log_history]
    return [{**row, "entry": entry} for entry, row in enumerate(rows) if row]


def pretend_to_train(monkeypatch, factor: float = 2.0):
    """Replaces the training of the reward model. The new model's rewards are the old ones times a factor."""

    def train(self, samples):
        weights = {name: tensor.clone() for name, tensor in self.reward.model.state_dict().items()}
        weights["score.weight"] *= factor
        return weights

    monkeypatch.setattr(refinement_module.RewardRefinement, "train", train)


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_rollout_is_scored_by_the_refined_model(tmp_path, kind):
    """The first rollouts are those of a run without the callback. So is the third one's text, but not its reward."""
    plain = build_trainer(tmp_path / "plain", kind, [refinable_reward()])
    plain.train()
    reward = refinable_reward()
    before = weights(reward.model)
    anchor_reward = SemanticAnchorReward(anchors(), SameParity())
    callback = refinement(
        tmp_path, reward, comparison=anchor_reward.comparison, synthetic_dataset=synthetic_preferences()
    )
    settings = {"reward_weights": [1.0, 0.0]}
    trainer = build_trainer(tmp_path / "refined", kind, [reward, anchor_reward], [callback], **settings)
    trainer.train()
    assert callback.num_accepted == 1 and callback.num_skipped == 0
    assert any(not torch.equal(weight, before[name]) for name, weight in reward.model.named_parameters())
    assert (reward.mean, reward.standard_deviation) != (0.0, 1.0)
    name, rows, others = "rewards/reward_model/mean", get_log(trainer), get_log(plain)
    assert [row[name] for row in rows[:2]] == [row[name] for row in others[:2]]
    assert rows[2][name] != others[2][name] and rows[2]["num_tokens"] == others[2]["num_tokens"]
    (logged,) = refinement_logs(trainer)
    assert logged["entry"] == 2 and logged["accepted"] == logged["count"] == 1 and logged["skipped"] == 0
    assert logged["pairs"] == logged["new_pairs"] + 3 and logged["new_pairs"] > 0 and logged["seconds"] > 0
    assert {"shift", "disagreement", "heldout_accuracy_before", "heldout_accuracy_after"} < set(logged)


@pytest.mark.parametrize("kind", KINDS)
def test_the_policy_may_be_an_adapter_and_the_reward_model_compiled(tmp_path, kind):
    """Only the reward model's plain weights change, on both sides of the compiled model."""
    reward = refinable_reward()
    plain, before = reward.model, weights(reward.model)
    reward.model = torch.compile(reward.model, backend="eager")
    adapter = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"])
    trainer = build_trainer(tmp_path, kind, [reward], [refinement(tmp_path, reward)], peft_config=adapter)
    trainer.train()
    assert has_changed(plain, before) and reward.plain_model is plain
    assert [row["accepted"] for row in refinement_logs(trainer)] == [1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_whose_refinements_are_refused_is_a_run_without_them(tmp_path, kind, monkeypatch, caplog):
    monkeypatch.setattr(refinement_module, "fell_beyond_chance", lambda difference: True)
    plain = build_trainer(tmp_path / "plain", kind, [refinable_reward()], logging_steps=1)
    plain.train()
    reward = refinable_reward()
    before = weights(reward.model)
    callback = refinement(tmp_path, reward, "uml+spg", max_steps=1)
    trainer = build_trainer(tmp_path / "refined", kind, [reward], [callback], logging_steps=1)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert callback.num_accepted == 0 and callback.num_skipped == 0
    assert "A refined reward model was refused: its accuracy on held-out pairs fell" in caplog.text
    assert (reward.mean, reward.standard_deviation) == (0.0, 1.0)
    assert all(torch.equal(weight, before[name]) for name, weight in reward.model.named_parameters())
    assert get_log(trainer) == get_log(plain)
    expected = weights(plain.model)
    assert all(torch.equal(weight, expected[name]) for name, weight in trainer.model.named_parameters())
    (logged,) = refinement_logs(trainer)
    assert logged["accepted"] == logged["count"] == 0 and "shift" not in logged


@pytest.mark.parametrize(
    "base_model", [None, lambda: tiny_reward_model(tiny_tokenizer(), seed=3)], ids=["warm", "start"]
)
@pytest.mark.parametrize("method", ["spg", "uml", "uml+spg"])
def test_every_method_refines(tmp_path, method, base_model):
    reward = refinable_reward()
    before = weights(reward.model)
    callback = refinement(tmp_path, reward, method, base_model=base_model)
    trainer = build_trainer(tmp_path / "run", "grpo", [reward], [callback], max_steps=3)
    trainer.train()
    assert callback.num_accepted == 1
    assert any(not torch.equal(weight, before[name]) for name, weight in reward.model.named_parameters())
    assert ("new_pairs" in refinement_logs(trainer)[0]) == ("spg" in method)


def test_published_groups_of_recorded_rollouts(tmp_path):
    """With four completions a prompt, groups of the current policy make pairs, without any anchor."""
    tokenizer = tiny_tokenizer()
    every_token = range(len(tokenizer))  # the policy rarely samples EOS, and y_w must be finished
    reward = RefinableReward(tiny_reward_model(tokenizer, seed=3), tokenizer, every_token)
    callback = refinement(tmp_path, reward, equivalence=SameParity(), every=2, confidence_threshold=0.5)
    settings = {"num_generations": 4, "per_device_train_batch_size": 8, "max_steps": 3}
    build_trainer(tmp_path / "run", "grpo", [reward], [callback], **settings).train()
    assert callback.num_accepted == 1


def test_hosts_that_share_no_folder_are_an_error_before_the_training(tmp_path, monkeypatch):
    def refuse():
        raise ValueError("Set the environment variable TMPDIR")

    monkeypatch.setattr(callback_module, "require_shared_temporary_folder", refuse)
    reward = refinable_reward()
    callback = refinement(tmp_path, reward, equivalence=SameParity(), confidence_threshold=0.5)
    trainer = build_trainer(tmp_path, "grpo", [reward], [callback])
    with pytest.raises(ValueError, match="TMPDIR"):
        trainer.train()
    assert trainer.state.global_step == 0


def run_schedule(folder, monkeypatch, kind="grpo", every=2, **settings) -> tuple[list, RewardRefinementCallback]:
    """Returns the number of rollouts and the step at each refinement."""
    times = []
    reward = refinable_reward()
    callback = refinement(folder, reward, every=every)
    monkeypatch.setattr(
        callback, "_run_refinement", lambda: times.append((reward.num_rollouts, trainer.state.global_step)) or {}
    )
    trainer = build_trainer(folder / "run", kind, [reward], [callback], **settings)
    trainer.train()
    return times, callback


@pytest.mark.parametrize(
    "kind, every, settings, expected",
    [
        ("grpo", 1, {"max_steps": 4}, [(1, 1), (2, 2), (3, 3)]),
        ("rloo", 2, {"max_steps": 5}, [(2, 2), (4, 4)]),
        ("grpo", 2, {"max_steps": 4}, [(2, 2)]),  # none after the last rollout
        # Two steps for each rollout: rollouts start in steps 1, 3 and 5. The third is the last.
        ("grpo", 1, {"max_steps": 6, "num_iterations": 2}, [(1, 1), (2, 3)]),
        # Two steps for each rollout of four micro-batches.
        ("grpo", 1, {"max_steps": 3, "steps_per_generation": 2}, [(1, 1)]),
        # PPO: two epochs, so a rollout ends with steps 2, 4 and 6, where its critic is up to date.
        ("ppo", 1, {"total_episodes": 12}, [(1, 2), (2, 4)]),
    ],
)
def test_refinements_come_every_k_rollouts(tmp_path, monkeypatch, kind, every, settings, expected):
    times, _ = run_schedule(tmp_path, monkeypatch, kind, every, **settings)
    assert times == expected


def test_evaluation_is_not_a_rollout(tmp_path, monkeypatch):
    reward = refinable_reward()
    callback = refinement(tmp_path, reward, every=2)
    monkeypatch.setattr(callback, "_run_refinement", dict)
    trainer = build_trainer(tmp_path / "run", "grpo", [reward], [callback], max_steps=2)
    trainer.eval_dataset = prompts(2)
    trainer.evaluate()
    trainer.train()
    assert reward.num_rollouts == 2


def test_drift_by_hand(tmp_path):
    """
    The first rollout has rewards 0 and 2: mean 1, sd 1. At a threshold of 1.5, a mean of 2.4 is no drift, and 2.6 is.
    After a refinement, the next rollout is the first one.
    """
    reward = refinable_reward()
    callback = refinement(tmp_path, reward, drift_threshold=1.5)

    def has_drifted(*rewards: float) -> bool:
        row = {"prompt": "x", "completion": "y", "finished": True}
        reward.buffer.add([{**row, "reward": value} for value in rewards])
        return callback._has_drifted(1)

    assert not callback._has_drifted(0)
    assert not has_drifted(0.0, 2.0)
    assert not has_drifted(2.4, 2.4)
    assert has_drifted(2.6, 2.6) and has_drifted(-0.6, -0.6)
    assert callback._has_drifted(0)  # until the end of the rollout, where a refinement can be
    callback._baseline = None
    assert not has_drifted(9.0, 9.0)


def test_drift_of_finite_rewards_only(tmp_path):
    """Rewards 0, 2 and infinity have the mean 1 and the sd 1 of the first two. A rollout may have no finite reward."""
    reward = refinable_reward()
    callback = refinement(tmp_path, reward, drift_threshold=1.5)
    row = {"prompt": "x", "completion": "y", "finished": True}
    infinity = float("inf")
    for rewards, expected in (([infinity], False), ([0, 2, infinity], False), ([infinity], False), ([], False)):
        reward.buffer.add([{**row, "reward": value} for value in rewards])
        assert callback._has_drifted(1) == expected
    assert callback._baseline == (1.0, 1.0)
    reward.buffer.add([{**row, "reward": value} for value in (2.6, -infinity)])
    assert callback._has_drifted(1)


def test_drift_brings_a_refinement_forward(tmp_path, monkeypatch):
    reward = refinable_reward()
    callback = refinement(tmp_path, reward, every=100, drift_threshold=1e-9)
    steps = []
    monkeypatch.setattr(callback, "_run_refinement", lambda: steps.append(reward.num_rollouts) or {})
    build_trainer(tmp_path / "run", "grpo", [reward], [callback], max_steps=5).train()
    assert steps == [2, 4]


@pytest.mark.parametrize(
    "every, expected",
    [
        (4, "`every` is 4, but this run has 4 rollouts .*so there are 0 refinements by this schedule"),
        (3, "Refinements of the reward model by this schedule: 1 in 4 rollouts"),
        (1, "Refinements of the reward model by this schedule: 3 in 4 rollouts"),
    ],
)
def test_the_number_of_refinements_is_said_before_the_run(tmp_path, monkeypatch, caplog, every, expected):
    with caplog.at_level(logging.INFO):
        times, _ = run_schedule(tmp_path, monkeypatch, every=every, max_steps=4)
    (message,) = [r.getMessage() for r in caplog.records if "by this schedule" in r.getMessage()]
    assert len(times) == 3 // every
    assert re.search(expected, message)


def test_a_buffer_smaller_than_a_window_is_a_warning(tmp_path, monkeypatch, caplog):
    reward = refinable_reward(buffer_size=9)
    callback = refinement(tmp_path, reward, every=3)
    monkeypatch.setattr(callback, "_run_refinement", dict)
    with caplog.at_level(logging.WARNING):
        build_trainer(tmp_path / "run", "grpo", [reward], [callback]).train()
    assert "`buffer_size`=9 of the `RefinableReward` holds 2 rollouts, but a refinement comes every 3" in caplog.text
    assert "Raise it to 12." in caplog.text


class FailingEquivalence(SameParity):
    """It fails in some of its calls, which are numbered from 0."""

    def __init__(self, *failures: int):
        self.failures, self.calls = failures, 0

    def are_equivalent(self, prompts, firsts, seconds):
        self.calls += 1
        if self.calls - 1 in self.failures:
            raise ConnectionError("The server is gone.")
        return super().are_equivalent(prompts, firsts, seconds)


def test_a_failing_equivalence_skips_a_refinement(tmp_path, monkeypatch, caplog):
    """The completions of the skipped refinement are used by the next one."""
    pretend_to_train(monkeypatch)
    reward = refinable_reward()
    comparison = AnchorComparison(anchors(), FailingEquivalence(0, 2, 3))
    callback = refinement(tmp_path, reward, comparison=comparison, every=1)
    trainer = build_trainer(tmp_path / "run", "grpo", [reward], [callback], max_steps=6)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert (callback.num_accepted, callback.num_skipped) == (2, 3)
    assert (
        "was skipped. The next one gets its completions. Reason: ConnectionError: The server is gone." in caplog.text
    )
    logged = refinement_logs(trainer)
    assert [row["skipped"] for row in logged] == [1, 1, 2, 3, 3]
    # A rollout has two prompts. More pairs are from the rollouts before.
    assert [row.get("new_pairs", 0) > 2 for row in logged] == [False, True, False, False, True]
    assert [row["count"] for row in logged] == [0, 1, 1, 1, 2]


def test_three_failures_in_a_row_stop_the_run(tmp_path):
    reward = refinable_reward()
    comparison = AnchorComparison(anchors(), FailingEquivalence(*range(9)))
    callback = refinement(tmp_path, reward, comparison=comparison, every=1)
    trainer = build_trainer(tmp_path / "run", "grpo", [reward], [callback], max_steps=6)
    with pytest.raises(
        RuntimeError, match="3 refinements in a row failed.*ConnectionError: The server is gone"
    ) as caught:
        trainer.train()
    assert isinstance(caught.value.__cause__, ConnectionError) and trainer.state.global_step == 3


def test_a_window_without_pairs_is_skipped_and_no_failure(tmp_path, caplog):
    """Anchors that every completion means leave no rejected completion."""
    reward = refinable_reward()
    rows = {"prompt": prompts()["prompt"][:], "completions": [["2"] * 4] * 8, "finished": [[True] * 4] * 8}

    class AllEqual(SameParity):
        def are_equivalent(self, prompts, firsts, seconds):
            return [True] * len(prompts)

    semantic_anchors = type(anchors()).from_samples(Dataset.from_dict(rows), AllEqual())
    callback = refinement(tmp_path, reward, anchors=semantic_anchors, equivalence=AllEqual(), every=1)
    trainer = build_trainer(tmp_path / "run", "grpo", [reward], [callback], max_steps=6)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert (callback.num_accepted, callback.num_skipped) == (0, 5) and "has a pair" in caplog.text


def test_nan_keeps_the_old_model(tmp_path, monkeypatch, caplog):
    pretend_to_train(monkeypatch, factor=float("nan"))
    reward = refinable_reward()
    before = weights(reward.model)
    callback = refinement(tmp_path, reward)
    trainer = build_trainer(tmp_path / "run", "grpo", [reward], [callback])
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert "A refined reward model was refused: its weights are NaN or infinite. The run continues" in caplog.text
    assert all(torch.equal(weight, before[name]) for name, weight in reward.model.named_parameters())
    assert refinement_logs(trainer)[0]["accepted"] == 0


def test_fixed_samples_are_those_of_the_user_or_the_first_rollout(tmp_path, monkeypatch):
    pretend_to_train(monkeypatch)
    seen = []
    replace = refinement_module.RewardRefinement.replace_unless_worse
    monkeypatch.setattr(
        refinement_module.RewardRefinement,
        "replace_unless_worse",
        lambda self, weights, reference: seen.append(reference) or replace(self, weights, reference),
    )
    given = Dataset.from_dict({"prompt": ["a"], "completions": [["x", "y"]], "finished": [[True, False]]})
    for number, reference in enumerate((None, given)):
        reward = refinable_reward()
        callback = refinement(tmp_path, reward, reference_samples=reference)
        settings = {"max_steps": 6 if reference is None else 4}
        build_trainer(tmp_path / str(number), "grpo", [reward], [callback], **settings).train()
    assert len(seen) == 3
    assert seen[0] is seen[1] and sum(map(len, seen[0]["completions"])) == 4
    assert seen[2]["completions"][:] == [["x", "y"]]


def test_a_second_run_starts_anew(tmp_path, monkeypatch):
    pretend_to_train(monkeypatch)
    reward = refinable_reward()
    callback = refinement(tmp_path, reward)
    trainer = build_trainer(tmp_path / "run", "grpo", [reward], [callback])
    for _ in range(2):
        trainer.train()
        assert callback.num_accepted == 1 and len(callback._refinement.pair_windows) == 1
        # As after a run that failed: a rollout was not collected, and metrics were not logged.
        reward._records.append([{"prompt": "x", "completion": "y", "finished": True, "reward": 9.0}])
        reward.report({"refinement/seconds": -1.0})
    logged = [row["refinement/seconds"] for row in trainer.state.log_history if "refinement/seconds" in row]
    assert len(logged) == 1 and logged[0] > 0 and callback._reference["prompt"][:] != ["x"]


def test_two_rewards_are_refined_and_resume(tmp_path, monkeypatch):
    pretend_to_train(monkeypatch)
    settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 2}

    def build(*names):
        rewards = [refinable_reward(name=name) for name in names]
        callbacks = [refinement(tmp_path, reward) for reward in rewards]
        return build_trainer(tmp_path / "run", "grpo", rewards, callbacks, **settings), rewards

    with pytest.raises(ValueError, match="2 callbacks have the names"):
        build("a", "a")[0].train()
    trainer, rewards = build("a", "b")
    trainer.train()
    resumed, restored = build("a", "b")
    resumed.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))
    for reward, other, initial in zip(rewards, restored, (refinable_reward(),) * 2, strict=True):
        assert torch.equal(reward.model.score.weight, 2 * initial.model.score.weight)
        assert torch.equal(reward.model.score.weight, other.model.score.weight)


def test_the_reward_must_be_one_of_the_trainer(tmp_path):
    callback = refinement(tmp_path, refinable_reward())
    trainer = build_trainer(tmp_path / "run", "grpo", [refinable_reward()], [callback])
    with pytest.raises(ValueError, match="`reward` scored nothing in the first rollout of the run. Pass the same"):
        trainer.train()


def test_errors_come_before_training(tmp_path):
    reward = refinable_reward()
    with pytest.raises(ValueError, match="`num_generations` is 2.*|`buffer_size` of the `RefinableReward` is 2"):
        small = refinable_reward(buffer_size=2)
        build_trainer(tmp_path / "small", "grpo", [small], [refinement(tmp_path, small)])
    callback = refinement(
        tmp_path, reward, anchors=anchors(Dataset.from_dict({"prompt": ["other"]})), equivalence=SameParity()
    )
    trainer = build_trainer(tmp_path / "other", "grpo", [reward], [callback])
    with pytest.raises(ValueError, match="None of the 8 prompts of `train_dataset` has a row in `anchors`"):
        trainer.train()
    wide = refinement(tmp_path, reward, base_model=lambda: tiny_reward_model(tiny_tokenizer(), hidden_size=8))
    trainer = build_trainer(tmp_path / "wide", "grpo", [reward], [wide])
    with pytest.raises(ValueError, match="The weights of `base_model` do not fit the reward model"):
        trainer.train()
    assert reward.num_rollouts == 0


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (
            {"method": "uml", "synthetic_dataset": synthetic_preferences()},
            ValueError,
            "`synthetic_dataset` is not used",
        ),
        ({"every": 0}, ValueError, "`every` must be at least 1"),
        ({"base_model": tiny_reward_model(tiny_tokenizer())}, TypeError, "`base_model` must be a folder"),
        ({"synthetic_dataset": "pairs.jsonl"}, TypeError, "`synthetic_dataset` must be a `datasets.Dataset`, got"),
        ({"synthetic_dataset": prompts()}, ValueError, "`synthetic_dataset` lacks the columns"),
        ({"reference_samples": preferences()}, ValueError, "`reference_samples` lacks the columns"),
        ({"eval_preference_dataset": prompts()}, ValueError, "`eval_preference_dataset` lacks the columns"),
        ({"preference_dataset": prompts()}, ValueError, "`preference_dataset` lacks the columns"),
    ],
)
def test_arguments_that_do_not_fit(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        refinement(tmp_path, refinable_reward(), **arguments)


def test_a_checkpoint_of_a_run_without_the_callback_is_refused(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2}
    build_trainer(tmp_path / "run", "grpo", [refinable_reward()], max_steps=2, **settings).train()
    reward = refinable_reward()
    trainer = build_trainer(tmp_path / "run", "grpo", [reward], [refinement(tmp_path, reward)], **settings)
    with pytest.raises(ValueError, match="is a checkpoint of a run without `RewardRefinementCallback`"):
        trainer.train(resume_from_checkpoint=True)


def test_the_state_is_written_only_into_a_checkpoint(tmp_path):
    callback = refinement(tmp_path, refinable_reward())
    assert callback.state() == {"folder": None, "reward": "reward_model"}
    callback._run = SimpleNamespace(output_dir=str(tmp_path), save_only_model=False), SimpleNamespace(global_step=3)
    callback._saved_step = None
    assert callback.state()["folder"] == str(tmp_path / "checkpoint-3")
    assert not (tmp_path / "checkpoint-3").exists()
