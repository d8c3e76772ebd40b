"""Settings of PPO by the name of the code that they come from."""

from typing import Any


PRESETS: dict[str, dict[str, Any]] = {
    "alpacafarm": {
        # On 8 devices: rollouts of 512 completions, optimizer steps of 256, and two passes over each rollout.
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 32,
        "num_mini_batches": 2,
        "num_ppo_epochs": 2,
        "local_rollout_forward_batch_size": 32,
        "num_train_epochs": 10,
        "response_length": 300,
        "temperature": 1.0,
        "kl_coef": 0.0067,
        "kl_estimator": "clamped",
        "whiten_rewards": True,
        "unbiased_whitening": False,
        "gamma": 1.0,
        "lam": 1.0,
        "cliprange": 0.2,
        "cliprange_value": 0.2,
        "vf_coef": 0.1,
        "value_model_init": "reward",
        "learning_rate": 1e-5,
        "warmup_steps": 5,
        "lr_scheduler_type": "linear",
        "adam_epsilon": 1e-5,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "save_steps": 20,
    },
    "trl-1.12": {
        "num_ppo_epochs": 4,
        "num_mini_batches": 1,
        "response_length": 53,
        "temperature": 0.7,
        "stop_token": None,
        "kl_coef": 0.05,
        "kl_estimator": "k1",
        "whiten_rewards": False,
        "unbiased_whitening": True,
        "score_position": "after_last_token",
        "gamma": 1.0,
        "lam": 0.95,
        "cliprange": 0.2,
        "cliprange_value": 0.2,
        "vf_coef": 0.1,
        "loss_normalization": "micro_batch",
        "learning_rate": 3e-6,
        "adam_epsilon": 1e-8,
        "max_grad_norm": 0.0,
    },
}
"""
Fields of [`PPOConfig`] by name of the preset.

`alpacafarm` has the paper's settings ("AlpacaFarm codebase and its default hyperparameters"), with the KL weight of
AlpacaFarm's script for simulated preferences. `trl-1.12` has the settings of the PPOTrainer that TRL removed in 1.13,
including the score after the last token and gradients without clipping. docs/ppo_trainer.md lists the remaining
differences.
"""
