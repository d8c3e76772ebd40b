"""Reward functions for policy optimization, built from reward models, anchors and Python functions."""

from trl_rlp.rewards.refinable_reward import RefinableReward
from trl_rlp.rewards.reward_function import RewardFunction
from trl_rlp.rewards.rollout_buffer import RolloutBuffer
from trl_rlp.rewards.semantic_anchor_reward import SemanticAnchorReward
from trl_rlp.rewards.standardization import standardize


__all__ = ["RefinableReward", "RewardFunction", "RolloutBuffer", "SemanticAnchorReward", "standardize"]
