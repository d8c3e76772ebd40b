"""Configuration of the PPO trainer that runs Algorithm 1."""

import copy
from dataclasses import dataclass, field, fields
from typing import Any

from trl_rlp.data.sampling_settings import require_shared_ends, require_stop
from trl_rlp.stages.loop_checks import require_loop_settings
from trl_rlp.trainer.field_values import convert_fields
from trl_rlp.trainer.mappings import parse_fields, require_no_evaluation
from trl_rlp.trainer.ppo.ppo_config import PPOConfig
from trl_rlp.trainer.reward.methods import METHODS
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


@dataclass
class RLPPPOConfig(PPOConfig):
    r"""
    Configuration class for the [`RLPPPOTrainer`].

    It has all fields of [`PPOConfig`] and those that control RLP.

    Parameters:
        rlp_method (`str`, *optional*, defaults to `"none"`):
            Method that refines the reward model on the policy's samples before the policy is trained again from its
            initial weights: `none` (plain PPO), `uml`, `spg` or `uml+spg`.
        rlp_num_generations (`int`, *optional*, defaults to `10`):
            Number of completions sampled from the policy for each prompt, at least 2 (n in the paper).
        rlp_temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature of these completions, above 0.
        rlp_reward_base (`str`, *optional*):
            Folder or Hub name of the model that the refined reward model starts from, with a new score head. Defaults
            to the initial policy.
        rlp_reward_args (`dict`, *optional*):
            Fields of RLPRewardConfig for the refinement, as a mapping.
        rlp_heldout_share (`float`, *optional*, defaults to `0.05`):
            Share of the human preferences held out to compare both reward models, between 0 and 1 (both excluded).
        rlp_anchor_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the anchor reward in step 5, at least 0. A completion that means the same as the clear majority
            of the initial policy's samples gets this reward. 0 turns it off. The paper does not have it.
        rlp_refine_every (`int`, *optional*):
            Number of rollouts of step 5 after which the reward model is refined again, at least 1. By default, it is
            the same during the whole step, as in the paper.
        rlp_rounds (`int`, *optional*, defaults to `1`):
            Number of times that steps 4 and 5 run, at least 1. Each further round samples the last retrained policy.
            Algorithm 1 runs them once.

    Raises:
        ValueError: If a value is out of range or a name is unknown.
        TypeError: If a field of RLP has another type.

    Example:

    ```python
    >>> RLPPPOConfig("ppo", rlp_method="spg", total_episodes=10_000)
    ```
    """

    rlp_method: str = field(
        default="none",
        metadata={
            "help": (
                "Method that refines the reward model on the policy's samples before the policy is trained again "
                "from its initial weights: `none` (plain PPO), `uml`, `spg` or `uml+spg`."
            )
        },
    )
    rlp_num_generations: int = field(
        default=10,
        metadata={
            "help": "Number of completions sampled from the policy for each prompt, at least 2 (n in the paper)."
        },
    )
    rlp_temperature: float = field(
        default=1.0, metadata={"help": "Sampling temperature of these completions, above 0."}
    )
    rlp_reward_base: str | None = field(
        default=None,
        metadata={
            "help": (
                "Folder or Hub name of the model that the refined reward model starts from, with a new score head. "
                "Defaults to the initial policy."
            )
        },
    )
    rlp_reward_args: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Fields of RLPRewardConfig for the refinement, as a mapping."}
    )
    rlp_heldout_share: float = field(
        default=0.05,
        metadata={
            "help": (
                "Share of the human preferences held out to compare both reward models, between 0 and 1 (both "
                "excluded)."
            )
        },
    )
    rlp_anchor_weight: float = field(
        default=0.0,
        metadata={
            "help": (
                "Weight of the anchor reward in step 5, at least 0. A completion that means the same as the clear "
                "majority of the initial policy's samples gets this reward. 0 turns it off. The paper does not have "
                "it."
            )
        },
    )
    rlp_refine_every: int | None = field(
        default=None,
        metadata={
            "help": (
                "Number of rollouts of step 5 after which the reward model is refined again, at least 1. By default, "
                "it is the same during the whole step, as in the paper."
            )
        },
    )
    rlp_rounds: int = field(
        default=1,
        metadata={
            "help": (
                "Number of times that steps 4 and 5 run, at least 1. Each further round samples the last retrained "
                "policy. Algorithm 1 runs them once."
            )
        },
    )

    def __post_init__(self):
        own = {name: value for name, value in vars(self).items() if name.startswith("rlp_")}
        for name, value in convert_fields(own, type(self)).items():
            setattr(self, name, value)
        self.rlp_reward_args = parse_fields("rlp_reward_args", self.rlp_reward_args, RLPRewardConfig) or {}
        require_no_evaluation("rlp_reward_args", self.rlp_reward_args)
        if self.rlp_method not in METHODS:
            raise ValueError(f"`rlp_method` must be one of {list(METHODS)}, got {self.rlp_method!r}.")
        ranges = {
            "rlp_num_generations": (self.rlp_num_generations >= 2, "at least 2, because RLP compares completions"),
            "rlp_temperature": (0 < self.rlp_temperature < float("inf"), "above 0"),
            "rlp_heldout_share": (0 < self.rlp_heldout_share < 1, "between 0 and 1 (both excluded)"),
        }
        for name, (is_valid, expected) in ranges.items():
            if not is_valid:
                raise ValueError(f"`{name}` must be {expected}, got {vars(self)[name]}.")
        loop = self.rlp_anchor_weight, self.rlp_refine_every, self.rlp_rounds
        require_loop_settings(*loop, prefix="rlp_")
        if self.rlp_method == "none" and loop != (0.0, None, 1):
            raise ValueError(
                '`rlp_anchor_weight`, `rlp_refine_every` and `rlp_rounds` are not used with `rlp_method`="none". Set '
                '`rlp_method` to "uml" or "spg", or add `SemanticAnchorReward` to `reward_funcs` of plain PPO.'
            )
        taken = sorted({"method", "output_dir"} & self.rlp_reward_args.keys())
        if taken:
            raise ValueError(f"`rlp_reward_args` may not set {taken}. Set `rlp_method` and `output_dir` instead.")
        super().__post_init__()
        if self.rlp_method != "none":
            require_shared_ends(self.generation_kwargs, f"`rlp_method`={self.rlp_method!r}")
        if METHODS[self.rlp_method].synthetic:
            require_stop(self.stop_token_ids)


def drop_rlp_fields(args: RLPPPOConfig) -> RLPPPOConfig:
    """
    Copies a configuration and sets the fields of RLP to their defaults, so that [`PPOTrainer`] accepts it.

    Args:
        args ([`RLPPPOConfig`]):
            Configuration of the run.

    Returns:
        [`RLPPPOConfig`]: A shallow copy.
    """
    args = copy.copy(args)
    ppo_fields = {entry.name for entry in fields(PPOConfig)}
    for entry in fields(args):
        if entry.name not in ppo_fields:
            setattr(args, entry.name, entry.default)
    return args
