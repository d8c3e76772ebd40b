"""Loading and saving the plain models and data sets that pass from stage to stage."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_from_disk
from peft import PeftConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)
from transformers.utils import find_adapter_config_file

from trl_rlp.storage.processes import process_state


DATA = "data"


def release_memory() -> None:
    """Frees what the last stage held, before the next one loads its models."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def explain_missing_model(path: str | Path) -> Iterator[None]:
    """transformers' own message says that a connection failed, but not for which of several models."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"No model could be loaded from '{path}'. Pass a folder or a name on the Hub. ({error})"
        ) from error


def _whole(auto: type, path: str | Path, kind: str, **options: Any) -> PreTrainedModel:
    """Loads all weights; a folder of another kind of model would get random ones for its head, with a mere report."""
    with explain_missing_model(path):
        adapter = PeftConfig.from_pretrained(path) if find_adapter_config_file(str(path)) else None
        try:
            model, report = auto.from_pretrained(path, dtype="auto", output_loading_info=True, **options)
        except RuntimeError as error:  # weights of other shapes
            raise ValueError(f"'{path}' is no {kind} ({' '.join(str(error).split())[:120]}). Pass one.") from error
    wrong = [*report["missing_keys"], *(name for name in report["unexpected_keys"] if name.startswith("score."))]
    if adapter is not None:  # of which nothing is reported
        scores = adapter.task_type == "SEQ_CLS" or "score" in (adapter.modules_to_save or [])
        wrong = [] if scores == (auto is AutoModelForSequenceClassification) else [f"adapter of {adapter.task_type}"]
    if wrong:
        raise ValueError(f"'{path}' is no {kind}: {min(wrong)!r} is what differs. Pass the folder or name of one.")
    return model.eval().to(process_state().device)


def _tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    with explain_missing_model(path):
        return AutoTokenizer.from_pretrained(path)


def load_policy(path: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Loads a causal LM and its tokenizer onto this process's device.

    Args:
        path (`str` or `Path`):
            Folder or Hub name.

    Returns:
        `tuple[PreTrainedModel, PreTrainedTokenizerBase]`, the model in evaluation mode and in the precision it was
        saved in.

    Raises:
        OSError: if there is no model of that name.
        ValueError: if it is another kind of model.
    """
    model = _whole(AutoModelForCausalLM, path, "causal LM")
    return model, _tokenizer(path)


def load_reward_model(path: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Loads a trained reward model and its tokenizer onto this process's device.

    Args:
        path (`str` or `Path`):
            Folder or Hub name of a sequence classifier.

    Returns:
        `tuple[PreTrainedModel, PreTrainedTokenizerBase]`, the model in evaluation mode and in the precision it was
        saved in.

    Raises:
        OSError: if there is no model of that name.
        ValueError: if it is another kind of model.
    """
    model = _whole(AutoModelForSequenceClassification, path, "reward model of one label", num_labels=1)
    return model, _tokenizer(path)


def save_model(folder: Path, model: PreTrainedModel, processing_class: PreTrainedTokenizerBase) -> None:
    """
    Saves a plain model with its tokenizer; with several processes the main one writes.

    Args:
        folder (`Path`):
            Where to.
        model (`PreTrainedModel`):
            Not wrapped.
        processing_class (`PreTrainedTokenizerBase`):
            Its tokenizer.
    """
    if process_state().is_main_process:
        model.save_pretrained(folder)
        processing_class.save_pretrained(folder)
    process_state().wait_for_everyone()


def save_plain(trainer: Trainer, folder: Path) -> None:
    """
    Saves a trained model as a plain one: adapters merged, tokenizer beside it.

    Args:
        trainer (`transformers.Trainer`):
            After `train()`.
        folder (`Path`):
            Where to.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(model, PeftModel):
        trainer.model = model.merge_and_unload()
        trainer.model_wrapped = trainer.model
    trainer.save_model(str(folder))


def save_data(rows: Dataset, folder: Path) -> None:
    """
    Writes the data set of a stage; with several processes the main one writes.

    Args:
        rows (`datasets.Dataset`):
            What the stage made.
        folder (`Path`):
            The stage's folder.
    """
    if process_state().is_main_process:
        rows.save_to_disk(str(folder / DATA))
    process_state().wait_for_everyone()


def load_data(folder: Path) -> Dataset:
    """
    Reads the data set of a finished stage.

    Args:
        folder (`Path`):
            The stage's folder.

    Returns:
        `datasets.Dataset`.
    """
    return load_from_disk(str(folder / DATA))
