"""The configuration that transformers saves next to each model (`training_args.bin`), without secrets."""

import copy
from pathlib import Path

import torch
from transformers import TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME

from trl_rlp.storage.redaction import remove_secrets


def redact_saved_args(folder: str | Path, args: TrainingArguments) -> None:
    """
    Writes the configuration of a trainer to its file again, without secrets such as `hub_token`.

    transformers saves all fields, and pushes the file to the Hub together with the model. A resumed training does not
    read it.

    Args:
        folder (`str` or `Path`):
            Folder of a model or of a checkpoint. Nothing happens if it has no such file.
        args (`TrainingArguments`):
            Configuration of the trainer that wrote the file. It stays unchanged.
    """
    path = Path(folder) / TRAINING_ARGS_NAME
    if not args.should_save or not path.is_file():
        return
    redacted = copy.copy(args)
    vars(redacted).update(dict.fromkeys(vars(args)) | remove_secrets(vars(args)))
    torch.save(redacted, path)
