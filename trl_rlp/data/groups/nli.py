"""Equivalence by bidirectional entailment, judged by a natural language inference (NLI) classifier."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from trl_rlp.data.batching import eval_mode, pad_right, split_by_token_budget
from trl_rlp.data.groups.encoders import Encoder, choose_tokens_per_batch
from trl_rlp.data.groups.instruction import AUTO, InstructionSource
from trl_rlp.data.groups.label_cache import LabelCache
from trl_rlp.data.groups.pair_encoding import EncodedPair, PairEncoder
from trl_rlp.data.normalization import normalize_text
from trl_rlp.storage.fingerprints import tokenizer_fingerprint


logger = logging.get_logger(__name__)

# Number of new labels after which they are written to disk.
_PAIRS_PER_WRITE = 1024


UNDECIDED = "undecided"
"""Label of completions that differ only in what the classifier does not see. No rule lets them be the same."""


def entails(label: str) -> bool:
    """
    Checks one direction under the rule `strict`: each completion must entail the other (Kuhn et al.'s paper).

    Args:
        label (`str`):
            Label of one direction: `"entailment"`, `"contradiction"`, `"neutral"` or `"undecided"`.

    Returns:
        `bool`: Whether this direction allows the two completions to be the same.
    """
    return label == "entailment"


def does_not_contradict(label: str) -> bool:
    """
    Checks one direction under the rule `no_contradiction`: neither completion may contradict the other (Kuhn et al.'s
    code).

    Two completions that say nothing about each other count as the same. The groups are therefore larger than with
    `strict`.

    Args:
        label (`str`):
            Label of one direction: `"entailment"`, `"contradiction"`, `"neutral"` or `"undecided"`.

    Returns:
        `bool`: Whether this direction allows the two completions to be the same.
    """
    return label not in ("contradiction", UNDECIDED)


RULES = {"strict": entails, "no_contradiction": does_not_contradict}
"""Rules that decide from two NLI labels whether two completions mean the same, by name."""


class NLIEquivalence:
    """
    Decides whether two completions mean the same by bidirectional entailment, with the instruction before each one.

    Any sequence classifier with an entailment label works (DeBERTa, RoBERTa, BERT, ...). The label names are read from
    its config. Both directions must pass the rule, so the relation is symmetric. It need not be transitive.

    The first direction takes the longer completion as the hypothesis, because this direction fails more often. The
    second direction is classified only where the first one passes. A pair longer than the context is truncated: each
    side is limited to half of the context, and the prompt loses tokens before the completion does. `truncated_pairs`
    counts these pairs. The class with the highest logit is the label. There is no threshold and no calibration.

    Completions that differ, but become equal by truncation or in their tokens (unknown characters, or case in an
    uncased classifier), are undecided. They are never the same, and `undecided_pairs` counts them.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`], *optional*, defaults to `"microsoft/deberta-large-mnli"`):
            Classifier, or its name or folder. The weights of a named one are loaded when they are first needed. A
            loaded model keeps its dtype and its device.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the classifier. Defaults to the tokenizer under the model's name.
        rule (`str`, *optional*, defaults to `"strict"`):
            Key of `RULES`: `"strict"` (both directions entail) or `"no_contradiction"` (no direction contradicts).
        instruction (`str` or `Callable`, *optional*, defaults to `"auto"`):
            What [`cluster`] passes as the prompt, and stands before both completions. `"auto"` is the instruction that
            [`find_instruction`] finds in the prompt. Another text is a column of the samples with text or messages:
            `"prompt"` is the whole prompt. A function gets the prompt (text or messages) and returns text. `None` is
            nothing.
        max_length (`int`, *optional*):
            Longest pair in tokens. Defaults to the context of the model and the tokenizer.
        tokens_per_batch (`int`, *optional*):
            Tokens per batch, including padding. Defaults to 512 on a CPU and 16,384 on an accelerator.
        cache (`str` or `os.PathLike`, *optional*):
            File that stores the labels, see [`LabelCache`]. One file serves all rules and any number of models.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Dtype of a named model: `"auto"`, `"float32"` or `"bfloat16"`. `"auto"` is bf16 on an accelerator that
            computes in it, and fp32 on a CPU. The logits are in fp32.

    Raises:
        TypeError: If `instruction` is neither text nor a function nor `None`.
        ValueError: If `rule` or `dtype` is unknown, the classifier has no entailment label (or no contradiction label
            where the rule needs one), `max_length` is beyond the context or too small, or `cache` is not a label
            cache.

    Reference:
        Section 3.2 and Algorithm 1 of [Kuhn et al. 2023](https://arxiv.org/abs/2302.09664).

    Example:

    ```python
    >>> equivalence = NLIEquivalence(rule="strict", cache="labels.sqlite")
    >>> equivalence.are_equivalent(["What is the capital of France?"], ["Paris"], ["It is Paris."])
    [True]
    ```
    """

    def __init__(
        self,
        model: str | Path | PreTrainedModel = "microsoft/deberta-large-mnli",
        processing_class: PreTrainedTokenizerBase | None = None,
        rule: str = "strict",
        *,
        instruction: InstructionSource = AUTO,
        max_length: int | None = None,
        tokens_per_batch: int | None = None,
        cache: str | os.PathLike | None = None,
        dtype: str = "auto",
    ):
        if rule not in RULES:
            raise ValueError(f"`rule` must be one of {sorted(RULES)}, got {rule!r}.")
        if not (instruction is None or isinstance(instruction, str) or callable(instruction)):
            raise TypeError(
                f"`instruction` must be 'auto', a column, a function or None, got {instruction!r}. Pass one of them."
            )
        self.rule = rule
        self.instruction = instruction
        self._encoder = Encoder(AutoModelForSequenceClassification, model, processing_class, dtype)
        self.processing_class = self._encoder.processing_class
        self._label_names = _read_label_names(self._encoder.config, needs_contradiction=rule == "no_contradiction")
        max_length = _resolve_max_length(self._encoder.context_length, max_length)
        self._pair_encoder = PairEncoder(self.processing_class, max_length)
        self._tokens_per_batch = tokens_per_batch or choose_tokens_per_batch(self._encoder.device)
        self._cache = None if cache is None else LabelCache(cache)
        self.truncated_pairs = 0
        self.undecided_pairs = 0

    @property
    def model(self) -> PreTrainedModel:
        """The classifier. A named one is loaded when this is first read, and again after [`release`]."""
        return self._encoder.model

    def release(self) -> None:
        """Releases the weights of a named classifier. They are loaded again when they are needed."""
        self._encoder.release()

    @property
    def model_fingerprint(self) -> str:
        """A hash of the classifier's weights. It does not depend on the rule."""
        return self._encoder.fingerprint

    @property
    def fingerprint(self) -> str:
        """
        A hash of everything that a verdict depends on: weights, labels, tokenizer, longest pair, rule and instruction.
        """
        tokenizer = tokenizer_fingerprint(self.processing_class)
        # A function is identified by its name only.
        source = self.instruction
        instruction = source if source is None or isinstance(source, str) else ("function", _get_name(source))
        settings = [self._label_names, self._pair_encoder.max_length, self.rule, instruction]
        parts = [self.model_fingerprint, tokenizer, *settings]
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def normalize(self, text: str) -> str:
        """
        Normalizes a completion. Completions that are equal after that need no call of the model.

        Args:
            text (`str`):
                A completion.

        Returns:
            `str`: The text after [`normalize_text`].
        """
        return normalize_text(text)

    def are_equivalent(self, prompts: list[str], firsts: list[str], seconds: list[str]) -> list[bool]:
        """
        Checks which pairs of completions mean the same. The order within a pair does not matter.

        Args:
            prompts (`list[str]`):
                Text before both completions of each pair, as it is. [`cluster`] selects it by `instruction`.
            firsts (`list[str]`):
                First completion of each pair.
            seconds (`list[str]`):
                Second completion of each pair.

        Returns:
            `list[bool]`: One per pair, whether the two mean the same under the rule. `False` for undecided pairs.
        """
        passes = RULES[self.rule]
        pairs = [sorted(pair, key=lambda text: (len(text), text)) for pair in zip(firsts, seconds, strict=True)]
        shorts, longs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        same = [passes(label) for label in self.classify(prompts, shorts, longs)]
        rows = [row for row, has_passed in enumerate(same) if has_passed]
        backward = self.classify(*([texts[row] for row in rows] for texts in (prompts, longs, shorts)))
        for row, label in zip(rows, backward, strict=True):
            same[row] = passes(label)
        return same

    def classify(self, prompts: list[str], premises: list[str], hypotheses: list[str]) -> list[str]:
        """
        Classifies pairs in one direction, with the prompt before both sides.

        Args:
            prompts (`list[str]`):
                Text before both completions of each pair.
            premises (`list[str]`):
                Completion that is taken as true.
            hypotheses (`list[str]`):
                Completion that may follow from it.

        Returns:
            `list[str]`: One label per pair: `"entailment"`, `"contradiction"`, or `"neutral"` for any other class. It
            is `"undecided"` where the completions differ and their tokens do not.
        """
        pairs = self._pair_encoder.encode(prompts, premises, hypotheses)
        self._count_truncated_pairs(pairs)
        is_undecided = [
            pair.has_equal_sides and self.normalize(premise) != self.normalize(hypothesis)
            for pair, premise, hypothesis in zip(pairs, premises, hypotheses, strict=True)
        ]
        self._count_undecided_pairs(sum(is_undecided))
        asked = [pair for pair, undecided in zip(pairs, is_undecided, strict=True) if not undecided]
        label_ids = self._find_label_ids(list(dict.fromkeys(asked)))
        return [
            UNDECIDED if undecided else self._label_names[label_ids[pair]]
            for pair, undecided in zip(pairs, is_undecided, strict=True)
        ]

    def _count_truncated_pairs(self, pairs: list[EncodedPair]) -> None:
        count = sum(pair.is_truncated for pair in pairs)
        if count and not self.truncated_pairs:
            logger.warning(
                f"Some NLI pairs are longer than {self._pair_encoder.max_length} tokens. They are truncated, the "
                "prompt before the completion. `truncated_pairs` counts them, and this warning is logged once. Use a "
                "classifier with a longer context."
            )
        self.truncated_pairs += count

    def _count_undecided_pairs(self, count: int) -> None:
        if count and not self.undecided_pairs:
            logger.warning(
                "Some completions differ only where the NLI classifier sees no difference: behind the truncation, in "
                "unknown characters, or in what its tokenizer drops, such as case. They count as different. "
                "`undecided_pairs` counts them, and this warning is logged once. Use a cased classifier with a longer "
                "context."
            )
        self.undecided_pairs += count

    def _find_label_ids(self, pairs: list[EncodedPair]) -> dict[EncodedPair, int]:
        """Returns the class of each distinct pair. Known classes come from the cache, the others from the model."""
        if self._cache is None:
            return self._run_model(pairs)
        keys = {pair: self._hash_pair(pair) for pair in pairs}
        found = self._cache.find(list(keys.values()))
        label_ids = {pair: found[key] for pair, key in keys.items() if key in found}
        unknown = [pair for pair in pairs if pair not in label_ids]
        for start in range(0, len(unknown), _PAIRS_PER_WRITE):
            new_label_ids = self._run_model(unknown[start : start + _PAIRS_PER_WRITE])
            self._cache.store({keys[pair]: label_id for pair, label_id in new_label_ids.items()})
            label_ids.update(new_label_ids)
        return label_ids

    def _hash_pair(self, pair: EncodedPair) -> bytes:
        # Token ids depend on the tokenizer and the truncation, so the key does not have to name these two.
        question = repr((self.model_fingerprint, pair.input_ids, pair.token_type_ids))
        return hashlib.blake2b(question.encode(), digest_size=16).digest()

    @torch.inference_mode()
    def _run_model(self, pairs: list[EncodedPair]) -> dict[EncodedPair, int]:
        label_ids = {}
        batches = split_by_token_budget([len(pair.input_ids) for pair in pairs], self._tokens_per_batch)
        with eval_mode(self.model):
            for rows in batches:
                batch = [pairs[row] for row in rows]
                logits = self.model(**self._collate(batch)).logits.float()  # (batch, labels)
                if not logits.isfinite().all():
                    raise ValueError("`model` returns NaN or infinite logits. Load it with `dtype=torch.float32`.")
                label_ids.update(zip(batch, logits.argmax(dim=-1).tolist(), strict=True))
        return label_ids

    def _collate(self, batch: list[EncodedPair]) -> dict[str, torch.Tensor]:
        device, pad_token_id = self.model.device, self.processing_class.pad_token_id
        input_ids, attention_mask = pad_right([pair.input_ids for pair in batch], pad_token_id, device)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}  # each (batch, length)
        if "token_type_ids" in self.processing_class.model_input_names:
            inputs["token_type_ids"], _ = pad_right([pair.token_type_ids for pair in batch], 0, device)
        return inputs


def _get_name(function: Callable) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _read_label_names(config: PreTrainedConfig, needs_contradiction: bool) -> list[str]:
    """Returns the name of each class: "entailment", "contradiction", or "neutral" for any other."""
    label_names = ["neutral"] * config.num_labels
    # Both mappings are read, because one may hold only LABEL_0, LABEL_1, ..., and `label2id` may be None.
    labels = [(label, label_id) for label_id, label in config.id2label.items()]
    for label, label_id in [*labels, *(config.label2id or {}).items()]:
        for name in ("entailment", "contradiction"):
            if label.casefold().startswith(name.removesuffix("ment").removesuffix("ion")):
                label_names[label_id] = name
    for name in ["entailment", "contradiction"] if needs_contradiction else ["entailment"]:
        if label_names.count(name) != 1:
            raise ValueError(
                f"`model` must have one {name} label, but its labels are {list(config.id2label.values())}. Pass an "
                "NLI classifier, or name the labels in its config (`id2label`, `label2id`)."
            )
    return label_names


def _resolve_max_length(context_length: int, max_length: int | None) -> int:
    if max_length is not None and max_length > context_length:
        raise ValueError(
            f"`max_length`={max_length} tokens is beyond the classifier's context of {context_length} tokens. Lower "
            "`max_length`."
        )
    return context_length if max_length is None else max_length
