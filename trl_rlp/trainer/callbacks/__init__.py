"""Callbacks for policy trainers: one refines the reward model, one watches the policy. They are not the paper's."""

from trl_rlp.trainer.callbacks.policy_monitor_callback import PolicyMonitorCallback
from trl_rlp.trainer.callbacks.reward_refinement_callback import RewardRefinementCallback


__all__ = ["PolicyMonitorCallback", "RewardRefinementCallback"]
