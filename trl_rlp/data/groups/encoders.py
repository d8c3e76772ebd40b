"""Loading of encoders (NLI classifiers and sentence embedders), and their limits. Two equivalences share it."""

import sys
from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.context import read_context
from trl_rlp.storage.artifacts import explain_missing_model
from trl_rlp.storage.fingerprints import weights_fingerprint
from trl_rlp.storage.paths import expand_path
from trl_rlp.storage.precision import cast_weights, choose_dtype, is_half, require_inference_dtype
from trl_rlp.storage.whole_weights import whole_weights


# A few hundred tokens keep a CPU core busy. Larger batches no longer fit in its cache.
_CPU_TOKENS_PER_BATCH = 512
_ACCELERATOR_TOKENS_PER_BATCH = 16384

_REMEDY = (
    "Pass the folder or Hub name of another model, or compare texts without a model: `ExactMatch`, or "
    "`--equivalence exact` on the command line."
)


class Encoder:
    """
    An encoder and its tokenizer. The weights of a named encoder are in memory only while they are needed.

    Config and tokenizer are loaded at once, so that a missing or unusable encoder is an error before any work. The
    weights are loaded when `model` is first read, and again after [`release`].

    Args:
        auto_class (`type`):
            Class that loads a model by name, for example `transformers.AutoModel`.
        model (`str` or `Path` or [`~transformers.PreTrainedModel`]):
            Name or folder of a model, or a loaded model. A loaded model keeps its dtype and its device, and stays in
            memory.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the model. Defaults to the tokenizer under the model's name.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Dtype of a named model: `"auto"`, `"float32"` or `"bfloat16"`. `"auto"` is bf16 on an accelerator that
            computes in it, the dtype of the checkpoint on any other accelerator, and fp32 on a CPU. In bf16, the head
            of a classifier stays in fp32.

    Attributes:
        config (`transformers.PreTrainedConfig`): Config of the model.
        context_length (`int`): Result of [`get_context_length`].
        device (`torch.device`): Device of the model, also while its weights are not loaded.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer.

    Raises:
        OSError: If there is no model or no tokenizer with this name.
        TypeError: If `model` is neither a name nor a `transformers` model.
        ValueError: If the tokenizer has no pad token, or `dtype` is unknown.
    """

    def __init__(
        self,
        auto_class: type,
        model: str | Path | PreTrainedModel,
        processing_class: PreTrainedTokenizerBase | None,
        dtype: str = "auto",
    ):
        require_inference_dtype("dtype", dtype)
        if not isinstance(model, str | Path | PreTrainedModel):
            raise TypeError(
                f"`model` must be a name, a folder or a `transformers` model, got `{type(model).__name__}`."
            )
        self._auto_class, self._dtype = auto_class, dtype
        self._path = expand_path(model) if isinstance(model, str | Path) else None
        self._model = model if isinstance(model, PreTrainedModel) else None
        skeleton = self._build_skeleton() if self._model is None else self._model
        self.config = skeleton.config
        self.device = choose_device() if self._model is None else self._model.device
        if processing_class is None:
            processing_class = _load_tokenizer(skeleton.name_or_path if self._path is None else self._path)
        if processing_class.pad_token_id is None:
            raise ValueError("`processing_class` has no pad token, so texts cannot be batched. Set its `pad_token`.")
        self.processing_class = processing_class
        self.context_length = get_context_length(skeleton, processing_class)

    @property
    def model(self) -> PreTrainedModel:
        """The model on its device. A named model is loaded if it is not in memory."""
        if self._model is None:
            self._model = self._load().to(self.device)
        return self._model

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the weights. Weights that are not in memory are loaded to the host, and then released."""
        return weights_fingerprint(self._load() if self._model is None else self._model)

    def release(self) -> None:
        """Releases the weights of a named model. They are loaded again when they are needed."""
        if self._path is not None:
            self._model = None

    def _load(self) -> PreTrainedModel:
        dtype = self._dtype
        if dtype == "auto":
            dtype = "float32" if self.device.type == "cpu" else choose_dtype(self.device)
        with explain_missing_model(self._path, _REMEDY), whole_weights():
            model = self._auto_class.from_pretrained(self._path, dtype="auto" if is_half(dtype) else dtype)
        if is_half(dtype):
            cast_weights(model, dtype)
        return model

    def _build_skeleton(self) -> PreTrainedModel:
        """Builds the model without weights, to read its config and its limits."""
        with explain_missing_model(self._path, _REMEDY):
            config = AutoConfig.from_pretrained(self._path)
        with torch.device("meta"), whole_weights():
            return self._auto_class.from_config(config)


def _load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    with explain_missing_model(path, "Pass its tokenizer as `processing_class`."):
        return AutoTokenizer.from_pretrained(path)


def choose_device() -> torch.device:
    """
    Returns the device of this process for models that only infer.

    Returns:
        `torch.device`: The current accelerator, or the CPU.
    """
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if device is None else device


def get_context_length(model: PreTrainedModel, processing_class: PreTrainedTokenizerBase) -> int:
    """
    Returns the longest input that both the model and the tokenizer allow.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Encoder.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the encoder.

    Returns:
        `int`: Length in tokens, including special tokens. `sys.maxsize` if neither has a limit.
    """
    context = read_context(model)
    # A tokenizer without a limit names 10^30 tokens, which do not fit into its own integers.
    return min(sys.maxsize if context is None else context, processing_class.model_max_length)


def choose_tokens_per_batch(device: torch.device) -> int:
    """
    Returns a batch size that keeps a device busy.

    Args:
        device (`torch.device`):
            Device of the encoder.

    Returns:
        `int`: Tokens per batch, including padding: 512 on a CPU, 16,384 on an accelerator.
    """
    return _CPU_TOKENS_PER_BATCH if device.type == "cpu" else _ACCELERATOR_TOKENS_PER_BATCH
