"""Settings of the reward trainer that learns on policy samples."""

from dataclasses import dataclass, field, fields

from transformers.utils import logging
from trl import RewardConfig

from trl_rlp.data.preferences.pairing import CHOSEN
from trl_rlp.losses.mutual_information import LOWER_BOUNDS
from trl_rlp.losses.representation import LOSSES, RECIPES
from trl_rlp.trainer.precision import default_precision
from trl_rlp.trainer.reward.methods import FIELDS, METHODS, VIEWS_FROM


logger = logging.get_logger(__name__)


@dataclass
class RLPRewardConfig(RewardConfig):
    r"""
    Configuration class for the [`RLPRewardTrainer`].

    It holds all of [`~trl.RewardConfig`] and what RLP adds (Eq. 1 of the paper):

    $$L = -E_{D \cup \hat D} \log\sigma(r(x, y_w) - r(x, y_l)) + \lambda L_M$$

    Parameters:
        method (`str`, *optional*, defaults to `"none"`):
            What is added to the human pairs: `none` (TRL's RewardTrainer, step for step), `uml` (the multi-view loss
            on policy samples, RLP-UML), `spg` (synthetic pairs from policy samples, RLP-SPG), or `uml+spg` (both).

        > Parameters that control the multi-view loss (`uml`)

        representation_loss (`str`, *optional*, defaults to `"mib"`):
            Which loss is put on the representations of two views: `mib` (the paper's L_M), or its ablations `mvi`,
            `infomax` and `cl`.
        mi_estimator (`str`, *optional*, defaults to `"jsd"`):
            Lower bound on the mutual information of two views: `jsd` (the paper's), `nce` or `nwj`.
        representation_recipe (`str`, *optional*, defaults to `"paper"`):
            Heads and weights of the loss: `paper` (three-layer means, critic on pairs, KL summed with weight 1), or
            `cosine` (linear means, cosine critic, KL averaged with weight 0.01), which is ours and collapses less.
        representation_coef (`float`, *optional*, defaults to `0.5`):
            Weight of the multi-view loss beside the preference loss, lambda in the paper. At least 0.
        kl_weight (`float`, *optional*):
            Weight of the symmetric KL within the multi-view loss, at least 0. If not set, the recipe's: 1 for `paper`,
            0.01 for `cosine`.
        kl_ramp_steps (`int`, *optional*, defaults to `0`):
            Number of optimizer steps in which the weight of the symmetric KL rises from 0 to its value. 0 is no ramp,
            as in the paper.
        view_prompts_per_device (`int`, *optional*, defaults to `8`):
            Instructions whose two views each micro-batch of a device carries, at least 2. Not stated in the paper.
        views_from (`str`, *optional*, defaults to `"any"`):
            Where the two views of an instruction come from: `any` two of its outputs (the paper's), or two of one
            `group` of equal meaning, which needs `equivalence` or samples that are clustered with
            `complete_groups=True`.
        joint_forward (`bool`, *optional*, defaults to `True`):
            Whether pairs and views share one forward pass. `False` runs two, each with less padding, and holds fewer
            tokens at once.
        heads_learning_rate (`float`, *optional*, defaults to `1e-4`):
            Constant learning rate of AdamW on the heads (means, deviations, critic), above 0. Not stated in the paper.
        heads_weight_decay (`float`, *optional*, defaults to `0.0`):
            Weight decay of AdamW on the heads, at least 0.

        > Parameters that control the synthetic preferences (`spg`)

        confidence_threshold (`float`, *optional*, defaults to `0.5`):
            Share of an instruction's outputs that its largest group must hold for a synthetic pair to be made of it,
            gamma in the paper. Between 0 and 1.
        chosen (`str`, *optional*, defaults to `"reward"`):
            Which member of the largest group is preferred: the one with the highest `reward` under
            `labeling_reward_model` (the paper's), or a `random` one.
        redraw_rejected (`bool`, *optional*, defaults to `False`):
            Whether the rejected output of a synthetic pair is drawn anew each epoch from the outputs outside the
            largest group. `False` keeps the one that was drawn first.
        synthetic_share (`float`, *optional*):
            Share of synthetic pairs in the training data, between 0 and 1 exclusive: all human pairs stay, and
            synthetic ones are drawn, or repeated where they are too few. If not set, the union of both, as in the
            paper.

    > [!NOTE]
    > These parameters have default values different from [`~trl.RewardConfig`]:
    > - `remove_unused_columns`: Defaults to `False` instead of `True`, so that the collator gets all columns.
    > - `bf16`: Defaults to `False` instead of `True` on a machine without an accelerator that supports it.

    Raises:
        ValueError: if a value is out of its range, a name is unknown, or the combination cannot work.

    Example:

    ```python
    >>> RLPRewardConfig("refined", method="uml", representation_coef=0.5)
    ```
    """

    # Parameters whose default values are overridden from RewardConfig
    remove_unused_columns: bool = field(
        default=False,
        metadata={"help": "Whether to drop the columns that TRL's collator does not read. Views need them."},
    )

    method: str = field(
        default="none",
        metadata={
            "help": "What is added to the human pairs: `none` (TRL's RewardTrainer, step for step), `uml` (the "
            "multi-view loss on policy samples, RLP-UML), `spg` (synthetic pairs from policy samples, RLP-SPG), or "
            "`uml+spg` (both)."
        },
    )

    # Parameters that control the multi-view loss
    representation_loss: str = field(
        default="mib",
        metadata={
            "help": "Which loss is put on the representations of two views: `mib` (the paper's L_M), or its ablations "
            "`mvi`, `infomax` and `cl`."
        },
    )
    mi_estimator: str = field(
        default="jsd",
        metadata={"help": "Lower bound on the mutual information of two views: `jsd` (the paper's), `nce` or `nwj`."},
    )
    representation_recipe: str = field(
        default="paper",
        metadata={
            "help": "Heads and weights of the loss: `paper` (three-layer means, critic on pairs, KL summed with "
            "weight 1), or `cosine` (linear means, cosine critic, KL averaged with weight 0.01), which is ours and "
            "collapses less."
        },
    )
    representation_coef: float = field(
        default=0.5,
        metadata={
            "help": "Weight of the multi-view loss beside the preference loss, lambda in the paper. At least 0."
        },
    )
    kl_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the symmetric KL within the multi-view loss, at least 0. If not set, the recipe's: 1 "
            "for `paper`, 0.01 for `cosine`."
        },
    )
    kl_ramp_steps: int = field(
        default=0,
        metadata={
            "help": "Number of optimizer steps in which the weight of the symmetric KL rises from 0 to its value. 0 "
            "is no ramp, as in the paper."
        },
    )
    view_prompts_per_device: int = field(
        default=8,
        metadata={
            "help": "Instructions whose two views each micro-batch of a device carries, at least 2. Not stated in the "
            "paper."
        },
    )
    views_from: str = field(
        default="any",
        metadata={
            "help": "Where the two views of an instruction come from: `any` two of its outputs (the paper's), or two "
            "of one `group` of equal meaning, which needs `equivalence` or samples that are clustered with "
            "`complete_groups=True`."
        },
    )
    joint_forward: bool = field(
        default=True,
        metadata={
            "help": "Whether pairs and views share one forward pass. `False` runs two, each with less padding, and "
            "holds fewer tokens at once."
        },
    )
    heads_learning_rate: float = field(
        default=1e-4,
        metadata={
            "help": "Constant learning rate of AdamW on the heads (means, deviations, critic), above 0. Not stated in "
            "the paper."
        },
    )
    heads_weight_decay: float = field(
        default=0.0,
        metadata={"help": "Weight decay of AdamW on the heads, at least 0."},
    )

    # Parameters that control the synthetic preferences
    confidence_threshold: float = field(
        default=0.5,
        metadata={
            "help": "Share of an instruction's outputs that its largest group must hold for a synthetic pair to be "
            "made of it, gamma in the paper. Between 0 and 1."
        },
    )
    chosen: str = field(
        default="reward",
        metadata={
            "help": "Which member of the largest group is preferred: the one with the highest `reward` under "
            "`labeling_reward_model` (the paper's), or a `random` one."
        },
    )
    redraw_rejected: bool = field(
        default=False,
        metadata={
            "help": "Whether the rejected output of a synthetic pair is drawn anew each epoch from the outputs "
            "outside the largest group. `False` keeps the one that was drawn first."
        },
    )
    synthetic_share: float | None = field(
        default=None,
        metadata={
            "help": "Share of synthetic pairs in the training data, between 0 and 1 exclusive: all human pairs stay, "
            "and synthetic ones are drawn, or repeated where they are too few. If not set, the union of both, as in "
            "the paper."
        },
    )

    def __post_init__(self):
        self.bf16 = default_precision(self)
        super().__post_init__()
        self._check_names()
        self._check_ranges()
        self._warn_of_no_use()
        if self.method != "none" and self.remove_unused_columns:
            raise ValueError(
                f"`remove_unused_columns` must be False with `method`={self.method!r}, else the columns that RLP adds "
                "never reach the collator. Leave it at its default."
            )

    @property
    def needs_groups(self) -> bool:
        """Whether outputs must be grouped by meaning, for synthetic pairs or for views of one group."""
        return METHODS[self.method].synthetic or VIEWS_FROM[self.views_from]

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

    def _warn_of_no_use(self) -> None:
        defaults = {entry.name: entry.default for entry in fields(self)}
        unused = [name for term, names in FIELDS.items() if not getattr(METHODS[self.method], term) for name in names]
        changed = [name for name in unused if vars(self)[name] != defaults[name]]
        if changed:
            logger.warning_once(f"{changed} have no use with `method`={self.method!r} and change nothing.")

    def _check_ranges(self) -> None:
        ranges = {
            "representation_coef": (self.representation_coef >= 0, "at least 0"),
            "kl_weight": (self.kl_weight is None or self.kl_weight >= 0, "at least 0, or None for the recipe's"),
            "kl_ramp_steps": (self.kl_ramp_steps >= 0, "at least 0"),
            "view_prompts_per_device": (self.view_prompts_per_device >= 2, "at least 2, or no product pair exists"),
            "heads_learning_rate": (self.heads_learning_rate > 0, "above 0"),
            "heads_weight_decay": (self.heads_weight_decay >= 0, "at least 0"),
            "confidence_threshold": (0 <= self.confidence_threshold <= 1, "between 0 and 1"),
            "synthetic_share": (
                self.synthetic_share is None or 0 < self.synthetic_share < 1,
                "between 0 and 1, both excluded, or None for the union",
            ),
        }
        for name, (is_valid, expected) in ranges.items():
            if not is_valid:
                raise ValueError(f"`{name}` must be {expected}, got {vars(self)[name]}.")
