"""Model cards of trained reward models and policies, with what TRL's cards say and more."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, IterableDataset
from huggingface_hub import ModelCard, ModelCardData
from transformers import Trainer, TrainingArguments
from trl import RewardTrainer, is_conversational

from trl_rlp import __version__
from trl_rlp.storage.paths import expand_path
from trl_rlp.storage.processes import process_state
from trl_rlp.trainer.citation import HOMEPAGE, PACKAGE, PAPER


CARD = "README.md"
TAG = "trl-rlp"
"""Tag of every model that this package trained. It finds them on the Hub."""

METHOD_TAG = "rlp"
"""Tag of models that were trained with RLP, and not only with this package."""

PAPER_LINK = f"[{PAPER['title']}](https://huggingface.co/papers/{PAPER['id']})"
"""Link to the paper in a card. The Hub shows the model on the page of the paper."""

TRAINING_SETTINGS = (
    "learning_rate",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "seed",
)
"""Fields of all configurations that a card lists. The number of epochs is left out if `max_steps` decided."""

POLICY_SETTINGS = ("beta", "loss_type", "reward_weights", "num_generations", "temperature", "max_completion_length")
"""Fields of the configurations of TRL's GRPO and RLOO trainers that a card lists, if they are set."""

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


class ModelDescription(NamedTuple):
    """
    What a trainer says about its model in the model card.

    Args:
        summary (`str`):
            What the model is and how it was trained.
        data (`Sequence[str]`):
            What it was trained on, one line each.
        settings (`Sequence[str]`):
            Fields of the configuration that had an effect, besides [`TRAINING_SETTINGS`].
        datasets (`Sequence[str]`):
            Names of its datasets on the Hub.
        is_chat (`bool`):
            Whether it was trained on messages. The code in the card then has messages too.
    """

    summary: str
    data: Sequence[str]
    settings: Sequence[str]
    datasets: Sequence[str]
    is_chat: bool


class ModelCardMixin(Trainer):
    """A trainer that writes the model card of this package. Its subclasses name it before a trainer of TRL."""

    def _describe_model(self) -> ModelDescription:
        """Returns what only this trainer knows about its model."""
        raise NotImplementedError

    def _take_card_names(self, trainer_class: type[Trainer]) -> None:
        """Takes the tags, the name and the paper of another trainer, as which this one trains."""
        for name in ("_tag_names", "_name", "_paper"):
            setattr(self, name, getattr(trainer_class, name))

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """
        Writes a model card to `args.output_dir`: what the model is, how to load it, its data, metrics and limits.

        Args:
            model_name (`str`, *optional*):
                Name of the model.
            dataset_name (`str`, *optional*):
                Name of the dataset on the Hub.
            tags (`str` or `list[str]`, *optional*):
                Further tags.
        """
        super().create_model_card(model_name, dataset_name, tags)  # TRL's, with the same arguments
        complete_model_card(self, self._describe_model())


def complete_model_card(trainer: Trainer, description: ModelDescription) -> None:
    """
    Writes the model card of a trainer over the draft that TRL has written to the output folder.

    The name, the base model, the tags, the links to trackers and the citations are those of the draft. With
    [`METHOD_TAG`], the card also names the paper of RLP. All processes may call this. Only the main process writes.

    Args:
        trainer (`transformers.Trainer`):
            A trainer of TRL, after its `create_model_card`.
        description ([`ModelDescription`]):
            What only this trainer knows about its model.
    """
    if not trainer.is_world_process_zero():
        return
    path = Path(trainer.args.output_dir) / CARD
    draft = ModelCard.load(path)
    name = draft.data.model_name or path.parent.name
    papers = re.findall(r"\[[^\]]+\]\(https://huggingface.co/papers/[^)]+\)", draft.text)
    citations = [*_find_citations(draft), PACKAGE]
    if METHOD_TAG in draft.data.tags and PAPER_LINK not in papers:
        papers, citations = [*papers, PAPER_LINK], [PAPER["citation"], *citations]
    given = [draft.data.datasets] if isinstance(draft.data.datasets, str) else draft.data.datasets or []
    card = _Card(
        name=name,
        hub_name=trainer.hub_model_id or name,
        is_reward_model=isinstance(trainer, RewardTrainer),
        summary=description.summary,
        base_model=draft.data.base_model,
        base_folder=trainer.model.config.name_or_path,
        data=description.data,
        datasets=[*given, *description.datasets],
        is_chat=description.is_chat,
        tags=draft.data.tags or [],
        papers=papers,
        badges=_find_badges(draft),
        settings={**_list_settings(trainer.args, description.settings), "optimizer steps": trainer.state.global_step},
        metrics=_list_metrics(trainer),
        steps=trainer.state.global_step,
        citations=citations,
    )
    card.save(path)


def save_model_card(trainer: Trainer, folder: Path, tags: Sequence[str] = ()) -> None:
    """
    Writes the model card of a stage's model next to the model.

    Args:
        trainer (`transformers.Trainer`):
            A trainer of TRL or of this package, after `train()`.
        folder (`Path`):
            Folder of the model. Its name is the name of the model.
        tags (`Sequence[str]`, *optional*):
            Further tags.
    """
    trainer.create_model_card(model_name=folder.name.removesuffix(".partial"), tags=list(tags))
    if not trainer.is_world_process_zero():
        return
    if not isinstance(trainer, ModelCardMixin):
        name = type(trainer).__name__
        summary = f"A policy: a causal LM that was trained with TRL's {name} against a reward model."
        complete_model_card(trainer, describe_policy(summary, trainer.train_dataset, POLICY_SETTINGS))
    shutil.move(Path(trainer.args.output_dir) / CARD, folder / CARD)


def save_refined_model_card(
    folder: Path,
    trainer: Trainer,
    args: TrainingArguments,
    *,
    description: ModelDescription,
    base_model: str,
    tags: Sequence[str],
) -> None:
    """
    Writes the model card of a reward model that was refined while a policy was trained. All processes may call this.

    Args:
        folder (`Path`):
            Folder of the reward model. Its name is the name of the model. The folder above it has the policy's card.
        trainer (`transformers.Trainer`):
            The trainer of the policy, after `train()`.
        args (`TrainingArguments`):
            Configuration of the refinements.
        description ([`ModelDescription`]):
            What it is, what it was trained on, and which fields of `args` had an effect.
        base_model (`str`):
            Folder or Hub name of the model that every refinement starts from.
        tags (`Sequence[str]`):
            Tags of a reward model.
    """
    if not trainer.is_world_process_zero():
        return
    policy_card = ModelCard.load(folder.parent / CARD)
    card = _Card(
        name=folder.name,
        hub_name=folder.name,
        is_reward_model=True,
        summary=description.summary,
        base_model=None if Path(expand_path(base_model)).is_dir() else base_model,
        base_folder=base_model,
        data=description.data,
        datasets=description.datasets,
        is_chat=description.is_chat,
        tags=["generated_from_trainer", *tags],
        papers=[PAPER_LINK],
        badges=_find_badges(policy_card),
        settings=_list_settings(args, description.settings),
        metrics={name: value for name, value in _list_metrics(trainer).items() if name.startswith("refinement/")},
        steps=trainer.state.global_step,
        citations=[PAPER["citation"], *_find_citations(policy_card)[-2:]],  # those of TRL and of this package
    )
    card.save(folder / CARD)


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


def describe_policy(
    summary: str, prompts: Dataset | IterableDataset | None, settings: Sequence[str]
) -> ModelDescription:
    """
    Describes a policy by the prompts that it was trained on.

    Args:
        summary (`str`):
            What it is and how it was trained.
        prompts ([`~datasets.Dataset`] or [`~datasets.IterableDataset`], *optional*):
            The prompts.
        settings (`Sequence[str]`):
            As in [`ModelDescription`].

    Returns:
        [`ModelDescription`]: The description, with one line about the prompts, or none without prompts.
    """
    data = [] if prompts is None else [f"Prompts: {count_rows(prompts)}, without labels"]
    return ModelDescription(summary, data, settings, find_hub_datasets(prompts), has_messages(prompts))


def has_messages(dataset: Dataset | IterableDataset | None) -> bool:
    """
    Checks whether the first row of a dataset has messages.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`], *optional*):
            Prompts or preferences in one of TRL's formats.

    Returns:
        `bool`: `False` for text, for token ids, and without rows.
    """
    return dataset is not None and is_conversational(next(iter(dataset), {}))


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


def describe_model(name: str) -> str:
    """
    Links a model on the Hub, or names the folder of a local model without its path, which may be private.

    Args:
        name (`str`):
            Folder or Hub name, or `""` for a model that was not loaded.

    Returns:
        `str`: What a card says.
    """
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not Path(expand_path(name)).exists():
        return f"[{name}](https://huggingface.co/{name})"
    folder = Path(name).name
    return f"the model in the local folder `{folder}`" if folder else "a model without a name"


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


@dataclass(kw_only=True)
class _Card:
    """What a card says about a model. `base_model` is its name on the Hub, or `None` for that in `base_folder`."""

    name: str
    hub_name: str
    is_reward_model: bool
    summary: str
    base_model: str | None
    base_folder: str
    data: Sequence[str]
    datasets: Sequence[str]
    is_chat: bool
    tags: Sequence[str]
    papers: Sequence[str]
    badges: Sequence[str]
    settings: dict[str, Any]
    metrics: dict[str, str]
    steps: int
    citations: Sequence[str]

    def save(self, path: Path) -> None:
        """Renders the template and writes the file."""
        card = ModelCard.from_template(
            self._describe_for_hub(),
            template_path=str(Path(__file__).with_suffix(".md")),
            model_name=self.name,
            summary=self.summary,
            base_model=self._describe_base_model(),
            data=self.data,
            papers=self.papers,
            has_method=PAPER_LINK in self.papers,
            homepage=HOMEPAGE,
            snippet=self._write_snippet(),
            badges=self.badges,
            settings=self.settings,
            metrics=self.metrics,
            steps=self.steps,
            limits=self._list_limits(),
            versions=_list_versions(),
            citations=self.citations,
        )
        card.save(path)

    def _describe_for_hub(self) -> ModelCardData:
        return ModelCardData(
            base_model=self.base_model,
            datasets=sorted({*self.datasets}) or None,
            library_name="transformers",
            metrics=["accuracy"] if self.is_reward_model else ["reward"],
            model_name=self.name,
            pipeline_tag=TASKS[self.is_reward_model],
            tags=sorted({*self.tags, TAG, *(["reward-model"] if self.is_reward_model else [])}),
        )

    def _describe_base_model(self) -> str:
        return describe_model(self.base_model or self.base_folder)

    def _write_snippet(self) -> str:
        def write(role: str, text: str) -> str:
            return f'[{{"role": "{role}", "content": "{text}"}}]' if self.is_chat else f'"{text}"'

        prompt, completion = write("user", PROMPT), write("assistant", COMPLETION)
        snippet = REWARD_MODEL_SNIPPET if self.is_reward_model else POLICY_SNIPPET
        return snippet.format(name=self.hub_name, prompt=prompt, completion=completion)

    def _list_limits(self) -> Sequence[str]:
        if not self.is_reward_model:
            return POLICY_LIMITS
        is_synthetic = any(line.startswith("Synthetic") for line in self.data)
        return (*REWARD_MODEL_LIMITS, SYNTHETIC_LIMIT) if is_synthetic else REWARD_MODEL_LIMITS


def _list_settings(args: TrainingArguments, names: Sequence[str]) -> dict[str, Any]:
    given = {name: value for name, value in vars(args).items() if value not in (None, "")}
    if args.max_steps > 0:
        del given["num_train_epochs"]
    return {name: given[name] for name in (*names, *TRAINING_SETTINGS) if name in given}


def _list_metrics(trainer: Trainer) -> dict[str, str]:
    """Returns the last value of each metric. Those of an evaluation come first."""
    metrics = {}
    for entry in trainer.state.log_history:
        metrics |= _flatten(entry)
    names = [name for name in metrics if not NO_METRICS.search(name) and name != "step"]
    return {name: metrics[name] for name in sorted(names, key=lambda name: not name.startswith("eval_"))}


def _flatten(metrics: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat = {}
    for key, value in metrics.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)):
            flat[f"{prefix}{key}"] = str(value) if isinstance(value, bool) else f"{value:.4g}"
    return flat


def _list_versions() -> dict[str, str]:
    return {"trl_rlp": __version__, **{name: version(name) for name in ("trl", "transformers", "torch", "datasets")}}


def _find_badges(card: ModelCard) -> list[str]:
    return re.findall(r"^\[<img .*$", card.text, flags=re.M)


def _find_citations(card: ModelCard) -> list[str]:
    return [text.strip() for text in re.findall(r"```bibtex\n(.*?)```", card.text, flags=re.S)]
