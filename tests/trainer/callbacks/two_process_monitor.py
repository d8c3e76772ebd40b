"""A part of two_process_refinement.py: a monitor stops a run of two processes in the same step."""

from pathlib import Path

import torch
from accelerate.utils import gather_object
from datasets import Dataset

from tests.ppo_runs import ppo_trainer, prompts
from tests.reward_runs import SameText
from tests.trainer.callbacks.test_policy_monitor_callback import EXACT, make_pairs, make_reward
from trl_rlp.data.anchors import AnchorComparison, SemanticAnchors
from trl_rlp.storage.processes import process_state
from trl_rlp.trainer.callbacks import PolicyMonitorCallback


def stop_in_the_same_step(folder: Path) -> None:
    data, reward = prompts(16), make_reward()
    count = len(data)
    samples = Dataset.from_dict(
        {"prompt": data["prompt"], "completions": [["a", "a"]] * count, "finished": [[True, True]] * count}
    )
    index = process_state().process_index

    def is_malformed(prompt: str, text: str) -> bool:
        # Wrong on purpose: the processes disagree. Each one asks about half of the texts, and all get the same share.
        return reward.num_rollouts >= 3 and index == 1

    def judge(prompts: list, firsts: list, seconds: list) -> list[float]:
        assert index == 0
        return [0.5] * len(prompts)

    monitor = PolicyMonitorCallback(
        reward,
        comparison=AnchorComparison(SemanticAnchors.from_samples(samples, SameText()), SameText()),
        is_malformed=is_malformed,
        human_pairs=make_pairs(),
        judge=judge,
        references=Dataset.from_dict({"prompt": data["prompt"], "completion": ["b"] * count}),
        judge_every=2,
        limits={"malformed": 0.4, "same_as_anchor": None} | EXACT,
        stop=True,
    )
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "total_episodes": 48}
    trainer = ppo_trainer(folder, data, reward_funcs=[reward], callbacks=[monitor], **settings)
    assert trainer.accelerator.num_processes == torch.distributed.get_world_size() == 2
    trainer.train()
    assert reward.num_rollouts == 4 and trainer.state.global_step == 4 * trainer.args.steps_per_rollout
    measured = [row for row in monitor.history if "malformed" in row]
    assert [row["malformed"] for row in measured] == [0.0, 0.0, 0.5, 0.5]
    assert [row.get("judge_win_rate") for row in measured] == [0.5, None, 0.5, None]
    assert all({"outliers", "same_as_anchor"} <= set(row) for row in measured)
    assert len(reward.buffer) == 4 * 8
    outcome = (monitor.history, monitor.num_alerts, trainer.state.best_model_checkpoint)
    assert gather_object([outcome]) == [outcome] * 2
    best = folder / f"checkpoint-{2 * trainer.args.steps_per_rollout}"
    assert monitor.num_alerts == 1 and trainer.state.best_model_checkpoint == str(best)
    trainer.accelerator.wait_for_everyone()
    assert list(folder.glob("checkpoint-*")) == [best]
