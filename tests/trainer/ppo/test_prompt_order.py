"""The order of the prompts."""

from trl.trainer.utils import RepeatSampler

from tests.ppo_runs import ppo_trainer, prompts
from trl_rlp.trainer.ppo.prompt_order import RolloutSampler


def get_order(epoch: int, shuffle: bool = True) -> list[int]:
    return list(RolloutSampler(RepeatSampler(range(6), 1, batch_size=2, shuffle=shuffle, seed=0), 5, lambda: epoch))


def test_order_depends_only_on_seed_and_epoch():
    sampler = RolloutSampler(RepeatSampler(range(6), 1, batch_size=2, seed=0), 5, lambda: 1)
    assert list(sampler) == list(sampler) == get_order(1)
    assert get_order(0) != get_order(1) and sorted(get_order(0)) == sorted(get_order(1)) == list(range(6))
    assert len(sampler) == 6


def test_without_shuffling_the_order_is_that_of_the_dataset():
    assert get_order(3, shuffle=False) == list(range(6))


def test_order_of_a_stream_depends_on_the_data_seed(tmp_path):
    orders = []
    for seeds in ({"data_seed": 1}, {"data_seed": 1, "seed": 7}, {"data_seed": 2}, {"shuffle_dataset": False}):
        trainer = ppo_trainer(tmp_path, prompts().to_iterable_dataset(), **seeds)
        orders.append([row["prompt"] for row in trainer.train_dataset.take(16)])
    assert orders[0] == orders[1] != orders[2]
    assert orders[3] == [*prompts()["prompt"]] * 2
