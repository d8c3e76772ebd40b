from trl.trainer.utils import RepeatSampler

from trl_rlp.trainer.ppo.prompt_order import RolloutSampler


def order(epoch: int, shuffle: bool = True) -> list[int]:
    return list(RolloutSampler(RepeatSampler(range(6), 1, batch_size=2, shuffle=shuffle, seed=0), 5, lambda: epoch))


def test_a_pass_has_its_own_order_whatever_came_before():
    sampler = RolloutSampler(RepeatSampler(range(6), 1, batch_size=2, seed=0), 5, lambda: 1)
    assert list(sampler) == list(sampler) == order(1)
    assert order(0) != order(1) and sorted(order(0)) == sorted(order(1)) == list(range(6))
    assert len(sampler) == 6


def test_without_shuffling_the_order_is_the_data_s():
    assert order(3, shuffle=False) == list(range(6))
