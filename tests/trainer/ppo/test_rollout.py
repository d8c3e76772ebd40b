import pytest
import torch
from accelerate import Accelerator

from tests.ppo_runs import ppo_config
from trl_rlp.trainer.ppo.rollout import Rollout


LENGTHS = [3, 1, 2, 4]


def tensors() -> dict[str, torch.Tensor]:
    """Four completions; the row number stands in every tensor. Prompts are 2, 1, 2 and 1 tokens long."""
    rows = torch.arange(4)[:, None]
    mask = torch.arange(5) < torch.tensor(LENGTHS)[:, None]
    return {
        "prompt_ids": rows.expand(4, 3).clone(),
        "prompt_mask": torch.tensor([[0, 1, 1], [0, 0, 1], [0, 1, 1], [0, 0, 1]]),
        "completion_ids": rows.expand(4, 5).clone(),
        "completion_mask": mask,
        "value_mask": mask,
        "importance_sampling_ratio": rows.float(),
    }


def rollout(tmp_path, **settings) -> Rollout:
    return Rollout(tensors(), ppo_config(tmp_path, **settings), Accelerator(cpu=True))


def test_each_epoch_deals_out_all_rows_once_in_an_order_of_its_own(tmp_path):
    torch.manual_seed(1)
    dealt, deal = [], rollout(tmp_path, num_ppo_epochs=6)
    while not deal.is_used_up:
        dealt += deal.take()["completion_ids"][:, 0].tolist()
    epochs = [dealt[start : start + 4] for start in range(0, 24, 4)]
    assert all(sorted(epoch) == [0, 1, 2, 3] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_rows_stay_together_and_columns_of_padding_go(tmp_path):
    deal = rollout(tmp_path)
    for _ in range(4):
        batch = deal.take()
        rows = batch["completion_ids"][:, 0]
        assert (batch["prompt_ids"] == rows[:, None]).all() and (batch["completion_ids"] == rows[:, None]).all()
        assert batch["importance_sampling_ratio"].tolist() == [[float(row)] for row in rows]
        longest = max(LENGTHS[row] for row in rows)
        assert batch["completion_ids"].shape == batch["completion_mask"].shape == (2, longest)
        assert batch["completion_mask"].sum(dim=1).tolist() == [LENGTHS[row] for row in rows]
        assert batch["prompt_ids"].shape[1] == max([2, 1, 2, 1][row] for row in rows)


def test_a_step_is_divided_by_all_of_its_tokens(tmp_path):
    """Both micro-batches make one step, so each is divided by 3 + 1 + 2 + 4 = 10."""
    deal = rollout(tmp_path)
    assert [deal.take()["normalizers"].tolist() for _ in range(4)] == [[10.0, 10.0]] * 4


def test_with_two_mini_batches_a_step_is_one_micro_batch(tmp_path):
    deal = rollout(tmp_path, num_mini_batches=2)
    for _ in range(4):
        batch = deal.take()
        assert batch["normalizers"].tolist() == [batch["completion_mask"].sum()] * 2


def test_micro_batches_may_count_alike_as_in_the_former_trainer(tmp_path):
    """Two micro-batches a step: each is the mean over its own tokens, times one half."""
    deal = rollout(tmp_path, loss_normalization="micro_batch")
    for _ in range(4):
        batch = deal.take()
        assert batch["normalizers"].tolist() == [2 * batch["completion_mask"].sum()] * 2


def test_values_have_a_mask_of_their_own(tmp_path):
    data = tensors()
    data["value_mask"] = torch.ones(4, 5, dtype=torch.bool)
    batch = Rollout(data, ppo_config(tmp_path), Accelerator(cpu=True)).take()
    assert batch["completion_ids"].shape[1] == 5
    assert batch["normalizers"].tolist() == [10.0, 20.0]


def test_more_is_not_to_be_had(tmp_path):
    deal = rollout(tmp_path, num_ppo_epochs=1)
    deal.take(), deal.take()
    assert deal.is_used_up
    with pytest.raises(IndexError):
        deal.take()
