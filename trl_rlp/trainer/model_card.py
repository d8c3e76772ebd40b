"""Model cards of trained reward models and policies. Each one is written over the card of TRL's trainer."""

import re
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from huggingface_hub import ModelCard, ModelCardData
from transformers import Trainer
from trl import RewardTrainer

from trl_rlp import __version__
from trl_rlp.storage.processes import process_state
from trl_rlp.trainer.citation import PACKAGE


CARD = "README.md"
TAG = "trl-rlp"
"""Tag of every model that this package trained. It finds them on the Hub."""

SETTINGS = (
    "method",
    "rlp_method",
    "representation_loss",
    "representation_coef",
    "synthetic_share",
    "kl_coef",
    "kl_estimator",
    "beta",
    "loss_type",
    "reward_weights",
    "missing_eos_penalty",
    "num_ppo_epochs",
    "num_generations",
    "temperature",
    "response_length",
    "max_completion_length",
    "max_length",
    "learning_rate",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "seed",
)
"""Fields of a configuration that a card lists, if the configuration has them and they are set."""

NO_METRICS = re.compile(r"runtime|per_second|flos|epoch|num_tokens|grad_norm|learning_rate|step_time|^eps$|^lr")
"""Logged values that describe the run and not the model."""

REWARD_MODEL_LIMITS = (
    "A reward compares completions of one prompt. It has no unit. Do not compare rewards of different prompts or of "
    "different reward models.",
    "It is less reliable on completions that differ from its training data. A policy that is trained against it moves "
    "there. Check the policy with other judges.",
    "Nothing was measured on safety, on bias or in other languages than those of the data.",
)
SYNTHETIC_LIMIT = (
    "Synthetic preferences prefer what most completions say. Where the policy is mostly wrong, so are they."
)
POLICY_LIMITS = (
    "It was trained to get high rewards. A high reward is not the same as a good answer. Judge its completions with "
    "something else than the reward model that it was trained against.",
    "It has the limits of its base model. Nothing was measured on safety, on bias or in other languages than those of "
    "the prompts.",
)
REWARD_MODEL_SNIPPET = """from trl_rlp import load_reward_model, score

model, tokenizer = load_reward_model("{name}")
print(score(model, tokenizer, prompts=[{prompt}], completions=[{completion}]))"""
POLICY_SNIPPET = """from transformers import pipeline

generator = pipeline("text-generation", model="{name}")
print(generator({prompt}, max_new_tokens=64, return_full_text=False)[0]["generated_text"])"""
PROMPT, COMPLETION = "What is 2 + 2?", "4"


TASKS = {True: "text-classification", False: "text-generation"}
"""Task of the Hub by whether a model is a reward model."""


def complete_model_card(trainer: Trainer, summary: str, data: Sequence[str]) -> None:
    """
    Writes the model card of a trainer over the draft that TRL has written to the output folder.

    The name, the base model, the tags, the links to trackers and the citations are those of the draft. All processes
    may call this. Only the main process writes.

    Args:
        trainer (`transformers.Trainer`):
            A trainer of TRL, after its `create_model_card`.
        summary (`str`):
            What the model is and how it was trained.
        data (`Sequence[str]`):
            What it was trained on, one line each.
    """
    if not trainer.is_world_process_zero():
        return
    path = Path(trainer.args.output_dir) / CARD
    draft = ModelCard.load(path)
    is_reward_model = isinstance(trainer, RewardTrainer)
    name = draft.data.model_name or path.parent.name
    card = ModelCard.from_template(
        _describe_for_hub(trainer, draft.data, name, is_reward_model),
        template_path=str(Path(__file__).with_suffix(".md")),
        model_name=name,
        summary=summary,
        base_model=_describe_base_model(trainer, draft.data.base_model),
        data=data,
        papers=re.findall(r"\[[^\]]+\]\(https://huggingface.co/papers/[^)]+\)", draft.text),
        snippet=_write_snippet(trainer, name, is_reward_model),
        badges=re.findall(r"^\[<img .*$", draft.text, flags=re.M),
        settings=_list_settings(trainer),
        metrics=_list_metrics(trainer),
        limits=_list_limits(data, is_reward_model),
        versions=_list_versions(),
        citations=[*_find_citations(draft.text), PACKAGE],
    )
    card.save(path)


def save_model_card(trainer: Trainer, folder: Path) -> None:
    """
    Writes the model card of a stage's model next to the model.

    Args:
        trainer (`transformers.Trainer`):
            A trainer of TRL or of this package, after `train()`.
        folder (`Path`):
            Folder of the model. Its name is the name of the model.
    """
    trainer.create_model_card(model_name=folder.name.removesuffix(".partial"))
    if not trainer.is_world_process_zero():
        return
    path = Path(trainer.args.output_dir) / CARD
    if TAG not in (ModelCard.load(path).data.tags or []):  # a trainer of TRL
        name = type(trainer).__name__
        summary = f"A policy: a causal LM that was trained with TRL's {name} against a reward model."
        complete_model_card(trainer, summary, describe_prompts(trainer.train_dataset))
    shutil.move(path, folder / CARD)


def add_to_model_card(folder: Path, title: str, text: str, metrics: dict[str, Any]) -> None:
    """
    Adds measurements of a later stage to the model card of a stage's model. All processes may call this.

    A second call with the same title changes nothing, so that a resumed run has each section once.

    Args:
        folder (`Path`):
            Folder of the model. Nothing happens if it has no card, as in runs of earlier versions.
        title (`str`):
            Title of the section.
        text (`str`):
            What was measured, and on what.
        metrics (`dict[str, Any]`):
            Values by name. Mappings inside it are flattened, and what is no number is left out.
    """
    path = folder / CARD
    if not process_state().is_main_process or not path.is_file():
        return
    card = ModelCard.load(path)
    if f"\n## {title}\n" in card.content:
        return
    rows = "".join(f"| `{name}` | {value} |\n" for name, value in _flatten(metrics).items())
    section = f"## {title}\n\n{text}\n\n| metric | value |\n| --- | --- |\n{rows}\n"
    card.content = card.content.replace("## Limits\n", f"{section}## Limits\n", 1)
    card.save(path)


def describe_prompts(prompts: Dataset | IterableDataset | None) -> list[str]:
    """
    Describes the prompts that a policy was trained on.

    Args:
        prompts ([`~datasets.Dataset`] or [`~datasets.IterableDataset`], *optional*):
            The prompts.

    Returns:
        `list[str]`: One line, or none without prompts.
    """
    return [] if prompts is None else [f"Prompts: {count_rows(prompts)}, without labels"]


def count_rows(dataset: Dataset | IterableDataset) -> str:
    """
    Describes the size of a dataset.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            The dataset.

    Returns:
        `str`: The number of rows, or "a stream".
    """
    return f"{len(dataset):,}" if isinstance(dataset, Dataset) else "a stream"


def find_hub_datasets(dataset: Dataset | IterableDataset | None) -> list[str]:
    """
    Finds the datasets on the Hub that a dataset was loaded from.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`], *optional*):
            A dataset. `datasets` keeps the address of each file that it downloaded.

    Returns:
        `list[str]`: Names on the Hub, sorted. Empty if the data came from elsewhere.
    """
    files = () if dataset is None else (dataset.info.download_checksums or ())
    found = (re.match(r"hf://datasets/([^@]+)@", file) for file in files)
    return sorted({match[1] for match in found if match})


def _describe_for_hub(trainer: Trainer, draft: ModelCardData, name: str, is_reward_model: bool) -> ModelCardData:
    given = [draft.datasets] if isinstance(draft.datasets, str) else draft.datasets or []
    return ModelCardData(
        base_model=draft.base_model,
        datasets=sorted({*given, *find_hub_datasets(trainer.train_dataset)}) or None,
        library_name="transformers",
        metrics=["accuracy"] if is_reward_model else ["reward"],
        model_name=name,
        pipeline_tag=TASKS[is_reward_model],
        tags=sorted({*(draft.tags or []), TAG, *(["reward-model"] if is_reward_model else [])}),
    )


def _describe_base_model(trainer: Trainer, hub_name: str | None) -> str:
    """Names the folder of a local model without its path, which may be private."""
    if hub_name:
        return f"[{hub_name}](https://huggingface.co/{hub_name})"
    folder = Path(trainer.model.config.name_or_path).name
    return f"the model in the local folder `{folder}`" if folder else "a model without a name"


def _write_snippet(trainer: Trainer, name: str, is_reward_model: bool) -> str:
    def write(role: str, text: str) -> str:
        is_chat = trainer.processing_class.chat_template is not None
        return f'[{{"role": "{role}", "content": "{text}"}}]' if is_chat else f'"{text}"'

    prompt, completion = write("user", PROMPT), write("assistant", COMPLETION)
    snippet = REWARD_MODEL_SNIPPET if is_reward_model else POLICY_SNIPPET
    return snippet.format(name=trainer.hub_model_id or name, prompt=prompt, completion=completion)


def _list_settings(trainer: Trainer) -> dict[str, Any]:
    given = {name: value for name, value in vars(trainer.args).items() if value not in (None, "")}
    settings = {name: given[name] for name in SETTINGS if name in given}
    return {**settings, "optimizer steps": trainer.state.global_step}


def _list_metrics(trainer: Trainer) -> dict[str, str]:
    metrics = {}
    for entry in trainer.state.log_history:
        metrics |= _flatten(entry)
    return {key: value for key, value in metrics.items() if not NO_METRICS.search(key) and key != "step"}


def _flatten(metrics: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat = {}
    for key, value in metrics.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)):
            flat[f"{prefix}{key}"] = str(value) if isinstance(value, bool) else f"{value:.4g}"
    return flat


def _list_limits(data: Sequence[str], is_reward_model: bool) -> Sequence[str]:
    if not is_reward_model:
        return POLICY_LIMITS
    return (*REWARD_MODEL_LIMITS, *(SYNTHETIC_LIMIT for line in data if line.startswith("Synthetic")))


def _list_versions() -> dict[str, str]:
    return {"trl_rlp": __version__, **{name: version(name) for name in ("trl", "transformers", "torch", "datasets")}}


def _find_citations(card: str) -> list[str]:
    return [text.strip() for text in re.findall(r"```bibtex\n(.*?)```", card, flags=re.S)]
