"""Makes pairs block by block. With a folder, an interrupted call resumes after the last finished block."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset

from trl_rlp.data.preferences.completion_rewards import CompletionRewards
from trl_rlp.data.preferences.pairing import Generator, Pair, PairingSettings
from trl_rlp.storage.shards import Record, work_in_shards


def make_pairs(
    samples: Dataset,
    generator: Generator,
    settings: PairingSettings,
    *,
    output_dir: str | Path | None,
    shard_size: int,
    fingerprint: dict[str, Any] | None,
) -> tuple[list[Pair], Counter]:
    """
    Runs a generator on samples, and adds the rewards of both sides to its pairs.

    With `output_dir`, the samples are cut into blocks. The result of each block is saved before the next one starts,
    and the blocks are shared by all processes. Every process must call the function. Without it, all samples are one
    block, and each process that calls the function does the work itself.

    Args:
        samples ([`~datasets.Dataset`]):
            Policy samples.
        generator (`Callable`):
            Value of `GENERATORS`. It must not depend on other rows, because a block does not have them.
        settings ([`PairingSettings`]):
            Settings of the generator.
        output_dir (`str` or `Path`, *optional*):
            Folder for finished blocks.
        shard_size (`int`):
            Number of prompts in a block. The last block may have fewer.
        fingerprint (`dict`, *optional*):
            Everything that decides the pairs, as plain values by name. Required with `output_dir`.

    Returns:
        `tuple[list[Pair], Counter]`: The pairs in the order of the rows, and the number of rows without a pair for
        each reason.

    Raises:
        ValueError: If `output_dir` belongs to a call with other arguments, or for the reasons of the generator.
    """
    if output_dir is None:
        return _pair_block(samples, generator, settings, first_row=0)

    def work(index: int, rows: list[int], advance: Callable[[int], Any]) -> list[Record]:
        start = index * shard_size
        block = samples.select(range(start, min(start + shard_size, len(samples))))
        pairs, rejections = _pair_block(block, generator, settings, first_row=start)
        advance(1)
        return [{"pairs": [pair._asdict() for pair in pairs], "rejections": rejections}]

    records = work_in_shards(
        [[block] for block in range(-(-len(samples) // shard_size))],
        work,
        description="Preferring",
        unit="block",
        output_dir=output_dir,
        fingerprint=fingerprint,
    )
    rejections = sum((Counter(record["rejections"]) for record in records), Counter())
    return [Pair(**pair) for record in records for pair in record["pairs"]], rejections


def _pair_block(
    block: Dataset, generator: Generator, settings: PairingSettings, first_row: int
) -> tuple[list[Pair], Counter]:
    rewards = None if settings.rewards is None else CompletionRewards(block, settings.rewards.score_rows)
    pairs, rejections = generator(block, dataclasses.replace(settings, rewards=rewards))
    if rewards is not None and pairs:
        values = rewards.fetch([(pair.row, i) for pair in pairs for i in (pair.chosen, pair.rejected)])
        sides = zip(pairs, values[::2], values[1::2], strict=True)
        pairs = [pair._replace(chosen_reward=better, rejected_reward=worse) for pair, better, worse in sides]
    return [pair._replace(row=first_row + pair.row) for pair in pairs], rejections
