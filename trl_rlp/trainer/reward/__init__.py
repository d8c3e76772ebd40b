"""Trains reward models on human preferences and policy samples."""

from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig
from trl_rlp.trainer.reward.rlp_reward_trainer import RLPRewardTrainer


__all__ = ["RLPRewardConfig", "RLPRewardTrainer"]
