"""What our methods start from: samples of π_SFT, their anchors, D̂ and r̂."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from bench import Bench
from datasets import Dataset
from task import VALUES, SameValue, find_fact, parse
from training import train_reward_model
from transformers import PreTrainedModel

from trl_rlp import SemanticAnchors, synthesize_preferences
from trl_rlp.data.anchors.comparison import AnchorComparison
from trl_rlp.data.preferences.anchor_pairs import pair_with_anchors


SPG = {"method": "spg"}
"""Fields of [`RLPRewardConfig`] for r̂, before the run and in each refinement."""


@dataclass(frozen=True)
class LoopStart:
    """
    What our methods share, made before the policy trains.

    Args:
        samples (`datasets.Dataset`):
            Samples of π_SFT for U.
        equivalence ([`SameValue`]):
            Compares completions. It may make errors.
        anchors ([`SemanticAnchors`]):
            Anchors of the samples. Some may be wrong on purpose.
        synthetic (`datasets.Dataset`):
            D̂ of the samples.
        reward_model ([`~transformers.PreTrainedModel`]):
            r̂, trained on D and D̂.
        human (`datasets.Dataset`):
            D.
        heldout (`datasets.Dataset`):
            Human pairs for the gate of a refinement.
        reference_samples (`datasets.Dataset`):
            Other samples of π_SFT. Rewards are scaled on them.
    """

    samples: Dataset
    equivalence: SameValue
    anchors: SemanticAnchors
    synthetic: Dataset
    reward_model: PreTrainedModel
    human: Dataset
    heldout: Dataset
    reference_samples: Dataset


def build_start(
    bench: Bench,
    sft: PreTrainedModel,
    reward_model: PreTrainedModel,
    human: Dataset,
    noise: float,
    wrong_anchors: float | None,
) -> tuple[LoopStart, dict[str, Any]]:
    """
    Samples π_SFT, makes the anchors, and trains the first r̂.

    Args:
        bench ([`Bench`]):
            Bench of the seed.
        sft ([`~transformers.PreTrainedModel`]):
            π_SFT.
        reward_model ([`~transformers.PreTrainedModel`]):
            r. It chooses y_w.
        human (`datasets.Dataset`):
            D.
        noise (`float`):
            Share of wrong verdicts of the equivalence, in [0, 1].
        wrong_anchors (`float`, *optional*):
            Share of wrong anchors, in [0, 1]. `None` leaves them as they are.

    Returns:
        The start, and the metrics of anchors, D̂ and the loss of r̂.
    """
    samples = bench.sample(sft, bench.unlabeled, bench.settings.num_generations, 1.0, stream=1)
    equivalence = SameValue(noise)
    anchors = SemanticAnchors.from_samples(samples, equivalence)
    options = {"reward_model": reward_model, "reward_processing_class": bench.tokenizer, "seed": bench.seed}
    if wrong_anchors is None:
        synthetic, rejections = synthesize_preferences(samples, method="spg", equivalence=equivalence, **options)
    else:
        anchors = spoil_anchors(bench, anchors, wrong_anchors)
        synthetic, rejections = pair_with_anchors(samples, AnchorComparison(anchors, equivalence), **options)
    model, loss = train_reward_model(bench, human, "log_ratio", SPG, synthetic_dataset=synthetic)
    start = LoopStart(
        samples,
        equivalence,
        anchors,
        synthetic,
        model,
        human,
        bench.build_heldout_pairs(sft),
        bench.sample(sft, bench.unlabeled, 2, 1.0, stream=4),
    )
    metrics = {
        "synthetic": {**bench.evaluate_labels(synthetic), "rejections": rejections},
        "anchors": {
            "share": len(anchors) / anchors.num_prompts,
            "right": float(np.mean([bench.is_correct(row["prompt"], row["anchor"]) for row in list_anchors(anchors)])),
        },
        "loss": loss,
    }
    return start, metrics


def list_anchors(anchors: SemanticAnchors) -> list[dict[str, Any]]:
    """Lists the rows of the prompts that have an anchor."""
    return [row for row in anchors.dataset if row["anchor"] is not None]


def spoil_anchors(bench: Bench, anchors: SemanticAnchors, share: float) -> SemanticAnchors:
    """
    Makes anchors wrong until they reach a share. All wordings of a fact get the same wrong value.

    Args:
        bench ([`Bench`]):
            Bench of the seed. Its world knows the correct values.
        anchors ([`SemanticAnchors`]):
            The anchors. They do not change.
        share (`float`):
            Share of wrong anchors, in [0, 1]. Anchors that are wrong already count.

    Returns:
        [`SemanticAnchors`]: Anchors of the same prompts.
    """
    rows = list_anchors(anchors)
    wrong = {row["prompt"] for row in rows if not bench.is_correct(row["prompt"], row["anchor"])}
    generator = np.random.default_rng([bench.seed, 4])
    facts = sorted({find_fact(row["prompt"]) for row in rows})
    values: dict[tuple[str, str], str] = {}
    for index in generator.permutation(len(facts)):
        if len(wrong) >= share * len(rows):
            break
        fact = facts[index]
        values[fact] = str(generator.choice([value for value in VALUES[fact[1]] if value != bench.world.facts[fact]]))
        wrong |= {row["prompt"] for row in rows if find_fact(row["prompt"]) == fact}
    return SemanticAnchors(
        anchors.dataset.map(lambda row: _replace_value(row, values)),
        anchors.threshold,
        anchors.equivalence_fingerprint,
    )


def _replace_value(row: dict[str, Any], values: dict[tuple[str, str], str]) -> dict[str, Any]:
    """Replaces the value in the texts of an anchor, if its fact has a wrong one."""
    value = values.get(find_fact(row["prompt"]))
    if value is None or row["anchor"] is None:
        return row

    def say(text: str) -> str:
        said = parse(row["prompt"], text).values
        return " ".join(value if word in said else word for word in text.split())

    return {**row, "anchor": say(row["anchor"]), "members": [say(text) for text in row["members"]]}
