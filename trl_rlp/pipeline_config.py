"""Settings of Algorithm 1."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from peft import LoraConfig
from transformers.utils import logging
from trl import GRPOConfig, ModelConfig, RLOOConfig, get_peft_config

from trl_rlp.data.sampling.engines import require_engine
from trl_rlp.data.sampling_settings import require_shared_ends, require_stop
from trl_rlp.evaluation.gate_report import ON_REGRESSION
from trl_rlp.pipeline_presets import apply_preset
from trl_rlp.stages.loop_checks import require_loop_settings, require_refinable
from trl_rlp.stages.policy import POLICY_TRAINERS
from trl_rlp.storage.paths import expand_fields
from trl_rlp.storage.precision import dtype_option, require_inference_dtype
from trl_rlp.trainer.field_values import convert_fields
from trl_rlp.trainer.mappings import parse_fields, parse_mapping, require_no_evaluation
from trl_rlp.trainer.ppo.ppo_config import PPOConfig
from trl_rlp.trainer.precision import require_dtype, supported_precision
from trl_rlp.trainer.reward.methods import FIELDS, METHODS
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


logger = logging.get_logger(__name__)

REFINING_METHODS = tuple(name for name in METHODS if name != "none")
SAMPLE_FROM = ("policy", "sft")


@dataclass(frozen=True)
class RefinementSettings:
    """
    Settings of step 4 of Algorithm 1, and of what step 5 adds to the policy's training.

    Args:
        base_model (`str` or `Path`):
            Model that the refined reward model starts from, with a new score head. The first reward model starts from
            the same model.
        config ([`RLPRewardConfig`]):
            Configuration of the reward trainer, with its `method`.
        args (`dict`):
            Fields that `config` was created from, without `output_dir` and `method`.
        sampling (`dict`):
            Arguments of [`sample_completions`].
        model_options (`dict`, *optional*):
            Options of [`load_policy`] and [`load_reward_model`] for the models that only infer.
        peft_config (`LoraConfig`, *optional*):
            Configuration of an adapter to train. The adapter is merged into the model before saving.
        on_regression (`str`, *optional*, defaults to `"warn"`):
            What the gate does if the refined model is worse: `"warn"` or `"raise"`.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the synthetic pairs and of the gate's policy pairs.
        anchor_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the anchor reward in step 5, at least 0 (c).
        refine_every (`int`, *optional*):
            Number of rollouts of step 5 after which the reward model is refined again. `None` does not refine it.
        sample_from (`str`, *optional*, defaults to `"policy"`):
            Which policy is sampled in step 4 of round 1: `"policy"` (π_θ of step 3) or `"sft"` (π_SFT).
    """

    base_model: str | Path
    config: RLPRewardConfig
    args: dict[str, Any]
    sampling: dict[str, Any]
    model_options: dict[str, Any] = field(default_factory=dict)
    peft_config: LoraConfig | None = None
    on_regression: str = "warn"
    seed: int = 42
    anchor_weight: float = 0.0
    refine_every: int | None = None
    sample_from: str = "policy"

    @property
    def trains_first_policy(self) -> bool:
        """Whether step 3 trains a policy, which step 4 samples. Otherwise, step 4 samples π_SFT."""
        return self.sample_from == "policy"

    @property
    def is_in_loop(self) -> bool:
        """Whether step 5 has an anchor reward, or refines the reward model, so that π_SFT is sampled."""
        return self.anchor_weight > 0 or self.refine_every is not None

    @property
    def needs_anchors(self) -> bool:
        """Whether step 5 compares completions with anchors. The views of UML do not need them."""
        return self.anchor_weight > 0 or (self.refine_every is not None and self.config.uses_synthetic_pairs)

    @property
    def needs_equivalence(self) -> bool:
        """Whether completions are compared by meaning, in step 4 or in step 5."""
        return self.config.needs_groups or self.needs_anchors


@dataclass
class RLPConfig:
    r"""
    Settings of [`run_rlp`]: a field for each decision of Algorithm 1, and mappings for the trainers.

    Args:
        output_dir (`str`):
            Folder of the run, with a subfolder for each stage. A second run with the same settings resumes after the
            last finished stage. The folder of another run is refused.
        sft_model (`str`):
            Folder or Hub name of the causal LM that both policies start from (π_SFT in the paper).
        reward_base_model (`str`, *optional*):
            Folder or Hub name of the model that both reward models start from, with a new score head. Defaults to
            `sft_model`.
        method (`str`, *optional*, defaults to `"spg"`):
            Method that refines the reward model: `uml`, `spg` or `uml+spg`.
        policy_trainer (`str`, *optional*, defaults to `"ppo"`):
            Trainer of the policy: `ppo` (the paper's), `rloo` or `grpo`.
        num_generations (`int`, *optional*, defaults to `10`):
            Number of completions sampled from the policy for each prompt, at least 2 (n in the paper).
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature of the completions that the reward model is refined on, above 0.
        evaluation_temperature (`float`, *optional*, defaults to `0.7`):
            Sampling temperature of the evaluation, above 0.
        max_new_tokens (`int`, *optional*, defaults to `300`):
            Maximum length of a completion, in tokens, in sampling and in training. `policy_args` may set another
            length for training. The default is AlpacaFarm's.
        engine (`str`, *optional*, defaults to `"transformers"`):
            What samples the policies for the refinement and the evaluation: `transformers`, `vllm` or `server`. A
            server is asked for the model with the policy's folder as its name.
        engine_args (`dict` or `str`, *optional*):
            Arguments of the engine, as a mapping. For `vllm`, those of `vllm.LLM`, for example
            `gpu_memory_utilization`. For `server`, `base_url` and other arguments of `sample_from_server`.
        tokens_per_batch (`int`, *optional*):
            Maximum number of tokens in a sampling batch of `transformers`, prompts and completions together. Defaults
            to what fits into the free memory of the device, and to 8192 on the CPU.
        heldout_share (`float`, *optional*, defaults to `0.05`):
            Share of the human preferences held out for the gate if no evaluation set is given, in (0, 1). AlpacaFarm
            holds out 500 of 10,000.
        standardize_rewards (`bool`, *optional*, defaults to `False`):
            Whether to scale each reward model to mean 0 and standard deviation 1 on fixed samples of the SFT policy.
            The same KL coefficient then means the same strength of the KL penalty before and after the refinement. The
            paper does not do this.
        on_regression (`str`, *optional*, defaults to `"warn"`):
            What the gate does if the refined reward model is worse: `warn` or `raise`.
        sample_from (`str`, *optional*, defaults to `"policy"`):
            Which policy is sampled in step 4 of round 1: `policy` (that of step 3, as in the paper) or `sft` (the SFT
            policy, which is ours). With `sft`, there is no step 3, and the anchors come from the same samples.
        anchor_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the anchor reward in step 5, beside the reward model with weight 1, at least 0. A completion that
            means the same as the clear majority of the SFT policy's samples gets this reward. 0 turns it off. The
            paper does not have it.
        refine_every (`int`, *optional*):
            Number of rollouts of step 5 after which the reward model is refined again, at least 1. By default, it is
            the same during the whole step, as in the paper.
        rounds (`int`, *optional*, defaults to `1`):
            Number of times that steps 4 and 5 run, at least 1. Each further round samples the last retrained policy.
            Algorithm 1 runs them once.
        reward_args (`dict` or `str`, *optional*):
            Fields of RLPRewardConfig for both reward models, as a mapping. Examples are the learning rate, the batch
            size, `confidence_threshold` (gamma in the paper) and `representation_coef` (lambda in the paper).
        policy_args (`dict` or `str`, *optional*):
            Fields of PPOConfig, or of TRL's RLOOConfig or GRPOConfig, for both policies, as a mapping. Examples are
            the learning rate, and `kl_coef` or `beta`.
        reward_peft (`dict` or `str`, *optional*):
            Fields of LoraConfig, as a mapping. If set, the reward models are trained as adapters and merged before
            saving.
        policy_peft (`dict` or `str`, *optional*):
            Fields of LoraConfig, as a mapping. If set, the policies are trained as adapters and merged before saving.
        inference_dtype (`str`, *optional*, defaults to `"auto"`):
            Dtype of the models that only infer: `auto`, `float32` or `bfloat16`. `auto` is bf16 on an accelerator that
            computes in it, and the dtype of the checkpoint on a CPU. Score heads and log-probabilities are in fp32.
        model_args (`dict` or `str`, *optional*):
            Fields of TRL's ModelConfig, as a mapping, for all stages: `dtype` (of the trained models),
            `attn_implementation`, `model_revision` (of `sft_model` and `reward_base_model`), and `use_peft` with the
            fields of the adapter. `model_init_kwargs`, `reward_peft` and `policy_peft` take precedence.
        seed (`int`, *optional*, defaults to `42`):
            Seed of sampling, pairs and splits. The trainers' `seed` and `data_seed` are fields of the mappings.

    Raises:
        ValueError: If a value is out of range, a name is unknown, or a mapping has an unknown field.
        TypeError: If a mapping has another type, or a model is not a folder or a Hub name.
    """

    output_dir: str = field(
        metadata={
            "help": (
                "Folder of the run, with a subfolder for each stage. A second run with the same settings resumes "
                "after the last finished stage. The folder of another run is refused."
            )
        }
    )
    sft_model: str = field(
        metadata={"help": "Folder or Hub name of the causal LM that both policies start from (π_SFT in the paper)."}
    )
    reward_base_model: str | None = field(
        default=None,
        metadata={
            "help": (
                "Folder or Hub name of the model that both reward models start from, with a new score head. Defaults "
                "to `sft_model`."
            )
        },
    )
    method: str = field(
        default="spg", metadata={"help": "Method that refines the reward model: `uml`, `spg` or `uml+spg`."}
    )
    policy_trainer: str = field(
        default="ppo", metadata={"help": "Trainer of the policy: `ppo` (the paper's), `rloo` or `grpo`."}
    )
    num_generations: int = field(
        default=10,
        metadata={
            "help": "Number of completions sampled from the policy for each prompt, at least 2 (n in the paper)."
        },
    )
    temperature: float = field(
        default=1.0,
        metadata={"help": "Sampling temperature of the completions that the reward model is refined on, above 0."},
    )
    evaluation_temperature: float = field(
        default=0.7, metadata={"help": "Sampling temperature of the evaluation, above 0."}
    )
    max_new_tokens: int = field(
        default=300,
        metadata={
            "help": (
                "Maximum length of a completion, in tokens, in sampling and in training. `policy_args` may set "
                "another length for training. The default is AlpacaFarm's."
            )
        },
    )
    engine: str = field(
        default="transformers",
        metadata={
            "help": (
                "What samples the policies for the refinement and the evaluation: `transformers`, `vllm` or `server`. "
                "A server is asked for the model with the policy's folder as its name."
            )
        },
    )
    engine_args: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": (
                "Arguments of the engine, as a mapping. For `vllm`, those of `vllm.LLM`, for example "
                "`gpu_memory_utilization`. For `server`, `base_url` and other arguments of `sample_from_server`."
            )
        },
    )
    tokens_per_batch: int | None = field(
        default=None,
        metadata={
            "help": (
                "Maximum number of tokens in a sampling batch of `transformers`, prompts and completions together. "
                "Defaults to what fits into the free memory of the device, and to 8192 on the CPU."
            )
        },
    )
    heldout_share: float = field(
        default=0.05,
        metadata={
            "help": (
                "Share of the human preferences held out for the gate if no evaluation set is given, in (0, 1). "
                "AlpacaFarm holds out 500 of 10,000."
            )
        },
    )
    standardize_rewards: bool = field(
        default=False,
        metadata={
            "help": (
                "Whether to scale each reward model to mean 0 and standard deviation 1 on fixed samples of the SFT "
                "policy. The same KL coefficient then means the same strength of the KL penalty before and after the "
                "refinement. The paper does not do this."
            )
        },
    )
    on_regression: str = field(
        default="warn",
        metadata={"help": "What the gate does if the refined reward model is worse: `warn` or `raise`."},
    )
    sample_from: str = field(
        default="policy",
        metadata={
            "help": (
                "Which policy is sampled in step 4 of round 1: `policy` (that of step 3, as in the paper) or `sft` "
                "(the SFT policy, which is ours). With `sft`, there is no step 3, and the anchors come from the same "
                "samples."
            )
        },
    )
    anchor_weight: float = field(
        default=0.0,
        metadata={
            "help": (
                "Weight of the anchor reward in step 5, beside the reward model with weight 1, at least 0. A "
                "completion that means the same as the clear majority of the SFT policy's samples gets this reward. "
                "0 turns it off. The paper does not have it."
            )
        },
    )
    refine_every: int | None = field(
        default=None,
        metadata={
            "help": (
                "Number of rollouts of step 5 after which the reward model is refined again, at least 1. By default, "
                "it is the same during the whole step, as in the paper."
            )
        },
    )
    rounds: int = field(
        default=1,
        metadata={
            "help": (
                "Number of times that steps 4 and 5 run, at least 1. Each further round samples the last retrained "
                "policy. Algorithm 1 runs them once."
            )
        },
    )
    reward_args: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": (
                "Fields of RLPRewardConfig for both reward models, as a mapping. Examples are the learning rate, the "
                "batch size, `confidence_threshold` (gamma in the paper) and `representation_coef` (lambda in the "
                "paper)."
            )
        },
    )
    policy_args: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": (
                "Fields of PPOConfig, or of TRL's RLOOConfig or GRPOConfig, for both policies, as a mapping. Examples "
                "are the learning rate, and `kl_coef` or `beta`."
            )
        },
    )
    reward_peft: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": (
                "Fields of LoraConfig, as a mapping. If set, the reward models are trained as adapters and merged "
                "before saving."
            )
        },
    )
    policy_peft: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": (
                "Fields of LoraConfig, as a mapping. If set, the policies are trained as adapters and merged before "
                "saving."
            )
        },
    )
    inference_dtype: str = field(
        default="auto",
        metadata={
            "help": (
                "Dtype of the models that only infer: `auto`, `float32` or `bfloat16`. `auto` is bf16 on an "
                "accelerator that computes in it, and the dtype of the checkpoint on a CPU. Score heads and "
                "log-probabilities are in fp32."
            )
        },
    )
    model_args: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": (
                "Fields of TRL's ModelConfig, as a mapping, for all stages: `dtype` (of the trained models), "
                "`attn_implementation`, `model_revision` (of `sft_model` and `reward_base_model`), and `use_peft` "
                "with the fields of the adapter. `model_init_kwargs`, `reward_peft` and `policy_peft` take "
                "precedence."
            )
        },
    )
    seed: int = field(
        default=42,
        metadata={
            "help": (
                "Seed of sampling, pairs and splits. The trainers' `seed` and `data_seed` are fields of the mappings."
            )
        },
    )

    def __post_init__(self):
        for name in ("sft_model", "reward_base_model"):
            value = getattr(self, name)
            if not isinstance(value, str | Path | None):
                raise TypeError(f"`{name}` must be text, got `{type(value).__name__}`. Pass a folder or a Hub name.")
        expand_fields(self)
        for name, value in convert_fields(vars(self), type(self)).items():
            setattr(self, name, value)
        for name in ("engine_args", "model_args", "reward_args", "policy_args", "reward_peft", "policy_peft"):
            setattr(self, name, parse_mapping(name, getattr(self, name)))
        self.reward_args, self.policy_args = self.reward_args or {}, self.policy_args or {}
        self.model_args = self.model_args or {}
        self._check_names()
        self._check_engine()
        self._check_ranges()
        self._check_mappings()

    @classmethod
    def from_preset(cls, name: str, output_dir: str, sft_model: str, **overrides: Any) -> Self:
        """
        Creates the configuration of the paper, or of ours with anchors and refinement in the loop.

        The equivalence is not part of a preset. That of the paper is `NLIEquivalence()`.

        Args:
            name (`str`):
                Key of [`PRESETS`]: `"paper"`, or `"anchored"` (ours). `"anchored"` does not train the policy of step
                3: it refines the reward model on samples of π_SFT, and trains one policy by GRPO with the anchor
                reward and with refinement in the loop. Two of its values depend on the task. The weight of the KL
                divergence (`beta` in `policy_args`) is the best one of the laboratory. Find yours with several
                trainings. `refine_every` is a number of rollouts: about a fifth of those of step 5.
            output_dir (`str`):
                Folder of the run.
            sft_model (`str`):
                Folder or Hub name of π_SFT.
            overrides:
                Further fields, or other values for fields of the preset. A mapping such as `policy_args` replaces the
                preset's values of its own keys only.

        Returns:
            [`RLPConfig`]: The configuration.

        Raises:
            ValueError: If the name is unknown, or a field has a value that does not fit.

        Example:

        ```python
        >>> RLPConfig.from_preset("anchored", "runs/anchored", "my-sft-model", policy_args={"beta": 0.2})
        ```
        """
        return cls(**apply_preset(name, {"output_dir": output_dir, "sft_model": sft_model, **overrides}))

    def _check_names(self) -> None:
        allowed = {
            "method": REFINING_METHODS,
            "policy_trainer": tuple(POLICY_TRAINERS),
            "on_regression": ON_REGRESSION,
            "sample_from": SAMPLE_FROM,
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"`{name}` must be one of {values}, got {getattr(self, name)!r}.")

        require_inference_dtype("inference_dtype", self.inference_dtype)

    def _check_engine(self) -> None:
        require_engine(self.engine, self.engine_args, self.tokens_per_batch)
        unread = sorted(self._prompt_and_stop())
        if self.engine == "server" and unread:
            raise ValueError(
                f"`policy_args` sets {unread}, which does not reach a server, so the policy would be sampled "
                "otherwise than it is trained. Remove it, or choose another `engine`."
            )

    def _check_ranges(self) -> None:
        if self.num_generations < 2:
            raise ValueError(
                f"`num_generations` must be at least 2, got {self.num_generations}. RLP compares completions."
            )
        if not 0 < self.heldout_share < 1:
            raise ValueError(f"`heldout_share` must be in (0, 1), got {self.heldout_share}.")
        if self.seed < 0:
            raise ValueError(f"`seed` must be at least 0, got {self.seed}.")
        for name in ("temperature", "evaluation_temperature", "max_new_tokens", "tokens_per_batch"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)}.")
        require_loop_settings(self.anchor_weight, self.refine_every, self.rounds)

    def _check_mappings(self) -> None:
        """Builds the configuration of each trainer once, to find wrong fields before hours of training."""
        self._check_model_args()
        for name, reserved in (
            ("reward_args", {"output_dir", "method"}),
            ("policy_args", {"output_dir", "inference_dtype"}),
        ):
            taken = sorted(reserved & getattr(self, name).keys())
            if taken:
                raise ValueError(f"`{name}` may not set {taken}. Use the field of RLPConfig with the same name.")
        for name, config_class in (
            ("reward_args", RLPRewardConfig),
            ("policy_args", POLICY_TRAINERS[self.policy_trainer][1]),
            ("reward_peft", LoraConfig),
            ("policy_peft", LoraConfig),
        ):
            taken = sorted(key for key in getattr(self, name) or {} if key.startswith("rlp_"))
            if taken:
                raise ValueError(
                    f"`{name}` has {taken}, which {config_class.__name__} does not have. Set `method` and the other "
                    "fields of RLPConfig instead."
                )
            setattr(self, name, parse_fields(name, getattr(self, name), config_class))
            require_no_evaluation(name, getattr(self, name) or {})
        with _named("reward_args"):
            RLPRewardConfig(output_dir=self.output_dir, **self.first_reward_args())
            self.reward_config()
        with _named("policy_args"):
            config = self.policy_config()
            require_dtype(config.model_init_kwargs)
            require_shared_ends(config.generation_kwargs, "`run_rlp`")
            if METHODS[self.method].synthetic:
                require_stop(self._prompt_and_stop().get("stop_token_ids"))
        self._check_loop(config)
        for name in ("reward", "policy"):
            with _named(f"{name}_peft"):
                self.lora(name)

    def _check_loop(self, policy_config: PPOConfig | RLOOConfig | GRPOConfig) -> None:
        """Checks that the policy's trainer can do what step 5 adds to it."""
        if self.anchor_weight and policy_config.reward_weights is not None:
            raise ValueError(
                f"`policy_args.reward_weights` is {policy_config.reward_weights}, but `anchor_weight`="
                f"{self.anchor_weight} sets the weights: 1 for the reward model, and itself for the anchor reward. "
                "Remove `reward_weights`."
            )
        if self.anchor_weight and self.policy_trainer == "grpo" and _scales_by_deviation(policy_config):
            logger.warning_once(
                f"`anchor_weight`={self.anchor_weight} with GRPO, which divides the rewards of a prompt by their "
                "standard deviation, so neither `anchor_weight` nor `beta` has a fixed strength. Set `policy_args` to "
                '{"scale_rewards": "none"}, with the default `multi_objective_aggregation`.'
            )
        if self.refine_every is not None:
            require_refinable(policy_config, self.reward_config())

    def _check_model_args(self) -> None:
        self.model_args = parse_fields("model_args", self.model_args, ModelConfig) or {}
        if self.model_args.get("model_name_or_path") is not None:
            raise ValueError("`model_args` may not set `model_name_or_path`. Use `sft_model` and `reward_base_model`.")
        quantizing = [name for name in ("load_in_8bit", "load_in_4bit") if self.model_args.get(name)]
        if quantizing:
            raise ValueError(
                f"`model_args` may not set `{quantizing[0]}`, because the stages merge adapters and compare rewards, "
                "which must be exact. Set `dtype: bfloat16` with `reward_peft` and `policy_peft` to save memory."
            )

    def model_options(self) -> dict[str, Any]:
        """
        Collects the options with which the stages load models that only infer.

        Returns:
            `dict`: Options of [`load_policy`] and [`load_reward_model`].
        """
        options = {name: value for name, value in self._init_options().items() if name != "dtype"}
        options |= dtype_option(self.inference_dtype)
        if any(args.get("trust_remote_code") for args in (self.reward_args, self.policy_args)):
            options["trust_remote_code"] = True
        return options

    def _init_options(self) -> dict[str, Any]:
        """Converts the fields of ModelConfig to options of `from_pretrained`."""
        names = {"dtype": "dtype", "attn_implementation": "attn_implementation", "model_revision": "revision"}
        return {option: self.model_args[name] for name, option in names.items() if name in self.model_args}

    def _add_init_options(self, args: dict[str, Any]) -> dict[str, Any]:
        """Adds `model_init_kwargs` to the fields of a trainer's configuration. Those that it has take precedence."""
        given = parse_mapping("model_init_kwargs", args.get("model_init_kwargs")) or {}
        options = {**self._init_options(), **given}
        return {**args, "model_init_kwargs": options} if options else args

    def first_reward_args(self) -> dict[str, Any]:
        """
        Selects the fields for the reward model of step 2, which is trained on human preferences only.

        Returns:
            `dict`: Fields of [`RLPRewardConfig`].
        """
        refining = {name for names in FIELDS.values() for name in names}
        args = {name: value for name, value in self.reward_args.items() if name not in refining}
        return {**self._add_init_options(args), "method": "none"}

    def reward_config(self) -> RLPRewardConfig:
        """
        Builds the configuration of the refined reward model.

        Returns:
            [`RLPRewardConfig`]: The configuration. The stage sets another `output_dir`.
        """
        args = self._add_init_options(self.reward_args)
        return RLPRewardConfig(output_dir=self.output_dir, method=self.method, **args)

    def policy_config(self) -> PPOConfig | RLOOConfig | GRPOConfig:
        """
        Builds the configuration of the policy's trainer.

        Returns:
            [`PPOConfig`] or [`~trl.RLOOConfig`] or [`~trl.GRPOConfig`]: The configuration. The stage sets another
            `output_dir`.
        """
        config_class = POLICY_TRAINERS[self.policy_trainer][1]
        return config_class(
            output_dir=self.output_dir, **supported_precision(self._add_init_options(self.policy_args))
        )

    def policy_arguments(self) -> dict[str, Any]:
        """
        Collects the arguments that steps 3 and 5 have in common. Only the reward model differs.

        Returns:
            `dict`: Arguments of [`train_policy`].
        """
        return {
            "sft_model": self.sft_model,
            "args": self._add_init_options(self._add_completion_length(self.policy_args)),
            "policy_trainer": self.policy_trainer,
            "peft_config": self.lora("policy"),
            "max_length": self.reward_config().max_length,
            "standardize_with": self.sampling(num_generations=2) if self.standardize_rewards else None,
            "model_options": self.model_options(),
        }

    def refinement_settings(self) -> RefinementSettings:
        """
        Builds the settings of step 4.

        Returns:
            [`RefinementSettings`]: The settings.
        """
        return RefinementSettings(
            base_model=self.reward_base_model or self.sft_model,
            config=self.reward_config(),
            args=self._add_init_options(self.reward_args),
            model_options=self.model_options(),
            sampling=self.engine_sampling(self.temperature),
            peft_config=self.lora("reward"),
            on_regression=self.on_regression,
            seed=self.seed,
            anchor_weight=self.anchor_weight,
            refine_every=self.refine_every,
            sample_from=self.sample_from,
        )

    def sampling(self, **overrides: Any) -> dict[str, Any]:
        """
        Collects the arguments of [`sample_completions`] for a loaded policy.

        Args:
            overrides:
                Further arguments, or other values.

        Returns:
            `dict`: Keyword arguments.
        """
        return {
            "num_generations": self.num_generations,
            "max_new_tokens": self.max_new_tokens,
            "tokens_per_batch": self.tokens_per_batch,
            "seed": self.seed,
            **self._prompt_and_stop(),
            **overrides,
        }

    def engine_sampling(self, temperature: float) -> dict[str, Any]:
        """
        Collects the arguments of [`sample_completions`] for a saved policy.

        Args:
            temperature (`float`):
                Sampling temperature.

        Returns:
            `dict`: Keyword arguments, with the engine.
        """
        return self.sampling(temperature=temperature, engine=self.engine, engine_args=self.engine_args)

    def _add_completion_length(self, policy_args: dict[str, Any]) -> dict[str, Any]:
        """Trains on completions of the same length as those that are sampled, unless the mapping sets a length."""
        if policy_args.get("max_completion_length") is not None or "response_length" in policy_args:
            return policy_args
        return {**policy_args, "max_completion_length": self.max_new_tokens}

    def _prompt_and_stop(self) -> dict[str, Any]:
        """Collects what the policy's trainer changes about prompts and their completions, for sampling."""
        settings: dict[str, Any] = {}
        kwargs = parse_mapping("chat_template_kwargs", self.policy_args.get("chat_template_kwargs"))
        if kwargs:
            settings["chat_template_kwargs"] = kwargs
        if self.policy_args.get("stop_token_id") is not None:
            settings["stop_token_ids"] = [self.policy_args["stop_token_id"]]
        elif self.policy_args.get("stop_token", "eos") is None:
            settings["stop_token_ids"] = []
        return settings

    def lora(self, name: str) -> LoraConfig | None:
        """
        Builds the configuration of an adapter.

        Args:
            name (`str`):
                `"reward"` or `"policy"`.

        Returns:
            `peft.LoraConfig` or `None`: The configuration with its task type. A reward model's score head is trained
            and saved.
        """
        settings = {"reward": self.reward_peft, "policy": self.policy_peft}[name]
        if settings is None and self.model_args.get("use_peft"):
            config: LoraConfig = get_peft_config(ModelConfig(**self.model_args))
            if name == "reward":
                config.task_type, config.modules_to_save = "SEQ_CLS", config.modules_to_save or ["score"]
            return config
        if settings is None:
            return None
        if name == "policy":
            return LoraConfig(**{"task_type": "CAUSAL_LM", **settings})
        return LoraConfig(**{"task_type": "SEQ_CLS", "modules_to_save": ["score"], **settings})


def _scales_by_deviation(config: GRPOConfig) -> bool:
    return config.scale_rewards != "none" or config.multi_objective_aggregation != "sum_then_normalize"


@contextmanager
def _named(mapping: str) -> Iterator[None]:
    """Adds the name of a mapping to the errors of the configuration that is built from it."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"`{mapping}`: {error}") from error
