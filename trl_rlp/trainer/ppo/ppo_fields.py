"""The fields of the PPO trainer's configuration, whose docstring explains them in the same words."""

from dataclasses import dataclass, field, fields
from typing import Any

from trl import GRPOConfig


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
"""Fields of GRPOConfig that have another name here, and that name."""

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
"""Fields of GRPOConfig that PPO's losses do not have."""

DERIVED_SIZES = (
    "num_total_batches",
    "batch_size",
    "local_batch_size",
    "micro_batch_size",
    "mini_batch_size",
    "local_mini_batch_size",
)
"""Fields that the trainer works out."""


@dataclass
class PPOFields(GRPOConfig):
    """What [`RLPPPOConfig`] has beside [`~trl.GRPOConfig`], unchecked."""

    # The rollout
    num_generations: int = field(default=1, metadata={"help": "Completions of each prompt of a rollout, at least 1."})
    response_length: int = field(
        default=53,
        metadata={
            "help": (
                "Longest completion, in tokens. The former name of `max_completion_length`, which wins if it is set."
            )
        },
    )
    max_completion_length: int | None = field(
        default=None, metadata={"help": "Longest completion, in tokens. If not set, `response_length`."}
    )
    temperature: float = field(
        default=0.7,
        metadata={"help": "Sampling temperature, above 0. Log-probabilities are those of the logits divided by it."},
    )
    stop_token: str | None = field(
        default="eos",
        metadata={
            "help": (
                "Where a completion ends: at `eos`, or, if set to None, nowhere before its last token, which was "
                "the former trainer's default."
            )
        },
    )
    stop_token_id: int | None = field(
        default=None, metadata={"help": "Token id at which a completion ends, in place of `stop_token`."}
    )
    total_episodes: int | None = field(
        default=None,
        metadata={
            "help": (
                "Completions to train on in all, rounded up to whole rollouts. If not set, `num_train_epochs` "
                "passes over the prompts."
            )
        },
    )
    num_mini_batches: int = field(
        default=1, metadata={"help": "Optimizer steps of each PPO epoch, a divisor of `gradient_accumulation_steps`."}
    )
    num_ppo_epochs: int = field(default=4, metadata={"help": "Passes over each rollout, at least 1."})
    local_rollout_forward_batch_size: int = field(
        default=64, metadata={"help": "Completions of a forward pass without gradients, on each device."}
    )
    num_sample_generations: int = field(
        default=10,
        metadata={"help": "How often in the run completions of the evaluation prompts are printed. 0 is never."},
    )
    # The reward
    kl_coef: float = field(
        default=0.05,
        metadata={
            "help": (
                "Weight of the KL divergence from the reference policy in the reward, at least 0. beta in the paper."
            )
        },
    )
    kl_estimator: str = field(
        default="k1",
        metadata={
            "help": "Estimator of the KL divergence of each token: `k1`, `k2`, `k3`, or AlpacaFarm's `clamped`."
        },
    )
    adaptive_kl: bool = field(
        default=False,
        metadata={"help": "Whether `kl_coef` is only where it starts, and follows `kl_target` from there."},
    )
    kl_target: float = field(
        default=6.0,
        metadata={"help": "KL divergence of a completion that an adaptive `kl_coef` aims at, in nats, above 0."},
    )
    kl_horizon: int = field(
        default=10000,
        metadata={"help": "Completions in which an adaptive `kl_coef` closes in on its target, above 0."},
    )
    missing_eos_penalty: float | None = field(
        default=None,
        metadata={"help": "Taken from the score of a completion that does not end in a stop token, above 0."},
    )
    reward_clip: float | None = field(
        default=None, metadata={"help": "Scores are clipped to this distance from 0, above 0, after normalization."}
    )
    normalize_rewards: bool = field(
        default=False, metadata={"help": "Whether scores are divided by the standard deviation of all scores so far."}
    )
    standardize_rewards: bool = field(
        default=False,
        metadata={
            "help": "Whether scores of reward models get mean 0 and deviation 1 on completions of the initial policy."
        },
    )
    whiten_rewards: bool = field(
        default=False, metadata={"help": "Whether the rewards of a rollout's tokens get deviation 1, their mean kept."}
    )
    unbiased_whitening: bool = field(
        default=True,
        metadata={
            "help": "Whether whitening divides by the unbiased standard deviation. AlpacaFarm takes the biased one."
        },
    )
    score_position: str = field(
        default="last_token",
        metadata={
            "help": (
                "Where the score is given: at the `last_token` of a completion, or `after_last_token` where there "
                "is room, as the former trainer did."
            )
        },
    )
    # The losses
    gamma: float = field(default=1.0, metadata={"help": "Discount of the next token, between 0 and 1."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of generalized advantage estimation, between 0 and 1."})
    cliprange: float = field(default=0.2, metadata={"help": "Epsilon of the clipped policy loss, above 0."})
    cliprange_value: float | None = field(
        default=0.2,
        metadata={
            "help": (
                "How far a value may move from the rollout's before its loss is clipped, above 0. None does not clip."
            )
        },
    )
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss, at least 0."})
    loss_normalization: str = field(
        default="mini_batch",
        metadata={
            "help": (
                "Whose tokens the loss is the mean over: of the whole `mini_batch`, all processes together, or of "
                "each `micro_batch`, as in the former trainer."
            )
        },
    )
    # The value model
    value_model_init: str | None = field(
        default=None,
        metadata={
            "help": (
                "What the value model starts from if none is passed: the `reward` model or the `policy`. If not "
                "set, the reward model where there is one with the policy's tokens."
            )
        },
    )
    value_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the value model, above 0. If not set, `learning_rate`."}
    )
    value_warmup_rollouts: int = field(
        default=0, metadata={"help": "Rollouts at the start in which the value model alone learns."}
    )
    # RLP
    rlp_method: str = field(
        default="none",
        metadata={
            "help": "How the reward model is refined on the policy's samples before the policy is trained once more "
            "from the start: `none` (plain PPO), `uml`, `spg` or `uml+spg`."
        },
    )
    rlp_num_generations: int = field(
        default=10,
        metadata={"help": "Outputs sampled from the policy for each prompt, at least 2. n in the paper."},
    )
    rlp_temperature: float = field(default=1.0, metadata={"help": "Temperature of these samples, above 0."})
    rlp_reward_base: str | None = field(
        default=None,
        metadata={
            "help": "Model that the refined reward model starts from, with a fresh score head. If not set, the policy "
            "as it starts."
        },
    )
    rlp_reward_args: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Fields of RLPRewardConfig for the refinement, as a mapping."}
    )
    rlp_heldout_share: float = field(
        default=0.05,
        metadata={
            "help": "Share of the human preferences kept to compare both reward models on, between 0 and 1 exclusive."
        },
    )
    # PEFT
    model_adapter_name: str | None = field(
        default=None, metadata={"help": "Adapter of a PEFT policy that is trained, where it has several."}
    )
    ref_adapter_name: str | None = field(
        default=None,
        metadata={
            "help": "Adapter of a PEFT policy that is the reference. If not set, the policy without its adapters."
        },
    )
    # Scripts of the former trainer
    sft_model_path: str = field(
        default="EleutherAI/pythia-160m", metadata={"help": "Not read by the trainer; for scripts."}
    )
    reward_model_path: str = field(
        default="EleutherAI/pythia-160m", metadata={"help": "Not read by the trainer; for scripts."}
    )
    dataset_num_proc: int | None = field(
        default=None,
        metadata={"help": "Not used, as in the former trainer: prompts are tokenized when they are sampled."},
    )
    num_total_batches: int | None = field(default=None, metadata={"help": "Rollouts of the run. Set by the trainer."})
    batch_size: int | None = field(
        default=None, metadata={"help": "Completions of a rollout, on all devices. Set by the trainer."}
    )
    local_batch_size: int | None = field(
        default=None, metadata={"help": "Completions of a rollout, on each device. Set by the trainer."}
    )
    micro_batch_size: int | None = field(
        default=None,
        metadata={"help": "Completions of a forward pass with gradients, on all devices. Set by the trainer."},
    )
    mini_batch_size: int | None = field(
        default=None, metadata={"help": "Completions of an optimizer step, on all devices. Set by the trainer."}
    )
    local_mini_batch_size: int | None = field(
        default=None, metadata={"help": "Completions of an optimizer step, on each device. Set by the trainer."}
    )
    # Defaults that differ from GRPOConfig
    disable_dropout: bool = field(
        default=True, metadata={"help": "Whether dropout is off in all models. Ratios of probabilities need it."}
    )
    learning_rate: float = field(default=3e-6, metadata={"help": "Initial learning rate of the policy."})

    def _check_fields_of_grpo(self) -> None:
        """Refuses inherited settings that PPO cannot follow."""
        defaults = {entry.name: entry.default for entry in fields(GRPOConfig)}
        for name in (*REPLACED, *UNUSED):
            if vars(self)[name] != defaults[name]:
                remedy = f"Set {REPLACED[name]} instead." if name in REPLACED else "Leave it at its default."
                raise ValueError(f"`{name}`={vars(self)[name]!r} has no meaning in PPO. {remedy}")
        if self.fp16:
            raise ValueError(
                "`fp16` scales one loss, and PPO steps two optimizers. Set `bf16` where the hardware has it, or "
                "neither."
            )
        if self.lr_scheduler_type == "reduce_lr_on_plateau":
            raise ValueError(
                '`lr_scheduler_type`="reduce_lr_on_plateau" waits for a metric that PPO does not aim at. Choose a '
                "schedule of steps, such as `linear`."
            )
