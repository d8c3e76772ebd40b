"""The methods that refine a reward model, and what each of them adds."""

from typing import NamedTuple


class Terms(NamedTuple):
    """What a method adds to Bradley-Terry training on human pairs (Eq. 1 of the paper)."""

    views: bool
    synthetic: bool


METHODS: dict[str, Terms] = {
    "none": Terms(views=False, synthetic=False),
    "uml": Terms(views=True, synthetic=False),
    "spg": Terms(views=False, synthetic=True),
    "uml+spg": Terms(views=True, synthetic=True),
}
"""The methods by the name that `RLPRewardConfig.method` takes."""

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
"""Fields of `RLPRewardConfig` that have a use with one of [`Terms`] only, by its name."""

VIEWS_FROM: dict[str, bool] = {"any": False, "group": True}
"""Whether the two views of an instruction come from one group, by the name that `RLPRewardConfig.views_from` takes."""
