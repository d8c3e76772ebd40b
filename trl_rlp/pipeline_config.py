"""Settings of Algorithm 1."""

from dataclasses import dataclass, field, fields
from typing import Any

from peft import LoraConfig

from trl_rlp.evaluation.gate import ON_REGRESSION
from trl_rlp.stages.policy import POLICY_TRAINERS
from trl_rlp.trainer.mappings import mapping, parse_numbers
from trl_rlp.trainer.precision import supported_precision
from trl_rlp.trainer.reward.methods import FIELDS
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


METHODS = ("uml", "spg", "uml+spg")


@dataclass
class RLPConfig:
    r"""
    Settings of [`run_rlp`]: one field a decision of Algorithm 1, and mappings for the trainers.

    Args:
        output_dir (`str`):
            Folder of the run: one folder a stage. A second run with the same settings goes on after the last finished
            stage; another run's folder is refused.
        sft_model (`str`):
            π_SFT: folder or Hub name of the causal LM that the policy starts from, twice.
        reward_base_model (`str`, *optional*):
            Model that both reward models start from, with a fresh score head. `sft_model` if `None`.
        method (`str`, *optional*, defaults to `"spg"`):
            How the reward model is refined: `"uml"`, `"spg"` or `"uml+spg"`.
        policy_trainer (`str`, *optional*, defaults to `"ppo"`):
            Policy optimizer: `"ppo"` (the paper's), `"rloo"` or `"grpo"`.
        num_generations (`int`, *optional*, defaults to `10`):
            n: outputs sampled from the policy for each instruction, at least 2.
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature of the outputs that the reward model is refined on, above 0.
        evaluation_temperature (`float`, *optional*, defaults to `0.7`):
            Sampling temperature of the evaluation, above 0.
        max_new_tokens (`int`, *optional*, defaults to `300`):
            Longest output, in tokens. AlpacaFarm's value.
        tokens_per_batch (`int`, *optional*, defaults to `8192`):
            Tokens sampled at once, prompts and outputs together.
        heldout_share (`float`, *optional*, defaults to `0.05`):
            Share of the human preferences kept from training for the gate when no evaluation set is given, in (0, 1).
            AlpacaFarm holds out 500 of 10,000.
        standardize_rewards (`bool`, *optional*, defaults to `False`):
            Whether rewards get mean 0 and deviation 1 on fixed outputs of π_SFT, so that an equal β is an equal KL
            pressure before and after refinement. The paper does not.
        on_regression (`str`, *optional*, defaults to `"warn"`):
            What the gate does when the refined reward model is worse: `"warn"` or `"raise"`.
        reward_args (`dict` or `str`, *optional*):
            Fields of [`RLPRewardConfig`] for both reward models: learning rate,
            batch size, γ, λ and so on.
        policy_args (`dict` or `str`, *optional*):
            Fields of [`RLPPPOConfig`], or of TRL's `RLOOConfig` or `GRPOConfig`, for
            both policies: learning rate, `kl_coef` or `beta`, and so on.
        reward_peft (`dict` or `str`, *optional*):
            Fields of `peft.LoraConfig`: trains the reward models as adapters, merged before saving.
        policy_peft (`dict` or `str`, *optional*):
            Fields of `peft.LoraConfig`: trains the policies as adapters, merged before saving.
        seed (`int`, *optional*, defaults to `42`):
            Seed of sampling, pairing and splitting. The trainers' own `seed` and `data_seed` are in their mappings.

    Raises:
        ValueError: if a value is out of range or not one of its names, or a mapping names an unknown field.
        TypeError: if a mapping is something else.
    """

    output_dir: str = field(metadata={"help": "Folder of the run: one folder a stage."})
    sft_model: str = field(
        metadata={"help": "Folder or Hub name of the causal LM that the policy starts from, twice."}
    )
    reward_base_model: str | None = field(
        default=None,
        metadata={"help": "Model that both reward models start from. `sft_model` if not given."},
    )
    method: str = field(
        default="spg", metadata={"help": "How the reward model is refined: `uml`, `spg` or `uml+spg`."}
    )
    policy_trainer: str = field(default="ppo", metadata={"help": "Policy optimizer: `ppo`, `rloo` or `grpo`."})
    num_generations: int = field(
        default=10, metadata={"help": "n: outputs sampled from the policy for each instruction, at least 2."}
    )
    temperature: float = field(
        default=1.0,
        metadata={"help": "Sampling temperature of the outputs that the reward model is refined on, above 0."},
    )
    evaluation_temperature: float = field(
        default=0.7, metadata={"help": "Sampling temperature of the evaluation, above 0."}
    )
    max_new_tokens: int = field(default=300, metadata={"help": "Longest output, in tokens."})
    tokens_per_batch: int = field(
        default=8192, metadata={"help": "Tokens sampled at once, prompts and outputs together."}
    )
    heldout_share: float = field(
        default=0.05,
        metadata={"help": "Share of the human preferences kept from training for the gate, in (0, 1)."},
    )
    standardize_rewards: bool = field(
        default=False,
        metadata={"help": "Whether rewards get mean 0 and deviation 1 on fixed outputs of the SFT policy."},
    )
    on_regression: str = field(
        default="warn",
        metadata={"help": "What the gate does when the refined reward model is worse: `warn` or `raise`."},
    )
    reward_args: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Fields of RLPRewardConfig for both reward models, as a mapping."}
    )
    policy_args: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Fields of RLPPPOConfig, RLOOConfig or GRPOConfig for both policies, as a mapping."},
    )
    reward_peft: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Fields of LoraConfig: trains the reward models as adapters."}
    )
    policy_peft: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Fields of LoraConfig: trains the policies as adapters."}
    )
    seed: int = field(default=42, metadata={"help": "Seed of sampling, pairing and splitting."})

    def __post_init__(self):
        for name in ("reward_args", "policy_args"):
            setattr(self, name, mapping(name, getattr(self, name)) or {})
        for name in ("reward_peft", "policy_peft"):
            setattr(self, name, mapping(name, getattr(self, name)))
        self._check_names()
        self._check_ranges()
        self._check_mappings()

    def _check_names(self) -> None:
        allowed = {"method": METHODS, "policy_trainer": tuple(POLICY_TRAINERS), "on_regression": ON_REGRESSION}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"`{name}` must be one of {values}, got {getattr(self, name)!r}.")

    def _check_ranges(self) -> None:
        if self.num_generations < 2:
            raise ValueError(
                f"`num_generations` must be at least 2, got {self.num_generations}: RLP compares outputs."
            )
        if not 0 < self.heldout_share < 1:
            raise ValueError(f"`heldout_share` must be in (0, 1), got {self.heldout_share}.")
        if self.seed < 0:
            raise ValueError(f"`seed` must be at least 0, got {self.seed}.")
        for name in ("temperature", "evaluation_temperature", "max_new_tokens", "tokens_per_batch"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)}.")

    def _check_mappings(self) -> None:
        """Builds each trainer's config once, so that a wrong field is found before hours of training."""
        for name, owned in (("reward_args", {"output_dir", "method"}), ("policy_args", {"output_dir"})):
            taken = sorted(owned & getattr(self, name).keys())
            if taken:
                raise ValueError(f"`{name}` may not set {taken}: the run sets it. Use the field of the run's config.")
        policy_config = POLICY_TRAINERS[self.policy_trainer][1]
        for name, config_class in (
            ("reward_args", RLPRewardConfig),
            ("policy_args", policy_config),
            ("reward_peft", LoraConfig),
            ("policy_peft", LoraConfig),
        ):
            known = {entry.name for entry in fields(config_class) if entry.init}
            unknown = sorted((getattr(self, name) or {}).keys() - known)
            if unknown:
                raise ValueError(f"`{name}` names {unknown}, which {config_class.__name__} does not have.")
            if getattr(self, name):
                setattr(self, name, parse_numbers(name, getattr(self, name), config_class))
        self.reward_config()
        policy_config(output_dir=self.output_dir, **supported_precision(self.policy_args))

    def reward_config(self) -> RLPRewardConfig:
        """
        Gives the config of the refined reward model, for what it says of γ, views and pairs.

        Returns:
            [`RLPRewardConfig`].
        """
        return RLPRewardConfig(output_dir=self.output_dir, method=self.method, **self.reward_args)

    def first_reward_args(self) -> dict[str, Any]:
        """
        Gives the fields of the config of the reward model of step 2, which learns on human pairs alone.

        Returns:
            `dict`.
        """
        refining = {name for names in FIELDS.values() for name in names}
        args = {name: value for name, value in self.reward_args.items() if name not in refining}
        return {**args, "method": "none"}

    def needs_groups(self) -> bool:
        """
        Says whether the method needs groups of outputs that mean the same, and so an equivalence.

        Returns:
            `bool`.
        """
        return self.reward_config().needs_groups

    def sampling(self, **overrides: Any) -> dict[str, Any]:
        """
        Gives the arguments of [`sample_completions`].

        Args:
            overrides:
                Further arguments, or other values.

        Returns:
            `dict`.
        """
        return {
            "num_generations": self.num_generations,
            "max_new_tokens": self.max_new_tokens,
            "tokens_per_batch": self.tokens_per_batch,
            "seed": self.seed,
            **overrides,
        }

    def lora(self, name: str) -> LoraConfig | None:
        """
        Gives the adapter's config of the reward models or the policies.

        Args:
            name (`str`):
                `"reward"` or `"policy"`.

        Returns:
            `peft.LoraConfig` or `None`: the task type is set, and a reward model's score head is trained and kept.
        """
        settings = {"reward": self.reward_peft, "policy": self.policy_peft}[name]
        if settings is None:
            return None
        if name == "policy":
            return LoraConfig(**{"task_type": "CAUSAL_LM", **settings})
        return LoraConfig(**{"task_type": "SEQ_CLS", "modules_to_save": ["score"], **settings})
