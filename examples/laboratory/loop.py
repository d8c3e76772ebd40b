"""Policies that are trained against semantic anchors, or against a reward model that is refined in the loop."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from bench import SFT, Bench
from loop_start import SPG, LoopStart
from methods import LoopMethod
from models import make_reward_model
from settings import LABORATORY
from task import parse
from training import TRAINERS, build_reward_args
from transformers import PreTrainedModel

from trl_rlp import RefinableReward, RewardRefinementCallback, SemanticAnchorReward, SemanticAnchors


def train_policy_in_loop(
    bench: Bench, method: LoopMethod, start: LoopStart, reward_model: PreTrainedModel, kl_coef: float
) -> tuple[PreTrainedModel, list[dict[str, float]], PreTrainedModel]:
    """
    Trains a policy with one of our methods.

    Args:
        bench ([`Bench`]):
            Bench of the seed.
        method ([`LoopMethod`]):
            The method.
        start ([`LoopStart`]):
            Samples of π_SFT, and what is made of them.
        reward_model ([`~transformers.PreTrainedModel`]):
            Reward model at the start of the run. It does not change.
        kl_coef (`float`):
            β.

    Returns:
        The policy, the metrics of its rollouts, and the reward model at the end of the run.
    """
    # A refinement changes the weights in place.
    reward = RefinableReward(
        copy.deepcopy(reward_model), bench.tokenizer, [bench.tokenizer.eos_token_id], require_finite=False
    )
    functions: list[tuple[Callable[..., Any], float]] = [(reward, 1.0)]
    if method.anchor_weight:
        functions.append((SemanticAnchorReward(start.anchors, start.equivalence), method.anchor_weight))
    if method.length_weight:
        functions.append((build_length_penalty(start.anchors), method.length_weight))
    if method.form_weight:
        functions.append((reward_form, method.form_weight))
    callbacks = [build_refinement(bench, reward, method, start)] if method.is_refined else []
    torch.manual_seed(bench.seed)
    policy, curve = TRAINERS[method.trainer](bench, functions, kl_coef, callbacks, method.num_generations)
    return policy, curve, reward.model


def reward_form(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    """Returns 1 for each completion that is an answer, right or wrong, and 0 for a malformed one."""
    return [float(bool(parse(*pair).values)) for pair in zip(prompts, completions, strict=True)]


def build_length_penalty(anchors: SemanticAnchors) -> Callable[..., list[float]]:
    """
    Builds a reward function against completions that are longer than the anchor's members.

    It returns minus the number of words above the mean of the members, and 0 for shorter completions and for prompts
    without an anchor.
    """

    def length_penalty(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        return [_count_excess(anchors, *pair) for pair in zip(prompts, completions, strict=True)]

    return length_penalty


def _count_excess(anchors: SemanticAnchors, prompt: str, completion: str) -> float:
    anchor = anchors.find(prompt)
    if anchor is None:
        return 0.0
    usual = np.mean([len(member.split()) for member in anchor.members])
    return -max(0.0, len(completion.split()) - float(usual))


def scale_rollouts(count: int, rollouts: int) -> int:
    """Scales a number of rollouts of a run of 40 to a run of `rollouts`. It is at least 1."""
    return max(1, count * rollouts // LABORATORY.rollouts)


def build_refinement(
    bench: Bench, reward: RefinableReward, method: LoopMethod, start: LoopStart
) -> RewardRefinementCallback:
    """Builds the callback that refines the reward model in the loop, each time from the start."""
    human = start.human.select(range(round(method.human_share * len(start.human))))
    return RewardRefinementCallback(
        reward,
        human,
        build_reward_args(bench, {**SPG, "chosen": method.chosen}),
        base_model=lambda: make_reward_model(bench.load_sft(), "log_ratio", bench.folder / SFT),
        anchors=start.anchors if method.uses_anchors else None,
        equivalence=start.equivalence,
        synthetic_dataset=start.synthetic,
        reference_samples=start.reference_samples,
        eval_preference_dataset=start.heldout,
        every=scale_rollouts(method.refine_every, bench.settings.rollouts),
        seed=bench.seed,
    )
