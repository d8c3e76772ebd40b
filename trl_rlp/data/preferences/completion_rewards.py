"""Rewards of policy samples. Each distinct completion is scored once."""

from collections.abc import Callable, Sequence
from typing import Any

from trl_rlp.data.template_options import TEMPLATE_COLUMNS, get_template_options


class CompletionRewards:
    """
    Computes and remembers the rewards of completions.

    Each distinct completion of a prompt is scored once, when it is first requested.

    Args:
        rows (`Sequence[dict]`):
            Policy samples.
        score_rows (`Callable`):
            `score_rows(prompts, completions, finished)` returns the rewards. For samples with arguments of the chat
            template (columns `tools` and `chat_template_kwargs`), they are passed as `template_options`.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], score_rows: Callable[..., list[float]]):
        self.rows = rows
        self.score_rows = score_rows
        self.known: dict[tuple[int, str, bool], float] = {}

    def fetch(self, completions: list[tuple[int, int]]) -> list[float]:
        """
        Returns the rewards of some completions. Unknown rewards are computed in one call, which fills the batches.

        Args:
            completions (`list[tuple[int, int]]`):
                Number of the row, and index of the completion in that row.

        Returns:
            `list[float]`: Rewards, unbounded, higher is better.
        """
        rows = {row: self.rows[row] for row in {row for row, _ in completions}}
        keys = [(row, rows[row]["completions"][i], rows[row]["finished"][i]) for row, i in completions]
        missing = [key for key in dict.fromkeys(keys) if key not in self.known]
        rewards = self.score_rows(
            [rows[row]["prompt"] for row, _, _ in missing],
            [completion for _, completion, _ in missing],
            [finished for _, _, finished in missing],
            **self._build_template_options([rows[row] for row, _, _ in missing]),
        )
        self.known.update(zip(missing, rewards, strict=True))
        return [self.known[key] for key in keys]

    def _build_template_options(self, rows: list[dict[str, Any]]) -> dict[str, list]:
        has_options = any(name in self.rows[0] for name in TEMPLATE_COLUMNS)
        return {"template_options": [get_template_options(row) for row in rows]} if has_options else {}
