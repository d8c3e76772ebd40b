"""Encoding of two texts as one pair of token ids. Each side is truncated separately."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EncodedPair:
    """
    A pair of texts as the input of a classifier.

    Args:
        input_ids (`tuple[int, ...]`):
            Token ids, including the special tokens of a pair.
        token_type_ids (`tuple[int, ...]`):
            Side of each token, with the tokenizer's own numbers.
        is_truncated (`bool`):
            Whether at least one side lost tokens.
        has_equal_sides (`bool`):
            Whether both sides have the same tokens, so that the classifier cannot see a difference.
    """

    input_ids: tuple[int, ...]
    token_type_ids: tuple[int, ...]
    is_truncated: bool
    has_equal_sides: bool


class PairEncoder:
    """
    Encodes (prompt + completion, prompt + completion) pairs as the tokenizer encodes a pair of texts.

    The special tokens around the two sides are read from an example that the tokenizer encodes. Each text can then be
    tokenized once and used in many pairs.

    A pair longer than `max_length` is truncated. A side longer than its half keeps the first tokens of its completion
    and, before them, as many of the last tokens of the prompt as fit.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the classifier. It must be a fast tokenizer.
        max_length (`int`):
            Longest pair in tokens, including special tokens.

    Raises:
        ValueError: If the tokenizer is a slow one, or `max_length` does not leave one token for each side.
    """

    def __init__(self, processing_class: PreTrainedTokenizerBase, max_length: int):
        if not processing_class.is_fast:
            raise ValueError(
                f"`processing_class` is a slow tokenizer (`{type(processing_class).__name__}`). Load a fast one with "
                "`AutoTokenizer`."
            )
        self._processing_class = processing_class
        self.max_length = max_length
        example = processing_class("a", "a", return_token_type_ids=True)
        self._template = list(
            zip(example["input_ids"], example.sequence_ids(), example["token_type_ids"], strict=True)
        )
        self._room = max_length - sum(side is None for _, side, _ in self._template)
        if self._room < 2:
            raise ValueError(
                f"`max_length`={max_length} tokens leaves no room for the two texts of a pair. Raise `max_length`."
            )

    def encode(self, prompts: list[str], firsts: list[str], seconds: list[str]) -> list[EncodedPair]:
        """
        Encodes pairs. The prompt and a space come before both completions.

        Args:
            prompts (`list[str]`):
                Prompt of each pair.
            firsts (`list[str]`):
                Completion on the first side (the premise).
            seconds (`list[str]`):
                Completion on the second side (the hypothesis).

        Returns:
            `list[EncodedPair]`: One per pair, with at most `max_length` tokens each.
        """
        # Word-piece tokenizers ignore the space. Byte-level and SentencePiece tokenizers make it part of the first
        # word.
        texts = list(dict.fromkeys([*prompts, *(f" {text}" for text in firsts), *(f" {text}" for text in seconds)]))
        if not texts:
            return []
        encoded = self._processing_class(texts, add_special_tokens=False, verbose=False)["input_ids"]
        ids = dict(zip(texts, encoded, strict=True))
        return [
            self._join(ids[prompt], ids[f" {first}"], ids[f" {second}"])
            for prompt, first, second in zip(prompts, firsts, seconds, strict=True)
        ]

    def _join(self, prompt: list[int], first: list[int], second: list[int]) -> EncodedPair:
        is_truncated = 2 * len(prompt) + len(first) + len(second) > self._room
        half = self._room // 2
        sides = [
            _truncate(prompt, completion, half) if is_truncated else prompt + completion
            for completion in (first, second)
        ]
        input_ids, token_type_ids, last_side = [], [], None
        for token, side, token_type in self._template:
            piece = [token] if side is None else sides[side] if side != last_side else []
            input_ids += piece
            token_type_ids += [token_type] * len(piece)
            last_side = side
        return EncodedPair(tuple(input_ids), tuple(token_type_ids), is_truncated, sides[0] == sides[1])


def _truncate(prompt: list[int], completion: list[int], half: int) -> list[int]:
    room = max(half - len(completion), 0)
    return prompt[max(len(prompt) - room, 0) :] + completion[:half]
