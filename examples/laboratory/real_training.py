"""Trains policies of a real model: with PPO or GRPO against rewards, and with SFT or DPO on picks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from real_settings import RealSettings
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from trl_rlp import PPOConfig, PPOTrainer, load_policy
from trl_rlp.quickstart.quickstart_config import COMMON, MAX_NEW_TOKENS, lora


DPO_LOSS = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0]}
"""DPO with the likelihood of the chosen completion as a second term, as in the laboratory."""
STEPS_PER_EPOCH = 2
"""Optimizer steps in a pass over a rollout."""
PASSES = 2
"""Passes over a rollout."""


@dataclass(frozen=True)
class PolicyTraining:
    """
    What a policy is trained with.

    Args:
        sft (`Path`):
            Folder of π_SFT, from which every policy starts.
        settings ([`RealSettings`]):
            Settings of the run.
        seed (`int`):
            Seed of the training.
        folder (`Path`):
            Folder of the trainer.
    """

    sft: Path
    settings: RealSettings
    seed: int
    folder: Path

    def train_with_rewards(
        self,
        trainer: str,
        rewards: Sequence[Callable[..., list]],
        weights: Sequence[float],
        kl_coef: float,
        questions: Dataset,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[dict[str, float]]]:
        """
        Trains a policy with PPO or GRPO. Both take as many optimizer steps, with as many completions per rollout. In
        the first `value_warmup_rollouts` rollouts, those of PPO train the critic only.

        Returns:
            The policy, its tokenizer, and the log of the rollouts.
        """
        _, processing_class = load_policy(self.sft)
        shared = {
            "model": str(self.sft),
            "reward_funcs": list(rewards),
            "train_dataset": questions,
            "processing_class": processing_class,
            "peft_config": self._build_lora(),
            "callbacks": list(callbacks),
        }
        if trainer == "ppo":
            value_lora = replace(self._build_lora(), task_type="SEQ_CLS", modules_to_save=["score"])
            run = PPOTrainer(args=self._build_ppo_args(kl_coef, weights), value_peft_config=value_lora, **shared)
        else:
            run = GRPOTrainer(args=self._build_grpo_args(kl_coef, weights), **shared)
        return *self._train(run), run.state.log_history

    def train_on_picks(self, trainer: str, rows: Dataset) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Trains a policy with SFT on prompts and completions, or with DPO on pairs."""
        model, processing_class = load_policy(self.sft, dtype="auto")  # for training, not for inference
        settings = self.settings
        args = {
            **self._build_common_args(),
            "per_device_train_batch_size": 8,
            "num_train_epochs": settings.picks_epochs,
            "learning_rate": settings.picks_learning_rate,
        }
        shared = {
            "model": model,
            "train_dataset": rows,
            "processing_class": processing_class,
            "peft_config": self._build_lora(),
        }
        if trainer == "sft":
            return self._train(SFTTrainer(args=SFTConfig(**args), **shared))
        return self._train(DPOTrainer(args=DPOConfig(beta=settings.dpo_beta, **DPO_LOSS, **args), **shared))

    def _train(self, run: Trainer) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Trains, and merges the adapter into the policy."""
        run.train()
        model = run.accelerator.unwrap_model(run.model).merge_and_unload()
        return model.eval(), run.processing_class

    def _build_lora(self) -> LoraConfig:
        return LoraConfig(task_type="CAUSAL_LM", **lora(self.sft, 1 / 4))

    def _build_common_args(self) -> dict[str, Any]:
        return {
            **COMMON,
            "output_dir": str(self.folder),
            "seed": self.seed,
            "bf16": False,
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }

    def _build_rollout_args(self, weights: Sequence[float]) -> dict[str, Any]:
        settings = self.settings
        return {
            **self._build_common_args(),
            "per_device_train_batch_size": settings.rollout_size // STEPS_PER_EPOCH,
            "num_generations": settings.rollout_generations,
            "max_completion_length": MAX_NEW_TOKENS,
            "temperature": 1.0,
            "learning_rate": settings.learning_rate,
            "lr_scheduler_type": "constant",
            "reward_weights": list(weights),
        }

    def _build_ppo_args(self, kl_coef: float, weights: Sequence[float]) -> PPOConfig:
        return PPOConfig(
            max_steps=self.settings.rollouts,
            gradient_accumulation_steps=STEPS_PER_EPOCH,
            num_mini_batches=STEPS_PER_EPOCH,
            num_ppo_epochs=PASSES,
            num_sample_generations=0,
            kl_coef=kl_coef,
            value_model_init="policy",
            value_warmup_rollouts=self.settings.value_warmup_rollouts,
            **self._build_rollout_args(weights),
        )

    def _build_grpo_args(self, kl_coef: float, weights: Sequence[float]) -> GRPOConfig:
        return GRPOConfig(
            max_steps=self.settings.rollouts * STEPS_PER_EPOCH * PASSES,
            steps_per_generation=STEPS_PER_EPOCH,
            num_iterations=PASSES,
            beta=kl_coef,
            scale_rewards="none",  # otherwise, β has another meaning for each prompt
            **self._build_rollout_args(weights),
        )
