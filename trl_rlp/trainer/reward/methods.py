"""The methods that refine a reward model, and the terms that each of them adds."""

from typing import NamedTuple


class Terms(NamedTuple):
    """Terms that a method adds to Bradley-Terry training on human pairs (Eq. 1 of the paper)."""

    views: bool
    synthetic: bool


METHODS: dict[str, Terms] = {
    "none": Terms(views=False, synthetic=False),
    "uml": Terms(views=True, synthetic=False),
    "spg": Terms(views=False, synthetic=True),
    "uml+spg": Terms(views=True, synthetic=True),
}
"""Methods by name. The names are the values of `RLPRewardConfig.method`."""

FIELDS: dict[str, tuple[str, ...]] = {
    "views": (
        "representation_loss",
        "mi_estimator",
        "representation_recipe",
        "representation_coef",
        "kl_weight",
        "kl_ramp_steps",
        "view_prompts_per_device",
        "views_from",
        "joint_forward",
        "heads_learning_rate",
        "heads_weight_decay",
    ),
    "synthetic": ("chosen", "redraw_rejected", "synthetic_share"),
}
"""Fields of `RLPRewardConfig` that are used by only one of the [`Terms`], by the name of the term."""

VIEWS_FROM: dict[str, bool] = {"any": False, "group": True}
"""Whether the two views of a prompt come from one group. The names are the values of `RLPRewardConfig.views_from`."""
