"""Models of callables that run in worker processes: each worker loads the model itself, when it first needs it."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp import __version__
from trl_rlp.storage.artifacts import load_reward_model
from trl_rlp.storage.paths import expand_path


_PROCESS = os.getpid()
"""The process that has imported this module. A forked process has another number."""


class WorkerModel:
    """
    A model that each process loads when it first needs it. It is pickled without the model.

    Args:
        argument (`str`):
            Name of the user's argument, for error messages.
        model (`Any`):
            What the user passed: a name or folder, a function, or the model itself.
        load (`Callable`, *optional*):
            Loads the model. It is picklable. `None` if `model` is the model itself.
        has_weights (`bool`, *optional*, defaults to `False`):
            Whether `model` is the model itself and too large to be pickled.
    """

    def __init__(self, argument: str, model: Any, load: Callable[[], Any] | None = None, *, has_weights: bool = False):
        self._argument = argument
        self._load = load
        self._has_weights = has_weights
        self._model = model if load is None else None
        self._files = [] if load is None else _list_files(model)

    def get(self) -> Any:
        """
        Returns the model. The first call loads it.

        Returns:
            The model.
        """
        if self._model is None:
            self._model = self._load()
        return self._model

    def __getstate__(self) -> dict[str, Any]:
        if self._has_weights:
            raise TypeError(
                f"`{self._argument}` is a loaded model, which is not sent to other processes. Pass its folder or its "
                "name on the Hub, and each process loads it."
            )
        return {**vars(self), "_model": self._model if self._load is None else None, "version": __version__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state.pop("version") != __version__:
            raise RuntimeError(
                f"This process has trl_rlp {__version__}, which is not the version of the process that started the "
                "work. Install the same version on all machines."
            )
        vars(self).update(state)


def hold_reward_model(
    model: str | Path | PreTrainedModel | PeftModel,
    processing_class: PreTrainedTokenizerBase | None,
    options: dict[str, Any],
) -> WorkerModel:
    """
    Holds a reward model and its tokenizer for a worker.

    Args:
        model (`str` or `Path` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Reward model, or its folder or Hub name.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of a loaded model. A named model has its own.
        options (`dict`):
            Further arguments of [`load_reward_model`], for a named model.

    Returns:
        [`WorkerModel`]: Its value is the model and the tokenizer.

    Raises:
        TypeError: If there are options for a loaded model, or a tokenizer for a named one.
        ValueError: If a loaded model has no tokenizer.
    """
    if isinstance(model, str | Path):
        if processing_class is not None:
            raise TypeError(
                f"`reward_processing_class` belongs to a loaded model, but `reward_model` is the name {str(model)!r}. "
                "Its tokenizer is loaded from there, so leave the argument out."
            )
        return WorkerModel("reward_model", model, functools.partial(load_reward_model, model, **options))
    if options:
        raise TypeError(
            f"{sorted(options)} are options of a model that is loaded by name, but `reward_model` is a "
            f"`{type(model).__name__}`. Pass its folder or its name on the Hub, or leave them out."
        )
    if processing_class is None:
        raise ValueError("`reward_processing_class` is None. Pass the tokenizer of `reward_model`.")
    return WorkerModel("reward_model", (model, processing_class), has_weights=True)


def prepare_worker(rank: int | None) -> None:
    """
    Selects the accelerator of a worker, before it loads a model. A forked process computes with one thread, because
    the other threads of its parent are missing, and it would wait for them without end.

    Args:
        rank (`int`, *optional*):
            Number of the worker. `datasets` passes it with `with_rank=True`. `None` changes nothing: the worker uses
            the device of its process, as in Ray, which shows each worker its own devices only.
    """
    if os.getpid() != _PROCESS:
        torch.set_num_threads(1)
    if rank is not None and torch.accelerator.is_available():
        torch.accelerator.set_device_index(rank % torch.accelerator.device_count())


def _list_files(model: Any) -> list[tuple[str, int, int]]:
    """
    Lists the files in the folder of a model, with sizes and times. They are part of what is pickled, so that
    `datasets` does not take a result of former weights in this folder from its cache.
    """
    folder = Path(expand_path(model)) if isinstance(model, str | Path) else None
    if folder is None or not folder.is_dir():
        return []
    files = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    return [(name, status.st_size, status.st_mtime_ns) for name, status in files]
