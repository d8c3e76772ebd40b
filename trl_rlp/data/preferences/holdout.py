"""Human pairs held out from training."""

from collections import defaultdict
from typing import Any

import numpy as np
from datasets import Dataset
from trl import maybe_extract_prompt

from trl_rlp.storage.fingerprints import value_fingerprint


def hold_out(preferences: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """
    Parts human pairs into those that are trained on and those that the gate compares on; a prompt's stay together.

    Args:
        preferences (`datasets.Dataset`):
            D, in TRL's preference format. Where prompts are implicit, a pair's prompt is what both sides begin with;
            a pair without one stands for itself. If all are of one prompt, each does.
        share (`float`):
            Share of the pairs that is kept from training, in (0, 1), or less where prompts do not add up to it; at
            least the prompt with the fewest pairs is.
        seed (`int`):
            Decides which.

    Returns:
        `tuple[datasets.Dataset, datasets.Dataset]`: to train on, and held out.

    Raises:
        ValueError: if there is one pair only.
    """
    rows = range(len(preferences))
    if len(rows) < 2:
        raise ValueError(
            "`preference_dataset` has one row, none is left for the gate. Pass more, or an evaluation set."
        )
    of_prompt = defaultdict(list)
    for row, pair in enumerate(preferences):
        of_prompt[_prompt_key(pair, row)].append(row)
    if len(of_prompt) == 1:
        of_prompt = {row: [row] for row in rows}
    groups = list(of_prompt.values())
    held, most = [], min(len(rows) - 1, round(share * len(rows)))
    for number in np.random.default_rng(seed).permutation(len(groups)):
        if len(held) + len(groups[number]) <= most:
            held += groups[number]
    held = sorted(held or min(groups, key=len))
    return preferences.select(sorted(set(rows) - set(held))), preferences.select(held)


def _prompt_key(pair: dict[str, Any], row: int) -> str | int:
    if "prompt" not in pair and not (pair["chosen"] and pair["rejected"]):
        return row  # TRL reads what both sides begin with, and takes neither to be empty
    prompt = maybe_extract_prompt(pair)["prompt"]
    return value_fingerprint(prompt) if prompt else row
