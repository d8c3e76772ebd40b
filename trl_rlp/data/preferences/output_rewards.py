"""Rewards of policy samples, each scored once."""

from collections.abc import Callable

from datasets import Dataset


class OutputRewards:
    """
    Rewards of the outputs of a data set, each distinct text scored once, when it is first asked for.

    Args:
        samples (`datasets.Dataset`):
            Policy samples.
        score_rows (`Callable`):
            `score_rows(prompts, completions, finished)` gives the rewards.
    """

    def __init__(self, samples: Dataset, score_rows: Callable[..., list[float]]):
        self.samples = samples
        self.score_rows = score_rows
        self.known: dict[tuple[int, str, bool], float] = {}

    def fetch(self, outputs: list[tuple[int, int]]) -> list[float]:
        """
        Gives the rewards of some outputs; those not known yet are scored in one call, so that batches fill up.

        Args:
            outputs (`list[tuple[int, int]]`):
                Row, and place among its completions.

        Returns:
            `list[float]`: unbounded, higher is better.
        """
        rows = {number: self.samples[number] for number in {number for number, _ in outputs}}
        keys = [(number, rows[number]["completions"][i], rows[number]["finished"][i]) for number, i in outputs]
        missing = [key for key in dict.fromkeys(keys) if key not in self.known]
        rewards = self.score_rows(
            [rows[number]["prompt"] for number, _, _ in missing],
            [completion for _, completion, _ in missing],
            [finished for _, _, finished in missing],
        )
        self.known.update(zip(missing, rewards, strict=True))
        return [self.known[key] for key in keys]
