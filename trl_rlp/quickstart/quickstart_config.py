"""Settings of the quickstart, and what its trainers are told."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from trl_rlp.pipeline_config import METHODS, RLPConfig
from trl_rlp.quickstart.questions import SEED
from trl_rlp.quickstart.sizes import Sizes


MAX_NEW_TOKENS = 5
"""Longest answer, in tokens, its EOS included: as long as the longest demonstration."""

COMMON = {"report_to": "none", "save_strategy": "no", "logging_steps": 1, "gradient_checkpointing": False}
DEMONSTRATIONS = {**COMMON, "per_device_train_batch_size": 8, "learning_rate": 1e-3}
REWARD = {**COMMON, "per_device_train_batch_size": 16, "learning_rate": 1e-3, "warmup_steps": 2}
POLICY = {
    **COMMON,
    "gradient_accumulation_steps": 2,
    "num_mini_batches": 2,
    "num_ppo_epochs": 2,
    "num_sample_generations": 0,
    "max_completion_length": MAX_NEW_TOKENS,
    "temperature": 1.0,
    "learning_rate": 4e-4,
    "lr_scheduler_type": "constant",
    "kl_coef": 0.05,
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass
class QuickstartConfig:
    """
    Settings of [`quickstart`].

    Args:
        output_dir (`str`, *optional*, defaults to `"quickstart_run"`):
            Folder for everything: the page `report.html`, the figures `outcome.json`, `log.txt`, models and data
            (about 3 GB). A second run with the same settings goes on after the last finished stage.
        minutes (`float`, *optional*, defaults to `10.0`):
            Time budget, above 0. On a busy machine questions and steps are cut, and the page says so.
        method (`str`, *optional*, defaults to `"spg"`):
            How the reward model is refined: `"spg"`, `"uml"` or `"uml+spg"`.
        seed (`int`, *optional*, defaults to `0`):
            Seed of training, sampling and simulated labels.
        question_seed (`int`, *optional*, defaults to `2403`):
            Seed of the rule that splits the questions.
        model (`str`, *optional*):
            Folder of another small Llama-like causal LM to begin with. SmolLM2-135M-Instruct if `None`.

    Raises:
        ValueError: if a value is out of range.
    """

    output_dir: str = field(default="quickstart_run", metadata={"help": "Folder for the page, models and data."})
    minutes: float = field(
        default=10.0, metadata={"help": "Time budget, above 0. On a busy machine questions and steps are cut."}
    )
    method: str = field(
        default="spg", metadata={"help": "How the reward model is refined: `spg`, `uml` or `uml+spg`."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of training, sampling and simulated labels."})
    question_seed: int = field(default=SEED, metadata={"help": "Seed of the rule that splits the questions."})
    model: str | None = field(
        default=None, metadata={"help": "Folder of another small causal LM. SmolLM2-135M-Instruct if not set."}
    )

    def __post_init__(self):
        if not self.minutes > 0:
            raise ValueError(f"`minutes` must be above 0, got {self.minutes}. Ten are enough on two free cores.")
        if self.method not in METHODS:
            raise ValueError(f"`method` must be one of {METHODS}, got {self.method!r}.")
        for name, value in (("seed", self.seed), ("question_seed", self.question_seed)):
            if value < 0:
                raise ValueError(f"`{name}` must be at least 0, got {value}.")


def lora(model: str | Path, share: float) -> dict[str, Any]:
    """
    Gives the fields of a LoRA configuration that adapts the last layers of a Llama-like model only.

    Args:
        model (`str` or `Path`):
            Folder of the model.
        share (`float`):
            Share of the layers, above 0 and at most 1.

    Returns:
        `dict`: fields of `peft.LoraConfig`.
    """
    layers = AutoConfig.from_pretrained(model).num_hidden_layers
    first = layers - max(1, round(share * layers))
    return {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": list(TARGETS),
        "layers_to_transform": list(range(first, layers)),
    }


def sampling(config: QuickstartConfig, sizes: Sizes) -> dict[str, Any]:
    """
    Gives the arguments of [`sample_completions`].

    Args:
        config ([`QuickstartConfig`]):
            Settings.
        sizes ([`Sizes`]):
            Amounts of work.

    Returns:
        `dict`.
    """
    return {"num_generations": sizes.num_generations, "max_new_tokens": MAX_NEW_TOKENS, "seed": config.seed}


def pipeline_config(config: QuickstartConfig, sizes: Sizes, sft_model: Path, output_dir: Path) -> RLPConfig:
    """
    Gives the settings of Algorithm 1.

    Args:
        config ([`QuickstartConfig`]):
            Settings.
        sizes ([`Sizes`]):
            Amounts of work.
        sft_model (`Path`):
            π_SFT.
        output_dir (`Path`):
            Folder of its stages.

    Returns:
        [`RLPConfig`].
    """
    return RLPConfig(
        output_dir=str(output_dir),
        sft_model=str(sft_model),
        method=config.method,
        reward_args={**REWARD, "num_train_epochs": sizes.reward_epochs, "seed": config.seed},
        policy_args={
            **POLICY,
            "max_steps": sizes.policy_rollouts,
            "per_device_train_batch_size": sizes.completions_per_rollout // POLICY["gradient_accumulation_steps"],
            "seed": config.seed,
        },
        reward_peft=lora(sft_model, 1 / 2),
        policy_peft=lora(sft_model, 1 / 4),
        **sampling(config, sizes),
    )
