"""Settings of Algorithm 1 by name: the paper's, and ours with anchors and refinement in the loop."""

from collections.abc import Mapping
from typing import Any

from trl_rlp.trainer.mappings import parse_mapping
from trl_rlp.trainer.ppo.ppo_presets import PRESETS as PPO_PRESETS


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "method": "spg",  # "RLP-SPG". RLP-UML is "uml"
        "policy_trainer": "ppo",  # "we use PPO"
        "num_generations": 10,  # "n = 10 outputs for each instruction"
        "temperature": 1.0,  # "temperature 1.0 when training"
        "evaluation_temperature": 0.7,  # "0.7 when evaluating"
        "max_new_tokens": 300,  # AlpacaFarm: response_len
        "reward_args": {
            "confidence_threshold": 0.5,  # "gamma = 0.5"
            "representation_coef": 0.5,  # "lambda = 0.5", only for "uml"
            "chosen": "reward",  # "the highest reward"
            # AlpacaFarm's reward_modeling.sh, on 8 devices: a batch of 16
            "learning_rate": 3e-6,
            "num_train_epochs": 1,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 2,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.03,
            "max_length": 512,
        },
        "policy_args": {
            **PPO_PRESETS["alpacafarm"],  # AlpacaFarm's rlhf_ppo.sh with simulated preferences, on 8 devices
            "max_steps": 80,  # AlpacaFarm's README: best between 20 and 80 rollouts
        },
    },
    # The laboratory's method `anchored, grpo` (examples/laboratory/methods.py) at its best β.
    "anchored": {
        "method": "spg",
        "sample_from": "sft",
        "num_generations": 10,
        "temperature": 1.0,
        "standardize_rewards": True,  # c and β are relative to a reward with standard deviation 1
        "anchor_weight": 3.0,
        "refine_every": 8,  # of 40 rollouts
        "policy_trainer": "grpo",
        "reward_args": {"confidence_threshold": 0.5},
        "policy_args": {
            "beta": 0.1,
            "num_generations": 8,
            "scale_rewards": "none",  # otherwise, β and c have another meaning for each prompt
        },
    },
}
"""
Fields of [`RLPConfig`] by name of the preset.

`paper` has the settings of the paper and, where it refers to AlpacaFarm's defaults, AlpacaFarm's. `anchored` is ours
and not the paper's. Batch sizes, learning rates and lengths are not part of it, because they depend on the task.
"""


def apply_preset(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """
    Adds the fields of a preset to given fields. A given field takes precedence.

    Args:
        name (`str`):
            Key of [`PRESETS`].
        values (`Mapping[str, Any]`):
            Given fields of [`RLPConfig`]. A mapping such as `policy_args` replaces the preset's values of its own keys
            only. `None` or JSON text is a mapping too.

    Returns:
        `dict[str, Any]`: The fields of both.

    Raises:
        ValueError: If the name is unknown, or `policy_trainer` is not the one that the preset's `policy_args` are for.
        TypeError: If a mapping has another type.
    """
    if name not in PRESETS:
        raise ValueError(f"`name` must be one of {list(PRESETS)}, got {name!r}.")
    preset = PRESETS[name]
    trainer = preset["policy_trainer"]
    if values.get("policy_trainer", trainer) != trainer:
        raise ValueError(
            f"`policy_trainer` is {values['policy_trainer']!r}, but the `policy_args` of the preset {name!r} are for "
            f"{trainer!r}. Leave it out, or pass the other fields of the preset to RLPConfig."
        )
    merged = {
        field: {**value, **(parse_mapping(field, values.get(field)) or {})}
        for field, value in preset.items()
        if isinstance(value, dict)
    }
    return {**preset, **values, **merged}
