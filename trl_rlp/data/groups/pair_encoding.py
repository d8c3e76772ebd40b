"""Two texts as the token ids of a pair, each side cut on its own terms."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EncodedPair:
    """
    A pair, ready for a classifier.

    Args:
        input_ids (`tuple[int, ...]`):
            Token ids with the special tokens of a pair.
        token_type_ids (`tuple[int, ...]`):
            Which side each token belongs to, in the tokenizer's own numbers.
        is_cut (`bool`):
            Whether a side lost tokens.
    """

    input_ids: tuple[int, ...]
    token_type_ids: tuple[int, ...]
    is_cut: bool


class PairEncoder:
    """
    Encodes (instruction + output, instruction + output) pairs the way the tokenizer encodes a pair of texts.

    The special tokens around the two sides are read from an example that the tokenizer encodes, so each side is
    tokenized once and put into as many pairs as need it. A pair longer than `max_length` is cut: a side that is longer
    than its half keeps the first tokens of its output and, before them, as many of the last tokens of the instruction
    as fit.

    Args:
        processing_class (`transformers.PreTrainedTokenizerBase`):
            Tokenizer of the classifier, a fast one.
        max_length (`int`):
            Longest pair in tokens, special tokens included.

    Raises:
        ValueError: if the tokenizer is a slow one, or `max_length` leaves no token for each side.
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
            raise ValueError(f"`max_length`={max_length} tokens leave nothing for the two texts of a pair. Raise it.")

    def encode(self, prompts: list[str], firsts: list[str], seconds: list[str]) -> list[EncodedPair]:
        """
        Encodes pairs; the instruction and a space stand before both outputs.

        Args:
            prompts (`list[str]`):
                Instruction of each pair.
            firsts (`list[str]`):
                Output on the first side (the premise).
            seconds (`list[str]`):
                Output on the second side (the hypothesis).

        Returns:
            `list[EncodedPair]`: one a row, at most `max_length` tokens each.
        """
        # Word-piece tokenizers ignore the space, byte-level and SentencePiece ones make it part of the first word.
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
        is_cut = 2 * len(prompt) + len(first) + len(second) > self._room
        half = self._room // 2
        sides = [_cut(prompt, output, half) if is_cut else prompt + output for output in (first, second)]
        input_ids, token_type_ids, last = [], [], None
        for token, side, token_type in self._template:
            piece = [token] if side is None else sides[side] if side != last else []
            input_ids += piece
            token_type_ids += [token_type] * len(piece)
            last = side
        return EncodedPair(tuple(input_ids), tuple(token_type_ids), is_cut)


def _cut(prompt: list[int], output: list[int], half: int) -> list[int]:
    room = max(half - len(output), 0)
    return prompt[max(len(prompt) - room, 0) :] + output[:half]
