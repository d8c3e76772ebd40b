"""The state of a PPO run, and its checkpoints: when they are written, and that a resumed run repeats the run."""

import json
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, TrainerCallback

from tests.ppo_runs import has_changed, logged, ppo_config, ppo_trainer, prompts, weights
from tests.tiny_models import tiny_reward_model, tiny_tokenizer
from trl_rlp.losses.ppo import masked_moments
from trl_rlp.storage.precision import cast_weights
from trl_rlp.trainer.checkpoints import last_checkpoint
from trl_rlp.trainer.ppo.ppo_checkpoints import PPOState


# The state


def compute_moments(*scores: float) -> torch.Tensor:
    column = torch.tensor(scores)[:, None]
    return masked_moments(column, torch.ones_like(column, dtype=torch.bool))


def test_statistics_are_those_of_all_scores_of_all_processes():
    state = PPOState(0.1)
    state.add_scores(torch.stack([compute_moments(1.0, 5.0), compute_moments(3.0)]))
    std = state.add_scores(torch.stack([compute_moments(-2.0), compute_moments(8.0, 0.0, 2.0)]))
    scores = torch.tensor([1.0, 5.0, 3.0, -2.0, 8.0, 0.0, 2.0])
    assert std == pytest.approx(scores.std(unbiased=False).item(), rel=1e-6)
    assert (state.score_count, state.score_mean) == (7, pytest.approx(scores.mean().item()))


def test_equal_scores_are_divided_by_one():
    assert PPOState(0.1).add_scores(compute_moments(2.0, 2.0)[None]) == 1.0


def test_scores_are_divided_by_one_before_any_finite_score():
    state = PPOState(0.1)
    assert state.add_scores(compute_moments()[None]) == 1.0 and state.score_count == 0


def test_adaptive_kl_coef_follows_its_target(tmp_path):
    """With 4 completions per rollout, horizon 100 and an error clipped to 0.2, it changes by 0.2 * 4 / 100."""
    args = ppo_config(tmp_path, adaptive_kl=True, kl_target=2.0, kl_horizon=100)
    args.batch_size = 4
    state = PPOState(0.1)
    state.adapt_kl_coef(10.0, args)
    assert state.kl_coef == pytest.approx(0.1 * 1.008)
    state.adapt_kl_coef(0.0, args)
    assert state.kl_coef == pytest.approx(0.1 * 1.008 * 0.992)


def test_fixed_kl_coef_stays_the_same(tmp_path):
    state = PPOState(0.1)
    state.adapt_kl_coef(10.0, ppo_config(tmp_path))
    assert state.kl_coef == 0.1


def test_restored_state_equals_the_saved_state(tmp_path):
    state = PPOState(0.1, 3, 12.0, 0.1, 7.3, 2, 1, value_shift=-0.7)
    state.save(tmp_path)
    restored = PPOState(0.5)
    restored.restore(tmp_path)
    assert restored == state


def test_state_of_before_value_shift_is_restored(tmp_path):
    (tmp_path / "ppo_state.json").write_text(json.dumps({"kl_coef": 0.1, "rollouts": 3, "steps_per_rollout": 0}))
    state = PPOState(0.5)
    state.restore(tmp_path)
    assert state == PPOState(0.1, rollouts=3)


def test_shift_moves_the_mean_of_all_scores_but_not_their_spread():
    """Scores 1, 5 and 3 have the mean 3 and the squares 4 + 4 + 0. The weighted shifts are 2 and -0.5."""
    state = PPOState(0.1)
    state.add_scores(compute_moments(1.0, 5.0, 3.0)[None])
    state.shift_values(2.0)
    state.shift_values(-0.5)
    assert (state.value_shift, state.score_mean) == (1.5, pytest.approx(4.5))
    assert (state.score_count, state.score_squares) == (3.0, pytest.approx(8.0))


def test_shift_is_in_units_of_normalized_scores_if_scores_are_normalized(tmp_path):
    """The standard deviation of 0 and 4 is 2. Before any score, and if all are equal, it is 1."""
    plain, normalized = ppo_config(tmp_path), ppo_config(tmp_path, normalize_rewards=True)
    state = PPOState(0.1, value_shift=3.0)
    assert (state.shaped_value_shift(plain), state.shaped_value_shift(normalized)) == (3.0, 3.0)
    state.add_scores(compute_moments(2.0, 2.0)[None])
    assert state.shaped_value_shift(normalized) == 3.0
    state = PPOState(0.1, value_shift=3.0)
    state.add_scores(compute_moments(0.0, 4.0)[None])
    assert (state.shaped_value_shift(plain), state.shaped_value_shift(normalized)) == (3.0, 1.5)


def test_folder_without_a_state_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no ppo_state.json, so it was not written by this trainer"):
        PPOState(0.1).restore(tmp_path)


def test_state_with_another_number_of_steps_per_rollout_is_refused(tmp_path):
    PPOState(0.1, steps_per_rollout=4).save(tmp_path)
    with pytest.raises(ValueError, match="is from a run with 4 optimizer steps per rollout, but this run has 2"):
        PPOState(0.1, steps_per_rollout=2).restore(tmp_path)


# When a checkpoint is written


class RequestSave(TrainerCallback):
    """Requests a checkpoint at one step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save |= state.global_step == self.step


@pytest.mark.parametrize("save_steps", [1, 2, 0.4])
def test_checkpoints_are_written_between_rollouts(tmp_path, save_steps):
    trainer = ppo_trainer(tmp_path, save_strategy="steps", save_steps=save_steps, num_mini_batches=2)
    trainer.train()
    steps = [int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*")]
    assert steps and all(step % 4 == 0 for step in steps)


def test_checkpoint_requested_within_a_rollout_waits_for_its_end(tmp_path):
    trainer = ppo_trainer(tmp_path)
    trainer.add_callback(RequestSave(3))
    trainer.train()
    assert "checkpoint-3" not in {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "checkpoint-4" / "ppo_state.json").is_file()


def test_checkpoint_requested_between_micro_batches_waits_for_the_end_of_the_rollout(tmp_path):
    class RequestSaveInStep(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            self.step = state.global_step

        def on_substep_end(self, args, state, control, **kwargs):
            control.should_save = self.step == 4

    settings = {"num_mini_batches": 2, "gradient_accumulation_steps": 4}
    trainer = ppo_trainer(tmp_path, callbacks=[RequestSaveInStep()], **settings)
    trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] in (["checkpoint-8"], [])


def test_sigterm_of_another_process_stops_the_run_at_the_same_step(tmp_path):
    """The other process has received SIGTERM when the second rollout ends. This process has not."""
    trainer = ppo_trainer(tmp_path, enable_jit_checkpoint=True)
    counts = iter([0.0, 1.0])
    trainer._checkpoints.accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        reduce=lambda count, reduction: count + next(counts),
        unwrap_model=trainer.accelerator.unwrap_model,
        distributed_type=trainer.accelerator.distributed_type,
        is_main_process=True,
    )
    trainer.train()
    assert trainer.state.global_step == 4
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")


def test_checkpoint_at_the_end_of_an_epoch_waits_for_a_good_step(tmp_path):
    """An epoch has two rollouts. The second rollout is not finite, so the checkpoint waits for the third."""
    calls = []

    def reward(completions, **kwargs):
        calls.append(1)
        return [float("inf") if len(calls) == 2 else 1.0] * len(completions)

    settings = {"save_strategy": "epoch", "total_episodes": 16}
    trainer = ppo_trainer(tmp_path, reward_funcs=[reward], **settings)
    trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-8"]


def test_checkpoint_has_the_value_model(tmp_path):
    trainer = ppo_trainer(tmp_path, save_strategy="steps", save_steps=3)
    trainer.train()
    folder = tmp_path / "checkpoint-6"
    saved = AutoModelForSequenceClassification.from_pretrained(folder / "value_model")
    assert not has_changed(saved, weights(trainer.value_model))
    assert json.loads((folder / "ppo_state.json").read_text())["rollouts"] == 3


# Resuming


RESUMED = {
    "plain": {},
    "second epoch": {"data": prompts(4), "total_episodes": 16},
    "second epoch of a stream": {"data": prompts(6).to_iterable_dataset(), "total_episodes": 16},
    "evaluation in each epoch": {
        "data": prompts(5),
        "total_episodes": 20,
        "eval_strategy": "epoch",
        "eval_dataset": prompts(3),
    },
    "log every second rollout": {"logging_steps": 2, "total_episodes": 20},
    "log every second rollout, save the best": {
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
def test_resumed_run_has_the_log_and_the_weights_of_an_uninterrupted_run(tmp_path, settings):
    settings = {"save_strategy": "steps", "save_steps": 1, **settings}
    uninterrupted = ppo_trainer(tmp_path, **settings)
    uninterrupted.train()
    checkpoints = sorted(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert len(checkpoints) >= 3
    for checkpoint in checkpoints[:-1]:
        resumed = ppo_trainer(tmp_path, **settings)
        resumed.train(resume_from_checkpoint=str(checkpoint))
        assert logged(resumed)[:-1] == logged(uninterrupted)[:-1]
        assert not has_changed(resumed.model, weights(uninterrupted.model))
        assert not has_changed(resumed.value_model, weights(uninterrupted.value_model))


def test_resumed_score_head_is_not_rounded_to_the_dtype_of_the_other_weights(tmp_path):
    """As in a value model from `load_reward_model` on an accelerator."""
    trainers = []
    for _ in range(2):
        value_model = tiny_reward_model(tiny_tokenizer(), seed=5)
        cast_weights(value_model, torch.bfloat16)
        trainers.append(ppo_trainer(tmp_path, value_model=value_model, save_strategy="steps", save_steps=3))
    finished, resumed = trainers
    finished.train()
    resumed.train(resume_from_checkpoint=True)
    assert finished.value_model.score.weight.dtype == torch.float32
    assert not has_changed(resumed.value_model, weights(finished.value_model))


@pytest.mark.parametrize("data", [prompts(8), prompts(6).to_iterable_dataset()], ids=["within an epoch", "stream"])
def test_finished_run_takes_no_further_step(tmp_path, data):
    settings = {"data": data, "lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 1}
    finished = ppo_trainer(tmp_path, **settings)
    finished.train()
    resumed = ppo_trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == finished.state.global_step == 6
    assert not has_changed(resumed.model, weights(finished.model))


def test_checkpoint_of_another_trainer_is_refused(tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text("{}")
    with pytest.raises(ValueError, match="has no ppo_state.json"):
        ppo_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_checkpoint_of_a_run_with_another_number_of_steps_per_rollout_is_refused(tmp_path):
    ppo_trainer(tmp_path, save_strategy="steps", save_steps=1).train()
    with pytest.raises(ValueError, match="from a run with 2 optimizer steps per rollout, but this run has 3"):
        ppo_trainer(tmp_path, num_ppo_epochs=3).train(resume_from_checkpoint=True)


def test_interrupted_checkpoint_does_not_delete_the_older_one(tmp_path, monkeypatch):
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    uninterrupted = ppo_trainer(tmp_path / "uninterrupted", **settings)
    uninterrupted.train()
    trainer = ppo_trainer(tmp_path / "run", **settings)

    def interrupt(folder):
        raise KeyboardInterrupt

    class InterruptSave(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                monkeypatch.setattr(trainer.ppo_state, "save", interrupt)

    trainer.add_callback(InterruptSave())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    resumed = ppo_trainer(tmp_path / "run", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert logged(resumed)[:-1] == logged(uninterrupted)[:-1]


def test_incomplete_checkpoint_in_the_folder_of_an_older_one_is_not_used(tmp_path, monkeypatch):
    """The second run in a folder is interrupted while it overwrites a checkpoint of the first run."""
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
