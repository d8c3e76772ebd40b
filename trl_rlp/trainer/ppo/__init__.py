"""Proximal Policy Optimization for language models, on GRPO's generation."""

from trl_rlp.trainer.ppo.ppo_config import PPOConfig
from trl_rlp.trainer.ppo.ppo_trainer import PPOTrainer


__all__ = ["PPOConfig", "PPOTrainer"]
