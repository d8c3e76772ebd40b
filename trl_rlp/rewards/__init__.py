"""Reward functions for policy optimization, built from reward models and Python functions."""

from trl_rlp.rewards.reward_function import RewardFunction
from trl_rlp.rewards.standardization import standardize


__all__ = ["RewardFunction", "standardize"]
