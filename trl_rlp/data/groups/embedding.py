"""Similar embeddings: two outputs mean the same when their vectors point the same way."""

import hashlib
from functools import cached_property

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.batching import eval_mode, pad_right, token_budget_batches
from trl_rlp.data.groups.encoders import context_length, default_tokens_per_batch, hash_weights, load_encoder
from trl_rlp.data.normalization import normalize_text


class EmbeddingEquivalence:
    """
    Judges whether two outputs mean the same by the cosine of their embeddings (masked mean of the last layer).

    The instruction is left out: it would make all outputs alike. Each output is embedded once and its vector kept for
    as long as this object lives. Cosine is no entailment: it hardly sees negation and numbers, and on short answers no
    threshold separates same from different; use [`NLIEquivalence`] or [`ExactMatch`] there.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            Encoder, or its name or folder, for example of a sentence-transformers model with mean pooling.
        processing_class (`transformers.PreTrainedTokenizerBase`, *optional*):
            Its tokenizer. Defaults to the one under the model's name.
        threshold (`float`):
            Smallest cosine of two outputs that mean the same, in [-1, 1]. It has no default, since none serves every
            model and kind of text: choose it on pairs whose answer you know.
        tokens_per_batch (`int`, *optional*):
            Tokens a batch holds, padding included. Defaults to 512 on a CPU and 16,384 on an accelerator.

    Raises:
        ValueError: if `threshold` lies outside [-1, 1].

    Example:

    ```python
    >>> equivalence = EmbeddingEquivalence("sentence-transformers/all-MiniLM-L6-v2", threshold=0.9)
    >>> equivalence.same(["Why?"], ["Because it rained."], ["Because of the rain."])
    [True]
    ```
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        threshold: float,
        tokens_per_batch: int | None = None,
    ):
        if not -1 <= threshold <= 1:
            raise ValueError(f"`threshold` is a cosine and must lie in [-1, 1], got {threshold}.")
        self.threshold = threshold
        self.model, self.processing_class = load_encoder(AutoModel, model, processing_class)
        self._tokens_per_batch = tokens_per_batch or default_tokens_per_batch(self.model)
        self._vectors: dict[str, torch.Tensor] = {}

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that a judgement depends on: weights, tokenizer, threshold."""
        vocabulary = sorted(self.processing_class.get_vocab().items())
        parts = [hash_weights(self.model), vocabulary, self.threshold]
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
                Instruction of each pair; not used.
            firsts (`list[str]`):
                One output of each pair.
            seconds (`list[str]`):
                The other output of each pair.

        Returns:
            `list[bool]`: whether the cosine reaches `threshold`.
        """
        if not firsts:
            return []
        self._embed([text for text in dict.fromkeys([*firsts, *seconds]) if text not in self._vectors])
        first = torch.stack([self._vectors[text] for text in firsts])  # (pairs, hidden)
        second = torch.stack([self._vectors[text] for text in seconds])  # (pairs, hidden)
        return ((first * second).sum(dim=-1) >= self.threshold).tolist()

    @torch.inference_mode()
    def _embed(self, texts: list[str]) -> None:
        """Embeds texts and keeps their vectors, of length one, in fp32 on the CPU."""
        if not texts:
            return
        longest = context_length(self.model, self.processing_class)
        rows = self.processing_class(texts, truncation=True, max_length=longest)["input_ids"]
        batches = token_budget_batches([len(row) for row in rows], self._tokens_per_batch)
        with eval_mode(self.model):
            for batch in batches:
                ids, mask = pad_right(
                    [rows[row] for row in batch], self.processing_class.pad_token_id, self.model.device
                )
                hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state  # (batch, length, hidden)
                mean = (hidden.float() * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=1, keepdim=True)
                vectors = nn.functional.normalize(mean, dim=-1).cpu()  # (batch, hidden)
                self._vectors.update(zip((texts[row] for row in batch), vectors, strict=True))
