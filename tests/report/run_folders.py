"""Folders of runs as commands and trainers leave them, written without any training."""

import json
from pathlib import Path

import numpy as np
from datasets import Dataset

from trl_rlp.data.groups.clustering import cluster
from trl_rlp.data.groups.equivalence import ExactMatch
from trl_rlp.data.preferences.preferences import synthesize_preferences
from trl_rlp.storage.artifacts import save_data
from trl_rlp.storage.json_files import write_json


SETTINGS = {
    "sft_model": "sft",
    "method": "spg",
    "rounds": 1,
    "sample_from": "policy",
    "num_generations": 4,
    "eval_prompt_dataset": "5f2c",
}


def build_samples(size: int = 6, seed: int = 0, words: tuple[str, ...] = ("4", "5", "6", "7")) -> Dataset:
    """Builds four completions for each prompt. Most of them are the first word."""
    generator = np.random.default_rng(seed)
    completions = generator.choice(words, (size, 4), p=[0.6, 0.2, 0.1, 0.1]).tolist()
    prompts = [f"What is 2 plus 2, number {row}?" for row in range(size)]
    return Dataset.from_dict({"prompt": prompts, "completions": completions, "finished": [[True] * 4] * size})


def write_stage(folder: Path, metrics: dict, seconds: float = 2.0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "stage.json", {"metrics": metrics, "seconds": seconds, "peak_memory_gib": None})


def write_log(folder: Path, entries: list[dict]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    step = max(entry.get("step", 0) for entry in entries)
    write_json(folder / "trainer_state.json", {"global_step": step, "max_steps": 3, "log_history": entries})


def log_policy(steps: int = 3) -> list[dict]:
    """Builds the log of PPO, with a second reward function."""
    entries = [
        {
            "step": step,
            "rewards/reward_model/mean": step / 10,
            "rewards/gold/mean": 0.5 - step / 20,
            "reward": step / 10,
            "objective/kl": step / 5,
            "completions/mean_length": 4.0,
        }
        for step in range(1, steps + 1)
    ]
    return [*entries, {"step": steps, "train_runtime": 12.5}]


def log_reward_model(steps: int = 3) -> list[dict]:
    return [
        {"step": step, "loss": 0.7 / step, "accuracy": 0.6, "margin": 0.1, "mean_reward": 0.0, "eval_loss": 0.6}
        for step in range(1, steps + 1)
    ]


def pair_metrics(accuracy: float, pairs: int = 40) -> dict:
    return {"pairs": pairs, "accuracy": accuracy, "calibration_error": 0.1, "length_accuracy": 0.5}


def compare(before: float, after: float) -> dict:
    difference = {"accuracy": after - before, "standard_error": 0.02}
    return {"before": pair_metrics(before), "after": pair_metrics(after), "difference": difference}


def write_run(folder: Path, samples: Dataset | None = None, answers: list | None = None) -> Path:
    """Writes the folder of `run_rlp` with `method="spg"`. The known answer of every prompt is 4."""
    samples = build_samples() if samples is None else samples
    answers = [["4"]] * len(samples) if answers is None else answers
    groups = cluster(samples, ExactMatch(), threshold=0.5)
    pairs, counts = synthesize_preferences(groups, "spg", chosen="random", threshold=0.5)
    pairs = pairs.remove_columns(["chosen_reward", "rejected_reward"])
    for side, start in (("chosen", 1.0), ("rejected", 0.0)):
        pairs = pairs.add_column(f"{side}_reward", [start + len(text) / 10 for text in pairs[side]])
    write_json_settings(folder)
    write_stage(folder / "reward_model", {"accuracy": 0.6, "step": 3})
    write_log(folder / "reward_model", log_reward_model())
    write_stage(folder / "policy", {"step": 3, "reward": 0.3, "objective/kl": 0.6})
    write_log(folder / "policy", log_policy())
    write_stage(folder / "policy_samples", {"outputs": 4 * len(samples), "finished": 1.0})
    save_data(samples, folder / "policy_samples")
    write_stage(folder / "groups", {"accepted": 0.8, "threshold": 0.5})
    save_data(groups, folder / "groups")
    write_stage(folder / "synthetic_preferences", {"accepted": len(pairs), **counts})
    save_data(pairs, folder / "synthetic_preferences")
    write_stage(folder / "refined_reward_model", {"accuracy": 0.7, "step": 3})
    gate = {"human": compare(0.6, 0.65), "synthetic": compare(0.5, 0.9)}
    write_stage(folder / "gate", {"passed": True, "problems": [], "comparisons": gate})
    save_data(Dataset.from_dict({"answers": answers}), folder / "gate")
    write_stage(folder / "retrained_policy", {"step": 3})
    write_log(folder / "retrained_policy", log_policy())
    write_evaluation(folder / "evaluation", len(samples))
    return folder


def write_json_settings(folder: Path, **changes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "run.json", {**SETTINGS, **changes})


def write_evaluation(folder: Path, size: int) -> None:
    metrics = {}
    for number, name in enumerate(("sft", "policy", "retrained_policy")):
        samples = build_samples(size, seed=number)
        save_data(samples, folder / name)
        rewards = [[len(text) / 10 + number for text in row] for row in samples["completions"]]
        write_json(folder / name / "rewards.json", {"reward_model": rewards})
        metrics[name] = {"outputs": 4 * size, "accuracy": 0.5 + number / 10, "accuracy_standard_error": 0.05}
        metrics[name] |= {"kl": number / 2, "reward/reward_model": number / 10}
    write_stage(folder, metrics)


def write_preferences(folder: Path) -> tuple[Dataset, dict[str, int]]:
    """Writes the folder of `trl-rlp prefer`: the shards of 3 prompts at confidence .75 and 7 at .25, with γ = .5."""
    completions = [["4", "4", "4", "5"]] * 3 + [["1", "2", "3", "4"]] * 7
    prompts = [f"What is 2 plus 2, number {row}?" for row in range(10)]
    samples = Dataset.from_dict({"prompt": prompts, "completions": completions, "finished": [[True] * 4] * 10})
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "run.json", {"generator": "spg", "threshold": 0.5})
    options = {"equivalence": ExactMatch(), "chosen": "random", "threshold": 0.5}
    return synthesize_preferences(samples, "spg", output_dir=folder / "shards", **options)


def write_lines(path: Path, rows: list[dict]) -> Path:
    """Writes JSON Lines. Half surrogates become escapes, as in a file that another program wrote."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
