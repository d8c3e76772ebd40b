"""The reward of rows of token ids: one forward pass a batch, read at the last token that is not padding."""

import torch
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.utils import logging

from trl_rlp.data.batching import eval_mode, pad_right, require_context, token_budget_batches


logger = logging.get_logger(__name__)


def score_rows(
    model: PreTrainedModel | PeftModel,
    rows: list[list[int]],
    *,
    tokens_per_batch: int = 8192,
    require_finite: bool = True,
) -> list[float]:
    """
    Gives the reward of each row. Who has text asks [`score`].

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Sequence classifier with `num_labels=1`, on any device; not a wrapper such as `DistributedDataParallel`.
        rows (`list[list[int]]`):
            Token ids of the model's tokenizer, prompt and completion, with EOS where the completion ended by itself.
        tokens_per_batch (`int`, *optional*, defaults to `8192`):
            Tokens a batch holds, padding included. A longer row is a batch of its own.
        require_finite (`bool`, *optional*, defaults to `True`):
            Whether a reward that is NaN or infinite is an error; else it is for the caller to notice.

    Returns:
        `list[float]`: rewards in the order of the rows, unbounded, higher is better.

    Raises:
        TypeError, ValueError: as [`score`].
    """
    require_reward_model(model)
    if not rows:
        return []
    _require_scorable(model, rows)
    batches = token_budget_batches([len(ids) for ids in rows], tokens_per_batch)
    with eval_mode(model):
        outputs = torch.cat([_forward(model, [rows[row] for row in batch]) for batch in batches])  # (rows,)
    rewards = torch.empty(len(rows))
    rewards[torch.tensor(sum(batches, []))] = outputs.float().cpu()
    if require_finite and not rewards.isfinite().all():
        row = int((~rewards.isfinite()).nonzero()[0])
        raise ValueError(
            f"The reward of row {row} is {rewards[row].item()}. Check the weights of `model` and its dtype (fp16 "
            "overflows; use bf16 or fp32)."
        )
    return rewards.tolist()


def require_reward_model(model: PreTrainedModel | PeftModel) -> None:
    """
    Checks that a model gives one number a row.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            What the user passed.

    Raises:
        TypeError: if `model` is not a `transformers` model.
        ValueError: if `num_labels` is not 1.
    """
    if not isinstance(model, (PreTrainedModel, PeftModel)):
        raise TypeError(
            f"`model` must be a sequence classifier of transformers or peft, got `{type(model).__name__}`. Unwrap it "
            "with `accelerator.unwrap_model`."
        )
    if model.config.num_labels != 1:
        raise ValueError(
            f"`model` has `num_labels`={model.config.num_labels}, but a reward is one number. Load it with "
            "`AutoModelForSequenceClassification.from_pretrained(..., num_labels=1)`."
        )


def _require_scorable(model: PreTrainedModel | PeftModel, rows: list[list[int]]) -> None:
    require_context(model.config, [len(ids) for ids in rows])
    size = model.get_input_embeddings().weight.shape[0]
    for row, ids in enumerate(rows):
        if ids and max(ids) >= size:
            raise ValueError(
                f"Row {row} holds token id {max(ids)}, outside the reward model's embedding of {size} rows. Pass the "
                "tokenizer that belongs to `model`, or call `model.resize_token_embeddings`."
            )
    config = model.config.get_text_config()
    if config.pad_token_id is None and len(rows) > 1:
        raise ValueError(
            "`model` has no pad token (`config.pad_token_id` is None), so rows cannot be batched. Call "
            "`ensure_pad_token(model, processing_class)`."
        )
    if any(ids[-1] == config.pad_token_id for ids in rows):
        logger.warning_once(
            f"The pad token (id {config.pad_token_id}) also ends texts, as it does where pad equals EOS: the reward "
            "is read before the end, so it cannot tell finished from unfinished. Call "
            "`ensure_pad_token(model, processing_class)` before the reward model is trained."
        )


def _forward(model: PreTrainedModel, rows: list[list[int]]) -> torch.Tensor:
    pad_token_id = model.config.get_text_config().pad_token_id
    # Without a pad token there is one row only, so the value never shows.
    input_ids, attention_mask = pad_right(rows, 0 if pad_token_id is None else pad_token_id, model.device)
    return model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits.squeeze(-1)  # (batch,)
