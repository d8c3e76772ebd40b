import torch
from torch.optim.lr_scheduler import LambdaLR

from trl_rlp.trainer.ppo.rollout_steps import RolloutScheduler


def scheduler(steps_per_rollout=3) -> RolloutScheduler:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    optimizer.step()
    return RolloutScheduler(LambdaLR(optimizer, lambda rollout: 1 / (1 + rollout)), steps_per_rollout)


def rates(schedule: RolloutScheduler, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates += schedule.get_last_lr()
        schedule.step()
    return rates


def test_the_rate_moves_once_a_rollout():
    assert rates(scheduler(), 7) == [1.0] * 3 + [1 / 2] * 3 + [1 / 3]


def test_it_goes_on_where_a_checkpoint_was():
    first = scheduler()
    rates(first, 4)
    second = scheduler()
    second.load_state_dict(first.state_dict())
    assert rates(second, 3) == rates(first, 3) == [1 / 2] * 2 + [1 / 3]
    assert second.base_lrs == [1.0]
