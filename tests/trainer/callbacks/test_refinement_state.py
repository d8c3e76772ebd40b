"""What a checkpoint holds of a refined reward, and that a new process gets all of it back."""

import json

import pytest
import torch
from datasets import Dataset
from transformers import TrainerState, TrainingArguments

from tests.ppo_runs import weights
from tests.tiny_models import tiny_reward_model, tiny_tokenizer
from trl_rlp.rewards.refinable_reward import RefinableReward
from trl_rlp.trainer.callbacks.refinement_state import FOLDER, find_checkpoint, restore_refinement, save_refinement


CHAT = [{"role": "user", "content": "Who?"}]
WINDOWS = [
    Dataset.from_list([{"chosen_ids": [1, 2], "rejected_ids": [3]}, {"chosen_ids": [4], "rejected_ids": [5]}]).select(
        [1, 0]
    ),
    Dataset.from_list([{"prompt": CHAT, "completions": ["a", "b"], "finished": [True, False], "confidence": None}]),
    Dataset.from_dict({"prompt": []}),
]


def make_reward(seed: int, dtype: torch.dtype = torch.float32, **options) -> RefinableReward:
    tokenizer = tiny_tokenizer()
    return RefinableReward(
        tiny_reward_model(tokenizer, seed).to(dtype), tokenizer, [tokenizer.eos_token_id], **options
    )


def make_refined(dtype: torch.dtype = torch.float32) -> RefinableReward:
    reward = make_reward(3, dtype, mean=1 / 3, standard_deviation=2 / 3)
    reward.num_rollouts = 5
    reward.report({"refinement/accepted": 1.0, "refinement/shift": 0.1})
    reward.buffer.add([{"prompt": CHAT, "completion": "Ada", "finished": True, "reward": 1 / 7}])
    return reward


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_reward_gets_everything_back(tmp_path, dtype):
    reward, shifts = make_refined(dtype), []
    save_refinement(tmp_path, reward, WINDOWS, {"count": 2, "mean": 0.1})
    restored = make_reward(9, dtype)
    restored.subscribe(shifts.append)
    windows, values = restore_refinement(tmp_path, restored)
    assert values == {"count": 2, "mean": 0.1} and shifts == [0.0]
    for window, expected in zip(windows, WINDOWS, strict=True):
        assert window[:] == expected[:] and window.features == expected.features
    before = weights(reward.model)
    for name, weight in restored.model.named_parameters():
        assert weight.dtype == dtype and torch.equal(weight, before[name])
    for name in ("mean", "standard_deviation", "num_rollouts", "pending_metrics"):
        assert getattr(restored, name) == getattr(reward, name)
    assert restored.buffer.state() == reward.buffer.state()


def test_nothing_is_read_from_a_checkpoint_that_is_deleted_later(tmp_path):
    save_refinement(tmp_path, make_refined(), WINDOWS, {})
    windows, _ = restore_refinement(tmp_path, make_reward(9))
    assert all(not window.cache_files for window in windows)


def test_a_checkpoint_in_an_old_folder_is_replaced_and_incomplete_until_the_trainer_completes_it(tmp_path):
    save_refinement(tmp_path, make_refined(), WINDOWS, {})
    (tmp_path / "trainer_state.json").write_text("{}")
    reward = make_refined()
    save_refinement(tmp_path, reward, WINDOWS[:1], {"count": 1})
    assert not (tmp_path / "trainer_state.json").exists()
    names = {path.name for path in (tmp_path / FOLDER / "reward_model").iterdir()}
    assert names == {"reward_model.safetensors", "values.json", "window_0.parquet"}


def test_rewards_of_different_names_do_not_meet(tmp_path):
    first, second = make_refined(), make_reward(4, name="org/style")
    save_refinement(tmp_path, first, [], {"count": 1})
    save_refinement(tmp_path, second, [], {"count": 2})
    assert restore_refinement(tmp_path, make_reward(9))[1] == {"count": 1}
    assert restore_refinement(tmp_path, make_reward(9, name="org/style"))[1] == {"count": 2}


def test_tied_weights_are_saved(tmp_path):
    reward = make_refined()
    reward.model.score.weight.data = reward.model.model.norm.weight.data[None]
    save_refinement(tmp_path, reward, [], {})
    restored = make_reward(9)
    restore_refinement(tmp_path, restored)
    assert torch.equal(restored.model.score.weight, reward.model.score.weight)


def test_checkpoint_without_the_reward_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="has no refined reward 'reward_model', so it was written without `RewardRef"):
        restore_refinement(tmp_path, make_reward(9))


def test_reward_model_of_another_shape_is_an_error(tmp_path):
    save_refinement(tmp_path, make_refined(), [], {})
    tokenizer = tiny_tokenizer()
    other = RefinableReward(tiny_reward_model(tokenizer, hidden_size=8), tokenizer, [1])
    with pytest.raises(ValueError, match="`state_dict` does not fit the reward model"):
        restore_refinement(tmp_path, other)


def write_checkpoint(folder, history) -> TrainerState:
    folder.mkdir(parents=True)
    state = TrainerState(global_step=4, log_history=history)
    state.save_to_json(str(folder / "trainer_state.json"))
    return TrainerState.load_from_json(str(folder / "trainer_state.json"))


def test_checkpoint_is_found_in_the_output_folder_or_where_it_was_written(tmp_path):
    """A run may resume from a folder of another run, whose own output folder has a checkpoint of the same step."""
    history = [{"loss": float("nan"), "step": 4}]
    state = write_checkpoint(tmp_path / "old" / "checkpoint-4", history)
    args = TrainingArguments(str(tmp_path / "new"), use_cpu=True)
    saved_in = str(tmp_path / "old" / "checkpoint-4")
    write_checkpoint(tmp_path / "new" / "checkpoint-4", [{"loss": 0.5, "step": 4}])
    assert find_checkpoint(args, state, saved_in) == tmp_path / "old" / "checkpoint-4"
    args.output_dir = str(tmp_path / "old")
    assert find_checkpoint(args, state, str(tmp_path / "gone")) == tmp_path / "old" / "checkpoint-4"


def test_checkpoint_that_was_moved_away_is_an_error(tmp_path):
    state = write_checkpoint(tmp_path / "moved" / "checkpoint-4", [])
    args = TrainingArguments(str(tmp_path / "new"), use_cpu=True)
    with pytest.raises(ValueError, match="refined reward of step 4 was not found, because the checkpoint was moved"):
        find_checkpoint(args, state, str(tmp_path / "old" / "checkpoint-4"))


def test_values_are_plain_json(tmp_path):
    save_refinement(tmp_path, make_refined(), [], {"count": 2})
    values = json.loads((tmp_path / FOLDER / "reward_model" / "values.json").read_text())
    assert values["values"] == {"count": 2} and values["num_rollouts"] == 5
