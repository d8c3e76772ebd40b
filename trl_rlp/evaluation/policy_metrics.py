"""What a policy's outputs are like: reward, length, finish rate, and how far the policy is from its reference."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.batching import eval_mode
from trl_rlp.data.scoring import score_samples
from trl_rlp.data.turns import prompt_token_ids
from trl_rlp.data.validation import require_answers_of, require_samples
from trl_rlp.evaluation.policy_pairs import is_correct
from trl_rlp.evaluation.reward_metrics import standard_error


def token_kl(policy_logits: torch.Tensor, reference_logits: torch.Tensor) -> torch.Tensor:
    """
    Gives KL(π ‖ π_ref) of the next token, summed over the whole vocabulary: exact and never negative.

    Args:
        policy_logits (`torch.Tensor` of shape `(..., vocabulary)`):
            Logits of π.
        reference_logits (`torch.Tensor` of shape `(..., vocabulary)`):
            Logits of π_ref; further entries of a larger embedding are ignored on either side.

    Returns:
        `torch.Tensor` of shape `(...)`, in nats.
    """
    size = min(policy_logits.shape[-1], reference_logits.shape[-1])
    log_policy = policy_logits[..., :size].float().log_softmax(-1)
    log_reference = reference_logits[..., :size].float().log_softmax(-1)
    kl = (log_policy.exp() * (log_policy - log_reference)).sum(-1)
    return kl.clamp_min(0)  # rounding takes the KL of two equal policies below 0


def _output_ids(processing_class: PreTrainedTokenizerBase, completion: str, finished: bool) -> list[int]:
    ids = processing_class(completion, add_special_tokens=False)["input_ids"]
    return ids + [processing_class.eos_token_id] if finished else ids


def _row_kl(
    policy: PreTrainedModel, reference: PreTrainedModel, start: list[int], outputs: list[list[int]]
) -> list[float]:
    """Summed per-token KL of each output of one prompt; the outputs begin at the same position, so they pad right."""
    if not outputs:
        return []
    longest = max(len(ids) for ids in outputs)
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in outputs])  # (outputs, longest)
    tokens = torch.tensor([start + ids + [0] * (longest - len(ids)) for ids in outputs])  # (outputs, prompt + longest)
    attention_mask = torch.cat([torch.ones(len(outputs), len(start), dtype=mask.dtype), mask], dim=1)
    logits = [
        model(
            input_ids=tokens.to(model.device),
            attention_mask=attention_mask.to(model.device),
            logits_to_keep=longest + 1,
        ).logits[:, :-1]
        for model in (policy, reference)
    ]  # twice (outputs, longest, vocabulary)
    return (token_kl(*logits) * mask.to(policy.device)).sum(-1).tolist()  # (outputs,)


def kl_to_reference(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    samples: Dataset,
) -> float:
    """
    Gives the KL divergence of a policy from its reference along the policy's own outputs.

    Mean over outputs of Σ_t KL(π(· | x, y_<t) ‖ π_ref(· | x, y_<t)), t over the output's tokens and its EOS. For
    outputs drawn at temperature 1 its expectation is the KL between the two distributions over outputs; at another
    temperature it weighs the same per-token divergences by the prefixes that temperature visits.

    Args:
        policy (`PreTrainedModel`):
            π, a causal LM.
        reference (`PreTrainedModel`):
            π_ref, for RLP π_SFT, with the same tokenizer.
        processing_class (`PreTrainedTokenizerBase`):
            Their tokenizer.
        samples (`datasets.Dataset`):
            Outputs of `policy`: `prompt`, `completions`, `finished`.

    Returns:
        `float`, nats an output, at least 0; NaN where no output has a token.

    Raises:
        ValueError: if the samples are not policy samples.
    """
    require_samples(samples, "samples")
    totals = []
    with eval_mode(policy), eval_mode(reference):
        for row in samples:
            outputs = [
                _output_ids(processing_class, *output)
                for output in zip(row["completions"], row["finished"], strict=True)
            ]
            prompt_ids = prompt_token_ids(row["prompt"], processing_class)
            totals += _row_kl(policy, reference, prompt_ids, [ids for ids in outputs if ids])
    return float(np.mean(totals)) if totals else math.nan


def describe_outputs(samples: Dataset, answers: Sequence[str | Sequence[str]] | None = None) -> dict[str, float]:
    """
    Gives the figures of a policy's outputs that need no model.

    Args:
        samples (`datasets.Dataset`):
            `prompt`, `completions`, `finished`.
        answers (`Sequence`, *optional*):
            Accepted answer or answers, one entry a row.

    Returns:
        `dict[str, float]`: `outputs` (count), `characters` (mean length), `finished` (share that ended with EOS); with
        answers also `accuracy` (share that equals an accepted answer after normalization, higher is better) and
        `accuracy_standard_error` (over prompts, as outputs of one prompt are not independent; `None` for one prompt).

    Raises:
        TypeError: if an answer is neither text nor a list of texts.
        ValueError: if the samples are not policy samples, or the lengths differ.
    """
    require_samples(samples, "samples")
    lengths = [len(completion) for row in samples["completions"] for completion in row]
    figures = {
        "outputs": len(lengths),
        "characters": float(np.mean(lengths)),
        "finished": float(np.mean([flag for row in samples["finished"] for flag in row])),
    }
    if answers is not None:
        require_answers_of(answers, samples)
        shares = [
            np.mean([is_correct(completion, accepted) for completion in completions])
            for completions, accepted in zip(samples["completions"], answers, strict=True)
        ]
        figures["accuracy"] = float(np.mean(shares))
        figures["accuracy_standard_error"] = standard_error(shares)
    return figures


def mean_reward(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    samples: Dataset,
    max_length: int | None = None,
) -> float:
    """
    Gives the mean reward of all outputs.

    Args:
        model (`PreTrainedModel`):
            Reward model, `num_labels=1`.
        processing_class (`PreTrainedTokenizerBase`):
            Its tokenizer.
        samples (`datasets.Dataset`):
            `prompt`, `completions`, `finished`.
        max_length (`int`, *optional*):
            As in [`score`].

    Returns:
        `float`, in units of this reward model: means of two reward models are not comparable.
    """
    return float(np.mean(score_samples(model, processing_class, samples, max_length=max_length)))
