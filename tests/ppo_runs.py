"""Small PPO runs for tests: data, settings and trainers that take a second."""

import torch
from datasets import Dataset

from tests.tiny_models import tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.trainer.ppo.ppo_config import PPOConfig
from trl_rlp.trainer.ppo.ppo_trainer import PPOTrainer


SETTINGS = {
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "total_episodes": 12,
    "num_ppo_epochs": 2,
    "response_length": 6,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "dataloader_pin_memory": False,
    "num_sample_generations": 0,
}
_SPEEDS = ("runtime", "samples_per_second", "steps_per_second")
CLOCK = {"eps", "step_time", *(f"{mode}_{name}" for mode in ("train", "eval") for name in _SPEEDS)}


def prompts(count: int = 8, kind: str = "text") -> Dataset:
    """Builds prompts of different lengths as text, messages, or token ids."""
    texts = ["ab" * (1 + i % 3) + f"{i}:" for i in range(count)]
    if kind == "chat":
        return Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in texts]})
    if kind == "ids":
        return Dataset.from_dict(tiny_tokenizer()(texts))
    return Dataset.from_dict({"prompt": texts})


def ppo_config(folder, config_class: type[PPOConfig] = PPOConfig, **settings) -> PPOConfig:
    return config_class(str(folder), **{**SETTINGS, **settings})


def ppo_trainer(
    folder,
    data=None,
    trainer_class: type[PPOTrainer] = PPOTrainer,
    config_class: type[PPOConfig] = PPOConfig,
    **arguments,
) -> PPOTrainer:
    """Builds a trainer on tiny models. Arguments that the trainer does not have are settings."""
    names = ("model", "ref_model", "reward_model", "value_model", "eval_dataset", "peft_config", "callbacks")
    names += ("processing_class", "reward_funcs", "reward_processing_class", "data_collator")
    names += ("value_peft_config", "preference_dataset", "equivalence")
    given = {name: arguments.pop(name) for name in names if name in arguments}
    tokenizer = given.pop("processing_class", None) or tiny_tokenizer()
    if "reward_model" not in given and "reward_funcs" not in given:
        given["reward_model"] = tiny_reward_model(tokenizer, seed=3)
    model = given.pop("model", None)
    return trainer_class(
        ppo_config(folder, config_class, **arguments),
        tokenizer,
        tiny_causal_lm(tokenizer) if model is None else model,
        train_dataset=prompts() if data is None else data,
        **given,
    )


def weights(model) -> dict[str, torch.Tensor]:
    """Returns copies of all parameters, by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def has_changed(model, before: dict[str, torch.Tensor]) -> bool:
    """Checks whether any parameter differs from the copies of [`weights`]."""
    return any(not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def logged(trainer: PPOTrainer) -> list[dict]:
    """Returns the log of a run without timings."""
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in trainer.state.log_history]
