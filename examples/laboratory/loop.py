"""Policies that are trained against semantic anchors, or against a reward model that is refined in the loop."""

import copy
from dataclasses import dataclass

import torch
from bench import SFT, Bench
from datasets import Dataset
from methods import LoopMethod
from models import make_reward_model
from task import SameValue
from training import build_reward_args, train_policy
from transformers import PreTrainedModel

from trl_rlp import RefinableReward, RewardRefinementCallback, SemanticAnchorReward, SemanticAnchors


SPG = {"method": "spg"}
"""Fields of [`RLPRewardConfig`] for r̂, before the run and in each refinement."""


@dataclass(frozen=True)
class LoopStart:
    """
    What all methods in the loop share, made before the policy trains.

    Args:
        samples (`datasets.Dataset`):
            Samples of π_SFT for U. The anchors come from them.
        synthetic (`datasets.Dataset`):
            D̂ of these samples.
        reward_model ([`~transformers.PreTrainedModel`]):
            r̂, trained on D and D̂.
        human (`datasets.Dataset`):
            D.
        heldout (`datasets.Dataset`):
            Human pairs for the gate of a refinement.
        reference_samples (`datasets.Dataset`):
            Other samples of π_SFT. A refined reward model is scaled on them.
    """

    samples: Dataset
    synthetic: Dataset
    reward_model: PreTrainedModel
    human: Dataset
    heldout: Dataset
    reference_samples: Dataset


def train_policy_in_loop(
    bench: Bench, method: LoopMethod, start: LoopStart
) -> tuple[PreTrainedModel, list[dict[str, float]], PreTrainedModel]:
    """
    Trains a policy with one of the methods in the loop.

    Returns:
        The policy, the metrics of its rollouts, and the reward model at the end of the run.
    """
    equivalence = SameValue()
    anchors = SemanticAnchors.from_samples(start.samples, equivalence)
    anchor_reward = SemanticAnchorReward(anchors, equivalence) if method.anchor_weight else None
    # A refinement changes the weights in place.
    reward = RefinableReward(
        copy.deepcopy(start.reward_model), bench.tokenizer, [bench.tokenizer.eos_token_id], require_finite=False
    )
    callbacks = [build_refinement(bench, reward, anchors, equivalence, start)] if method.is_refined else []
    torch.manual_seed(bench.seed)
    policy, curve = train_policy(
        bench, reward, bench.settings.loop_kl_coef, anchor_reward, method.anchor_weight, callbacks
    )
    return policy, curve, reward.model


def build_refinement(
    bench: Bench, reward: RefinableReward, anchors: SemanticAnchors, equivalence: SameValue, start: LoopStart
) -> RewardRefinementCallback:
    """Builds the callback that refines the reward model in the loop, each time from the start."""
    return RewardRefinementCallback(
        reward,
        start.human,
        build_reward_args(bench, SPG),
        base_model=lambda: make_reward_model(bench.load_sft(), "log_ratio", bench.folder / SFT),
        anchors=anchors,
        equivalence=equivalence,
        synthetic_dataset=start.synthetic,
        reference_samples=start.reference_samples,
        eval_preference_dataset=start.heldout,
        every=bench.settings.refine_every,
        seed=bench.seed,
    )
