"""A rollout, split into micro-batches."""

import pytest
import torch
from accelerate import Accelerator

from tests.ppo_runs import ppo_config
from trl_rlp.trainer.ppo.experience import Experience, MicroBatch, Rollout


LENGTHS = [3, 1, 2, 4]


def make_experience(**overrides) -> Experience:
    """Builds four completions. Most tensors hold the row number. The prompts have 2, 1, 2 and 1 tokens."""
    rows = torch.arange(4)[:, None]
    mask = torch.arange(5) < torch.tensor(LENGTHS)[:, None]
    tokens = rows.expand(4, 5).clone()
    values = {
        "prompt_ids": rows.expand(4, 3).clone(),
        "prompt_mask": torch.tensor([[0, 1, 1], [0, 0, 1], [0, 1, 1], [0, 0, 1]]),
        "completion_ids": tokens,
        "completion_mask": mask,
        "old_log_probs": tokens.float(),
        "advantages": tokens.float(),
        "importance_sampling_ratio": rows.float(),
        "old_values": tokens.float(),
        "returns": tokens.float(),
        "value_mask": mask,
        "scores": rows[:, 0].float(),
        "finished": rows[:, 0] > 0,
        "kl": tokens.float(),
        "kl_rewards": tokens.float(),
    }
    return Experience(**{**values, **overrides})


def build_rollout(tmp_path, **settings) -> Rollout:
    return Rollout(make_experience(), ppo_config(tmp_path, **settings), Accelerator(cpu=True))


def get_normalizers(batch: MicroBatch) -> list[float]:
    return [batch.policy_normalizer.item(), batch.value_normalizer.item()]


def test_each_epoch_uses_all_rows_once_in_a_new_order(tmp_path):
    torch.manual_seed(1)
    dealt, rollout = [], build_rollout(tmp_path, num_ppo_epochs=6)
    while not rollout.is_used_up:
        dealt += rollout.next_micro_batch().experience.completion_ids[:, 0].tolist()
    epochs = [dealt[start : start + 4] for start in range(0, 24, 4)]
    assert all(sorted(epoch) == [0, 1, 2, 3] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_rows_stay_together_and_padding_columns_are_removed(tmp_path):
    rollout = build_rollout(tmp_path)
    for _ in range(4):
        batch = rollout.next_micro_batch().experience
        rows = batch.completion_ids[:, 0]
        longest = max(LENGTHS[row] for row in rows)
        for name in ("completion_ids", "old_log_probs", "advantages", "old_values", "returns", "kl", "kl_rewards"):
            tensor = getattr(batch, name)
            assert tensor.shape == (2, longest) and (tensor == rows[:, None]).all(), name
        assert (batch.prompt_ids == rows[:, None]).all() and batch.scores.tolist() == rows.tolist()
        assert batch.importance_sampling_ratio.tolist() == [[float(row)] for row in rows]
        assert batch.completion_mask.sum(dim=1).tolist() == [LENGTHS[row] for row in rows]
        assert batch.prompt_ids.shape[1] == max([2, 1, 2, 1][row] for row in rows)


def test_losses_are_divided_by_all_tokens_of_the_step(tmp_path):
    """A step has both micro-batches, so each loss is divided by 3 + 1 + 2 + 4 = 10."""
    rollout = build_rollout(tmp_path)
    assert [get_normalizers(rollout.next_micro_batch()) for _ in range(4)] == [[10.0, 10.0]] * 4


def test_with_two_mini_batches_a_step_has_one_micro_batch(tmp_path):
    rollout = build_rollout(tmp_path, num_mini_batches=2)
    for _ in range(4):
        batch = rollout.next_micro_batch()
        assert get_normalizers(batch) == [batch.experience.completion_mask.sum()] * 2


def test_micro_batches_can_have_equal_weights_as_in_trl_1_12(tmp_path):
    """A step has two micro-batches. The loss of each is the mean over its own tokens, times one half."""
    rollout = build_rollout(tmp_path, loss_normalization="micro_batch")
    for _ in range(4):
        batch = rollout.next_micro_batch()
        assert get_normalizers(batch) == [2 * batch.experience.completion_mask.sum()] * 2


@pytest.mark.parametrize("loss_normalization, divisor", [("micro_batch", 2.0), ("mini_batch", 1.0)])
def test_losses_without_a_token_are_divided_by_that_of_one_token(tmp_path, loss_normalization, divisor):
    """A step has two micro-batches and one process. The sum of no losses is 0, so the loss is 0 instead of 0 / 0."""
    experience = make_experience(completion_mask=torch.zeros(4, 5, dtype=torch.bool))
    args = ppo_config(tmp_path, loss_normalization=loss_normalization)
    batch = Rollout(experience, args, Accelerator(cpu=True)).next_micro_batch()
    assert batch.policy_normalizer.item() == divisor


def test_values_have_their_own_mask(tmp_path):
    experience = make_experience(value_mask=torch.ones(4, 5, dtype=torch.bool))
    batch = Rollout(experience, ppo_config(tmp_path), Accelerator(cpu=True)).next_micro_batch()
    assert batch.experience.completion_ids.shape[1] == 5
    assert get_normalizers(batch) == [10.0, 20.0]


def test_used_up_rollout_has_no_micro_batch(tmp_path):
    rollout = build_rollout(tmp_path, num_ppo_epochs=1)
    rollout.next_micro_batch(), rollout.next_micro_batch()
    assert rollout.is_used_up
    with pytest.raises(IndexError):
        rollout.next_micro_batch()
