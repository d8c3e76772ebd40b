"""A bounded record of the completions that a reward model scored while a policy trained."""

from collections import deque
from typing import Any

from datasets import Dataset

from trl_rlp.data.anchors.semantic_anchors import prompt_key


LISTS = {"completion": "completions", "finished": "finished", "reward": "rewards"}
"""Values of one completion, and the column that lists them for a prompt."""


class RolloutBuffer:
    """
    Keeps the completions of the last rollouts. The oldest rollouts are dropped first, and always as a whole.

    Args:
        size (`int`):
            Maximum number of completions, at least 1 and at least those of one rollout of all processes.

    Raises:
        TypeError: If `size` is not an integer.
        ValueError: If `size` is below 1.

    Example:

    ```python
    >>> buffer = RolloutBuffer(2)
    >>> rows = [{"prompt": "2 + 2?", "completion": text, "finished": True, "reward": 1.0} for text in ("4", "5")]
    >>> buffer.add(rows)
    >>> buffer.rows()["completions"][:]
    [['4', '5']]
    ```
    """

    def __init__(self, size: int):
        if not isinstance(size, int):
            raise TypeError(f"`buffer_size` must be an integer, got {size!r}.")
        if size < 1:
            raise ValueError(
                f"`buffer_size` must be at least 1 completion, got {size}. Use at least the completions of a rollout."
            )
        self.size = size
        self.num_dropped = 0
        self._rollouts: deque[list[dict[str, Any]]] = deque()
        self._num_completions = 0

    def __len__(self) -> int:
        return self._num_completions

    def add(self, rows: list[dict[str, Any]]) -> None:
        """
        Adds one rollout. Drops the oldest rollouts if there is no room.

        Args:
            rows (`list[dict]`):
                One for each completion: `prompt` (text or messages), `completion` (text), `finished` (`bool`),
                `reward` (`float`), and optionally further texts by the name of their column.

        Raises:
            ValueError: If the rollout alone is larger than the buffer.
        """
        if len(rows) > self.size:
            raise ValueError(
                f"`buffer_size`={self.size} is too small for one rollout of {len(rows)} completions. Raise it to at "
                f"least {len(rows)}."
            )
        while len(self) + len(rows) > self.size:
            num_oldest = len(self._rollouts.popleft())
            self._num_completions -= num_oldest
            self.num_dropped += num_oldest
        self._rollouts.append(rows)
        self._num_completions += len(rows)

    def rows(self, last: int | None = None) -> Dataset:
        """
        Returns the completions, grouped by prompt in the order of their first appearance.

        Args:
            last (`int`, *optional*):
                Number of rollouts, counted from the last one. By default all that are kept.

        Returns:
            `datasets.Dataset`: One row for each prompt: `prompt`, `completions`, `finished`, `rewards`, and the
            further columns, of which a prompt has its first text. Prompts may differ in their number of completions.
        """
        start = 0 if last is None else max(len(self._rollouts) - last, 0)
        groups: dict[str, dict[str, Any]] = {}
        for row in (row for rollout in list(self._rollouts)[start:] for row in rollout):
            others = {name: value for name, value in row.items() if name not in LISTS}
            group = groups.setdefault(prompt_key(row["prompt"]), others | {name: [] for name in LISTS.values()})
            for name, column in LISTS.items():
                group[column].append(row[name])
        columns = dict.fromkeys(["prompt", *LISTS.values(), *(name for group in groups.values() for name in group)])
        return Dataset.from_dict({name: [group.get(name) for group in groups.values()] for name in columns})

    def clear(self) -> None:
        """Removes all completions."""
        self._rollouts.clear()
        self._num_completions = 0

    def state(self) -> dict[str, Any]:
        """
        Returns the contents as plain JSON values, for a checkpoint.

        Returns:
            `dict`: The argument of [`restore`].
        """
        return {"rollouts": list(self._rollouts), "num_dropped": self.num_dropped}

    def restore(self, state: dict[str, Any]) -> None:
        """
        Replaces the contents.

        Args:
            state (`dict`):
                Result of [`state`].
        """
        self.clear()
        self.num_dropped = state["num_dropped"]
        for rollout in state["rollouts"]:
            self.add(rollout)
