"""The instruction of a prompt, without template and examples: the text before both completions of a pair."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from datasets import Dataset

from trl_rlp.data.turns import Messages
from trl_rlp.data.validation import prompt_text, remove_format
from trl_rlp.storage.fingerprints import value_fingerprint


InstructionSource = str | Callable[[str | Messages], str] | None

AUTO = "auto"
"""The value of `instruction` that finds the instruction of each prompt with [`find_instruction`]."""

_ROWS_PER_PART = 10_000

# What opens the user's turn, and what ends it. Both must be there, because a text may mention a special token.
_SPECIAL_TOKENS = [
    (r"<\|im_start\|>user\n", r"<\|im_end\|>"),  # ChatML, Qwen
    (r"<\|start_header_id\|>user<\|end_header_id\|>", r"<\|eot_id\|>"),  # Llama 3
    (r"<start_of_turn>user\n", r"<end_of_turn>"),  # Gemma
    (r"<\|turn>user\n", r"<turn\|>"),  # Gemma 4
    (r"<\|start\|>user<\|message\|>", r"<\|end\|>|<\|eot\|>"),  # gpt-oss, Muse
    (r"<\|USER_TOKEN\|>", r"<\|END_OF_TURN_TOKEN\|>"),  # Cohere
    (r"<｜User｜>", r"<｜Assistant｜>"),  # DeepSeek
    (r"<\|user\|>", r"<\|end\|>|<\|endoftext\|>|</s>|<\|assistant\|>"),  # Phi, OLMo, Zephyr
    (r"\[INST\]", r"\[/INST\]"),  # Llama 2, Mistral
    (r"GPT4 Correct User:", r"<\|end_of_turn\|>"),  # OpenChat
    (r"User:", r"<end_of_utterance>"),  # Idefics, SmolVLM
    (r"### Human:", r"### Assistant:"),  # Guanaco
]

# Plain words occur in a user's text too. They count only if the prompt ends with the word that opens the answer.
_WORDS = [
    ("### Instruction:", "### Response:"),  # Alpaca
    ("Human:", "Assistant:"),
    ("User:", "Assistant:"),
    ("USER:", "ASSISTANT:"),  # Vicuna
    ("Question:", "Answer:"),
    ("Q:", "A:"),
]

# Where these words stand: all at the beginning of a line, or else anywhere after white space or `>` (Vicuna's `</s>`).
_WORD_STARTS = [r"(?:\A|\n)[^\S\n]*", r"(?:\A|(?<=[\s>]))"]


def find_instruction(prompt: str | Messages) -> str:
    r"""
    Finds the instruction in a prompt: the user's last message, without system prompt, template and earlier turns.

    Known templates of text prompts are ChatML, Llama 2 and 3, Mistral, Gemma, Zephyr, Phi, gpt-oss, Cohere, DeepSeek,
    OpenChat, Idefics and Guanaco, and also Alpaca, `Human:`/`Assistant:`, `User:`/`Assistant:`, `USER:`/`ASSISTANT:`,
    `Question:`/`Answer:` and `Q:`/`A:`. The last six count only if the prompt ends with the word that opens the
    answer. Then examples before the last question are removed too, also within a user's message.

    Args:
        prompt (`str` or `list[dict[str, str]]`):
            Text, or messages with `role` and `content`.

    Returns:
        `str`: The instruction. The whole prompt as plain text, if it has no known template and no user message.

    Example:

    ```python
    >>> find_instruction("### Instruction:\nName a color.\n\n### Response:\n")
    'Name a color.'
    >>> find_instruction("Q: 1 + 1?\nA: 2\n\nQ: 2 + 2?\nA:")
    '2 + 2?'
    ```
    """
    found = []
    if isinstance(prompt, str):
        found = [_find_between_tokens(prompt, opening, end) for opening, end in _SPECIAL_TOKENS]
    else:
        users = [message for message in prompt if message["role"] == "user"]
        prompt = prompt_text(users[-1:] or prompt)
    for start in _WORD_STARTS:
        found += [_find_between_words(prompt, start + opening, start + end) for opening, end in _WORDS]
    return next(filter(None, found), prompt)


def _find_between_tokens(prompt: str, opening: str, end: str) -> str:
    """Returns the last turn of the user, or nothing if no turn is opened and ended."""
    openings = list(re.finditer(opening, prompt))
    turn, *rest = re.split(end, prompt[openings[-1].end() :], maxsplit=1) if openings else [""]
    # Llama 2 has the system prompt inside the user's turn.
    return turn.rpartition("<</SYS>>")[2].strip() if rest else ""


def _find_between_words(prompt: str, opening: str, end: str) -> str:
    """Returns the text between the last opening word and the word at the end of the prompt, or nothing."""
    ending = re.search(rf"{end}\s*\Z", prompt)
    body = prompt[: ending.start()] if ending else ""
    openings = list(re.finditer(opening, body))
    return body[openings[-1].end() :].strip() if openings else ""


def read_instructions(
    samples: Dataset | Mapping[str, list], equivalence: Any, name: str = "samples", first_row: int = 0
) -> list[str]:
    """
    Reads the text that an equivalence gets as the prompt of each row. It also serves as a check before any work.

    Args:
        samples ([`~datasets.Dataset`] or `Mapping[str, list]`):
            Dataset with a column `prompt` and the column that the equivalence names, or a batch of its columns.
        equivalence ([`Equivalence`]):
            Its attribute `instruction` decides, see [`NLIEquivalence`]. Without this attribute, the text is the whole
            prompt.
        name (`str`, *optional*, defaults to `"samples"`):
            Name of the dataset's argument, for the error message.
        first_row (`int`, *optional*, defaults to `0`):
            Number of the first row, for the error message about a part of a dataset.

    Returns:
        `list[str]`: One text per row.

    Raises:
        TypeError: If an entry of the column is neither text nor messages, or the function does not return text.
        ValueError: If the column is missing.
    """
    source = _get_source(equivalence)
    require_instruction_column(samples, equivalence, name)
    if source is None:
        return [""] * len(samples["prompt"])
    read = find_instruction if source == AUTO else source if callable(source) else prompt_text
    column = source if _is_column(source) else "prompt"
    texts = []
    for row, value in enumerate(remove_format(samples)[column], start=first_row):
        text = read(value) if callable(source) or isinstance(value, str | list) else None
        if not isinstance(text, str):
            raise TypeError(
                f"`instruction` must give text for each prompt, got {text!r} for row {row} of `{name}`. Correct the "
                f"function or the column {column!r}."
            )
        texts.append(text)
    return texts


def fingerprint_instructions(samples: Dataset, equivalence: Any) -> list[str]:
    """
    Computes fingerprints of the instructions that a function returns or a column holds, part by part. It also serves
    as a check before any work.

    Args:
        samples ([`~datasets.Dataset`]):
            Policy samples without a format.
        equivalence ([`Equivalence`]):
            Decides which completions mean the same.

    Returns:
        `list[str]`: Empty if the prompts alone decide the instructions.

    Raises:
        TypeError, ValueError: For the same reasons as [`read_instructions`].
    """
    source = _get_source(equivalence)
    require_instruction_column(samples, equivalence, "samples")
    if source in (None, AUTO, "prompt"):
        return []
    columns = samples.select_columns(["prompt", *list_instruction_columns(equivalence)])
    starts = range(0, len(samples), _ROWS_PER_PART)
    parts = zip(starts, columns.iter(_ROWS_PER_PART), strict=True)
    return [value_fingerprint(read_instructions(part, equivalence, "samples", start)) for start, part in parts]


def require_instruction_column(dataset: Dataset | Mapping[str, list], equivalence: Any, name: str) -> None:
    """
    Checks that a dataset has the column that an equivalence reads.

    Args:
        dataset ([`~datasets.Dataset`] or `Mapping[str, list]`):
            Prompts or samples, or a batch of their columns.
        equivalence ([`Equivalence`]):
            Decides which completions mean the same.
        name (`str`):
            Name of the dataset's argument, for the error message.

    Raises:
        ValueError: If the column is missing.
    """
    names = dataset.column_names if isinstance(dataset, Dataset) else list(dataset)
    for column in list_instruction_columns(equivalence):
        if column not in names:
            raise ValueError(
                f"`instruction`={column!r} names no column of `{name}`, which has {names}. Name one of them, or pass "
                "'auto', a function or None (`none` on the command line)."
            )


def list_instruction_columns(equivalence: Any) -> list[str]:
    """
    Lists the columns that an equivalence reads besides `prompt`.

    Args:
        equivalence ([`Equivalence`], *optional*):
            Decides which completions mean the same.

    Returns:
        `list[str]`: Empty or one name.
    """
    source = _get_source(equivalence)
    return [source] if _is_column(source) and source != "prompt" else []


def _get_source(equivalence: Any) -> InstructionSource:
    return equivalence.instruction if hasattr(equivalence, "instruction") else "prompt"


def _is_column(source: InstructionSource) -> bool:
    return isinstance(source, str) and source != AUTO
