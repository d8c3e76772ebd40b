"""Metrics of policy samples: reward, length, share of finished completions, and KL divergence from the reference."""

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.batching import eval_mode, limit_rows
from trl_rlp.data.scoring import score_samples
from trl_rlp.data.template_options import get_template_options
from trl_rlp.data.turns import prompt_token_ids
from trl_rlp.data.validation import require_sample_answers, require_samples
from trl_rlp.evaluation.policy_pairs import is_correct
from trl_rlp.evaluation.reward_metrics import standard_error
from trl_rlp.storage.processes import share_work


def token_kl(policy_logits: torch.Tensor, reference_logits: torch.Tensor) -> torch.Tensor:
    """
    Computes KL(π ‖ π_ref) of the next token. It sums over the whole vocabulary, so it is exact and never negative.

    Args:
        policy_logits (`torch.Tensor` of shape `(..., vocabulary)`):
            Logits of π.
        reference_logits (`torch.Tensor` of shape `(..., vocabulary)`):
            Logits of π_ref. If one model has a larger vocabulary, its additional tokens are ignored.

    Returns:
        `torch.Tensor` of shape `(...)`: KL divergence, in nats.
    """
    size = min(policy_logits.shape[-1], reference_logits.shape[-1])
    log_policy = policy_logits[..., :size].float().log_softmax(-1)
    log_reference = reference_logits[..., :size].float().log_softmax(-1)
    kl = (log_policy.exp() * (log_policy - log_reference)).sum(-1)  # (...)
    return kl.clamp_min(0)  # rounding can make the KL of equal policies negative


def _completion_ids(processing_class: PreTrainedTokenizerBase, completion: str, finished: bool) -> list[int]:
    ids = processing_class(completion, add_special_tokens=False)["input_ids"]
    return ids + [processing_class.eos_token_id] if finished else ids


def _prompt_kl(
    policy: PreTrainedModel, reference: PreTrainedModel, prompt_ids: list[int], completions: list[list[int]]
) -> list[float]:
    """
    Computes the summed per-token KL of each completion of one prompt.

    All completions start at the same position, so they are padded on the right. On an accelerator, they are split by
    the memory of their logits.
    """
    if not completions:
        return []
    longest = max(len(ids) for ids in completions)
    # Both models' logits, their log-probabilities, and the products are in memory together.
    num_logits = 8 * longest * policy.config.get_text_config().vocab_size
    rows = limit_rows(len(completions), len(prompt_ids) + longest, num_logits, policy.device)
    if rows < len(completions):
        parts = [completions[start : start + rows] for start in range(0, len(completions), rows)]
        return [kl for part in parts for kl in _prompt_kl(policy, reference, prompt_ids, part)]
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in completions])  # (n, longest)
    padded = [prompt_ids + ids + [0] * (longest - len(ids)) for ids in completions]
    tokens = torch.tensor(padded)  # (n, prompt + longest)
    attention_mask = torch.cat([torch.ones(len(completions), len(prompt_ids), dtype=mask.dtype), mask], dim=1)
    logits = [
        model(
            input_ids=tokens.to(model.device),
            attention_mask=attention_mask.to(model.device),
            logits_to_keep=longest + 1,
        ).logits[:, :-1]
        for model in (policy, reference)
    ]  # two of (n, longest, vocabulary)
    return (token_kl(*logits) * mask.to(policy.device)).sum(-1).tolist()  # (n,)


def require_same_ids(
    processing_class: PreTrainedTokenizerBase, reference_processing_class: PreTrainedTokenizerBase
) -> None:
    """
    Checks that the tokenizers of a policy and of its reference have the same id for each token that both have.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the policy.
        reference_processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the reference policy.

    Raises:
        ValueError: If a token has two ids.
    """
    ids, reference_ids = processing_class.get_vocab(), reference_processing_class.get_vocab()
    for token in sorted(ids.keys() & reference_ids.keys()):
        if ids[token] != reference_ids[token]:
            raise ValueError(
                f"The tokenizers of the policy and of its reference differ: {token!r} has the ids {ids[token]} and "
                f"{reference_ids[token]}. Choose the model that the policy's training started from as reference."
            )


def _require_known_ids(model: PreTrainedModel, name: str, ids: Iterable[int]) -> None:
    size = model.config.get_text_config().vocab_size
    highest = max(ids, default=0)
    if highest >= size:
        raise ValueError(
            f"`{name}` has {size} tokens, but a sample has a token with the id {highest}. Choose a model with the "
            "tokenizer of the policy."
        )


def kl_to_reference(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    samples: Dataset,
) -> float:
    """
    Computes the KL divergence of a policy from its reference on the policy's own completions.

    It is the mean over completions of Σ_t KL(π(· | x, y_<t) ‖ π_ref(· | x, y_<t)), where t runs over the tokens of the
    completion and its EOS. For completions sampled at temperature 1, its expectation is the KL divergence between the
    two distributions over completions. At another temperature, the same per-token divergences are averaged over the
    prefixes sampled at that temperature.

    The processes of `accelerate launch` share the prompts, so each of them must call this function with the same
    samples.

    Args:
        policy ([`~transformers.PreTrainedModel`]):
            Causal LM (π in the equation).
        reference ([`~transformers.PreTrainedModel`]):
            Reference policy with the same tokenizer (π_ref in the equation, π_SFT in RLP).
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of both policies.
        samples ([`~datasets.Dataset`]):
            Samples of `policy`: `prompt`, `completions`, `finished`.

    Returns:
        `float`: Nats per completion, at least 0. NaN if no completion has a token.

    Raises:
        ValueError: If the samples are not policy samples, or have a token that one of the two models does not know.
    """
    samples = require_samples(samples, "samples")

    def compute_kl(rows: list[int]) -> list[list[float]]:
        with eval_mode(policy), eval_mode(reference):
            return [_row_kl(policy, reference, processing_class, samples[row]) for row in rows]

    totals = [kl for row in share_work(range(len(samples)), compute_kl) for kl in row]
    return float(np.mean(totals)) if totals else math.nan


def _row_kl(
    policy: PreTrainedModel, reference: PreTrainedModel, processing_class: PreTrainedTokenizerBase, row: dict[str, Any]
) -> list[float]:
    """Computes the KL of each completion of one row that has a token."""
    completions = [
        _completion_ids(processing_class, *completion)
        for completion in zip(row["completions"], row["finished"], strict=True)
    ]
    prompt_ids = prompt_token_ids(row["prompt"], processing_class, **get_template_options(row))
    for name, model in (("policy", policy), ("reference", reference)):
        _require_known_ids(model, name, chain(prompt_ids, *completions))
    return _prompt_kl(policy, reference, prompt_ids, [ids for ids in completions if ids])


def describe_outputs(samples: Dataset, answers: Sequence[str | Sequence[str]] | None = None) -> dict[str, float]:
    """
    Computes the metrics of policy samples that need no model.

    Args:
        samples ([`~datasets.Dataset`]):
            Policy samples: `prompt`, `completions`, `finished`.
        answers (`Sequence`, *optional*):
            Accepted answer or answers for each row.

    Returns:
        `dict[str, float]`: `outputs` (number of completions), `characters` (mean length) and `finished` (share of
        completions that end with EOS). With `answers` also `accuracy` and `accuracy_standard_error`. The accuracy is
        the share of completions equal to an accepted answer after normalization, and higher is better. The standard
        error is over prompts, because completions of one prompt are not independent. It is `None` for a single prompt.

    Raises:
        TypeError: If an answer is neither text nor a list of texts.
        ValueError: If the samples are not policy samples, or `samples` and `answers` differ in length.
    """
    samples = require_samples(samples, "samples")
    lengths = [len(completion) for row in samples["completions"] for completion in row]
    metrics = {
        "outputs": len(lengths),
        "characters": float(np.mean(lengths)),
        "finished": float(np.mean([is_finished for row in samples["finished"] for is_finished in row])),
    }
    if answers is not None:
        require_sample_answers(answers, samples)
        shares = [
            np.mean([is_correct(completion, accepted) for completion in completions])
            for completions, accepted in zip(samples["completions"], answers, strict=True)
        ]
        metrics["accuracy"] = float(np.mean(shares))
        metrics["accuracy_standard_error"] = standard_error(shares)
    return metrics


def mean_reward(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    samples: Dataset,
    max_length: int | None = None,
) -> float:
    """
    Computes the mean reward of all completions.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Reward model, `num_labels=1`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of `model`.
        samples ([`~datasets.Dataset`]):
            Policy samples: `prompt`, `completions`, `finished`.
        max_length (`int`, *optional*):
            Maximum number of tokens per row, as in [`score`].

    Returns:
        `float`: Mean reward, in the unit of this reward model. Do not compare it with that of another reward model.
    """
    return float(np.mean(score_samples(model, processing_class, samples, max_length=max_length)))
