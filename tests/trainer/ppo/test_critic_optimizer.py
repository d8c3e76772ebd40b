import json

import pytest
import torch
from peft import LoraConfig
from transformers import (
    AutoModelForSequenceClassification,
    TrainerCallback,
)

from tests.ppo_runs import has_changed, logged, ppo_trainer, prompts, weights
from trl_rlp.trainer.checkpoints import last_checkpoint


def test_the_critic_may_learn_alone_at_first(tmp_path):
    trainer = ppo_trainer(tmp_path, value_warmup_rollouts=3)
    policy, critic = weights(trainer.model), weights(trainer.value_model)
    trainer.train()
    assert not has_changed(trainer.model, policy) and has_changed(trainer.value_model, critic)


RESUMED = {
    "plain": {},
    "in the second pass": {"data": prompts(4), "total_episodes": 16},
    "in the second pass of a stream": {"data": prompts(6).to_iterable_dataset(), "total_episodes": 16},
    "evaluated passes": {
        "data": prompts(5),
        "total_episodes": 20,
        "eval_strategy": "epoch",
        "eval_dataset": prompts(3),
    },
    "rare logs": {"logging_steps": 2, "total_episodes": 20},
    "rare logs of a best step": {
        "logging_steps": 2,
        "total_episodes": 20,
        "save_strategy": "best",
        "metric_for_best_model": "eval_objective/rlhf_reward",
        "eval_strategy": "steps",
        "eval_steps": 1,
        "eval_dataset": prompts(2),
    },
    "running state": {"adaptive_kl": True, "kl_horizon": 20, "normalize_rewards": True, "num_mini_batches": 2},
    "adapters": {
        "peft_config": LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        "value_peft_config": LoraConfig(r=2, target_modules=["q_proj"]),
    },
}


@pytest.mark.parametrize("settings", RESUMED.values(), ids=RESUMED)
def test_a_resumed_run_logs_what_a_straight_one_does(tmp_path, settings):
    settings = {"save_strategy": "steps", "save_steps": 1, **settings}
    straight = ppo_trainer(tmp_path, **settings)
    straight.train()
    checkpoints = sorted(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert len(checkpoints) >= 3
    for checkpoint in checkpoints[:-1]:
        resumed = ppo_trainer(tmp_path, **settings)
        resumed.train(resume_from_checkpoint=str(checkpoint))
        assert logged(resumed)[:-1] == logged(straight)[:-1]
        assert not has_changed(resumed.model, weights(straight.model))
        assert not has_changed(resumed.value_model, weights(straight.value_model))


def test_a_finished_run_on_a_stream_takes_no_further_step(tmp_path):
    settings = {"data": prompts(6).to_iterable_dataset(), "lr_scheduler_type": "constant"}
    settings |= {"save_strategy": "steps", "save_steps": 1}
    finished = ppo_trainer(tmp_path, **settings)
    finished.train()
    again = ppo_trainer(tmp_path, **settings)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == finished.state.global_step == 6
    assert not has_changed(again.model, weights(finished.model))


@pytest.mark.parametrize("save_steps", [1, 2, 0.4])
def test_checkpoints_fall_between_rollouts(tmp_path, save_steps):
    trainer = ppo_trainer(tmp_path, save_strategy="steps", save_steps=save_steps, num_mini_batches=2)
    trainer.train()
    steps = [int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*")]
    assert steps and all(step % 4 == 0 for step in steps)


def test_a_checkpoint_that_is_asked_for_in_a_rollout_waits_for_its_end(tmp_path):
    class Impatient(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            self.step = state.global_step

        def on_substep_end(self, args, state, control, **kwargs):
            control.should_save = self.step == 4

    trainer = ppo_trainer(tmp_path, num_mini_batches=2, gradient_accumulation_steps=4, callbacks=[Impatient()])
    trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] in (["checkpoint-8"], [])


def test_a_checkpoint_holds_the_value_model(tmp_path):
    trainer = ppo_trainer(tmp_path, save_strategy="steps", save_steps=3)
    trainer.train()
    folder = tmp_path / "checkpoint-6"
    again = AutoModelForSequenceClassification.from_pretrained(folder / "value_model")
    assert not has_changed(again, weights(trainer.value_model))
    assert json.loads((folder / "ppo_state.json").read_text())["rollouts"] == 3


def test_a_foreign_checkpoint_is_refused(tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    with pytest.raises(ValueError, match="has no ppo_state.json"):
        ppo_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_rollout_that_is_not_finite_is_skipped_and_counted(tmp_path):
    calls = []

    def reward(completions, **kwargs):
        calls.append(1)
        return [float("nan") if len(calls) == 2 else 1.0] * len(completions)

    trainer = ppo_trainer(tmp_path, reward_funcs=[reward], normalize_rewards=True)
    trainer.train()
    assert [row["skipped_steps"] for row in trainer.state.log_history if "skipped_steps" in row] == [0, 2, 2]
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


def test_three_in_a_row_stop_the_run_and_name_the_last_good_checkpoint(tmp_path):
    calls = []

    def reward(completions, **kwargs):
        calls.append(1)
        return [1.0 if len(calls) == 1 else float("inf")] * len(completions)

    trainer = ppo_trainer(tmp_path, reward_funcs=[reward], save_strategy="steps", save_steps=1, total_episodes=40)
    with pytest.raises(RuntimeError, match=r"3 times in a row a rollout's scores.* not finite.*checkpoint-2\)"):
        trainer.train()


def test_a_loss_that_is_not_finite_moves_nothing(tmp_path):
    trainer = ppo_trainer(tmp_path, total_episodes=4)
    policy, critic = weights(trainer.model), weights(trainer.value_model)
    compute_loss = trainer.compute_loss
    trainer.compute_loss = lambda *args, **kwargs: compute_loss(*args, **kwargs) * float("nan")
    trainer.train()
    assert not has_changed(trainer.model, policy) and not has_changed(trainer.value_model, critic)


@pytest.mark.parametrize("side", ["model", "value_model"])
def test_one_bad_element_of_one_gradient_moves_nothing(tmp_path, side):
    trainer = ppo_trainer(tmp_path, total_episodes=4)
    policy, critic = weights(trainer.model), weights(trainer.value_model)
    norm = next(p for name, p in getattr(trainer, side).named_parameters() if name.endswith("norm.weight"))
    norm.register_hook(lambda grad: grad.index_fill(0, torch.tensor([2]), torch.inf))
    trainer.train()
    assert not has_changed(trainer.model, policy) and not has_changed(trainer.value_model, critic)
    assert trainer.state.log_history[0]["skipped_steps"] == 2


def test_biases_and_norms_of_the_critic_do_not_decay(tmp_path):
    trainer = ppo_trainer(tmp_path, weight_decay=0.1)
    decayed, rest = trainer._critic_optimizer.optimizer.param_groups
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert all(parameter.ndim == 1 for parameter in rest["params"]) and rest["params"]
    assert all(parameter.ndim == 2 for parameter in decayed["params"])


class Saving(TrainerCallback):
    """Asks for a checkpoint at one step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save |= state.global_step == self.step


def test_nobody_saves_within_a_rollout(tmp_path):
    trainer = ppo_trainer(tmp_path)
    trainer.add_callback(Saving(3))
    trainer.train()
    assert "checkpoint-3" not in {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "checkpoint-4" / "ppo_state.json").is_file()


def test_the_end_of_a_pass_after_a_step_left_out_is_no_checkpoint(tmp_path):
    """Two rollouts a pass; the second one is not finite, and the checkpoint waits for the third."""
    calls = []

    def reward(completions, **kwargs):
        calls.append(1)
        return [float("inf") if len(calls) == 2 else 1.0] * len(completions)

    settings = {"save_strategy": "epoch", "total_episodes": 16}
    trainer = ppo_trainer(tmp_path, reward_funcs=[reward], **settings)
    trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-8"]


def test_an_interrupted_checkpoint_costs_no_older_one(tmp_path, monkeypatch):
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    straight = ppo_trainer(tmp_path / "straight", **settings)
    straight.train()
    trainer = ppo_trainer(tmp_path / "run", **settings)

    def interrupt(folder):
        raise KeyboardInterrupt

    class Interrupted(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                monkeypatch.setattr(trainer.ppo_state, "save", interrupt)

    trainer.add_callback(Interrupted())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    again = ppo_trainer(tmp_path / "run", **settings)
    again.train(resume_from_checkpoint=True)
    assert logged(again)[:-1] == logged(straight)[:-1]


def test_other_rollouts_than_the_checkpoint_s_are_refused(tmp_path):
    ppo_trainer(tmp_path, save_strategy="steps", save_steps=1).train()
    with pytest.raises(ValueError, match="of a run with 2 optimizer steps per rollout, but this run has 3"):
        ppo_trainer(tmp_path, num_ppo_epochs=3).train(resume_from_checkpoint=True)


def test_a_checkpoint_of_an_older_run_is_not_taken_for_a_whole_one(tmp_path, monkeypatch):
    """The second run in a folder is killed while it writes over a checkpoint of the first."""
    settings = {"save_strategy": "steps", "save_steps": 1}
    ppo_trainer(tmp_path, **settings).train()
    second = ppo_trainer(tmp_path, seed=7, **settings)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(second, "save_model", interrupt)
    with pytest.raises(KeyboardInterrupt):
        second.train()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6")
    assert not (tmp_path / "checkpoint-2" / "trainer_state.json").exists()


def test_training_again_after_three_bad_rollouts_stops_again(tmp_path):
    def reward(completions, **kwargs):
        return [float("nan")] * len(completions)

    trainer = ppo_trainer(tmp_path, reward_funcs=[reward], total_episodes=40)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="3 times in a row"):
            trainer.train()
        assert trainer.state.global_step < 8
