"""The sections about prompts: acceptance, labels, groups and pairs, and anchors."""

from collections.abc import Sequence
from typing import Any

from trl_rlp.data.groups.clustering import find_largest_group
from trl_rlp.data.preferences.labeling import ROW_NUMBER
from trl_rlp.evaluation.policy_pairs import is_correct
from trl_rlp.report.acceptance import Acceptance, find_right_sides, sweep_thresholds
from trl_rlp.report.elements import Column, Element, Figure, RowTable, Section, Table, Text
from trl_rlp.report.plots import plot_acceptance, plot_label_accuracy
from trl_rlp.report.rows import Rows
from trl_rlp.report.run_contents import Round
from trl_rlp.report.visible_text import plain_text


ACCEPTED = "pair"
"""Status of a prompt with a pair."""


def build_acceptance_section(data: Round, title: str) -> Section | None:
    """
    Builds the section about acceptance and label accuracy against the threshold γ.

    Args:
        data ([`Round`]):
            Samples and preferences.
        title (`str`):
            Heading.

    Returns:
        [`Section`] or `None`: `None` if no prompt has a confidence.
    """
    pairs = [] if data.pairs is None else _list_pairs(data.pairs)
    bounds = _read_bounds(data)
    if bounds is None:
        return None
    right_sides = None
    if data.answers is not None and pairs and all(pair.get(ROW_NUMBER) is not None for pair in pairs):
        right_sides = find_right_sides(pairs, [data.answers[pair[ROW_NUMBER]] for pair in pairs])
    acceptance = sweep_thresholds(*bounds, [pair["confidence"] for pair in pairs], right_sides)
    figure = _build_figure(acceptance, data.threshold)
    elements: list[Element] = [figure, _build_acceptance_table(acceptance, bool(pairs), right_sides is not None)]
    if right_sides is None and pairs:
        elements.append(
            Text("The folder holds no known answers for these prompts, so nobody can say how many labels are right.")
        )
    elif pairs and not any(acceptance.decided):
        elements.append(Text("The known answers decide no pair, because none has exactly one right side."))
    if data.counts:
        counts = ", ".join(f"{reason.replace('_', ' ')}: {count:,}" for reason, count in data.counts.items())
        elements.append(Text(f"Prompts without a pair, by reason: {counts}."))
    return Section(title, elements)


def _list_pairs(pairs: Rows) -> list[dict[str, Any]]:
    """Returns the pairs with a confidence. Rows of shards also have prompts without a pair, with a reason."""
    rows = pairs.take(range(len(pairs)))
    return [row for row in rows if not row.get("reason") and row.get("confidence") is not None]


def _read_bounds(data: Round) -> tuple[list[float], list[float]] | None:
    """Returns bounds on the confidence of each prompt."""
    source = data.prompts if data.prompts is not None and "confidence" in data.prompts.names else data.pairs
    if source is None or "confidence" not in source.names:
        return None
    lower = source.column("confidence")
    upper = source.column("confidence_upper") if "confidence_upper" in source.names else lower
    known = [(low, high) for low, high in zip(lower, upper, strict=True) if low is not None and high is not None]
    if not known:
        return None
    lows, highs = zip(*known, strict=True)
    return list(lows), list(highs)


def _build_figure(acceptance: Acceptance, threshold: float | None) -> Figure:
    images = [plot_acceptance(acceptance, threshold)]
    shows = "The share of prompts that a threshold γ would accept by their confidence, the share of the largest group."
    limits = (
        "It does not say that the majority is right: a policy can agree with itself on a wrong answer. Below the γ of "
        "the run, the grouping stopped early, so a band shows the possible shares."
    )
    if any(acceptance.decided):
        images.append(plot_label_accuracy(acceptance, threshold))
        shows += (
            " Beside it, the share of synthetic pairs whose chosen side is right, among pairs with exactly one right "
            "side (± one standard error, dotted: chance)."
        )
        limits += " Below the γ of the run there are no pairs, and pairs with no right side or two are not counted."
    return Figure(images, shows, limits)


def _build_acceptance_table(acceptance: Acceptance, has_pairs: bool, has_answers: bool) -> Table:
    columns = ["γ", "prompts accepted, at least", "at most"]
    values: list[Sequence[Any]] = [acceptance.thresholds, acceptance.lowest, acceptance.highest]
    if has_pairs:
        columns.append("pairs")
        values.append(acceptance.pairs)
    if has_answers:
        columns += ["pairs with one right side", "label accuracy"]
        values += [acceptance.decided, acceptance.accuracy]
    return Table(columns, [list(row) for row in zip(*values, strict=True)], "The numbers of these curves")


def build_prompt_section(data: Round, name: str, title: str) -> Section | None:
    """
    Builds the table of prompts with their confidences, groups and pairs.

    Args:
        data ([`Round`]):
            Samples and preferences.
        name (`str`):
            Identifier of the table.
        title (`str`):
            Heading.

    Returns:
        [`Section`] or `None`: `None` if there are no rows.
    """
    reader = _PromptReader(data)
    if not reader.size:
        return None
    text = (
        "Open a row to see all completions and their groups. Completions of a group have the same meaning. Characters "
        "that cannot be seen are shown by their names, such as ⟨U+202E⟩."
    )
    return Section(title, [Text(text), RowTable(name, reader.columns, reader.size, reader.read)])


class _PromptReader:
    """Reads the rows of the table of prompts: from samples, or from pairs if there are no samples."""

    def __init__(self, data: Round):
        self._data = data
        sources = [rows for rows in (data.prompts, data.pairs) if rows is not None]
        self._source = sources[0] if sources else Rows([])
        self.size, names = len(self._source), self._source.names
        self._has_groups = "confidence" in names
        self._has_completions = "completions" in names
        self._pair_numbers: dict[int, int] = {}
        if data.pairs is not None and data.prompts is not None and ROW_NUMBER in data.pairs.names:
            numbers = data.pairs.column(ROW_NUMBER)
            self._pair_numbers = {number: row for row, number in enumerate(numbers) if number is not None}
        self._has_rewards = data.pairs is not None and any(
            value is not None
            for value in (data.pairs.column("chosen_reward") if "chosen_reward" in data.pairs.names else ())
        )
        self.columns = self._list_columns()

    def _list_columns(self) -> list[Column]:
        columns = [Column("prompt")]
        if self._has_groups:
            columns.append(Column("confidence", "number"))
        if self._has_groups or self._data.pairs is not None:
            columns.append(Column("status", "choice"))
        if self._data.pairs is not None:
            columns += [Column("chosen"), Column("rejected")]
        if self._has_rewards:
            columns += [Column("reward of chosen", "number"), Column("reward of rejected", "number")]
        if self._data.answers is not None:
            if self._data.pairs is not None:
                columns.append(Column("label", "choice"))
            columns.append(Column("known answer", "text", "detail"))
        if self._has_completions:
            is_only = self._data.pairs is None and not self._has_groups
            columns.append(Column("completions", "texts", "cell" if is_only else "detail"))
        return columns

    def read(self, numbers: Sequence[int]) -> list[list[Any]]:
        """Returns the cells of rows."""
        rows = self._source.take(numbers)
        places = [self._pair_numbers.get(number) for number in numbers]
        found = [place for place in places if place is not None]
        pairs = iter(() if self._data.pairs is None else self._data.pairs.take(found))
        cells = []
        for number, row, place in zip(numbers, rows, places, strict=True):
            pair = next(pairs) if place is not None else None
            if self._data.prompts is None:
                pair = row if not row.get("reason") else None
            cells.append(self._build_cells(number, row, pair))
        return cells

    def _build_cells(self, number: int, row: dict[str, Any], pair: dict[str, Any] | None) -> list[Any]:
        place = row.get(ROW_NUMBER, number) if self._data.prompts is None else number
        answers = None if self._data.answers is None or place is None else self._data.answers[place]
        values = {
            "prompt": plain_text(row.get("prompt")),
            "confidence": row.get("confidence"),
            "status": _find_status(row, pair, self._data.threshold),
            "chosen": None if pair is None else plain_text(pair.get("chosen")),
            "rejected": None if pair is None else plain_text(pair.get("rejected")),
            "reward of chosen": None if pair is None else pair.get("chosen_reward"),
            "reward of rejected": None if pair is None else pair.get("rejected_reward"),
            "label": None if pair is None or answers is None else _judge_label(pair, answers),
            "known answer": None if answers is None else _join_answers(answers),
            "completions": label_completions(row, answers),
        }
        return [values[column.name] for column in self.columns]


def _find_status(row: dict[str, Any], pair: dict[str, Any] | None, threshold: float | None) -> str:
    """Returns why a prompt has no pair, as far as its row says."""
    if pair is not None:
        return ACCEPTED
    if row.get("reason"):
        return str(row["reason"]).replace("_", " ")
    confidence, groups = row.get("confidence"), row.get("cluster_ids")
    if confidence is None or groups is None:
        return "no pair"
    if threshold is not None and confidence < threshold:
        return "below γ"
    members = find_largest_group(groups)
    if len(members) == len(groups):
        return "all agree"
    return "single member" if len(members) == 1 else "no pair"


def _judge_label(pair: dict[str, Any], answers: Any) -> str:
    ((chosen, rejected),) = find_right_sides([pair], [answers])
    if chosen != rejected:
        return "right" if chosen else "wrong"
    return "both sides right" if chosen else "neither side right"


def _join_answers(answers: Any) -> str:
    return plain_text(answers) if isinstance(answers, str) else " | ".join(map(plain_text, answers))


def label_completions(
    row: dict[str, Any], answers: Any = None, rewards: dict[str, Any] | None = None
) -> list[list[str]]:
    """
    Adds to each completion of a row what is known about it.

    Args:
        row (`dict`):
            A row with `completions`, and optionally `finished` and `cluster_ids`.
        answers (`str` or `list[str]`, *optional*):
            Known answers.
        rewards (`dict[str, list[float]]`, *optional*):
            Rewards of the completions, by reward model.

    Returns:
        `list[list[str]]`: Text and label of each completion.
    """
    labeled = []
    groups, finished = row.get("cluster_ids") or [], row.get("finished") or []
    for index, completion in enumerate(row.get("completions") or []):
        text, parts = plain_text(completion), []
        if index < len(groups):
            parts.append("no group" if groups[index] == -1 else f"group {groups[index]}")
        if index < len(finished) and not finished[index]:
            parts.append("unfinished")
        if answers is not None:
            parts.append("right" if is_correct(text, answers) else "wrong")
        for name, values in (rewards or {}).items():
            parts.append(f"{name} {values[index]:.3f}")
        labeled.append([text, " · ".join(parts)])
    return labeled


def build_anchor_section(anchors: Rows) -> Section:
    """
    Builds the table of the anchors that `trl-rlp anchors` made.

    Args:
        anchors ([`Rows`]):
            Rows of anchors.

    Returns:
        [`Section`]: The table.
    """
    columns = [
        Column("prompt"),
        Column("confidence", "number"),
        Column("status", "choice"),
        Column("anchor"),
        Column("members", "texts", "detail"),
    ]

    def read(numbers: Sequence[int]) -> list[list[Any]]:
        return [
            [
                plain_text(row.get("prompt")),
                row.get("confidence"),
                "anchor" if not row.get("reason") else str(row["reason"]).replace("_", " "),
                plain_text(row.get("anchor")),
                [[plain_text(member), ""] for member in row.get("members") or []],
            ]
            for row in anchors.take(numbers)
        ]

    text = "An anchor is the majority answer of the initial policy. Anchors are not the paper's."
    return Section("Anchors", [Text(text), RowTable("anchors", columns, len(anchors), read)])
