"""Run on two processes: both rewards in a run whose groups lie on two processes."""

import sys
from pathlib import Path

import pytest
import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from tests.ppo_runs import prompts
from tests.rewards.test_refinable_reward import SETTINGS, SameLength, anchors, refinable
from tests.tiny_models import tiny_causal_lm, tiny_tokenizer
from trl_rlp.rewards.semantic_anchor_reward import SemanticAnchorReward
from trl_rlp.storage.processes import leave_process_group, process_state


class FailsOnce(SameLength):
    """It fails in the first call of process 1."""

    has_failed = False

    def are_equivalent(self, *pairs):
        if process_state().process_index == 1 and not self.has_failed:
            self.has_failed = True
            raise ConnectionError("The judge is gone.")
        return super().are_equivalent(*pairs)


class Collect(TrainerCallback):
    def __init__(self, reward):
        self.reward, self.sizes = reward, []

    def on_step_end(self, args, state, control, **kwargs):
        self.reward.collect()
        self.sizes.append(len(self.reward.buffer))


def main(folder: Path) -> None:
    data, tokenizer, reward = prompts(6), tiny_tokenizer(), refinable(buffer_size=18)
    equivalence = FailsOnce()
    collect = Collect(reward)
    args = {**SETTINGS, "per_device_train_batch_size": 6, "num_generations": 4, "max_steps": 3}
    trainer = GRPOTrainer(
        model=tiny_causal_lm(tokenizer),
        reward_funcs=[reward, SemanticAnchorReward(anchors(data), equivalence)],
        args=GRPOConfig(str(folder), **args),
        train_dataset=data,
        eval_dataset=data.select([1, 2, 3]),
        processing_class=tokenizer,
        callbacks=[collect],
    )
    assert trainer.accelerator.num_processes == torch.distributed.get_world_size() == 2
    reward.follow(trainer.model)
    trainer.train()
    # Three rollouts of twelve completions: three prompts with four completions each. The second prompt lies on both
    # processes. A buffer of 18 holds one rollout.
    assert collect.sizes == [12, 12, 12] and reward.buffer.num_dropped == 24 and reward.num_rollouts == 3
    rows = reward.buffer.rows().to_list()
    assert [len(row["completions"]) for row in rows] == [4, 4, 4]
    assert gather_object([reward.buffer.state()]) == [reward.buffer.state()] * 2
    log = [row for row in trainer.state.log_history if "reward" in row]
    expected = [value for row in rows for value in row["rewards"]]
    assert log[-1]["rewards/reward_model/mean"] == pytest.approx(sum(expected) / 12, abs=1e-5)
    # The share of all completions, although the processes differ in their number of completions with an anchor.
    kept = [row for row in rows if row["prompt"] != data[0]["prompt"]]
    same = [bool(text) and len(text) % 2 == 0 for row in kept for text in row["completions"]]
    assert log[-1]["semantic_anchor/same_share"] == pytest.approx(sum(same) / len(same))
    assert log[-1]["semantic_anchor/anchored_share"] == pytest.approx(len(same) / 12)
    # One process failed in the first step, and training went on.
    assert log[0]["semantic_anchor/failed_share"] == 0.5 and log[1]["semantic_anchor/failed_share"] == 0


def decide_alone() -> None:
    """One process has no prompt that the anchors know. The other one need not call the reward."""
    data = prompts(6)
    reward = SemanticAnchorReward(anchors(data), SameLength())
    if process_state().process_index == 0:
        assert reward(["Unknown"], ["two!"]) == [None]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
    decide_alone()
    sys.stdout.write("both processes agree\n")
    leave_process_group()
