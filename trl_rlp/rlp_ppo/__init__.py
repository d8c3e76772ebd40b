"""Algorithm 1 inside a PPO trainer, on the same stages as the pipeline."""

from trl_rlp.rlp_ppo.rlp_ppo_config import RLPPPOConfig
from trl_rlp.rlp_ppo.rlp_ppo_trainer import RLPPPOTrainer


__all__ = ["RLPPPOConfig", "RLPPPOTrainer"]
