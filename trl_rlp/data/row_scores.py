"""The rewards of token id rows. Each batch takes one forward pass."""

from itertools import chain

import torch
from accelerate.utils import extract_model_from_parallel, is_compiled_module
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.utils import logging

from trl_rlp.data.batching import eval_mode, pad_right, require_context, split_by_token_budget
from trl_rlp.storage.processes import share_work


logger = logging.get_logger(__name__)


def score_rows(
    model: PreTrainedModel | PeftModel,
    rows: list[list[int]],
    *,
    tokens_per_batch: int = 8192,
    require_finite: bool = True,
    share_batches: bool = False,
    first_row: int = 0,
) -> list[float]:
    """
    Computes the reward of each row of token ids. For text, use [`score`].

    The reward is the model's output at the last token that is not padding.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Sequence classifier with `num_labels=1`, on any device. Wrappers such as `DistributedDataParallel` are not
            accepted.
        rows (`list[list[int]]`):
            Token ids of prompt and completion from the model's tokenizer. Finished completions end with EOS.
        tokens_per_batch (`int`, *optional*, defaults to `8192`):
            Maximum number of tokens per batch, padding included. A longer row forms its own batch.
        require_finite (`bool`, *optional*, defaults to `True`):
            Whether to raise an error if a reward is NaN or infinite. With `False`, such rewards are returned.
        share_batches (`bool`, *optional*, defaults to `False`):
            Whether the processes of the program share the batches, as in [`score`].
        first_row (`int`, *optional*, defaults to `0`):
            Number of the first row, for error messages about a part of the rows.

    Returns:
        `list[float]`: One reward per row, in order. Rewards are unbounded, and higher is better.

    Raises:
        TypeError, ValueError: For the same reasons as [`score`].
    """
    require_reward_model(model)
    if not rows:
        return []
    _require_scorable(model, rows, first_row)
    batches = split_by_token_budget([len(ids) for ids in rows], tokens_per_batch)

    def score_batches(own: list[list[int]]) -> list[list[float]]:
        with eval_mode(model):
            outputs = [_forward(model, [rows[row] for row in batch]) for batch in own]  # each (batch,)
        # Joined first, because each copy to the CPU waits for the device.
        joined = torch.cat(outputs).float().cpu() if outputs else torch.empty(0)
        return [part.tolist() for part in joined.split([len(batch) for batch in own])]

    parts = share_work(batches, score_batches) if share_batches else score_batches(batches)
    rewards = torch.empty(len(rows))
    rewards[torch.tensor([*chain.from_iterable(batches)])] = torch.tensor([*chain.from_iterable(parts)])
    if require_finite and not rewards.isfinite().all():
        row = int((~rewards.isfinite()).nonzero()[0])
        raise ValueError(
            f"The reward of row {first_row + row} is {rewards[row].item()}. Check the weights of `model` and its "
            "dtype (fp16 overflows, so use bf16 or fp32)."
        )
    return rewards.tolist()


def require_reward_model(model: PreTrainedModel | PeftModel) -> None:
    """
    Checks that a model is a sequence classifier with one output.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The user's model.

    Raises:
        TypeError: If `model` is not a `transformers` model.
        ValueError: If `model` is a language model, or `num_labels` is not 1.
    """
    inner = extract_model_from_parallel(model, keep_torch_compile=False) if is_compiled_module(model) else model
    if not isinstance(inner, (PreTrainedModel, PeftModel)):
        raise TypeError(
            f"`model` must be a sequence classifier of transformers or peft, got `{type(model).__name__}`. Load it "
            "with `AutoModelForSequenceClassification`, or unwrap it with `accelerator.unwrap_model`."
        )
    if model.get_output_embeddings() is not None:
        raise ValueError(
            f"`model` is a `{type(model).__name__}`, a language model, but a reward comes from a sequence classifier. "
            "Pass a reward model, for example one that `RLPRewardTrainer` has trained."
        )
    if model.config.num_labels != 1:
        raise ValueError(
            f"`model` has `num_labels`={model.config.num_labels}, but a reward is one number. Load it with "
            "`AutoModelForSequenceClassification.from_pretrained(..., num_labels=1)`."
        )


def _require_scorable(model: PreTrainedModel | PeftModel, rows: list[list[int]], first_row: int) -> None:
    require_context(model, [len(ids) for ids in rows], first_row)
    size = model.get_input_embeddings().weight.shape[0]
    for row, ids in enumerate(rows):
        if not ids:
            raise ValueError(f"Row {first_row + row} has no tokens. Drop it, or give it a prompt.")
        if max(ids) >= size:
            raise ValueError(
                f"Row {first_row + row} contains token id {max(ids)}, outside the reward model's embedding of {size} "
                "rows. Pass the tokenizer of `model`, or call `model.resize_token_embeddings`."
            )
    config = model.config.get_text_config()
    if config.pad_token_id is None and len(rows) > 1:
        raise ValueError(
            "`model` has no pad token (`config.pad_token_id` is None), so rows cannot be batched. Call "
            "`ensure_pad_token(model, processing_class)`."
        )
    if any(ids[-1] == config.pad_token_id for ids in rows):
        logger.warning_once(
            f"Texts end with the pad token (id {config.pad_token_id}), which happens if pad equals EOS. The reward is "
            "then read before the last token, so finished and unfinished texts get the same reward. Call "
            "`ensure_pad_token(model, processing_class)` before you train the reward model."
        )


def _forward(model: PreTrainedModel, rows: list[list[int]]) -> torch.Tensor:
    pad_token_id = model.config.get_text_config().pad_token_id
    # A model without a pad token gets one row per batch, so the padding value does not matter.
    input_ids, attention_mask = pad_right(rows, 0 if pad_token_id is None else pad_token_id, model.device)
    return model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits.squeeze(-1)  # (batch,)
