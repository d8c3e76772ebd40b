"""
Run on two processes: refinements inside GRPO and PPO leave both processes equal. Both resume. Under
FSDP2, a refinement gives the same reward model as under DDP. A monitor stops both in the same step.
"""

import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback

from tests.ppo_runs import CLOCK, ppo_trainer, prompts
from tests.refinement_runs import SameParity, anchors, policy_trainer, refinable_reward, refinement
from tests.trainer.callbacks.two_process_monitor import stop_in_the_same_step
from tests.trainer.two_process_fsdp import assert_sharded, fsdp
from trl_rlp.rewards.refinable_reward import RefinableReward
from trl_rlp.rewards.semantic_anchor_reward import SemanticAnchorReward
from trl_rlp.storage.processes import leave_process_group, process_state
from trl_rlp.trainer.callbacks import reward_refinement
from trl_rlp.trainer.callbacks.reward_refinement_callback import RewardRefinementCallback


DATA = prompts(24)


class WatchedReward(RefinableReward):
    """Remembers the prompts of this process in the first rollout."""

    first_prompts: set[str] | None = None

    def __call__(self, prompts, *args, **kwargs):
        self.first_prompts = self.first_prompts or set(prompts)
        return super().__call__(prompts, *args, **kwargs)


class FailsOnce(SameParity):
    """Fails in its first call, on the main process only."""

    has_failed = False

    def are_equivalent(self, prompts, firsts, seconds):
        if process_state().is_main_process and not self.has_failed:
            self.has_failed = True
            raise ConnectionError("the server is gone")
        return super().are_equivalent(prompts, firsts, seconds)


class Compare(TrainerCallback):
    """Compares what both processes have after each step."""

    def __init__(self, refinement: RewardRefinementCallback):
        self.refinement = refinement

    def on_step_end(self, args, state, control, **kwargs):
        refinement, reward = self.refinement, self.refinement.reward
        require_equal([weight.tolist() for weight in reward.model.state_dict().values()])
        require_equal((reward.mean, reward.standard_deviation, reward.num_rollouts, reward.buffer.state()))
        require_equal((refinement.num_accepted, refinement.num_skipped))
        require_equal({name: v for name, v in reward.pending_metrics.items() if name != "refinement/seconds"})


def require_equal(value) -> None:
    first, second = gather_object([value])
    assert first == second


def get_log(trainer) -> list[dict]:
    clocks = {*CLOCK, "refinement/seconds"}
    return [{k: v for k, v in row.items() if k not in clocks} for row in trainer.state.log_history[:-1]]


def make_run(folder: Path, kind: str, equivalence=None):
    """
    Builds a run of three rollouts, with refinements after the first and the second. A rollout has three prompts with
    two completions each. Those of the second prompt are on both processes.
    """
    plain = refinable_reward()
    reward = WatchedReward(plain.model, plain.processing_class, plain.eos_token_ids)
    given = {"anchors": anchors(DATA), "equivalence": equivalence or SameParity(), "every": 1}
    callback = refinement(folder, reward, **given, per_device_train_batch_size=1)
    sources = [reward, SemanticAnchorReward(anchors(DATA), SameParity())]
    settings = {"per_device_train_batch_size": 3, "num_generations": 2, "reward_weights": [1.0, 3.0]}
    settings |= {"save_strategy": "steps", "save_steps": 1, "optim": "sgd"}
    callbacks = [callback, Compare(callback)]
    if kind == "ppo":
        settings |= {"gradient_accumulation_steps": 1, "num_ppo_epochs": 1, "total_episodes": 18}
        trainer = ppo_trainer(folder, DATA, reward_funcs=sources, callbacks=callbacks, **settings)
    else:
        trainer = policy_trainer(folder, sources, kind, DATA, callbacks, max_steps=3, **settings)
    return trainer, callback


def train_and_resume(folder: Path, kind: str) -> None:
    trainer, callback = make_run(folder, kind)
    trainer.train()
    state = process_state()
    assert state.num_processes == 2 and type(trainer.model_wrapped).__name__ == "DistributedDataParallel"
    assert callback.num_accepted == 2
    first, second = gather_object([callback.reward.first_prompts])
    assert first & second, "no group is on both processes"
    require_equal([weight.tolist() for weight in trainer.model.state_dict().values()])
    require_equal(get_log(trainer))
    if kind == "ppo":
        assert trainer.ppo_state.value_shift
        require_equal(vars(trainer.ppo_state))
    resumed, again = make_run(folder, kind)
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-1"))
    assert get_log(resumed) == get_log(trainer)
    for model, other in ((resumed.model, trainer.model), (again.reward.model, callback.reward.model)):
        state_dict = other.state_dict()
        assert all(torch.equal(weight, state_dict[name]) for name, weight in model.state_dict().items())


def skip_and_refuse(folder: Path) -> None:
    """The first refinement is skipped on both, because the equivalence fails on one. The gate refuses the second."""
    compare = reward_refinement.fell_beyond_chance
    reward_refinement.fell_beyond_chance = lambda *args: True
    try:
        trainer, callback = make_run(folder, "grpo", FailsOnce())
        trainer.train()
    finally:
        reward_refinement.fell_beyond_chance = compare
    require_equal((callback.num_accepted, callback.num_skipped))
    assert (callback.num_accepted, callback.num_skipped) == (0, 1)
    logged = [row for row in trainer.state.log_history if "refinement/skipped" in row]
    assert [row.get("refinement/accepted") for row in logged] == [None, 0.0]
    initial = refinable_reward().model.state_dict()
    assert all(torch.equal(weight, initial[name]) for name, weight in callback.reward.model.state_dict().items())


def refine_once(folder: Path, is_sharded: bool) -> RefinableReward:
    """Trains a policy of three rollouts of one prompt each, and refines the reward model after the second one."""
    with fsdp() if is_sharded else nullcontext():
        reward = refinable_reward()
        given = {"anchors": anchors(DATA), "equivalence": SameParity(), "per_device_train_batch_size": 1}
        callback = refinement(folder, reward, **given)
        # Two of a prompt's four completions are on each process.
        settings = {"per_device_train_batch_size": 2, "num_generations": 4, "max_steps": 3, "optim": "adamw_torch"}
        trainer = policy_trainer(folder / "policy", [reward], data=DATA, callbacks=[callback], **settings)
        trainer.train()
    assert process_state().num_processes == 2 and callback.num_accepted == 1
    assert len(callback._reference) == 1 and len(callback._reference[0]["completions"]) == 4
    if is_sharded:
        assert_sharded(trainer.model)
    require_equal([weight.tolist() for weight in reward.model.state_dict().values()])
    require_equal((reward.mean, reward.standard_deviation))
    return reward


def refine_under_fsdp(folder: Path) -> None:
    sharded, replicated = (refine_once(folder, is_sharded) for is_sharded in (True, False))
    initial, state = refinable_reward().model.state_dict(), replicated.model.state_dict()
    assert any(not torch.equal(weight, initial[name]) for name, weight in state.items())
    for name, weight in sharded.model.state_dict().items():
        assert torch.allclose(weight, state[name], atol=1e-5), name
    assert abs(sharded.standard_deviation - replicated.standard_deviation) < 1e-4


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    train_and_resume(folder / "grpo", "grpo")
    train_and_resume(folder / "ppo", "ppo")
    skip_and_refuse(folder / "refused")
    stop_in_the_same_step(folder / "monitor")
    refine_under_fsdp(folder / "fsdp")
    sys.stdout.write("both processes agree\n")
    leave_process_group()
