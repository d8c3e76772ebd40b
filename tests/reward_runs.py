"""Data, settings and trainers for tests of reward training. A run takes about a second."""

from datasets import Dataset
from trl import RewardConfig, RewardTrainer

from tests.tiny_models import tiny_reward_model, tiny_tokenizer
from trl_rlp.data.normalization import normalize_text
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig
from trl_rlp.trainer.reward.rlp_reward_trainer import RLPRewardTrainer


WORDS = ("red", "blue", "green", "pink", "gray", "black")
SETTINGS = {
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "max_steps": 4,
    "logging_steps": 1,
    "learning_rate": 1e-2,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "dataloader_pin_memory": False,
}


class SameText:
    """The simplest equivalence: completions have the same meaning if their normalized texts are equal."""

    fingerprint = "same text"

    def normalize(self, text: str) -> str:
        return normalize_text(text)

    def are_equivalent(self, prompts: list[str], firsts: list[str], seconds: list[str]) -> list[bool]:
        return [self.normalize(first) == self.normalize(second) for first, second in zip(firsts, seconds, strict=True)]


def preferences(size: int = 8, margin: bool = False, chat: bool = False) -> Dataset:
    """Builds human pairs of different lengths. The chosen completion names a color."""
    rows = []
    for i in range(size):
        row = {"prompt": f"Colour {i}? ", "chosen": WORDS[i % 6], "rejected": "no idea " * (1 + i % 3)}
        if chat:
            row = {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "chosen": [{"role": "assistant", "content": row["chosen"]}],
                "rejected": [{"role": "assistant", "content": row["rejected"]}],
            }
        rows.append(row | ({"margin": i / 10} if margin else {}))
    return Dataset.from_list(rows)


def policy_samples(size: int = 6, chat: bool = False) -> Dataset:
    """Builds four completions per prompt. Three are equal after normalization, so the confidence is 0.75."""
    prompts = [f"Name colour {i}: " for i in range(size)]
    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": prompt}] for prompt in prompts] if chat else prompts,
            "completions": [[word, f"{word}.", f"{word} ", "a dull one"] for word in (WORDS * size)[:size]],
            "finished": [[True, True, True, True]] * size,
        }
    )


def synthetic_preferences(size: int = 3) -> Dataset:
    """Builds ready synthetic preferences D̂."""
    return Dataset.from_list(
        [{"prompt": f"Name colour {i}: ", "chosen": WORDS[i], "rejected": "a dull one"} for i in range(size)]
    )


def trl_trainer(output_dir, model=None, tokenizer=None, data=None, eval_dataset=None, **settings) -> RewardTrainer:
    """Builds TRL's own trainer, with the same model, data and settings as [`rlp_trainer`]."""
    tokenizer = tokenizer or tiny_tokenizer()
    return RewardTrainer(
        model or tiny_reward_model(tokenizer),
        RewardConfig(str(output_dir), **{**SETTINGS, **settings}),
        train_dataset=data or preferences(),
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
    )


REFINEMENT = ("policy_samples", "equivalence", "labeling_reward_model", "labeling_processing_class")
TRAINER_ARGUMENTS = (*REFINEMENT, "synthetic_dataset", "peft_config", "data_collator", "callbacks")


def rlp_trainer(
    output_dir, method="uml", model=None, tokenizer=None, data=None, eval_dataset=None, **settings
) -> RLPRewardTrainer:
    """Builds our trainer. By default, `uml` gets policy samples and `spg` gets a ready D̂."""
    tokenizer = tokenizer or tiny_tokenizer()
    arguments = {name: settings.pop(name) for name in TRAINER_ARGUMENTS if name in settings}
    if "uml" in method and "data_collator" not in arguments:
        arguments.setdefault("policy_samples", policy_samples())
    if "spg" in method and not set(arguments) & {"equivalence", "synthetic_dataset", "labeling_reward_model"}:
        arguments["synthetic_dataset"] = synthetic_preferences()
    return RLPRewardTrainer(
        model or tiny_reward_model(tokenizer),
        RLPRewardConfig(str(output_dir), method=method, **{**SETTINGS, **settings}),
        train_dataset=preferences() if data is None else data,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        **arguments,
    )


def get_logged(trainer, key: str) -> list[float]:
    """Returns all values that a run logged under a key, in order."""
    return [entry[key] for entry in trainer.state.log_history if key in entry]
