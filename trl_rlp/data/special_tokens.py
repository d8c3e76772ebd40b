"""BOS and EOS of text: each at most once, also with tokenizers that add to text what it already has."""

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase


def appends_eos(processing_class: PreTrainedTokenizerBase) -> bool:
    """
    Checks whether a tokenizer appends EOS to every text, as those of RoBERTa, DeBERTa and T5 do.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Any tokenizer.

    Returns:
        `bool`: Always `False` for a tokenizer without EOS.
    """
    plain, ids = _tokenize_letter(processing_class)
    return len(ids) > len(plain) and ids[-1] == processing_class.eos_token_id


def adds_special_tokens(processing_class: PreTrainedTokenizerBase) -> bool:
    """
    Checks whether a tokenizer adds special tokens to text.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Any tokenizer.

    Returns:
        `bool`: Whether a text has more tokens with its special tokens than without.
    """
    plain, ids = _tokenize_letter(processing_class)
    return len(ids) > len(plain)


def _tokenize_letter(processing_class: PreTrainedTokenizerBase) -> list[list[int]]:
    """Returns the token ids of a text without and with the special tokens that the tokenizer adds."""
    return [processing_class(text="a", add_special_tokens=flag)["input_ids"] for flag in (False, True)]


def tokenize_texts(processing_class: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """
    Tokenizes texts. EOS is only where a text has it, and BOS is not added to a text that begins with it.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Any tokenizer.
        texts (`list[str]`):
            Texts. A finished one ends with the EOS token.

    Returns:
        `list[list[int]]`: One list of token ids per text.
    """
    rows = processing_class(text=texts)["input_ids"]
    if appends_eos(processing_class):
        rows = [ids[:-1] for ids in rows]
    return [_drop_repeated_bos(ids, processing_class) for ids in rows]


def require_plain_prompts(
    prompts: Iterable[str | list], processing_class: PreTrainedTokenizerBase, policy_trainer: str
) -> None:
    """
    Checks that a tokenizer adds neither a second BOS nor EOS to text prompts, for TRL trainers that would keep them.

    Args:
        prompts (`Iterable`):
            Text, or messages, which get no such tokens.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        policy_trainer (`str`):
            Name of the trainer, for the error message.

    Raises:
        ValueError: If a prompt would begin with two BOS tokens or end with EOS.
    """
    texts = [(row, prompt) for row, prompt in enumerate(prompts) if isinstance(prompt, str)]
    for row, text in texts if adds_special_tokens(processing_class) else []:
        if processing_class(text=text)["input_ids"] != tokenize_texts(processing_class, [text])[0]:
            raise ValueError(
                f"`prompt_dataset` row {row}: the tokenizer of `sft_model` adds a second BOS or an EOS to the prompt, "
                f"and `policy_trainer`={policy_trainer!r} keeps it. Remove BOS from the text, set `add_eos_token` of "
                "the tokenizer to False, or use PPO, which keeps neither."
            )


def drop_repeated(ids: list[int], processing_class: PreTrainedTokenizerBase) -> list[int]:
    """
    Removes the EOS that a tokenizer appended after the EOS of a text, and the BOS that it added before the BOS.

    Args:
        ids (`list[int]`):
            Token ids of a finished text.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the ids.

    Returns:
        `list[int]`: The ids, with one EOS at the end and one BOS at the start at most.
    """
    eos_token_id = processing_class.eos_token_id
    if ids[-2:] == [eos_token_id] * 2 and appends_eos(processing_class):
        ids = ids[:-1]
    return _drop_repeated_bos(ids, processing_class)


def _drop_repeated_bos(ids: list[int], processing_class: PreTrainedTokenizerBase) -> list[int]:
    bos_token_id = processing_class.bos_token_id
    # With BOS = EOS (OPT), two of them at the start are an empty text.
    is_repeated = bos_token_id not in (None, processing_class.eos_token_id) and ids[:2] == [bos_token_id] * 2
    return ids[1:] if is_repeated else ids
