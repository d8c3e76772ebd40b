"""Loads and saves the models and datasets that one stage passes to the next."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from datasets import Dataset, load_from_disk
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from torch.distributed.fsdp import StateDictType
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import CONFIG_NAME, find_adapter_config_file, logging
from transformers.utils.hub import cached_file

from trl_rlp.storage.adapters import find_adapter, load_merged_model
from trl_rlp.storage.json_files import name_failed_write
from trl_rlp.storage.paths import expand_path
from trl_rlp.storage.precision import SCORE_HEADS, cast_weights, choose_dtype, is_half, is_quantized
from trl_rlp.storage.processes import process_state, run_on_main
from trl_rlp.storage.whole_weights import whole_weights


logger = logging.get_logger(__name__)

CAUSAL_LM = "a causal LM"
DATA = "data"

HUB_OPTIONS = ("revision", "trust_remote_code")
"""Options of a model's `from_pretrained` that also belong to its tokenizer."""

FILE_OPTIONS = ("cache_dir", "local_files_only", "revision", "token")
"""Options of `from_pretrained` that select the files of a model on the Hub."""


@contextmanager
def explain_missing_model(path: str | Path, remedy: str = "Pass a folder or a name on the Hub.") -> Iterator[None]:
    """Adds the model's name and a remedy to loading errors, because transformers only reports a failed connection."""
    try:
        yield
    except OSError as error:
        reason = " ".join(str(error).split())  # one line
        raise OSError(f"No model could be loaded from '{path}'. {remedy} ({reason})") from error


def load_complete_model(auto_class: type, path: str | Path, kind: str, **options: Any) -> PreTrainedModel:
    """
    Loads a model and checks that the checkpoint holds all of its weights.

    A checkpoint of another kind of model would get a head with random weights, and transformers would only log it.

    Args:
        auto_class (`type`):
            Auto class of transformers.
        path (`str` or `Path`):
            Folder or Hub name of a model, or of an adapter for one, which is merged.
        kind (`str`):
            Description of the model for the error message, for example "a causal LM".
        options:
            Further arguments of `from_pretrained`. The dtype is that of the checkpoint, unless it is given. The score
            head of a classifier in bf16 or fp16 stays in fp32, see [`cast_weights`].

    Returns:
        [`~transformers.PreTrainedModel`]: The model, in evaluation mode.

    Raises:
        OSError: If there is no model with this name.
        ValueError: If it is another kind of model.
    """
    path = expand_path(path)
    with explain_missing_model(path), whole_weights():
        adapter = find_adapter(path, options.get("revision"))
        options = {"dtype": "auto", **options}
        differences = [] if adapter is None else _find_adapter_differences(auto_class, adapter)
        try:
            if adapter is None:
                model, report = _load_whole_model(auto_class, path, **options)
                unexpected = [key for key in report["unexpected_keys"] if key.startswith("score.")]
                differences = [*report["missing_keys"], *unexpected]
            elif not differences:
                model = load_merged_model(auto_class, path, adapter, **options)
        except RuntimeError as error:  # the shapes of the weights differ
            raise ValueError(f"'{path}' is not {kind} ({' '.join(str(error).split())[:120]}). Pass one.") from error
    if differences:
        raise ValueError(
            f"'{path}' is not {kind}. The first difference is {min(differences)!r}. Pass the folder or name of one."
        )
    return model.eval()


def _load_whole_model(auto_class: type, path: str, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Casts the weights of a classifier after loading, because loading would also round those of its head."""
    dtype, is_classifier = options["dtype"], auto_class is AutoModelForSequenceClassification
    if is_classifier and is_half(dtype) and "device_map" not in options:
        options["dtype"] = "auto"  # a model that needs several devices may not fit in a wider dtype
    model, report = auto_class.from_pretrained(path, output_loading_info=True, **options)
    dtype = dtype if is_half(dtype) else model.dtype  # that of the checkpoint may have 16 bits
    if is_classifier and is_half(dtype) and not is_quantized(model):
        _restore_head(model, path, {name: options[name] for name in FILE_OPTIONS if name in options})
        cast_weights(model, dtype)
    return model, report


def _restore_head(model: PreTrainedModel, path: str, file_options: dict[str, Any]) -> None:
    """
    Reads the score head of a saved model once more. transformers has rounded it if the config names a narrower dtype,
    as in a folder that was written from a model of [`cast_weights`].
    """
    parameters = dict(model.named_parameters())
    folder = Path(path) if Path(path).is_dir() else Path(cached_file(path, CONFIG_NAME, **file_options) or "").parent
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in parameters.keys() & set(tensors.keys()):
                if name.split(".")[0] in SCORE_HEADS:
                    parameters[name].data = tensors.get_tensor(name).to(parameters[name].device)


def _find_adapter_differences(auto_class: type, adapter: PeftConfig) -> list[str]:
    has_score_head = adapter.task_type == "SEQ_CLS" or "score" in (adapter.modules_to_save or [])
    is_right_kind = has_score_head == (auto_class is AutoModelForSequenceClassification)
    return [] if is_right_kind else [f"adapter of {adapter.task_type}"]


def require_causal_lm(path: str | Path, **hub_options: Any) -> None:
    """
    Checks that a model exists and that its configuration does not name a classifier, without loading its weights.

    Args:
        path (`str` or `Path`):
            Folder or Hub name of a causal LM, or of an adapter for one.
        hub_options:
            `revision` and `trust_remote_code` of `from_pretrained`.

    Raises:
        OSError: If there is no model with this name.
        ValueError: If it is a sequence classifier.
    """
    path = expand_path(path)
    with explain_missing_model(path):
        if find_adapter_config_file(str(path), revision=hub_options.get("revision")):
            return
        architectures = AutoConfig.from_pretrained(path, **hub_options).architectures or []
    if any(name.endswith("ForSequenceClassification") for name in architectures):
        raise ValueError(f"'{path}' is not {CAUSAL_LM}, but a `{architectures[0]}`. Pass the folder or name of one.")


def load_tokenizer(path: str | Path, **hub_options: Any) -> PreTrainedTokenizerBase:
    """
    Loads the tokenizer of a model.

    Args:
        path (`str` or `Path`):
            Folder or Hub name of the model. An adapter without a tokenizer has that of its base model.
        hub_options:
            `revision` and `trust_remote_code` of `from_pretrained`.

    Returns:
        [`~transformers.PreTrainedTokenizerBase`]: The tokenizer.

    Raises:
        OSError: If there is no tokenizer with this name.
    """
    path = expand_path(path)
    with explain_missing_model(path):
        adapter = find_adapter(path, hub_options.get("revision"))
        if adapter is not None and not get_tokenizer_config(path, **hub_options):
            path, hub_options = adapter.base_model_name_or_path, {**hub_options, "revision": adapter.revision}
        return AutoTokenizer.from_pretrained(path, **hub_options)


def load_policy(path: str | Path, **options: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Loads a causal LM and its tokenizer to the device of this process, for inference.

    Args:
        path (`str` or `Path`):
            Folder or Hub name of a causal LM, or of an adapter for one.
        options:
            Options of `from_pretrained` for the model, such as `dtype`, `attn_implementation`, `quantization_config`
            and `device_map`. `revision` and `trust_remote_code` also hold for the tokenizer. Without `dtype`, the
            model is in bf16 on an accelerator that computes in it, and in the dtype of the checkpoint on any other
            device. `dtype="auto"` is the dtype of the checkpoint.

    Returns:
        `tuple[PreTrainedModel, PreTrainedTokenizerBase]`: The model and its tokenizer. The model is in evaluation
        mode.

    Raises:
        OSError: If there is no model with this name.
        ValueError: If it is another kind of model, or an adapter that would be merged into quantized weights.
    """
    return _load_for_inference(AutoModelForCausalLM, path, CAUSAL_LM, options)


def load_reward_model(path: str | Path, **options: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Loads a trained reward model and its tokenizer to the device of this process, for inference.

    Args:
        path (`str` or `Path`):
            Folder or Hub name of a sequence classifier with one label, or of an adapter for one.
        options:
            Options of `from_pretrained`, as in [`load_policy`]. In bf16 and fp16, also those of the checkpoint, the
            score head keeps its weights in fp32 and computes in fp32.

    Returns:
        `tuple[PreTrainedModel, PreTrainedTokenizerBase]`: The model and its tokenizer. The model is in evaluation
        mode.

    Raises:
        OSError: If there is no model with this name.
        ValueError: If it is another kind of model, or `quantization_config` is given. Rewards decide which completion
            is better, and quantized weights change them.
    """
    if options.get("quantization_config") is not None:
        raise ValueError(
            f"The reward model '{path}' would be quantized (`quantization_config`), but its rewards decide which "
            'completion is better, so they must be exact. Load it without, for example with `dtype="bfloat16"`.'
        )
    kind = "a reward model with one label"
    return _load_for_inference(AutoModelForSequenceClassification, path, kind, {**options, "num_labels": 1})


def _load_for_inference(
    auto_class: type, path: str | Path, kind: str, options: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    device = process_state().device
    hub_options = {name: options[name] for name in HUB_OPTIONS if name in options}
    options = {**options, "dtype": choose_dtype(device, options.get("dtype"))}
    if options.get("quantization_config") is not None:
        options = {"device_map": {"": device}, **options}
    model = load_complete_model(auto_class, path, kind, **options)
    is_placed = options.get("device_map") is not None or is_quantized(model)
    return model if is_placed else model.to(device), load_tokenizer(path, **hub_options)


def save_model(folder: str | Path, model: PreTrainedModel, processing_class: PreTrainedTokenizerBase) -> None:
    """
    Saves a model and its tokenizer. With several processes, only the main process writes.

    Args:
        folder (`str` or `Path`):
            Output folder.
        model ([`~transformers.PreTrainedModel`]):
            The model, not wrapped for distributed training.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
    """
    folder = expand_path(folder)

    def write() -> None:
        with name_failed_write(folder):
            model.save_pretrained(folder)
            processing_class.save_pretrained(folder)

    run_on_main(write)


def save_trained_model(trainer: Trainer, folder: Path) -> None:
    """
    Saves the model and the tokenizer of a trainer. Adapters are merged into the model, except into quantized weights,
    which would round them. Then the adapter is saved, for the model without quantization.

    All weights are saved, also where the launch configuration asks for sharded checkpoints. Under ZeRO-3, each process
    holds all weights while a merged model is saved, and while one is saved without `zero3_save_16bit_model`. Under
    DeepSpeed, a merged model is not pushed to the Hub.

    Args:
        trainer (`transformers.Trainer`):
            The trainer, after `train()`.
        folder (`Path`):
            Output folder.
    """
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    is_merged = isinstance(model, PeftModel) and not is_quantized(model)
    if trainer.is_deepspeed_enabled and (is_merged or not _engine_gathers_weights(trainer.accelerator)):
        import deepspeed  # an optional dependency

        # Only inside this block has ZeRO-3 the weights. Those of the adapter are not merged behind it.
        with deepspeed.zero.GatheredParameters(list(model.parameters())):
            save_model(folder, model.merge_and_unload() if is_merged else model, trainer.processing_class)
        if trainer.args.push_to_hub:
            logger.warning(
                f"DeepSpeed's engine cannot push this model to the Hub. Upload '{folder}' with `hf upload`."
            )
        return
    if is_merged:
        trainer.model = trainer.model_wrapped = model.merge_and_unload()
    with name_failed_write(folder), _full_state_dict(trainer.accelerator):
        trainer.save_model(str(folder))


def _engine_gathers_weights(accelerator: Accelerator) -> bool:
    """Checks whether transformers can save whole weights from DeepSpeed's engine."""
    zero = accelerator.deepspeed_config["zero_optimization"]
    return zero["stage"] < 3 or bool(zero.get("stage3_gather_16bit_weights_on_model_save"))


@contextmanager
def _full_state_dict(accelerator: Accelerator) -> Iterator[None]:
    """Lets transformers save whole weights under FSDP. With the type "SHARDED_STATE_DICT", it would save none."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        yield
        return
    state_dict_type, plugin.state_dict_type = plugin.state_dict_type, StateDictType.FULL_STATE_DICT
    try:
        yield
    finally:
        plugin.state_dict_type = state_dict_type


def save_data(rows: Dataset, folder: str | Path) -> None:
    """
    Saves the dataset of a stage. With several processes, only the main process writes.

    Args:
        rows ([`~datasets.Dataset`]):
            Result of the stage.
        folder (`str` or `Path`):
            Folder of the stage.
    """
    data = Path(expand_path(folder)) / DATA

    def write() -> None:
        with name_failed_write(data):
            rows.save_to_disk(str(data))

    run_on_main(write)


def load_data(folder: str | Path) -> Dataset:
    """
    Loads the dataset of a finished stage.

    Args:
        folder (`str` or `Path`):
            Folder of the stage.

    Returns:
        [`~datasets.Dataset`]: The result of the stage.

    Raises:
        FileNotFoundError: If the folder is not that of a finished stage with a dataset.
    """
    data = Path(expand_path(folder)) / DATA
    if not data.is_dir():
        raise FileNotFoundError(
            f"'{folder}' has no subfolder `{DATA}`, so it is not a finished stage. Pass the folder of a stage, for "
            "example `result.policy_samples`. Read files with `load_rows`."
        )
    return load_from_disk(str(data))
