"""Every way to refine the reward model that the laboratory compares, as arguments of the package's own functions."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Method:
    """
    A refinement.

    Args:
        table (`str`):
            Where it is reported.
        reward (`dict`, *optional*):
            Fields of [`RLPRewardConfig`]; empty for more training on human pairs alone.
        preferences (`dict`, *optional*):
            Arguments of [`synthesize_preferences`] but the samples, or `None` for no D̂.
        noise (`bool`, *optional*, defaults to `False`):
            Whether the equivalence errs.
        head (`str`, *optional*, defaults to `"log_ratio"`):
            Of the reward model.
    """

    table: str
    reward: dict[str, Any] = field(default_factory=dict)
    preferences: dict[str, Any] | None = None
    noise: bool = False
    head: str = "log_ratio"


def _uml(table: str, head: str = "log_ratio", **reward: Any) -> Method:
    return Method(table, {"method": "uml", **reward}, head=head)


def _spg(table: str, generator: str = "spg", noise: bool = False, head: str = "log_ratio", **options: Any) -> Method:
    return Method(table, {"method": "spg"}, {"method": generator, **options}, noise, head)


COSINE = {"representation_recipe": "cosine", "mi_estimator": "nce"}
METHODS: dict[str, Method] = {
    "uml": _uml("main"),
    "spg": _spg("main"),
    "uml+spg": Method("main", {"method": "uml+spg"}, {"method": "spg"}),
    "mvi": _uml("losses", representation_loss="mvi"),
    "infomax": _uml("losses", representation_loss="infomax"),
    "cl": _uml("losses", representation_loss="cl"),
    "select_all": _spg("generators", generator="select_all"),
    "reward": _spg("generators", generator="reward"),
    "rlaif": _spg("generators", generator="rlaif"),
    "human pairs only": Method("controls"),
    "spg, random y_w": _spg("controls", chosen="random"),
    "spg, 15 % noise": _spg("controls", noise=True),
    "uml, cosine": _uml("controls", **COSINE),
    "uml, cosine, views of a group": _uml("controls", views_from="group", **COSINE),
    "uml, last token": _uml("last token", head="last_token"),
    "uml, cosine, last token": _uml("last token", head="last_token", **COSINE),
    "spg, last token": _spg("last token", head="last_token"),
}
"""By the name in the tables. `mib` of Table 4 is `uml`, and `spg` of Table 5 is `spg`."""

HEADS = {"log_ratio": "ppo", "last_token": "ppo, last token"}
"""Heads of reward models, and the name of plain PPO against one."""
