"""Settings of the reward trainer that trains on human preferences and policy samples."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

from transformers.utils import logging
from trl import RewardConfig

from trl_rlp.data.preferences.pairing import CHOSEN
from trl_rlp.losses.mutual_information import LOWER_BOUNDS
from trl_rlp.losses.representation import LOSSES, RECIPES
from trl_rlp.storage.paths import expand_fields
from trl_rlp.storage.redaction import remove_secrets
from trl_rlp.trainer.precision import default_precision, require_dtype
from trl_rlp.trainer.reward.methods import FIELDS, METHODS, VIEWS_FROM


logger = logging.get_logger(__name__)


@dataclass
class RLPRewardConfig(RewardConfig):
    r"""
    Configuration class for the [`RLPRewardTrainer`].

    It has all parameters of [`~trl.RewardConfig`] and adds those of RLP (Eq. 1 of the paper):

    $$L = -E_{D \cup \hat D} \log\sigma(r(x, y_w) - r(x, y_l)) + \lambda L_M$$

    Parameters:
        method (`str`, *optional*, defaults to `"none"`):
            What training adds to the human pairs: `none` (nothing, as TRL's RewardTrainer), `uml` (the multi-view loss
            on policy samples, RLP-UML), `spg` (synthetic pairs from policy samples, RLP-SPG), or `uml+spg` (both).

        > Parameters that control the multi-view loss (`uml`)

        representation_loss (`str`, *optional*, defaults to `"mib"`):
            Loss on the representations of the two views: `mib` (L_M of the paper), or one of its ablations `mvi`,
            `infomax` and `cl`.
        mi_estimator (`str`, *optional*, defaults to `"jsd"`):
            Lower bound on the mutual information of the two views: `jsd` (as in the paper), `nce` or `nwj`.
        representation_recipe (`str`, *optional*, defaults to `"paper"`):
            Heads and weights of the multi-view loss: `paper` (three-layer means, a critic on pairs, KL summed with
            weight 1) or `cosine` (linear means, a cosine critic, KL averaged with weight 0.01). `cosine` is ours and
            collapses less.
        representation_coef (`float`, *optional*, defaults to `0.5`):
            Weight of the multi-view loss in the total loss, at least 0 (lambda in the paper).
        kl_weight (`float`, *optional*):
            Weight of the symmetric KL in the multi-view loss, at least 0. Defaults to the weight of the recipe: 1 for
            `paper`, 0.01 for `cosine`.
        kl_ramp_steps (`int`, *optional*, defaults to `0`):
            Number of optimizer steps over which the weight of the symmetric KL rises from 0 to its full value. 0 means
            no ramp, as in the paper.
        view_prompts_per_device (`int`, *optional*, defaults to `8`):
            Number of prompts that add their two views to each micro-batch of a device, at least 2. The paper does not
            state it.
        views_from (`str`, *optional*, defaults to `"any"`):
            Where the two views of a prompt come from: `any` (any two of its completions, as in the paper) or `group`
            (two completions of one group with the same meaning). `group` needs `equivalence`, or samples that were
            grouped with `complete_groups=True`.
        joint_forward (`bool`, *optional*, defaults to `True`):
            Whether pairs and views share one forward pass. `False` runs two passes, which have less padding and hold
            fewer tokens at once.
        heads_learning_rate (`float`, *optional*, defaults to `1e-4`):
            Constant learning rate of AdamW for the heads (means, standard deviations, critic), above 0. The paper does
            not state it.
        heads_weight_decay (`float`, *optional*, defaults to `0.0`):
            Weight decay of AdamW for the heads, at least 0.

        > Parameters that control the synthetic preferences (`spg`)

        confidence_threshold (`float`, *optional*, defaults to `0.5`):
            Minimum confidence for making a synthetic pair from a prompt, between 0 and 1 (gamma in the paper). The
            confidence is the share of the prompt's completions that are in its largest group.
        chosen (`str`, *optional*, defaults to `"reward"`):
            Which completion of the largest group is chosen: the one with the highest `reward` under
            `labeling_reward_model` (as in the paper), or a `random` one.
        redraw_rejected (`bool`, *optional*, defaults to `False`):
            Whether the rejected completion of a synthetic pair is drawn again in each epoch, from the completions
            outside the largest group. `False` keeps the first draw.
        synthetic_share (`float`, *optional*):
            Share of synthetic pairs in the training data, between 0 and 1, both excluded. All human pairs stay.
            Synthetic pairs are drawn, or repeated if there are too few of them. Defaults to the union of both, as in
            the paper.

    > [!NOTE]
    > These parameters have default values different from [`~trl.RewardConfig`]:
    > - `remove_unused_columns`: Defaults to `False` instead of `True`, because the collator needs all columns.
    > - `bf16`: Defaults to `False` instead of `True` on a machine without an accelerator that supports it.

    Raises:
        ValueError: If a value is out of range, a name is unknown, or a combination is not possible.

    Example:

    ```python
    >>> RLPRewardConfig("refined", method="uml", representation_coef=0.5)
    ```
    """

    # Parameters whose default values are overridden from RewardConfig
    remove_unused_columns: bool = field(
        default=False,
        metadata={
            "help": "Whether to remove the columns that TRL's collator does not read. Views need these columns."
        },
    )

    method: str = field(
        default="none",
        metadata={
            "help": "What training adds to the human pairs: `none` (nothing, as TRL's RewardTrainer), `uml` (the "
            "multi-view loss on policy samples, RLP-UML), `spg` (synthetic pairs from policy samples, "
            "RLP-SPG), or `uml+spg` (both)."
        },
    )

    # Parameters that control the multi-view loss
    representation_loss: str = field(
        default="mib",
        metadata={
            "help": "Loss on the representations of the two views: `mib` (L_M of the paper), or one of its "
            "ablations `mvi`, `infomax` and `cl`."
        },
    )
    mi_estimator: str = field(
        default="jsd",
        metadata={
            "help": "Lower bound on the mutual information of the two views: `jsd` (as in the paper), `nce` or `nwj`."
        },
    )
    representation_recipe: str = field(
        default="paper",
        metadata={
            "help": "Heads and weights of the multi-view loss: `paper` (three-layer means, a critic on pairs, KL "
            "summed with weight 1) or `cosine` (linear means, a cosine critic, KL averaged with weight "
            "0.01). `cosine` is ours and collapses less."
        },
    )
    representation_coef: float = field(
        default=0.5,
        metadata={"help": "Weight of the multi-view loss in the total loss, at least 0 (lambda in the paper)."},
    )
    kl_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the symmetric KL in the multi-view loss, at least 0. Defaults to the weight of the "
            "recipe: 1 for `paper`, 0.01 for `cosine`."
        },
    )
    kl_ramp_steps: int = field(
        default=0,
        metadata={
            "help": "Number of optimizer steps over which the weight of the symmetric KL rises from 0 to its full "
            "value. 0 means no ramp, as in the paper."
        },
    )
    view_prompts_per_device: int = field(
        default=8,
        metadata={
            "help": "Number of prompts that add their two views to each micro-batch of a device, at least 2. The "
            "paper does not state it."
        },
    )
    views_from: str = field(
        default="any",
        metadata={
            "help": "Where the two views of a prompt come from: `any` (any two of its completions, as in the paper) "
            "or `group` (two completions of one group with the same meaning). `group` needs `equivalence`, "
            "or samples that were grouped with `complete_groups=True`."
        },
    )
    joint_forward: bool = field(
        default=True,
        metadata={
            "help": "Whether pairs and views share one forward pass. `False` runs two passes, which have less "
            "padding and hold fewer tokens at once."
        },
    )
    heads_learning_rate: float = field(
        default=1e-4,
        metadata={
            "help": "Constant learning rate of AdamW for the heads (means, standard deviations, critic), above 0. "
            "The paper does not state it."
        },
    )
    heads_weight_decay: float = field(
        default=0.0,
        metadata={"help": "Weight decay of AdamW for the heads, at least 0."},
    )

    # Parameters that control the synthetic preferences
    confidence_threshold: float = field(
        default=0.5,
        metadata={
            "help": "Minimum confidence for making a synthetic pair from a prompt, between 0 and 1 (gamma in the "
            "paper). The confidence is the share of the prompt's completions that are in its largest group."
        },
    )
    chosen: str = field(
        default="reward",
        metadata={
            "help": "Which completion of the largest group is chosen: the one with the highest `reward` under "
            "`labeling_reward_model` (as in the paper), or a `random` one."
        },
    )
    redraw_rejected: bool = field(
        default=False,
        metadata={
            "help": "Whether the rejected completion of a synthetic pair is drawn again in each epoch, from the "
            "completions outside the largest group. `False` keeps the first draw."
        },
    )
    synthetic_share: float | None = field(
        default=None,
        metadata={
            "help": "Share of synthetic pairs in the training data, between 0 and 1, both excluded. All human pairs "
            "stay. Synthetic pairs are drawn, or repeated if there are too few of them. Defaults to the union of "
            "both, as in the paper."
        },
    )

    def __post_init__(self):
        expand_fields(self)
        self.bf16 = default_precision(self)
        super().__post_init__()
        require_dtype(self.model_init_kwargs)
        self._check_names()
        self._check_ranges()
        self._warn_about_unused_fields()
        if self.method != "none" and self.remove_unused_columns:
            raise ValueError(
                f"`remove_unused_columns` must be False with `method`={self.method!r}, because the collator needs the "
                "columns that RLP adds. Leave it at its default."
            )

    @property
    def uses_views(self) -> bool:
        """Whether the method trains on views (UML)."""
        return METHODS[self.method].views

    def to_dict(self) -> dict[str, Any]:
        """
        Returns the fields as plain values, for trackers. Secrets inside mappings are left out.

        Returns:
            `dict`: Values by the names of the fields. As in transformers, tokens such as `hub_token` have no values.
        """
        return {name: remove_secrets(value) for name, value in super().to_dict().items()}

    @property
    def uses_synthetic_pairs(self) -> bool:
        """Whether the method trains on synthetic pairs (SPG)."""
        return METHODS[self.method].synthetic

    @property
    def unused_fields(self) -> list[str]:
        """Names of the fields that have no effect with the method."""
        return [name for term, names in FIELDS.items() if not getattr(METHODS[self.method], term) for name in names]

    @property
    def views_share_group(self) -> bool:
        """Whether the two views of a prompt come from one group."""
        return VIEWS_FROM[self.views_from]

    @property
    def needs_groups(self) -> bool:
        """Whether completions must be grouped by meaning, for synthetic pairs or for views from one group."""
        return self.uses_synthetic_pairs or self.views_share_group

    def _check_names(self) -> None:
        known = {
            "method": METHODS,
            "representation_loss": LOSSES,
            "mi_estimator": LOWER_BOUNDS,
            "representation_recipe": RECIPES,
            "views_from": VIEWS_FROM,
            "chosen": CHOSEN,
        }
        for name, names in known.items():
            value = vars(self)[name]
            if value not in names:
                raise ValueError(f"`{name}` must be one of {sorted(names)}, got {value!r}.")

    def _warn_about_unused_fields(self) -> None:
        defaults = {entry.name: entry.default for entry in fields(self)}
        changed = [name for name in self.unused_fields if vars(self)[name] != defaults[name]]
        if changed:
            logger.warning_once(f"{changed} are not used with `method`={self.method!r} and have no effect.")

    def _check_ranges(self) -> None:
        ranges = {
            "representation_coef": (0 <= self.representation_coef < math.inf, "at least 0 and finite"),
            "kl_weight": (
                self.kl_weight is None or 0 <= self.kl_weight < math.inf,
                "at least 0 and finite, or None for the weight of the recipe",
            ),
            "kl_ramp_steps": (self.kl_ramp_steps >= 0, "at least 0"),
            "view_prompts_per_device": (
                self.view_prompts_per_device >= 2,
                "at least 2, because product pairs need two prompts",
            ),
            "heads_learning_rate": (0 < self.heads_learning_rate < math.inf, "above 0 and finite"),
            "heads_weight_decay": (0 <= self.heads_weight_decay < math.inf, "at least 0 and finite"),
            "confidence_threshold": (0 <= self.confidence_threshold <= 1, "between 0 and 1"),
            "synthetic_share": (
                self.synthetic_share is None or 0 < self.synthetic_share < 1,
                "between 0 and 1, both excluded, or None for the union",
            ),
        }
        for name, (is_valid, expected) in ranges.items():
            if not is_valid:
                raise ValueError(f"`{name}` must be {expected}, got {vars(self)[name]}.")
