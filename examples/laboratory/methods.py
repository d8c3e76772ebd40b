"""All methods that the laboratory compares, as arguments of the package's functions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Method:
    """
    A refinement of the reward model.

    Args:
        table (`str`):
            Table of the report that contains the method.
        reward (`dict`, *optional*):
            Fields of [`RLPRewardConfig`]. Empty for longer training on human pairs alone.
        preferences (`dict`, *optional*):
            Arguments of [`synthesize_preferences`] without the samples. `None` for no D̂.
        noise (`bool`, *optional*, defaults to `False`):
            Whether the equivalence makes errors.
        head (`str`, *optional*, defaults to `"log_ratio"`):
            Head of the reward model, one of `HEADS`.
    """

    table: str
    reward: dict[str, Any] = field(default_factory=dict)
    preferences: dict[str, Any] | None = None
    noise: bool = False
    head: str = "log_ratio"


def _build_uml(table: str, head: str = "log_ratio", **reward: Any) -> Method:
    return Method(table, {"method": "uml", **reward}, head=head)


def _build_spg(
    table: str, generator: str = "spg", noise: bool = False, head: str = "log_ratio", **options: Any
) -> Method:
    return Method(table, {"method": "spg"}, {"method": generator, **options}, noise, head)


COSINE = {"representation_recipe": "cosine", "mi_estimator": "nce"}
METHODS: dict[str, Method] = {
    "uml": _build_uml("main"),
    "spg": _build_spg("main"),
    "uml+spg": Method("main", {"method": "uml+spg"}, {"method": "spg"}),
    "mvi": _build_uml("losses", representation_loss="mvi"),
    "infomax": _build_uml("losses", representation_loss="infomax"),
    "cl": _build_uml("losses", representation_loss="cl"),
    "select_all": _build_spg("generators", generator="select_all"),
    "reward": _build_spg("generators", generator="reward"),
    "rlaif": _build_spg("generators", generator="rlaif"),
    "human pairs only": Method("controls"),
    "spg, random y_w": _build_spg("controls", chosen="random"),
    "spg, 15 % noise": _build_spg("controls", noise=True),
    "uml, cosine": _build_uml("controls", **COSINE),
    "uml, cosine, views of a group": _build_uml("controls", views_from="group", **COSINE),
    "uml, last token": _build_uml("last token", head="last_token"),
    "uml, cosine, last token": _build_uml("last token", head="last_token", **COSINE),
    "spg, last token": _build_spg("last token", head="last_token"),
}
"""Methods by their name in the tables. `uml` is `mib` of Table 4, and `spg` is `spg` of Table 5."""

HEADS = {"log_ratio": "ppo", "last_token": "ppo, last token"}
"""Heads of reward models, and the name of plain PPO against a reward model with that head."""


@dataclass(frozen=True)
class LoopMethod:
    """
    A policy that is trained against semantic anchors or a reward model that is refined in the loop.

    These methods are not the paper's. All of them start from an r̂ that is refined on samples of π_SFT.

    Args:
        anchor_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the anchor reward. The reward model has weight 1.
        is_refined (`bool`, *optional*, defaults to `False`):
            Whether the reward model is refined in the loop.
    """

    anchor_weight: float = 0.0
    is_refined: bool = False


LOOP_METHODS: dict[str, LoopMethod] = {
    "anchor_reward": LoopMethod(anchor_weight=3.0),
    "refined_in_loop": LoopMethod(is_refined=True),
    "anchored": LoopMethod(anchor_weight=3.0, is_refined=True),
}
"""Methods in the loop by their name in the tables."""


def list_results(sweep: Sequence[float]) -> list[str]:
    """Lists the names of the results of a seed, in the order in which they are computed."""
    return ["sft", "best-of-n", *HEADS.values(), *METHODS, *LOOP_METHODS, *(f"sweep {beta}" for beta in sweep)]
