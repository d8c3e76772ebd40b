"""Rewards of policy samples. Each distinct completion is scored once."""

from collections.abc import Callable

from datasets import Dataset


class CompletionRewards:
    """
    Computes and remembers the rewards of completions.

    Each distinct completion of a prompt is scored once, when it is first requested.

    Args:
        samples ([`~datasets.Dataset`]):
            Policy samples.
        score_rows (`Callable`):
            `score_rows(prompts, completions, finished)` returns the rewards.
    """

    def __init__(self, samples: Dataset, score_rows: Callable[..., list[float]]):
        self.samples = samples
        self.score_rows = score_rows
        self.known: dict[tuple[int, str, bool], float] = {}

    def fetch(self, completions: list[tuple[int, int]]) -> list[float]:
        """
        Returns the rewards of some completions. Unknown rewards are computed in one call, which fills the batches.

        Args:
            completions (`list[tuple[int, int]]`):
                Row of the samples, and index of the completion in that row.

        Returns:
            `list[float]`: Rewards, unbounded, higher is better.
        """
        rows = {row: self.samples[row] for row in {row for row, _ in completions}}
        keys = [(row, rows[row]["completions"][i], rows[row]["finished"][i]) for row, i in completions]
        missing = [key for key in dict.fromkeys(keys) if key not in self.known]
        rewards = self.score_rows(
            [rows[row]["prompt"] for row, _, _ in missing],
            [completion for _, completion, _ in missing],
            [finished for _, _, finished in missing],
        )
        self.known.update(zip(missing, rewards, strict=True))
        return [self.known[key] for key in keys]
