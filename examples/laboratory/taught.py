"""Policies that are taught by majority-then-reward: the best completion by the reward model within the majority."""

from typing import Any

import numpy as np
import torch
from bench import SFT, Bench
from datasets import Dataset
from methods import LoopMethod
from task import SameValue
from training import build_common_args
from transformers import PreTrainedModel
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from trl_rlp import cluster, synthesize_preferences
from trl_rlp.data.groups.clustering import find_majority
from trl_rlp.evaluation import best_outputs


TEACHERS = ("sft", "dpo")
"""Trainers of taught policies."""

THRESHOLD = 0.5
"""γ."""


def teach_policy(
    bench: Bench, method: LoopMethod, sft: PreTrainedModel, reward_model: PreTrainedModel, beta: float | None
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """
    Samples π_SFT, and trains it on completions that are picked from the samples.

    Args:
        bench ([`Bench`]):
            Bench of the seed.
        method ([`LoopMethod`]):
            The method. Its `trainer` is one of `TEACHERS`.
        sft ([`~transformers.PreTrainedModel`]):
            π_SFT.
        reward_model ([`~transformers.PreTrainedModel`]):
            Reward model that picks.
        beta (`float`, *optional*):
            β of DPO.

    Returns:
        The policy, and the metrics of its training data.
    """
    prompts = bench.training_prompts * (method.copies or bench.settings.taught_copies)
    samples = bench.sample(sft, prompts, bench.settings.best_of, 1.0, stream=11)
    torch.manual_seed(bench.seed)
    if beta is None:
        return teach_by_sft(bench, pick_completions(bench, method, samples, reward_model))
    return teach_by_dpo(bench, samples, SameValue(method.noise), reward_model, beta)


def pick_completions(
    bench: Bench, method: LoopMethod, samples: Dataset, reward_model: PreTrainedModel
) -> list[dict[str, str]]:
    """
    Picks one finished completion of each row: the best one or a random one within the majority, or the best of all.

    Rows without a clear majority have no pick, unless the best of all is picked.
    """
    equivalence = SameValue(method.noise)
    if method.picks == "random":
        return _draw_members(cluster(samples, equivalence, threshold=THRESHOLD), bench.seed)
    within_majority = {"within": "majority", "equivalence": equivalence, "threshold": THRESHOLD}
    options = within_majority if method.picks == "majority" else {}
    best = best_outputs(samples, reward_model, bench.tokenizer, **options)
    return [
        {"prompt": row["prompt"], "completion": row["completion"]}
        for row in best
        if row["finished"] and row.get("has_majority", True)
    ]


def _draw_members(groups: Dataset, seed: int) -> list[dict[str, str]]:
    generator, picks = np.random.default_rng([seed, 5]), []
    for row in groups:
        members = [i for i in find_majority(row["cluster_ids"], THRESHOLD) if row["finished"][i]]
        if members:
            picks.append({"prompt": row["prompt"], "completion": row["completions"][generator.choice(members)]})
    return picks


def teach_by_sft(bench: Bench, picks: list[dict[str, str]]) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Trains π_SFT on the picks with TRL's `SFTTrainer`."""
    args = SFTConfig(
        num_train_epochs=bench.settings.taught_sft_epochs,
        learning_rate=bench.settings.taught_sft_learning_rate,
        per_device_train_batch_size=32,
        max_length=64,
        **build_common_args(bench, "taught"),
    )
    trainer = SFTTrainer(
        model=bench.load_sft(), args=args, train_dataset=Dataset.from_list(picks), processing_class=bench.tokenizer
    )
    trainer.train()
    right = [bench.is_correct(pick["prompt"], pick["completion"]) for pick in picks]
    return trainer.model.eval(), {"picks": {"number": len(picks), "right": float(np.mean(right))}}


def teach_by_dpo(
    bench: Bench, samples: Dataset, equivalence: SameValue, reward_model: PreTrainedModel, beta: float
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """
    Trains π_SFT on pairs of a pick and another completion of the prompt with TRL's `DPOTrainer`.

    The loss has the likelihood of the pick as a second term.
    """
    pairs, rejections = synthesize_preferences(
        samples,
        method="majority_best",
        equivalence=equivalence,
        reward_model=reward_model,
        reward_processing_class=bench.tokenizer,
        threshold=THRESHOLD,
        seed=bench.seed,
    )
    args = DPOConfig(
        beta=beta,
        loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, 1.0],
        num_train_epochs=bench.settings.taught_dpo_epochs,
        learning_rate=bench.settings.taught_dpo_learning_rate,
        per_device_train_batch_size=32,
        max_length=64,
        **build_common_args(bench, "taught"),
    )
    trainer = DPOTrainer(
        model=str(bench.folder / SFT),
        args=args,
        train_dataset=pairs.select_columns(["prompt", "chosen", "rejected"]),
        processing_class=bench.tokenizer,
    )
    trainer.train()
    return trainer.model.eval(), {"synthetic": {**bench.evaluate_labels(pairs), "rejections": rejections}}
