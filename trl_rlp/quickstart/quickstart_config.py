"""Settings of the quickstart and of its trainers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from trl_rlp.pipeline_config import REFINING_METHODS, RLPConfig
from trl_rlp.quickstart.questions import SEED
from trl_rlp.quickstart.sizes import Sizes
from trl_rlp.storage.paths import expand_fields
from trl_rlp.trainer.field_values import convert_fields


MAX_NEW_TOKENS = 5
"""Maximum length of a completion in tokens, with EOS. It is the length of the longest demonstration."""

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
TARGET_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass
class QuickstartConfig:
    """
    Configuration class for [`quickstart`].

    Args:
        output_dir (`str`, *optional*, defaults to `"quickstart_run"`):
            Folder for the page `report.html`, the metrics `outcome.json`, the log `log.txt`, models and data. It takes
            about 3 GB. A second run with the same settings resumes after the last finished stage.
        minutes (`float`, *optional*, defaults to `10.0`):
            Time budget in minutes, above 0. On a busy machine, the quickstart uses fewer questions and steps, and the
            page reports it.
        method (`str`, *optional*, defaults to `"spg"`):
            How the reward model is refined: `spg`, `uml` or `uml+spg`.
        seed (`int`, *optional*, defaults to `0`):
            Seed for training, sampling and simulated labels.
        question_seed (`int`, *optional*, defaults to `2403`):
            Seed for the split of the questions.
        model (`str`, *optional*):
            Folder of another small Llama-like causal LM to start from. Defaults to SmolLM2-135M-Instruct.

    Raises:
        ValueError: If a value is out of range.
    """

    output_dir: str = field(
        default="quickstart_run",
        metadata={
            "help": (
                "Folder for the page `report.html`, the metrics `outcome.json`, the log `log.txt`, models and data. "
                "It takes about 3 GB. A second run with the same settings resumes after the last finished stage."
            )
        },
    )
    minutes: float = field(
        default=10.0,
        metadata={
            "help": (
                "Time budget in minutes, above 0. On a busy machine, the quickstart uses fewer questions and steps, "
                "and the page reports it."
            )
        },
    )
    method: str = field(
        default="spg", metadata={"help": "How the reward model is refined: `spg`, `uml` or `uml+spg`."}
    )
    seed: int = field(default=0, metadata={"help": "Seed for training, sampling and simulated labels."})
    question_seed: int = field(default=SEED, metadata={"help": "Seed for the split of the questions."})
    model: str | None = field(
        default=None,
        metadata={
            "help": "Folder of another small Llama-like causal LM to start from. Defaults to SmolLM2-135M-Instruct."
        },
    )

    def __post_init__(self):
        expand_fields(self)
        for name, value in convert_fields(vars(self), type(self)).items():
            setattr(self, name, value)
        if not self.minutes > 0:
            raise ValueError(
                f"`minutes` must be above 0, got {self.minutes}. Ten minutes are enough on two free cores."
            )
        if self.method not in REFINING_METHODS:
            raise ValueError(f"`method` must be one of {REFINING_METHODS}, got {self.method!r}.")
        for name, value in (("seed", self.seed), ("question_seed", self.question_seed)):
            if value < 0:
                raise ValueError(f"`{name}` must be at least 0, got {value}.")


def lora(model: str | Path, share: float) -> dict[str, Any]:
    """
    Builds a LoRA configuration for the last layers of a Llama-like model.

    Args:
        model (`str` or `Path`):
            Folder or Hub name of the model.
        share (`float`):
            Share of the layers that get an adapter, in (0, 1].

    Returns:
        `dict`: Fields of `peft.LoraConfig`.
    """
    num_layers = AutoConfig.from_pretrained(model).num_hidden_layers
    first = num_layers - max(1, round(share * num_layers))
    return {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": list(TARGET_MODULES),
        "layers_to_transform": list(range(first, num_layers)),
    }


def build_sampling_args(config: QuickstartConfig, sizes: Sizes) -> dict[str, Any]:
    """
    Builds the arguments of [`sample_completions`].

    Args:
        config ([`QuickstartConfig`]):
            Settings.
        sizes ([`Sizes`]):
            Amounts of work.

    Returns:
        `dict`: The keys are `num_generations`, `max_new_tokens` and `seed`.
    """
    return {"num_generations": sizes.num_generations, "max_new_tokens": MAX_NEW_TOKENS, "seed": config.seed}


def build_pipeline_config(config: QuickstartConfig, sizes: Sizes, sft_model: Path, output_dir: Path) -> RLPConfig:
    """
    Builds the settings of Algorithm 1.

    Args:
        config ([`QuickstartConfig`]):
            Settings.
        sizes ([`Sizes`]):
            Amounts of work.
        sft_model (`Path`):
            Folder of π_SFT.
        output_dir (`Path`):
            Folder for the stages.

    Returns:
        [`RLPConfig`]: The settings.
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
        **build_sampling_args(config, sizes),
    )
