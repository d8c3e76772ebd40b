"""Configuration of the PPO trainer."""

import math
from dataclasses import dataclass, field, fields
from typing import Any, Self

from trl import GRPOConfig

from trl_rlp.data.sampling_settings import require_shared_ends
from trl_rlp.losses.kl import KL_ESTIMATORS
from trl_rlp.storage.paths import expand_fields
from trl_rlp.storage.precision import require_inference_dtype
from trl_rlp.storage.redaction import remove_secrets
from trl_rlp.trainer.ppo.ppo_presets import PRESETS
from trl_rlp.trainer.precision import default_precision, require_dtype


SCORE_POSITIONS = ("last_token", "after_last_token")
LOSS_NORMALIZATIONS = ("mini_batch", "micro_batch")
VALUE_MODEL_INITS = ("reward", "policy")

REPLACED = {
    "beta": "`kl_coef`",
    "num_iterations": "`num_ppo_epochs`",
    "epsilon": "`cliprange`",
    "epsilon_high": "`cliprange`",
    "generation_batch_size": "`per_device_train_batch_size` times `gradient_accumulation_steps`",
    "steps_per_generation": "`gradient_accumulation_steps`",
    "loss_type": "`loss_normalization`",
    "scale_rewards": "`normalize_rewards` or `whiten_rewards`",
    "mask_truncated_completions": "`missing_eos_penalty`",
}
"""Fields of GRPOConfig that have another name in PPOConfig, and that name."""

UNUSED = (
    "delta",
    "importance_sampling_level",
    "multi_objective_aggregation",
    "sync_ref_model",
    "ref_model_mixup_alpha",
    "ref_model_sync_steps",
    "sapo_temperature_neg",
    "sapo_temperature_pos",
    "vespo_k_neg",
    "vespo_k_pos",
    "vespo_lambda_neg",
    "vespo_lambda_pos",
    "top_entropy_quantile",
    "entropy_coef",
    "entropy_coef_delta",
    "entropy_coef_max",
    "entropy_coef_min",
    "entropy_target",
    "use_adaptive_entropy",
    "off_policy_mask_threshold",
    "use_bias_correction_kl",
    "router_aux_loss_coef",
)
"""Fields of GRPOConfig that the losses of PPO do not use."""

DERIVED_SIZES = (
    "num_total_batches",
    "batch_size",
    "local_batch_size",
    "micro_batch_size",
    "mini_batch_size",
    "local_mini_batch_size",
)
"""Fields that the trainer computes."""


@dataclass
class PPOConfig(GRPOConfig):
    r"""
    Configuration class for the [`PPOTrainer`].

    It has the fields of the PPOConfig that TRL removed in 1.13, under the same names, and a few new ones. It also has
    all fields of [`~trl.GRPOConfig`] that control generation, reward functions and logging. A rollout has
    `per_device_train_batch_size` times `gradient_accumulation_steps` completions on each device. Step counts
    (`logging_steps`, `save_steps`, `eval_steps`, `warmup_steps`, `max_steps`) are numbers of rollouts.

    Parameters:
        > Parameters that control the rollout

        num_generations (`int`, *optional*, defaults to `1`):
            Number of completions per prompt in a rollout, at least 1.
        response_length (`int`, *optional*, defaults to `53`):
            Maximum length of a completion, in tokens. Same as `max_completion_length`, which takes precedence.
        max_completion_length (`int`, *optional*):
            Maximum length of a completion, in tokens. Defaults to `response_length`.
        temperature (`float`, *optional*, defaults to `0.7`):
            Sampling temperature, above 0. The logits are divided by it in all log-probabilities.
        stop_token (`str`, *optional*, defaults to `"eos"`):
            Token that ends a completion: `eos`, or None to always generate `response_length` tokens.
        stop_token_id (`int`, *optional*):
            ID of the token that ends a completion. Replaces `stop_token`.
        total_episodes (`int`, *optional*):
            Total number of completions to train on, rounded up to whole rollouts. If not set, `max_steps` decides,
            and without it `num_train_epochs`.
        num_mini_batches (`int`, *optional*, defaults to `1`):
            Number of optimizer steps per PPO epoch. Must divide `gradient_accumulation_steps`.
        num_ppo_epochs (`int`, *optional*, defaults to `4`):
            Number of passes over each rollout, at least 1.
        local_rollout_forward_batch_size (`int`, *optional*, defaults to `64`):
            Maximum number of completions per forward pass without gradients, on each device, at least 1. On an
            accelerator, a pass also has at most 16,384 tokens.
        inference_dtype (`str`, *optional*, defaults to `"auto"`):
            Dtype of reward models that the trainer loads by their name: `auto`, `float32` or `bfloat16`. `auto` is
            bf16 on an accelerator that computes in it, and the dtype of the checkpoint on a CPU. Score heads are in
            fp32.
        num_sample_generations (`int`, *optional*, defaults to `10`):
            Approximate number of times that completions of the evaluation prompts are printed during training. 0
            prints none.

        > Parameters that control the reward

        kl_coef (`float`, *optional*, defaults to `0.05`):
            Weight of the KL divergence from the reference policy in the reward, at least 0. It is beta in the paper.
        kl_estimator (`str`, *optional*, defaults to `"k1"`):
            Estimator of the KL divergence of each token: `k1`, `k2`, `k3`, or `clamped` (AlpacaFarm's).
        adaptive_kl (`bool`, *optional*, defaults to `False`):
            Whether to adapt `kl_coef` during training, to move the KL divergence toward `kl_target`.
        kl_target (`float`, *optional*, defaults to `6.0`):
            Target of an adaptive `kl_coef`: KL divergence per completion in nats, above 0.
        kl_horizon (`int`, *optional*, defaults to `10000`):
            Number of completions over which an adaptive `kl_coef` adapts, above 0.
        missing_eos_penalty (`float`, *optional*):
            Penalty subtracted from the score of a completion without a stop token, above 0.
        reward_clip (`float`, *optional*):
            Maximum absolute value of a score, above 0. Scores are clipped after normalization.
        normalize_rewards (`bool`, *optional*, defaults to `False`):
            Whether to divide scores by the standard deviation of all scores so far.
        standardize_rewards (`bool`, *optional*, defaults to `False`):
            Whether to scale each reward model to mean 0 and standard deviation 1 on completions of the initial policy.
        whiten_rewards (`bool`, *optional*, defaults to `False`):
            Whether to scale the token rewards of a rollout to standard deviation 1 around their mean.
        unbiased_whitening (`bool`, *optional*, defaults to `True`):
            Whether whitening uses the unbiased standard deviation. AlpacaFarm uses the biased one.
        score_position (`str`, *optional*, defaults to `"last_token"`):
            Position that receives the score: the `last_token` of a completion, or `after_last_token` if there is room
            (as in TRL 1.12).

        > Parameters that control the losses

        gamma (`float`, *optional*, defaults to `1.0`):
            Discount factor per token, between 0 and 1.
        lam (`float`, *optional*, defaults to `0.95`):
            Lambda of generalized advantage estimation, between 0 and 1.
        cliprange (`float`, *optional*, defaults to `0.2`):
            Epsilon of the clipped policy loss, above 0.
        cliprange_value (`float`, *optional*, defaults to `0.2`):
            Maximum change of a value since the rollout before its loss is clipped, above 0. None disables clipping.
        vf_coef (`float`, *optional*, defaults to `0.1`):
            Weight of the value loss, at least 0.
        loss_normalization (`str`, *optional*, defaults to `"mini_batch"`):
            Tokens that a loss is averaged over: those of the whole `mini_batch` on all processes, or those of each
            `micro_batch` (as in TRL 1.12).

        > Parameters that control the value model

        value_model_init (`str`, *optional*):
            Initial weights of the value model if none is passed: `reward` or `policy`. Defaults to the reward model if
            it uses the policy's tokens, else to the policy.
        value_learning_rate (`float`, *optional*):
            Learning rate of the value model, above 0. Defaults to `learning_rate`.
        value_warmup_rollouts (`int`, *optional*, defaults to `0`):
            Number of rollouts at the start that train only the value model.

        > Parameters that control PEFT

        model_adapter_name (`str`, *optional*):
            Name of the adapter to train, if the policy has several.
        ref_adapter_name (`str`, *optional*):
            Name of the adapter to use as the reference policy. Defaults to the policy without its adapters.

        > Parameters that TRL 1.12 had

        sft_model_path (`str`, *optional*, defaults to `"EleutherAI/pythia-160m"`):
            Path of the SFT model. Scripts may read it. The trainer does not.
        reward_model_path (`str`, *optional*, defaults to `"EleutherAI/pythia-160m"`):
            Path of the reward model. Scripts may read it. The trainer does not.
        dataset_num_proc (`int`, *optional*):
            Not used. Prompts are tokenized when they are sampled.
        num_total_batches (`int`, *optional*):
            Number of rollouts of the run. Set by the trainer.
        batch_size (`int`, *optional*):
            Number of completions per rollout, on all devices. Set by the trainer.
        local_batch_size (`int`, *optional*):
            Number of completions per rollout, on each device. Set by the trainer.
        micro_batch_size (`int`, *optional*):
            Number of completions per forward pass with gradients, on all devices. Set by the trainer.
        mini_batch_size (`int`, *optional*):
            Number of completions per optimizer step, on all devices. Set by the trainer.
        local_mini_batch_size (`int`, *optional*):
            Number of completions per optimizer step, on each device. Set by the trainer.

        > Parameters whose default values are overridden from GRPOConfig

        disable_dropout (`bool`, *optional*, defaults to `True`):
            Whether to disable dropout in all models. Probability ratios are exact only without dropout.
        learning_rate (`float`, *optional*, defaults to `3e-6`):
            Initial learning rate of the policy.

    Raises:
        ValueError: If a value is out of range, a name is unknown, `num_mini_batches` does not divide
            `gradient_accumulation_steps`, or a field of GRPOConfig is set that PPO does not use.

    Example:

    ```python
    >>> PPOConfig("ppo", total_episodes=10_000, per_device_train_batch_size=8, gradient_accumulation_steps=8)
    ```
    """

    # Parameters that control the rollout
    num_generations: int = field(
        default=1, metadata={"help": "Number of completions per prompt in a rollout, at least 1."}
    )
    response_length: int = field(
        default=53,
        metadata={
            "help": (
                "Maximum length of a completion, in tokens. Same as `max_completion_length`, which takes precedence."
            )
        },
    )
    max_completion_length: int | None = field(
        default=None, metadata={"help": "Maximum length of a completion, in tokens. Defaults to `response_length`."}
    )
    temperature: float = field(
        default=0.7,
        metadata={"help": "Sampling temperature, above 0. The logits are divided by it in all log-probabilities."},
    )
    stop_token: str | None = field(
        default="eos",
        metadata={"help": "Token that ends a completion: `eos`, or None to always generate `response_length` tokens."},
    )
    stop_token_id: int | None = field(
        default=None, metadata={"help": "ID of the token that ends a completion. Replaces `stop_token`."}
    )
    total_episodes: int | None = field(
        default=None,
        metadata={
            "help": (
                "Total number of completions to train on, rounded up to whole rollouts. If not set, "
                "`max_steps` decides, and without it `num_train_epochs`."
            )
        },
    )
    num_mini_batches: int = field(
        default=1,
        metadata={"help": "Number of optimizer steps per PPO epoch. Must divide `gradient_accumulation_steps`."},
    )
    num_ppo_epochs: int = field(default=4, metadata={"help": "Number of passes over each rollout, at least 1."})
    local_rollout_forward_batch_size: int = field(
        default=64,
        metadata={
            "help": (
                "Maximum number of completions per forward pass without gradients, on each device, at least 1. On an "
                "accelerator, a pass also has at most 16,384 tokens."
            )
        },
    )
    inference_dtype: str = field(
        default="auto",
        metadata={
            "help": (
                "Dtype of reward models that the trainer loads by their name: `auto`, `float32` or `bfloat16`. `auto` "
                "is bf16 on an accelerator that computes in it, and the dtype of the checkpoint on a CPU. Score heads "
                "are in fp32."
            )
        },
    )
    num_sample_generations: int = field(
        default=10,
        metadata={
            "help": (
                "Approximate number of times that completions of the evaluation prompts are printed during training. "
                "0 prints none."
            )
        },
    )

    # Parameters that control the reward
    kl_coef: float = field(
        default=0.05,
        metadata={
            "help": "Weight of the KL divergence from the reference policy in the reward, at least 0. It is beta in "
            "the paper."
        },
    )
    kl_estimator: str = field(
        default="k1",
        metadata={
            "help": "Estimator of the KL divergence of each token: `k1`, `k2`, `k3`, or `clamped` (AlpacaFarm's)."
        },
    )
    adaptive_kl: bool = field(
        default=False,
        metadata={"help": "Whether to adapt `kl_coef` during training, to move the KL divergence toward `kl_target`."},
    )
    kl_target: float = field(
        default=6.0,
        metadata={"help": "Target of an adaptive `kl_coef`: KL divergence per completion in nats, above 0."},
    )
    kl_horizon: int = field(
        default=10000,
        metadata={"help": "Number of completions over which an adaptive `kl_coef` adapts, above 0."},
    )
    missing_eos_penalty: float | None = field(
        default=None,
        metadata={"help": "Penalty subtracted from the score of a completion without a stop token, above 0."},
    )
    reward_clip: float | None = field(
        default=None,
        metadata={"help": "Maximum absolute value of a score, above 0. Scores are clipped after normalization."},
    )
    normalize_rewards: bool = field(
        default=False,
        metadata={"help": "Whether to divide scores by the standard deviation of all scores so far."},
    )
    standardize_rewards: bool = field(
        default=False,
        metadata={
            "help": (
                "Whether to scale each reward model to mean 0 and standard deviation 1 on completions of the initial "
                "policy."
            )
        },
    )
    whiten_rewards: bool = field(
        default=False,
        metadata={
            "help": "Whether to scale the token rewards of a rollout to standard deviation 1 around their mean."
        },
    )
    unbiased_whitening: bool = field(
        default=True,
        metadata={"help": "Whether whitening uses the unbiased standard deviation. AlpacaFarm uses the biased one."},
    )
    score_position: str = field(
        default="last_token",
        metadata={
            "help": (
                "Position that receives the score: the `last_token` of a completion, or `after_last_token` if there "
                "is room (as in TRL 1.12)."
            )
        },
    )

    # Parameters that control the losses
    gamma: float = field(default=1.0, metadata={"help": "Discount factor per token, between 0 and 1."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of generalized advantage estimation, between 0 and 1."})
    cliprange: float = field(default=0.2, metadata={"help": "Epsilon of the clipped policy loss, above 0."})
    cliprange_value: float | None = field(
        default=0.2,
        metadata={
            "help": (
                "Maximum change of a value since the rollout before its loss is clipped, above 0. None disables "
                "clipping."
            )
        },
    )
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss, at least 0."})
    loss_normalization: str = field(
        default="mini_batch",
        metadata={
            "help": (
                "Tokens that a loss is averaged over: those of the whole `mini_batch` on all processes, or those of "
                "each `micro_batch` (as in TRL 1.12)."
            )
        },
    )

    # Parameters that control the value model
    value_model_init: str | None = field(
        default=None,
        metadata={
            "help": (
                "Initial weights of the value model if none is passed: `reward` or `policy`. Defaults to the reward "
                "model if it uses the policy's tokens, else to the policy."
            )
        },
    )
    value_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Learning rate of the value model, above 0. Defaults to `learning_rate`."},
    )
    value_warmup_rollouts: int = field(
        default=0, metadata={"help": "Number of rollouts at the start that train only the value model."}
    )

    # Parameters that control PEFT
    model_adapter_name: str | None = field(
        default=None, metadata={"help": "Name of the adapter to train, if the policy has several."}
    )
    ref_adapter_name: str | None = field(
        default=None,
        metadata={
            "help": (
                "Name of the adapter to use as the reference policy. Defaults to the policy without its adapters."
            )
        },
    )

    # Parameters that TRL 1.12 had
    sft_model_path: str = field(
        default="EleutherAI/pythia-160m",
        metadata={"help": "Path of the SFT model. Scripts may read it. The trainer does not."},
    )
    reward_model_path: str = field(
        default="EleutherAI/pythia-160m",
        metadata={"help": "Path of the reward model. Scripts may read it. The trainer does not."},
    )
    dataset_num_proc: int | None = field(
        default=None, metadata={"help": "Not used. Prompts are tokenized when they are sampled."}
    )
    num_total_batches: int | None = field(
        default=None, metadata={"help": "Number of rollouts of the run. Set by the trainer."}
    )
    batch_size: int | None = field(
        default=None, metadata={"help": "Number of completions per rollout, on all devices. Set by the trainer."}
    )
    local_batch_size: int | None = field(
        default=None, metadata={"help": "Number of completions per rollout, on each device. Set by the trainer."}
    )
    micro_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Number of completions per forward pass with gradients, on all devices. Set by the trainer."
        },
    )
    mini_batch_size: int | None = field(
        default=None,
        metadata={"help": "Number of completions per optimizer step, on all devices. Set by the trainer."},
    )
    local_mini_batch_size: int | None = field(
        default=None,
        metadata={"help": "Number of completions per optimizer step, on each device. Set by the trainer."},
    )

    # Parameters whose default values are overridden from GRPOConfig
    disable_dropout: bool = field(
        default=True,
        metadata={
            "help": "Whether to disable dropout in all models. Probability ratios are exact only without dropout."
        },
    )
    learning_rate: float = field(default=3e-6, metadata={"help": "Initial learning rate of the policy."})

    def __post_init__(self):
        expand_fields(self)
        self.bf16 = default_precision(self)
        self._check_grpo_fields()
        self._check_names()
        self._check_ranges()
        if self.max_completion_length is None:
            self.max_completion_length = self.response_length
        self.response_length = self.max_completion_length
        given_generations = self.num_generations, self.num_generations_eval or 1
        self._express_rollout_in_grpo_fields()
        super().__post_init__()
        require_dtype(self.model_init_kwargs)
        require_inference_dtype("inference_dtype", self.inference_dtype)
        self.num_generations, self.num_generations_eval = given_generations
        if self.adaptive_kl and self.generation_batch_size >= 5 * self.kl_horizon:
            raise ValueError(
                f"`kl_horizon`={self.kl_horizon} is too short for rollouts of {self.generation_batch_size} "
                "completions. One rollout could make `kl_coef` negative. Set it above a fifth of a rollout."
            )

    def _check_grpo_fields(self) -> None:
        """Refuses settings of GRPOConfig that PPO cannot follow."""
        defaults = {entry.name: entry.default for entry in fields(GRPOConfig)}
        for name in (*REPLACED, *UNUSED):
            if vars(self)[name] != defaults[name]:
                remedy = f"Set {REPLACED[name]} instead." if name in REPLACED else "Leave it at its default."
                raise ValueError(f"`{name}`={vars(self)[name]!r} has no meaning in PPO. {remedy}")
        if self.fp16:
            raise ValueError(
                "`fp16` scales a single loss, but PPO has two optimizers. Set `bf16` if the hardware supports it, "
                "or neither."
            )
        if self.lr_scheduler_type == "reduce_lr_on_plateau":
            raise ValueError(
                '`lr_scheduler_type`="reduce_lr_on_plateau" needs a metric to minimize, which PPO does not have. '
                "Choose a schedule that depends on steps only, such as `linear`."
            )

    def _check_names(self) -> None:
        allowed = {
            "kl_estimator": KL_ESTIMATORS,
            "score_position": SCORE_POSITIONS,
            "loss_normalization": LOSS_NORMALIZATIONS,
            "value_model_init": (None, *VALUE_MODEL_INITS),
            "stop_token": (None, "eos"),
        }
        for name, values in allowed.items():
            if vars(self)[name] not in values:
                raise ValueError(f"`{name}` must be one of {list(values)}, got {vars(self)[name]!r}.")
        if self.use_vllm and (self.stop_token is None or self.stop_token_id is not None):
            raise ValueError(
                "With `use_vllm` completions end at the model's EOS token. Leave `stop_token` at its default, and "
                "pass other stop tokens to vLLM in `generation_kwargs`."
            )
        if self.standardize_rewards:
            require_shared_ends(self.generation_kwargs, "`standardize_rewards`")
        if self.stop_token_id is not None:
            self.stop_token = None  # "eos" is the default, so it may not be the user's choice

    def _check_ranges(self) -> None:
        at_least_one = ("num_generations", "response_length", "num_mini_batches", "num_ppo_epochs")
        at_least_one += ("local_rollout_forward_batch_size",)
        above_zero = ("temperature", "kl_target", "kl_horizon", "cliprange")
        above_zero_or_none = (
            "missing_eos_penalty",
            "reward_clip",
            "cliprange_value",
            "value_learning_rate",
            "total_episodes",
        )
        at_least_zero = ("kl_coef", "vf_coef", "num_sample_generations", "value_warmup_rollouts")
        values = vars(self)
        ranges = {name: (values[name] >= 1, "at least 1") for name in at_least_one}
        ranges |= {name: (0 < values[name] < math.inf, "above 0") for name in above_zero}
        ranges |= {name: (values[name] is None or values[name] > 0, "above 0 or None") for name in above_zero_or_none}
        ranges |= {name: (0 <= values[name] < math.inf, "at least 0") for name in at_least_zero}
        ranges |= {name: (0 <= values[name] <= 1, "between 0 and 1") for name in ("gamma", "lam")}
        for name, (is_valid, expected) in ranges.items():
            if not is_valid:
                raise ValueError(f"`{name}` must be {expected}, got {values[name]}.")
        if self.adaptive_kl and self.kl_coef == 0:
            raise ValueError(
                "`kl_coef` is 0, where `adaptive_kl` leaves it, because it only multiplies. Set it above 0."
            )

    def _express_rollout_in_grpo_fields(self) -> None:
        """Sets the fields of GRPO that control how a rollout is generated and how often it is used."""
        if self.gradient_accumulation_steps % self.num_mini_batches:
            raise ValueError(
                f"`num_mini_batches`={self.num_mini_batches} does not divide `gradient_accumulation_steps`="
                f"{self.gradient_accumulation_steps}, the number of micro-batches of a rollout. Use a divisor, for "
                f"example `gradient_accumulation_steps`={self.gradient_accumulation_steps * self.num_mini_batches} "
                f"with `per_device_train_batch_size` divided by {self.num_mini_batches}."
            )
        self.steps_per_generation = self.gradient_accumulation_steps
        self.gradient_accumulation_steps //= self.num_mini_batches
        self.num_iterations = self.num_ppo_epochs
        self.beta = 0.0  # PPO's KL is part of the reward, with a reference model that the trainer owns
        if self.num_generations == 1:
            # GRPO refuses one completion per prompt, because its own advantages compare completions of a prompt.
            self.num_generations = self.per_device_train_batch_size * self.steps_per_generation
            if self.num_generations == 1:
                _ = self.device  # starts the processes, which `world_size` counts
                self.num_generations = self.world_size
            if self.num_generations == 1:
                raise ValueError(
                    "`per_device_train_batch_size` times `gradient_accumulation_steps` is 1 in a single process, but "
                    "the advantages of a rollout with one completion cannot be whitened. Raise one of them."
                )
        self.num_generations_eval = self.num_generations_eval or 1

    @property
    def stop_token_ids(self) -> list[int] | None:
        """The tokens that end a completion, for [`sample_completions`]. None means EOS."""
        if self.stop_token_id is not None:
            return [self.stop_token_id]
        return None if self.stop_token == "eos" else []

    def to_dict(self) -> dict[str, Any]:
        """
        Returns the fields as plain values, for trackers. Secrets inside mappings are left out.

        Returns:
            `dict`: Values by the names of the fields. As in transformers, `hub_token` has no value.
        """
        values = {name: remove_secrets(value) for name, value in super().to_dict().items()}
        return {**values, "stop_token": self.stop_token}  # transformers takes its name for that of a secret

    @classmethod
    def from_preset(cls, name: str, output_dir: str, **overrides: Any) -> Self:
        """
        Creates the configuration of a known code base.

        Args:
            name (`str`):
                Key of [`PRESETS`]: `"alpacafarm"` or `"trl-1.12"`.
            output_dir (`str`):
                Output folder of the run.
            overrides:
                Further fields, or other values for fields of the preset.

        Returns:
            [`PPOConfig`]: The configuration.

        Raises:
            ValueError: If the name is unknown.

        Example:

        ```python
        >>> PPOConfig.from_preset("alpacafarm", "ppo", total_episodes=10_000)
        ```
        """
        if name not in PRESETS:
            raise ValueError(f"`name` must be one of {list(PRESETS)}, got {name!r}.")
        return cls(output_dir, **{**PRESETS[name], **overrides})

    @property
    def steps_per_rollout(self) -> int:
        """Number of optimizer steps per rollout: `num_ppo_epochs` times `num_mini_batches`."""
        return self.num_ppo_epochs * self.num_mini_batches
