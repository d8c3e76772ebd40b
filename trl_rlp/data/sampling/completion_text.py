"""The texts of sampled tokens, and whether each of them is finished."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from trl_rlp.data.turns import Messages, ends_with_assistant


Prompt = str | Messages


@dataclass(frozen=True)
class CompletionReader:
    """
    Reads sampled tokens as completions. All engines in this process share it, so they end completions alike.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        stop_token_ids (`list[int]`):
            Tokens that end a completion.
        eos_token_ids (`list[int]`):
            Stop tokens that are not part of the text.
    """

    processing_class: PreTrainedTokenizerBase
    stop_token_ids: list[int]
    eos_token_ids: list[int]

    def read(self, samples: list[list[int]], prompt: Prompt, prompt_ids: list[int]) -> tuple[list[str], list[bool]]:
        """
        Decodes each sample up to its first stop token. EOS itself is removed, another stop token stays in the text.

        Args:
            samples (`list[list[int]]`):
                Token ids of each completion. What follows a stop token is ignored.
            prompt (`str` or `list[dict[str, str]]`):
                Prompt of the completions.
            prompt_ids (`list[int]`):
                Token ids of the prompt.

        Returns:
            `tuple[list[str], list[bool]]`: The texts without special tokens, and whether each of them has a stop
            token.
        """
        stops = [
            next((index for index, token in enumerate(ids) if token in self.stop_token_ids), None) for ids in samples
        ]
        ends = [
            stop if stop is None or ids[stop] in self.eos_token_ids else stop + 1
            for ids, stop in zip(samples, stops, strict=True)
        ]
        # A completion that opens a new turn follows no text.
        is_continuation = isinstance(prompt, str) or ends_with_assistant(prompt)
        previous_ids = prompt_ids if is_continuation else []
        texts = [self._decode_continuation(previous_ids, ids[:end]) for ids, end in zip(samples, ends, strict=True)]
        return texts, [stop is not None for stop in stops]

    def _decode_continuation(self, previous_ids: list[int], ids: list[int]) -> str:
        """
        Decodes the text that `ids` add to the text of `previous_ids`.

        SentencePiece would drop the white space before `ids` if they were decoded alone.
        """
        previous_text, text = self._decode(previous_ids), self._decode([*previous_ids, *ids])
        return text[len(previous_text) :] if text.startswith(previous_text) else self._decode(ids)

    def _decode(self, tokens: list[int]) -> str:
        return self.processing_class.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
