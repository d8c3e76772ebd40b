"""What the folder of a run holds, as far as a report shows it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl_rlp.report.rows import Rows
from trl_rlp.report.training_log import TrainingLog


@dataclass
class Round:
    """
    The data of one round of step 4, or those of a command.

    Args:
        number (`int`):
            Number of the round, from 1.
        prompts ([`Rows`], *optional*):
            Prompts with their completions, and with groups if they were grouped.
        pairs ([`Rows`], *optional*):
            Synthetic preferences. Shards also have a row for each prompt without a pair, with its `reason` only.
        answers (`list`, *optional*):
            Known answers of each prompt.
        counts (`dict[str, int]`):
            Number of prompts without a pair, by reason.
        threshold (`float`, *optional*):
            Threshold γ.
    """

    number: int = 1
    prompts: Rows | None = None
    pairs: Rows | None = None
    answers: list[Any] | None = None
    counts: dict[str, int] = field(default_factory=dict)
    threshold: float | None = None


@dataclass
class RunContents:
    """
    What a folder holds.

    Args:
        folder (`Path`):
            The folder.
        settings (`dict[str, dict]`):
            Settings by the name of their file.
        stages (`dict[str, dict]`):
            `metrics`, `seconds` and `peak_memory_gib` of each finished stage, in their order.
        logs (`dict[str, TrainingLog]`):
            Log of each training, by the name of its stage. That of the folder's own trainer is called "trainer".
        rounds (`list[Round]`):
            Samples and preferences.
        anchors ([`Rows`], *optional*):
            Anchors of the command `trl-rlp anchors`.
        policies (`dict[str, Rows]`):
            Samples of each evaluated policy on the same prompts.
        rewards (`dict[str, dict[str, list]]`):
            Rewards of these samples, by policy and by reward model.
        completions ([`Rows`], *optional*):
            Completions that the folder's own trainer logged.
        evaluation (`dict`):
            Metrics of the command `trl-rlp evaluate`.
        annotations (`dict[str, Rows]`):
            Annotations of its judge, by the argument that has the judged outputs.
        missing (`list[str]`):
            Sentences about what the folder lacks.
    """

    folder: Path
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, TrainingLog] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    anchors: Rows | None = None
    policies: dict[str, Rows] = field(default_factory=dict)
    rewards: dict[str, dict[str, list[list[float]]]] = field(default_factory=dict)
    completions: Rows | None = None
    evaluation: dict[str, Any] = field(default_factory=dict)
    annotations: dict[str, Rows] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def has_parts(self) -> bool:
        """Checks whether there is anything to report."""
        found = (self.stages, self.logs, self.rounds, self.anchors, self.evaluation, self.missing)
        return any(part is not None and len(part) for part in found)
