"""Equivalence by embeddings: two completions mean the same when their embedding vectors are similar."""

import hashlib
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from trl_rlp.data.batching import eval_mode, pad_right, split_by_token_budget
from trl_rlp.data.groups.encoders import Encoder, choose_tokens_per_batch
from trl_rlp.data.normalization import normalize_text
from trl_rlp.storage.fingerprints import tokenizer_fingerprint


logger = logging.get_logger(__name__)

MAX_TEXTS = 2**17
"""Number of texts whose vectors are kept. With 768 numbers each, they take 400 MB."""


class EmbeddingEquivalence:
    """
    Compares two completions by the cosine similarity of their embeddings (masked mean of the last layer).

    The prompt is not embedded, because it would make all completions look alike. The vectors of the last
    131,072 different completions are kept, and those are embedded once.

    Cosine similarity is not entailment. Negation and numbers hardly change it. For short answers, no threshold
    separates those with the same meaning from those with different meanings. Use [`NLIEquivalence`] or [`ExactMatch`]
    for short answers.

    Completions that differ, but become equal by truncation or in their tokens (unknown characters, or case in an
    uncased model), are undecided. They are never the same, and `undecided_pairs` counts them.

    Args:
        model (`str` or `Path` or [`~transformers.PreTrainedModel`]):
            Encoder, or its name or folder, for example a sentence-transformers model with mean pooling.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the encoder. Defaults to the tokenizer under the model's name.
        threshold (`float`):
            Smallest cosine similarity of two completions that mean the same, in [-1, 1]. There is no default, because
            no value works for every model and every kind of text. Choose it on pairs that you have labeled yourself.
        tokens_per_batch (`int`, *optional*):
            Tokens per batch, including padding. Defaults to 512 on a CPU and 16,384 on an accelerator.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Dtype of a named model: `"auto"`, `"float32"` or `"bfloat16"`. `"auto"` is bf16 on an accelerator that
            computes in it, and fp32 on a CPU. The vectors are in fp32.

    Raises:
        ValueError: If `threshold` is outside [-1, 1], or `dtype` is unknown.

    Example:

    ```python
    >>> equivalence = EmbeddingEquivalence("sentence-transformers/all-MiniLM-L6-v2", threshold=0.9)
    >>> equivalence.are_equivalent(["Why?"], ["Because it rained."], ["Because of the rain."])
    [True]
    ```
    """

    def __init__(
        self,
        model: str | Path | PreTrainedModel,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        threshold: float,
        tokens_per_batch: int | None = None,
        dtype: str = "auto",
    ):
        if not -1 <= threshold <= 1:
            raise ValueError(f"`threshold` is a cosine similarity and must be in [-1, 1], got {threshold}.")
        self.threshold = threshold
        self._encoder = Encoder(AutoModel, model, processing_class, dtype)
        self.processing_class = self._encoder.processing_class
        self._tokens_per_batch = tokens_per_batch or choose_tokens_per_batch(self._encoder.device)
        self._vectors: dict[str, torch.Tensor] = {}
        self._token_hashes: dict[str, bytes] = {}
        self.undecided_pairs = 0

    @property
    def model(self) -> PreTrainedModel:
        """The encoder. A named one is loaded when this is first read, and again after [`release`]."""
        return self._encoder.model

    def release(self) -> None:
        """Releases the weights of a named encoder. They are loaded again when they are needed."""
        self._encoder.release()

    @property
    def model_fingerprint(self) -> str:
        """A hash of the encoder's weights. It does not depend on the threshold."""
        return self._encoder.fingerprint

    @property
    def fingerprint(self) -> str:
        """A hash of everything that a verdict depends on: weights, tokenizer, longest text and threshold."""
        tokenizer = tokenizer_fingerprint(self.processing_class)
        parts = [self.model_fingerprint, tokenizer, self._encoder.context_length, self.threshold]
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
                Prompt of each pair. Not used.
            firsts (`list[str]`):
                First completion of each pair.
            seconds (`list[str]`):
                Second completion of each pair.

        Returns:
            `list[bool]`: One per pair, whether the cosine similarity is at least `threshold`. `False` for undecided
            pairs.
        """
        if not firsts:
            return []
        self._embed([text for text in dict.fromkeys([*firsts, *seconds]) if text not in self._vectors])
        first = torch.stack([self._vectors[text] for text in firsts])  # (pairs, hidden)
        second = torch.stack([self._vectors[text] for text in seconds])  # (pairs, hidden)
        is_similar = ((first * second).sum(dim=-1) >= self.threshold).tolist()
        is_undecided = [
            self._token_hashes[a] == self._token_hashes[b] and self.normalize(a) != self.normalize(b)
            for a, b in zip(firsts, seconds, strict=True)
        ]
        self._count_undecided_pairs(sum(is_undecided))
        for text in list(self._vectors)[:-MAX_TEXTS]:
            del self._vectors[text], self._token_hashes[text]
        return [similar and not undecided for similar, undecided in zip(is_similar, is_undecided, strict=True)]

    def _count_undecided_pairs(self, count: int) -> None:
        if count and not self.undecided_pairs:
            logger.warning(
                "Some completions differ only where the embedding model sees no difference: behind the truncation, in "
                "unknown characters, or in what its tokenizer drops, such as case. They count as different. "
                "`undecided_pairs` counts them, and this warning is logged once. Use a cased model with a longer "
                "context."
            )
        self.undecided_pairs += count

    @torch.inference_mode()
    def _embed(self, texts: list[str]) -> None:
        """Embeds texts. Keeps the vectors on the CPU, in fp32 and with length one."""
        if not texts:
            return
        max_length = self._encoder.context_length
        rows = self.processing_class(texts, truncation=True, max_length=max_length)["input_ids"]
        for text, row in zip(texts, rows, strict=True):
            self._token_hashes[text] = hashlib.blake2b(repr(row).encode(), digest_size=16).digest()
        batches = split_by_token_budget([len(row) for row in rows], self._tokens_per_batch)
        with eval_mode(self.model):
            for batch in batches:
                ids, mask = pad_right(
                    [rows[row] for row in batch], self.processing_class.pad_token_id, self.model.device
                )
                hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state  # (batch, length, hidden)
                mean = (hidden.float() * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=1, keepdim=True)
                vectors = nn.functional.normalize(mean, dim=-1).cpu()  # (batch, hidden)
                self._vectors.update(zip((texts[row] for row in batch), vectors, strict=True))
