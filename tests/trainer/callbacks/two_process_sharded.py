"""Run by `torchrun --nproc_per_node 2`: a refinement under FSDP2 gives the same reward model as under DDP."""

import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate.utils import gather_object

from tests.ppo_runs import prompts
from tests.refinement_runs import SameParity, anchors, policy_trainer, refinable_reward, refinement
from tests.trainer.two_process_fsdp import assert_sharded, fsdp
from trl_rlp.rewards.refinable_reward import RefinableReward
from trl_rlp.storage.processes import leave_process_group, process_state


def run(folder: Path, is_sharded: bool) -> RefinableReward:
    """Trains a policy of three rollouts of one prompt each, and refines the reward model after the second one."""
    data = prompts(16)
    with fsdp() if is_sharded else nullcontext():
        reward = refinable_reward()
        given = {"anchors": anchors(data), "equivalence": SameParity(), "per_device_train_batch_size": 1}
        callback = refinement(folder, reward, **given)
        # Two of a prompt's four completions are on each process.
        settings = {"per_device_train_batch_size": 2, "num_generations": 4, "max_steps": 3, "optim": "adamw_torch"}
        trainer = policy_trainer(folder / "policy", [reward], data=data, callbacks=[callback], **settings)
        trainer.train()
    assert process_state().num_processes == 2 and callback.num_accepted == 1
    assert len(callback._reference) == 1 and len(callback._reference[0]["completions"]) == 4
    if is_sharded:
        assert_sharded(trainer.model)
    weights = [weight.tolist() for weight in reward.model.state_dict().values()]
    first, second = gather_object([(weights, reward.mean, reward.standard_deviation)])
    assert first == second
    return reward


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    initial = refinable_reward().model.state_dict()
    sharded, replicated = (run(folder, is_sharded) for is_sharded in (True, False))
    state = replicated.model.state_dict()
    assert any(not torch.equal(weight, initial[name]) for name, weight in state.items())
    for name, weight in sharded.model.state_dict().items():
        assert torch.allclose(weight, state[name], atol=1e-5), name
    assert abs(sharded.standard_deviation - replicated.standard_deviation) < 1e-4
    sys.stdout.write("both processes agree\n")
    leave_process_group()
