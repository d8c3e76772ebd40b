"""The split of human preferences into a training set and a held-out set."""

from collections import defaultdict
from typing import Any

import numpy as np
from datasets import Dataset
from trl import maybe_extract_prompt

from trl_rlp.data.validation import remove_format
from trl_rlp.storage.fingerprints import value_fingerprint


def hold_out(preferences: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """
    Splits human preferences into a training set and a held-out set for the gate.

    Pairs of one prompt stay in the same set. If all pairs have the same prompt, each pair is placed separately.

    Args:
        preferences ([`~datasets.Dataset`]):
            Human preferences D, in TRL's preference format. If prompts are implicit, the prompt of a pair is the
            common beginning of both sides. A pair without a prompt is placed separately.
        share (`float`):
            Share of the pairs to hold out, in (0, 1). Fewer pairs are held out if whole prompts do not add up to the
            share. At least one prompt is held out, if necessary the one with the fewest pairs.
        seed (`int`):
            Seed that selects the held-out prompts.

    Returns:
        `tuple[datasets.Dataset, datasets.Dataset]`: The training set and the held-out set.

    Raises:
        ValueError: If there is only one pair.
    """
    preferences = remove_format(preferences)
    num_pairs = len(preferences)
    if num_pairs < 2:
        raise ValueError(
            "`preference_dataset` has only one row, so no pair is left for the gate. Pass more pairs or an evaluation "
            "set."
        )
    rows_of_prompt = defaultdict(list)
    for row, pair in enumerate(preferences):
        rows_of_prompt[_get_prompt_key(pair, row)].append(row)
    prompts = list(rows_of_prompt.values())
    if len(prompts) == 1:
        prompts = [[row] for row in range(num_pairs)]
    heldout, max_heldout = [], min(num_pairs - 1, round(share * num_pairs))
    for index in np.random.default_rng(seed).permutation(len(prompts)):
        if len(heldout) + len(prompts[index]) <= max_heldout:
            heldout += prompts[index]
    heldout = sorted(heldout or min(prompts, key=len))
    return preferences.select(sorted(set(range(num_pairs)) - set(heldout))), preferences.select(heldout)


def _get_prompt_key(pair: dict[str, Any], row: int) -> str | int:
    if "prompt" not in pair and not (pair["chosen"] and pair["rejected"]):
        return row  # TRL looks for the common beginning of both sides and fails if one of them is empty.
    prompt = maybe_extract_prompt(pair)["prompt"]
    return value_fingerprint(prompt) if prompt else row
