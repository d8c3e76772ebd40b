"""Fingerprints of models, tokenizers, datasets and plain values. Equal fingerprints mean equal contents."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import xxhash
from datasets import Dataset
from peft import PeftModel
from peft.utils import CONFIG_NAME
from torch import nn
from transformers import PreTrainedTokenizerBase

from trl_rlp.storage.json_files import read_json
from trl_rlp.storage.paths import expand_path


_BLOCK_BYTES = 2**24
_WEIGHTS = ("*.safetensors", "*model*.bin")  # not `training_args.bin` and `optimizer.bin`
_CONFIGS = ("config.json", "generation_config.json", "adapter_config.json", "chat_template*", "*.py")
_TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model")
_MODEL_FILES = (*_WEIGHTS, *_CONFIGS, *_TOKENIZER)


def weights_fingerprint(model: nn.Module) -> str:
    """
    Computes a fingerprint of a model from the names, types, shapes and bytes of its tensors and its active adapters.

    It does not include the config of the model. Two models with the same weights but different configs, such as
    another RoPE scaling, have the same fingerprint. It takes about 0.2 s per gigabyte on a CPU. Weights on an
    accelerator are copied to the host, one tensor at a time.

    Args:
        model (`torch.nn.Module`):
            A model with its weights in memory. A PEFT model has different fingerprints with its adapters enabled and
            disabled.

    Returns:
        `str`: 32 hexadecimal digits.
    """
    digest = xxhash.xxh3_128()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    if isinstance(model, PeftModel) and not model.active_peft_config.is_prompt_learning:
        status = model.get_model_status()
        digest.update(f"{status.enabled} {status.active_adapters} {status.merged_adapters}".encode())
    return digest.hexdigest()


def files_fingerprint(folder: str | Path) -> str:
    """
    Computes a fingerprint of a saved model from the names and bytes of its files, without loading them.

    Args:
        folder (`str` or `Path`):
            Folder of the model. Its weights, configs, tokenizer and chat template are read. Other files, such as
            metrics and the state of a trainer, do not count.

    Returns:
        `str`: 32 hexadecimal digits.
    """
    digest = xxhash.xxh3_128()
    found = {path for pattern in _MODEL_FILES for path in Path(folder).glob(pattern)}
    for path in sorted(path for path in found if path.is_file()):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def describe_local_models(**models: str | Path | None) -> dict[str, str]:
    """
    Computes the fingerprints of those models that are local folders.

    Runs record them beside the paths, to notice that a model was trained again into the same folder. This includes the
    base model of an adapter, if it is a local folder. A model of the Hub is known by its name and revision only.

    Args:
        models (`str` or `Path`, *optional*):
            Folder or Hub name of each model, by argument name.

    Returns:
        `dict[str, str]`: The fingerprints, with `_files` added to each name. Models of the Hub and `None` are left
        out.
    """
    folders = {name: Path(expand_path(model)) for name, model in models.items() if model is not None}
    return {f"{name}_files": _fingerprint_folder(folder) for name, folder in folders.items() if folder.is_dir()}


def _fingerprint_folder(folder: Path) -> str:
    """Returns the fingerprint of a model, and of the base model of an adapter if it is a local folder."""
    folders = [folder]
    if (folder / CONFIG_NAME).exists():
        base = read_json(folder / CONFIG_NAME).get("base_model_name_or_path")
        if base and Path(expand_path(base)).is_dir():
            folders.append(Path(expand_path(base)))
    return value_fingerprint([files_fingerprint(part) for part in folders])


def tokenizer_fingerprint(processing_class: PreTrainedTokenizerBase) -> str:
    """
    Computes a fingerprint of a tokenizer from everything that decides the token ids of a text or a chat: vocabulary,
    merges, normalization, the tokens that it adds to a text, the roles of special tokens and the chat template.

    The pad token, padding and truncation do not count, because calls and trainers change them.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.

    Returns:
        `str`: 32 hexadecimal digits.
    """
    roles = {role: str(tokens) for role, tokens in processing_class.special_tokens_map.items() if role != "pad_token"}
    parts = {}
    if processing_class.is_fast:  # tokenizers in Python have no description of their parts
        parts = json.loads(processing_class.backend_tokenizer.to_str())
        parts = {name: part for name, part in parts.items() if name not in ("padding", "truncation")}
    return value_fingerprint([processing_class.get_vocab(), processing_class.chat_template, roles, parts])


def value_fingerprint(value: Any) -> str:
    """
    Computes a fingerprint of plain values, such as a list of prompts.

    The order of lists matters. The order of dictionaries does not.

    Args:
        value:
            Any value that `json` can write.

    Returns:
        `str`: 32 hexadecimal digits.
    """
    return xxhash.xxh3_128(json.dumps(value, sort_keys=True).encode()).hexdigest()


def dataset_fingerprint(dataset: Dataset, columns: Sequence[str] | None = None) -> str:
    """
    Computes a fingerprint of the values of a dataset.

    Datasets with the same rows have the same fingerprint, however they were made: in memory or memory-mapped, with
    chunks of any size, or selected from another one. The order of the rows matters. The order of the columns and the
    widths of their types do not. It reads the rows in batches, so it needs little memory.

    Args:
        dataset ([`~datasets.Dataset`]):
            The dataset.
        columns (`Sequence[str]`, *optional*):
            Names of the columns that count. Defaults to all.

    Returns:
        `str`: 32 hexadecimal digits.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> from trl_rlp.storage.fingerprints import dataset_fingerprint

    >>> rows = Dataset.from_dict({"prompt": ["a", "b", None]})
    >>> dataset_fingerprint(rows.select([1, 2])) == dataset_fingerprint(Dataset.from_dict({"prompt": ["b", None]}))
    True

    ```
    """
    digests = {name: _ColumnDigest() for name in sorted(dataset.column_names if columns is None else columns)}
    for batch in dataset.select_columns(list(digests)).with_format("arrow").iter(batch_size=_ROWS_AT_ONCE):
        batch = batch.combine_chunks()  # a selection has a chunk for each row
        for name, digest in digests.items():
            for array in batch[name].chunks:
                digest.update(array)
    return value_fingerprint([len(dataset), {name: digest.describe() for name, digest in digests.items()}])


_ROWS_AT_ONCE = 1000


class _ColumnDigest:
    """
    Digest of a column that is read in chunks. It does not depend on the chunks.

    Which values are null, the sizes of lists and texts, and the values themselves go into three digests, and nested
    columns into digests of their own. Each of them gets the same bytes for any chunks. The type of a column counts
    only if it has a value, because a column of nulls may have any type.
    """

    def __init__(self):
        self.kind = ""
        self.validity, self.sizes, self.values = (xxhash.xxh3_128() for _ in range(3))
        self.children: dict[str, _ColumnDigest] = {}

    def update(self, array: pa.Array) -> None:
        self.validity.update(_read_bytes(array.is_valid(), pa.uint8()))
        array = array.drop_null() if array.null_count else array
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        if isinstance(array, pa.DictionaryArray):
            array = array.dictionary_decode()
        if len(array):
            self._update_values(array)

    def _update_values(self, array: pa.Array) -> None:
        kind = array.type
        if pa.types.is_struct(kind):
            self.kind = "struct"
            for field, child in zip(kind, array.flatten(), strict=True):
                self.children.setdefault(field.name, _ColumnDigest()).update(child)
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            self.kind = "list"
            self.sizes.update(_read_bytes(pc.list_value_length(array), pa.int64()))
            self.children.setdefault("", _ColumnDigest()).update(array.flatten())
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
            self.kind = "text"
            self.sizes.update(_read_bytes(pc.binary_length(array), pa.int64()))
            self.values.update(_read_text(array))
        elif pa.types.is_boolean(kind):
            self.kind = "boolean"
            self.values.update(_read_bytes(array, pa.uint8()))
        elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
            self.kind = "integer" if pa.types.is_integer(kind) else "float"
            self.values.update(_read_bytes(array, pa.int64() if self.kind == "integer" else pa.float64()))
        else:  # dates, bytes and other rare types
            self.kind = str(kind)
            for value in array.to_pylist():
                self.values.update(f"{value!r}\n".encode())

    def describe(self) -> list:
        digests = [digest.hexdigest() for digest in (self.validity, self.sizes, self.values)]
        return [self.kind, *digests, {name: child.describe() for name, child in self.children.items()}]


def _read_bytes(array: pa.Array, kind: pa.DataType) -> np.ndarray:
    return array.cast(kind, safe=False).to_numpy(zero_copy_only=False).view(np.uint8)


def _read_text(array: pa.Array) -> pa.Buffer | bytes:
    """Returns the bytes of all texts of an array without nulls, one after the other."""
    _, offsets, text = array.buffers()
    width = np.int64 if pa.types.is_large_string(array.type) else np.int32
    offsets = np.frombuffer(offsets, dtype=width, offset=array.offset * np.dtype(width).itemsize)
    start, end = int(offsets[0]), int(offsets[len(array)])
    return b"" if start == end else text.slice(start, end - start)
