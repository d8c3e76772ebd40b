"""Policy samples that were made elsewhere, and the prompts that they belong to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from trl_rlp.data.sampling.policy_prompts import add_template_options
from trl_rlp.data.template_options import TEMPLATE_COLUMNS
from trl_rlp.data.turns import drop_missing_keys
from trl_rlp.data.validation import require_samples
from trl_rlp.storage.fingerprints import dataset_fingerprint, value_fingerprint
from trl_rlp.storage.loading import load_rows


SampleSource = Dataset | Callable[[Dataset], Dataset]


def load_source(source: Any, prompts: Dataset, name: str = "policy_samples") -> SampleSource | None:
    """
    Checks ready samples, or a function that makes them, before any work.

    Args:
        source ([`~datasets.Dataset`] or `str` or `Path` or `Callable`, *optional*):
            Samples with `prompt`, `completions` and `finished`, their file or folder, or a function from prompts to
            samples.
        prompts ([`~datasets.Dataset`]):
            Prompts U.
        name (`str`, *optional*, defaults to `"policy_samples"`):
            Name of the argument, for the error message.

    Returns:
        `datasets.Dataset` or `Callable` or `None`: The samples, or the function.

    Raises:
        TypeError: If it is something else, or a value has the wrong type.
        ValueError: If a column is missing, or a prompt is not one of U.
    """
    if isinstance(source, str | Path):
        source = load_rows(source)
    if isinstance(source, Dataset):
        source = require_samples(source, name)
        find_prompt_rows(source, prompts, name)
    elif source is not None and not callable(source):
        raise TypeError(
            f"`{name}` must be a `datasets.Dataset`, a file or folder, or a function from prompts to samples, got "
            f"`{type(source).__name__}`."
        )
    return source


def describe_source(source: SampleSource | None) -> str | None:
    """
    Describes the source of samples, to recognize it in a resumed run.

    Args:
        source ([`~datasets.Dataset`] or `Callable`, *optional*):
            Result of [`load_source`].

    Returns:
        `str` or `None`: Fingerprint of samples. Of a function, its attribute `fingerprint` if it has one, or else its
        module and name.
    """
    if source is None:
        return None
    if isinstance(source, Dataset):
        return dataset_fingerprint(source)
    if hasattr(source, "fingerprint"):
        return str(source.fingerprint)
    named = source if hasattr(source, "__qualname__") else type(source)
    return f"{named.__module__}.{named.__qualname__}"


def take_samples(
    source: SampleSource, prompts: Dataset, columns: list[str], chat_template_kwargs: dict[str, Any] | None
) -> Dataset:
    """
    Takes samples from their source, as [`sample_completions`] would return them.

    Args:
        source ([`~datasets.Dataset`] or `Callable`):
            Result of [`load_source`]. A function is called with the columns `prompt` and `columns`.
        prompts ([`~datasets.Dataset`]):
            Prompts U.
        columns (`list[str]`):
            Columns of the prompts that the samples get.
        chat_template_kwargs (`dict`, *optional*):
            Arguments of the chat template that the policy was sampled with.

    Returns:
        `datasets.Dataset`: Policy samples P.
    """
    prompts = prompts.select_columns(["prompt", *columns])
    samples = source if isinstance(source, Dataset) else require_samples(source(prompts), "policy_samples")
    rows = find_prompt_rows(samples, prompts, "policy_samples")
    own = ("prompt", *TEMPLATE_COLUMNS, "completions", "finished")
    samples = samples.select_columns([name for name in own if name in samples.column_names])
    if columns:
        samples = concatenate_datasets([samples, prompts.select_columns(columns).select(rows)], axis=1)
    return add_template_options(samples, chat_template_kwargs)


def find_prompt_rows(samples: Dataset, prompts: Dataset, name: str) -> list[int]:
    """
    Finds the row of the prompts that each row of the samples belongs to.

    Args:
        samples ([`~datasets.Dataset`]):
            Samples of some or all of the prompts. Of equal prompts, the first sample belongs to the first one.
        prompts ([`~datasets.Dataset`]):
            Prompts U.
        name (`str`):
            Name of the samples, for the error message.

    Returns:
        `list[int]`: Row numbers of `prompts`.

    Raises:
        ValueError: If a prompt of the samples is not one of U.
    """
    rows_of: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts["prompt"]):
        rows_of.setdefault(_key(prompt), []).append(row)
    for rows in rows_of.values():
        rows.reverse()
    found = []
    for row, prompt in enumerate(samples["prompt"]):
        rows = rows_of.get(_key(prompt))
        if rows is None:
            raise ValueError(
                f"`{name}` row {row} has a prompt that is not among the prompts U: {str(prompt)[:60]!r}. Sample the "
                "same prompts, or drop the row."
            )
        found.append(rows.pop() if len(rows) > 1 else rows[0])
    return found


def find_answers(samples: Dataset, prompts: Dataset) -> list | None:
    """
    Finds the answers of samples. A server may have left prompts out.

    Args:
        samples ([`~datasets.Dataset`]):
            Samples of some or all of the prompts.
        prompts ([`~datasets.Dataset`]):
            Prompts, with a column `answers` if they are known.

    Returns:
        `list` or `None`: The accepted answer or answers of each row of the samples.
    """
    if "answers" not in prompts.column_names:
        return None
    return prompts.select(find_prompt_rows(samples, prompts, "samples"))["answers"][:]


def _key(prompt: Any) -> str:
    return value_fingerprint(prompt if isinstance(prompt, str) else drop_missing_keys(prompt))
