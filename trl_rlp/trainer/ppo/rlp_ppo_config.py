"""Settings of the PPO trainer."""

import math
from dataclasses import dataclass
from typing import Any

from trl_rlp.losses.kl import KL_ESTIMATORS
from trl_rlp.trainer.mappings import mapping
from trl_rlp.trainer.ppo.ppo_fields import PPOFields
from trl_rlp.trainer.ppo.ppo_presets import PRESETS
from trl_rlp.trainer.precision import default_precision
from trl_rlp.trainer.reward.methods import METHODS


SCORE_POSITIONS = ("last_token", "after_last_token")
LOSS_NORMALISATIONS = ("mini_batch", "micro_batch")
VALUE_MODEL_INITS = ("reward", "policy")


@dataclass
class RLPPPOConfig(PPOFields):
    r"""
    Configuration class for the [`RLPPPOTrainer`].

    It holds the fields of the PPOConfig that TRL removed in 1.13, under their names, what this trainer adds, and all
    of [`~trl.GRPOConfig`] that says how completions are generated, scored by reward functions and logged. As in the
    former trainer a rollout has `per_device_train_batch_size` times `gradient_accumulation_steps` completions on each
    device, and steps (`logging_steps`, `save_steps`, `eval_steps`, `warmup_steps`, `max_steps`) count rollouts.

    Parameters:
        > Parameters that control the rollout

        num_generations (`int`, *optional*, defaults to `1`):
            Completions of each prompt of a rollout, at least 1.
        response_length (`int`, *optional*, defaults to `53`):
            Longest completion, in tokens. The former name of `max_completion_length`, which wins if it is set.
        max_completion_length (`int`, *optional*):
            Longest completion, in tokens. If not set, `response_length`.
        temperature (`float`, *optional*, defaults to `0.7`):
            Sampling temperature, above 0. Log-probabilities are those of the logits divided by it.
        stop_token (`str`, *optional*, defaults to `"eos"`):
            Where a completion ends: at `eos`, or, if set to None, nowhere before its last token, which was the former
            trainer's default.
        stop_token_id (`int`, *optional*):
            Token id at which a completion ends, in place of `stop_token`.
        total_episodes (`int`, *optional*):
            Completions to train on in all, rounded up to whole rollouts. If not set, `num_train_epochs` passes over
            the prompts.
        num_mini_batches (`int`, *optional*, defaults to `1`):
            Optimizer steps of each PPO epoch, a divisor of `gradient_accumulation_steps`.
        num_ppo_epochs (`int`, *optional*, defaults to `4`):
            Passes over each rollout, at least 1.
        local_rollout_forward_batch_size (`int`, *optional*, defaults to `64`):
            Completions of a forward pass without gradients, on each device.
        num_sample_generations (`int`, *optional*, defaults to `10`):
            How often in the run completions of the evaluation prompts are printed. 0 is never.

        > Parameters that control the reward

        kl_coef (`float`, *optional*, defaults to `0.05`):
            Weight of the KL divergence from the reference policy in the reward, at least 0. beta in the paper.
        kl_estimator (`str`, *optional*, defaults to `"k1"`):
            Estimator of the KL divergence of each token: `k1`, `k2`, `k3`, or AlpacaFarm's `clamped`.
        adaptive_kl (`bool`, *optional*, defaults to `False`):
            Whether `kl_coef` is only where it starts, and follows `kl_target` from there.
        kl_target (`float`, *optional*, defaults to `6.0`):
            KL divergence of a completion that an adaptive `kl_coef` aims at, in nats, above 0.
        kl_horizon (`int`, *optional*, defaults to `10000`):
            Completions in which an adaptive `kl_coef` closes in on its target, above 0.
        missing_eos_penalty (`float`, *optional*):
            Taken from the score of a completion that does not end in a stop token, above 0.
        reward_clip (`float`, *optional*):
            Scores are clipped to this distance from 0, above 0, after normalization.
        normalize_rewards (`bool`, *optional*, defaults to `False`):
            Whether scores are divided by the standard deviation of all scores so far.
        standardize_rewards (`bool`, *optional*, defaults to `False`):
            Whether scores of reward models get mean 0 and deviation 1 on completions of the initial policy.
        whiten_rewards (`bool`, *optional*, defaults to `False`):
            Whether the rewards of a rollout's tokens get deviation 1, their mean kept.
        unbiased_whitening (`bool`, *optional*, defaults to `True`):
            Whether whitening divides by the unbiased standard deviation. AlpacaFarm takes the biased one.
        score_position (`str`, *optional*, defaults to `"last_token"`):
            Where the score is given: at the `last_token` of a completion, or `after_last_token` where there is room,
            as the former trainer did.

        > Parameters that control the losses

        gamma (`float`, *optional*, defaults to `1.0`):
            Discount of the next token, between 0 and 1.
        lam (`float`, *optional*, defaults to `0.95`):
            Lambda of generalized advantage estimation, between 0 and 1.
        cliprange (`float`, *optional*, defaults to `0.2`):
            Epsilon of the clipped policy loss, above 0.
        cliprange_value (`float`, *optional*, defaults to `0.2`):
            How far a value may move from the rollout's before its loss is clipped, above 0. None does not clip.
        vf_coef (`float`, *optional*, defaults to `0.1`):
            Weight of the value loss, at least 0.
        loss_normalization (`str`, *optional*, defaults to `"mini_batch"`):
            Whose tokens the loss is the mean over: of the whole `mini_batch`, all processes together, or of each
            `micro_batch`, as in the former trainer.

        > Parameters that control the value model

        value_model_init (`str`, *optional*):
            What the value model starts from if none is passed: the `reward` model or the `policy`. If not set, the
            reward model where there is one with the policy's tokens.
        value_learning_rate (`float`, *optional*):
            Learning rate of the value model, above 0. If not set, `learning_rate`.
        value_warmup_rollouts (`int`, *optional*, defaults to `0`):
            Rollouts at the start in which the value model alone learns.

        > Parameters that control RLP

        rlp_method (`str`, *optional*, defaults to `"none"`):
            How the reward model is refined on the policy's samples before the policy is trained once more from the
            start: `none` (plain PPO), `uml`, `spg` or `uml+spg`.
        rlp_num_generations (`int`, *optional*, defaults to `10`):
            Outputs sampled from the policy for each prompt, at least 2. n in the paper.
        rlp_temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of these samples, above 0.
        rlp_reward_base (`str`, *optional*):
            Model that the refined reward model starts from, with a fresh score head. If not set, the policy as it
            starts.
        rlp_reward_args (`dict`, *optional*):
            Fields of RLPRewardConfig for the refinement, as a mapping.
        rlp_heldout_share (`float`, *optional*, defaults to `0.05`):
            Share of the human preferences kept to compare both reward models on, between 0 and 1 exclusive.

        > Parameters that control PEFT

        model_adapter_name (`str`, *optional*):
            Adapter of a PEFT policy that is trained, where it has several.
        ref_adapter_name (`str`, *optional*):
            Adapter of a PEFT policy that is the reference. If not set, the policy without its adapters.

        > Parameters of scripts of the former trainer

        sft_model_path (`str`, *optional*, defaults to `"EleutherAI/pythia-160m"`):
            Not read by the trainer; for scripts.
        reward_model_path (`str`, *optional*, defaults to `"EleutherAI/pythia-160m"`):
            Not read by the trainer; for scripts.
        dataset_num_proc (`int`, *optional*):
            Not used, as in the former trainer: prompts are tokenized when they are sampled.
        num_total_batches (`int`, *optional*):
            Rollouts of the run. Set by the trainer.
        batch_size (`int`, *optional*):
            Completions of a rollout, on all devices. Set by the trainer.
        local_batch_size (`int`, *optional*):
            Completions of a rollout, on each device. Set by the trainer.
        micro_batch_size (`int`, *optional*):
            Completions of a forward pass with gradients, on all devices. Set by the trainer.
        mini_batch_size (`int`, *optional*):
            Completions of an optimizer step, on all devices. Set by the trainer.
        local_mini_batch_size (`int`, *optional*):
            Completions of an optimizer step, on each device. Set by the trainer.

        > Parameters whose default values are overridden from GRPOConfig

        disable_dropout (`bool`, *optional*, defaults to `True`):
            Whether dropout is off in all models. Ratios of probabilities need it.
        learning_rate (`float`, *optional*, defaults to `3e-6`):
            Initial learning rate of the policy.

    Raises:
        ValueError: if a value is out of its range, a name is unknown, `num_mini_batches` does not divide, or a field
            of GRPOConfig is set that PPO does not have.

    Example:

    ```python
    >>> RLPPPOConfig("ppo", total_episodes=10_000, per_device_train_batch_size=8, gradient_accumulation_steps=8)
    ```
    """

    def __post_init__(self):
        self.bf16 = default_precision(self)
        self.rlp_reward_args = mapping("rlp_reward_args", self.rlp_reward_args) or {}
        self._check_fields_of_grpo()
        self._check_names()
        self._check_ranges()
        if self.max_completion_length is None:
            self.max_completion_length = self.response_length
        self.response_length = self.max_completion_length
        self._set_rollout()
        super().__post_init__()
        self._restore_generations()
        if self.adaptive_kl and self.generation_batch_size >= 5 * self.kl_horizon:
            raise ValueError(
                f"`kl_horizon`={self.kl_horizon} is too short for rollouts of {self.generation_batch_size} "
                "completions: one of them could turn `kl_coef` negative. Raise it above a fifth of a rollout."
            )

    def _check_names(self) -> None:
        known = {
            "kl_estimator": KL_ESTIMATORS,
            "score_position": SCORE_POSITIONS,
            "loss_normalization": LOSS_NORMALISATIONS,
            "value_model_init": (None, *VALUE_MODEL_INITS),
            "stop_token": (None, "eos"),
            "rlp_method": METHODS,
        }
        for name, names in known.items():
            if vars(self)[name] not in names:
                raise ValueError(f"`{name}` must be one of {list(names)}, got {vars(self)[name]!r}.")
        if self.use_vllm and (self.stop_token is None or self.stop_token_id is not None):
            raise ValueError(
                "With `use_vllm` completions end at the model's EOS token. Leave `stop_token` at its default, and "
                "pass other stop tokens to vLLM in `generation_kwargs`."
            )
        if self.stop_token_id is not None:
            # "eos" is the default, so it cannot be told from a wish.
            self.stop_token = None

    def _check_ranges(self) -> None:
        at_least_one = ("num_generations", "response_length", "num_mini_batches", "num_ppo_epochs")
        above_zero = ("temperature", "rlp_temperature", "kl_target", "kl_horizon", "cliprange")
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
        ranges["rlp_num_generations"] = (self.rlp_num_generations >= 2, "at least 2, as RLP compares outputs")
        ranges["rlp_heldout_share"] = (0 < self.rlp_heldout_share < 1, "between 0 and 1, both excluded")
        for name, (is_valid, expected) in ranges.items():
            if not is_valid:
                raise ValueError(f"`{name}` must be {expected}, got {values[name]}.")

    def _set_rollout(self) -> None:
        """Says in GRPO's words what a rollout is: it generates, then takes `num_iterations` passes in steps."""
        if self.gradient_accumulation_steps % self.num_mini_batches:
            raise ValueError(
                f"`num_mini_batches`={self.num_mini_batches} does not divide `gradient_accumulation_steps`="
                f"{self.gradient_accumulation_steps}, the micro-batches of a rollout. Make it a divisor, for instance "
                f"`gradient_accumulation_steps`={self.gradient_accumulation_steps * self.num_mini_batches} with "
                f"`per_device_train_batch_size` divided by {self.num_mini_batches}."
            )
        self.steps_per_generation = self.gradient_accumulation_steps
        self.gradient_accumulation_steps //= self.num_mini_batches
        self.num_iterations = self.num_ppo_epochs
        self.beta = 0.0  # the KL is a part of the reward, against a reference model of our own
        self._given_generations = self.num_generations, self.num_generations_eval
        if self.num_generations == 1:
            # GRPO refuses one completion a prompt, which only its own advantages could not use.
            self.num_generations = self.per_device_train_batch_size * self.steps_per_generation
            if self.num_generations == 1:
                raise ValueError(
                    "`per_device_train_batch_size` times `gradient_accumulation_steps` is 1: a rollout of one "
                    "completion has nothing to whiten its advantages with. Raise one of them."
                )
        self.num_generations_eval = self.num_generations_eval or 1

    def _restore_generations(self) -> None:
        self.num_generations, evaluation = self._given_generations
        self.num_generations_eval = evaluation or 1
        del self._given_generations

    @classmethod
    def from_preset(cls, name: str, output_dir: str, **overrides: Any) -> "RLPPPOConfig":
        """
        Gives the settings of a known code base.

        Args:
            name (`str`):
                A key of [`PRESETS`]: `"alpacafarm"` or `"trl-1.12"`.
            output_dir (`str`):
                Folder of the run.
            overrides:
                Further fields, or other values.

        Returns:
            [`RLPPPOConfig`].

        Raises:
            ValueError: if the name is unknown.

        Example:

        ```python
        >>> RLPPPOConfig.from_preset("alpacafarm", "ppo", total_episodes=10_000)
        ```
        """
        if name not in PRESETS:
            raise ValueError(f"`name` must be one of {list(PRESETS)}, got {name!r}.")
        return cls(output_dir, **{**PRESETS[name], **overrides})

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps of a rollout: `num_ppo_epochs` times `num_mini_batches`."""
        return self.num_ppo_epochs * self.num_mini_batches
