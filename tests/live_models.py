"""Finds the models and optimizers that are in memory."""

import gc
import weakref

from torch.optim import Optimizer
from transformers import PreTrainedModel


class LiveModels:
    """
    Lists the models and optimizers that were made after this object and are still in memory.

    It does not collect garbage, because that is what the tested code has to do.
    """

    def __init__(self):
        gc.collect()
        self._earlier = weakref.WeakSet(_find())

    def names(self, kind: type | tuple[type, ...] = (PreTrainedModel, Optimizer)) -> list[str]:
        """Returns the names of their classes. A part of another model is not listed."""
        found = [entry for entry in _find() if entry not in self._earlier and isinstance(entry, kind)]
        parts = {
            id(part) for model in found if isinstance(model, PreTrainedModel) for part in list(model.modules())[1:]
        }
        return sorted(type(entry).__name__ for entry in found if id(entry) not in parts)


def _find() -> list[PreTrainedModel | Optimizer]:
    kinds = (PreTrainedModel, Optimizer)
    found = [entry for entry in gc.get_objects() if issubclass(type(entry), kinds)]
    return [entry for entry in found if isinstance(entry, Optimizer) or entry.device.type != "meta"]
