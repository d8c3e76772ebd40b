"""Bidirectional entailment: two outputs mean the same when a natural language inference model says so both ways."""

import hashlib
import os
from functools import cached_property

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from trl_rlp.data.batching import eval_mode, pad_right, token_budget_batches
from trl_rlp.data.groups.encoders import context_length, default_tokens_per_batch, hash_weights, load_encoder
from trl_rlp.data.groups.label_cache import LabelCache
from trl_rlp.data.groups.pair_encoding import EncodedPair, PairEncoder
from trl_rlp.data.normalization import normalize_text


logger = logging.get_logger(__name__)

# Labels reach the disk whenever so many are new.
_PAIRS_PER_WRITE = 1024


def entails(label: str) -> bool:
    """
    The rule `strict`, of Kuhn et al.'s paper: each output must entail the other.

    Args:
        label (`str`):
            `"entailment"`, `"contradiction"` or `"neutral"`, of one direction.

    Returns:
        `bool`: whether this direction lets the two outputs be the same.
    """
    return label == "entailment"


def does_not_contradict(label: str) -> bool:
    """
    The rule `no_contradiction`, of Kuhn et al.'s code: neither output may contradict the other. Two outputs that say
    nothing about each other count as the same, so its groups are larger than those of `strict`.

    Args:
        label (`str`):
            `"entailment"`, `"contradiction"` or `"neutral"`, of one direction.

    Returns:
        `bool`: whether this direction lets the two outputs be the same.
    """
    return label != "contradiction"


RULES = {"strict": entails, "no_contradiction": does_not_contradict}


class NLIEquivalence:
    """
    Judges whether two outputs mean the same by bidirectional entailment, the instruction standing before each.

    Any sequence classifier with an entailment label will do (DeBERTa, RoBERTa, BERT, ...); the labels are read from
    its config. Both directions must pass the rule, so the relation is symmetric; it need not be transitive. The second
    direction is asked only where the first one passes, and the first one takes the longer output as hypothesis, which
    fails more often. Pairs longer than the context are cut, each side to its half and the instruction before the
    output; `cut_pairs` counts them. The logits are compared as they are: no threshold, no calibration.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`], *optional*, defaults to `"microsoft/deberta-large-mnli"`):
            Classifier, or its name or folder. A named one is loaded in fp32 on a CPU and in its own dtype on an
            accelerator; a loaded one stays as and where it is.
        processing_class (`transformers.PreTrainedTokenizerBase`, *optional*):
            Its tokenizer. Defaults to the one under the model's name.
        rule (`str`, *optional*, defaults to `"strict"`):
            Key of `RULES`: `"strict"` (both directions entail) or `"no_contradiction"` (neither contradicts).
        max_length (`int`, *optional*):
            Longest pair in tokens. Defaults to the context of model and tokenizer.
        tokens_per_batch (`int`, *optional*):
            Tokens a batch holds, padding included. Defaults to 512 on a CPU and 16,384 on an accelerator.
        cache (`str` or `os.PathLike`, *optional*):
            File that keeps the labels, for any rule and any number of models, see [`LabelCache`].

    Raises:
        ValueError: if `rule` is unknown, the classifier has no entailment label (or no contradiction label where the
            rule needs it), `max_length` is beyond the context or too small, or `cache` is another kind of file.

    Reference:
        Kuhn et al. 2023, https://arxiv.org/abs/2302.09664, section 3.2 and algorithm 1.

    Example:

    ```python
    >>> equivalence = NLIEquivalence(rule="strict", cache="labels.sqlite")
    >>> equivalence.same(["What is the capital of France?"], ["Paris"], ["It is Paris."])
    [True]
    ```
    """

    def __init__(
        self,
        model: str | PreTrainedModel = "microsoft/deberta-large-mnli",
        processing_class: PreTrainedTokenizerBase | None = None,
        rule: str = "strict",
        *,
        max_length: int | None = None,
        tokens_per_batch: int | None = None,
        cache: str | os.PathLike | None = None,
    ):
        if rule not in RULES:
            raise ValueError(f"`rule` must be one of {sorted(RULES)}, got {rule!r}.")
        self.rule = rule
        self.model, self.processing_class = load_encoder(AutoModelForSequenceClassification, model, processing_class)
        self._label_names = _label_names(self.model.config, needs_contradiction=rule == "no_contradiction")
        self._encoder = PairEncoder(self.processing_class, _pair_length(self.model, self.processing_class, max_length))
        self._tokens_per_batch = tokens_per_batch or default_tokens_per_batch(self.model)
        self._cache = None if cache is None else LabelCache(cache)
        self.cut_pairs = 0

    @cached_property
    def model_fingerprint(self) -> str:
        """A hash of the classifier's class and weights; the rule has no part in it."""
        return hash_weights(self.model)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that a judgement depends on: weights, tokenizer, length limit, rule."""
        vocabulary = sorted(self.processing_class.get_vocab().items())
        parts = [self.model_fingerprint, vocabulary, self._encoder.max_length, self.rule]
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def normalize(self, text: str) -> str:
        """
        Gives the form under which two texts are the same without asking the model.

        Args:
            text (`str`):
                An output.

        Returns:
            `str`: [`normalize_text`] of it.
        """
        return normalize_text(text)

    def same(self, prompts: list[str], firsts: list[str], seconds: list[str]) -> list[bool]:
        """
        Judges pairs of outputs; the order of the two does not matter.

        Args:
            prompts (`list[str]`):
                Instruction of each pair, as plain text.
            firsts (`list[str]`):
                One output of each pair.
            seconds (`list[str]`):
                The other output of each pair.

        Returns:
            `list[bool]`: whether the two mean the same under the rule.
        """
        passes = RULES[self.rule]
        pairs = [sorted(pair, key=lambda text: (len(text), text)) for pair in zip(firsts, seconds, strict=True)]
        shorts, longs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        same = [passes(label) for label in self.labels(prompts, shorts, longs)]
        rows = [row for row, passed in enumerate(same) if passed]
        backward = self.labels(*([texts[row] for row in rows] for texts in (prompts, longs, shorts)))
        for row, label in zip(rows, backward, strict=True):
            same[row] = passes(label)
        return same

    def labels(self, prompts: list[str], premises: list[str], hypotheses: list[str]) -> list[str]:
        """
        Gives the classifier's label of each pair in one direction, the instruction before both sides.

        Args:
            prompts (`list[str]`):
                Instruction of each pair.
            premises (`list[str]`):
                Output that is taken as true.
            hypotheses (`list[str]`):
                Output that may follow from it.

        Returns:
            `list[str]`: `"entailment"`, `"contradiction"`, or `"neutral"` for every other label.
        """
        pairs = self._encoder.encode(prompts, premises, hypotheses)
        self._count_cut_pairs(pairs)
        label_ids = self._label_ids(list(dict.fromkeys(pairs)))
        return [self._label_names[label_ids[pair]] for pair in pairs]

    def _count_cut_pairs(self, pairs: list[EncodedPair]) -> None:
        cut = sum(pair.is_cut for pair in pairs)
        if cut and not self.cut_pairs:
            logger.warning(
                f"Some NLI pairs are longer than {self._encoder.max_length} tokens and are cut, the instruction "
                "before the output (said once; `cut_pairs` counts them). Use a classifier with a longer context."
            )
        self.cut_pairs += cut

    def _label_ids(self, pairs: list[EncodedPair]) -> dict[EncodedPair, int]:
        """The class of each distinct pair, from the cache where it is known, else from the model."""
        if self._cache is None:
            return self._classify(pairs)
        keys = {pair: self._key(pair) for pair in pairs}
        found = self._cache.find(list(keys.values()))
        label_ids = {pair: found[key] for pair, key in keys.items() if key in found}
        unknown = [pair for pair in pairs if pair not in label_ids]
        for start in range(0, len(unknown), _PAIRS_PER_WRITE):
            part = self._classify(unknown[start : start + _PAIRS_PER_WRITE])
            self._cache.store({keys[pair]: label_id for pair, label_id in part.items()})
            label_ids.update(part)
        return label_ids

    def _key(self, pair: EncodedPair) -> bytes:
        # Token ids rather than texts: they already say which tokenizer read the pair and where it was cut.
        question = repr((self.model_fingerprint, pair.input_ids, pair.token_type_ids))
        return hashlib.blake2b(question.encode(), digest_size=16).digest()

    @torch.inference_mode()
    def _classify(self, pairs: list[EncodedPair]) -> dict[EncodedPair, int]:
        label_ids = {}
        batches = token_budget_batches([len(pair.input_ids) for pair in pairs], self._tokens_per_batch)
        with eval_mode(self.model):
            for rows in batches:
                batch = [pairs[row] for row in rows]
                logits = self.model(**self._collate(batch)).logits  # (batch, labels)
                if not logits.isfinite().all():
                    raise ValueError("`model` gives NaN or infinite logits. Load it in fp32 (`dtype=torch.float32`).")
                label_ids.update(zip(batch, logits.argmax(dim=-1).tolist(), strict=True))
        return label_ids

    def _collate(self, batch: list[EncodedPair]) -> dict[str, torch.Tensor]:
        device, pad_token_id = self.model.device, self.processing_class.pad_token_id
        input_ids, attention_mask = pad_right([pair.input_ids for pair in batch], pad_token_id, device)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}  # each (batch, length)
        if "token_type_ids" in self.processing_class.model_input_names:
            inputs["token_type_ids"], _ = pad_right([pair.token_type_ids for pair in batch], 0, device)
        return inputs


def _label_names(config: PreTrainedConfig, needs_contradiction: bool) -> list[str]:
    """The name of each class: "entailment", "contradiction", or "neutral" for any other."""
    names = ["neutral"] * config.num_labels
    # Either of the two may hold nothing but LABEL_0, LABEL_1, ..., and `label2id` may be None.
    named = [(label, label_id) for label_id, label in config.id2label.items()]
    for label, label_id in [*named, *(config.label2id or {}).items()]:
        for name in ("entailment", "contradiction"):
            if label.casefold().startswith(name.removesuffix("ment").removesuffix("ion")):
                names[label_id] = name
    for name in ["entailment", "contradiction"] if needs_contradiction else ["entailment"]:
        if names.count(name) != 1:
            raise ValueError(
                f"`model` must have one {name} label, its labels are {list(config.id2label.values())}. Pass an NLI "
                "classifier, or name the labels in its config (`id2label`, `label2id`)."
            )
    return names


def _pair_length(model: PreTrainedModel, processing_class: PreTrainedTokenizerBase, max_length: int | None) -> int:
    longest = context_length(model, processing_class)
    if max_length is not None and max_length > longest:
        raise ValueError(
            f"`max_length`={max_length} tokens is beyond the classifier's context of {longest}. Lower it."
        )
    return longest if max_length is None else max_length
