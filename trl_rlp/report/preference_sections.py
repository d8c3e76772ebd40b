"""The sections about prompts: acceptance, labels, groups and pairs, and anchors."""

from collections.abc import Mapping, Sequence
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
        [`Section`] or `None`: `None` if no prompt has a confidence. Preferences alone have only the confidences of
        prompts with a pair, so they cannot say which share of the prompts that is.
    """
    bounds = None if data.prompts is None else _read_bounds(data.prompts)
    if bounds is None:
        return None
    pairs = [] if data.pairs is None else _list_pairs(data.pairs)
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
        elements.append(Text(_describe_counts(data.counts)))
    return Section(title, elements)


def _list_pairs(pairs: Rows) -> list[dict[str, Any]]:
    """Returns the pairs with a confidence."""
    return [row for row in pairs.take(range(len(pairs))) if row.get("confidence") is not None]


def _describe_counts(counts: Mapping[str, int]) -> str:
    reasons = ", ".join(f"{reason.replace('_', ' ')}: {count:,}" for reason, count in counts.items())
    return f"Prompts without a pair, by reason: {reasons}."


def _read_bounds(prompts: Rows) -> tuple[list[float], list[float]] | None:
    """Returns bounds on the confidence of each prompt."""
    if "confidence" not in prompts.names:
        return None
    lower = prompts.column("confidence")
    upper = prompts.column("confidence_upper") if "confidence_upper" in prompts.names else lower
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


def name_prompt_section(data: Round) -> str:
    """
    Returns the heading of [`build_prompt_section`].

    Args:
        data ([`Round`]):
            Samples and preferences.

    Returns:
        `str`: For example "Prompts, groups and pairs".
    """
    if data.prompts is None:
        return "Synthetic preferences"
    parts = ["groups"] if _has_values(data.prompts, "confidence") else []
    parts += ["pairs"] if data.pairs is not None else []
    *first, last = parts or ["completions"]
    return f"{', '.join(['Prompts', *first])} and {last}"


def build_prompt_section(data: Round, name: str, title: str) -> Section | None:
    """
    Builds the table of prompts with their confidences, groups and pairs. Of preferences alone, it has the pairs.

    Args:
        data ([`Round`]):
            Samples and preferences.
        name (`str`):
            Identifier of the table.
        title (`str`):
            Heading.

    Returns:
        [`Section`] or `None`: `None` if there are neither rows nor counts.
    """
    reader = _PromptReader(data)
    elements: list[Element] = []
    if data.prompts is None:
        if data.counts:
            elements.append(Text(_describe_counts(data.counts)))
        if reader.size:
            text = "A row is a pair. Prompts without a pair are not saved here, so there is no curve of acceptance."
            elements.append(Text(text))
    elif reader.has_groups:
        elements.append(
            Text("Open a row to see all completions and their groups. Completions of a group have the same meaning.")
        )
    if reader.size:
        elements.append(Text("Characters that cannot be seen are shown by their names, such as ⟨U+202E⟩."))
        elements.append(RowTable(name, reader.columns, reader.size, reader.read))
    return Section(title, elements) if elements else None


def _has_values(rows: Rows | None, name: str) -> bool:
    return rows is not None and name in rows.names and any(value is not None for value in rows.column(name))


def _find_pairs(pairs: Rows) -> list[int]:
    """Returns the numbers of the rows that are pairs. Shards also have rows that only say why there is no pair."""
    reasons = pairs.column("reason") if "reason" in pairs.names else [None] * len(pairs)
    return [number for number, reason in enumerate(reasons) if not reason]


class _PromptReader:
    """Reads the rows of the table of prompts: from samples, or from pairs if there are no samples."""

    def __init__(self, data: Round):
        self._data = data
        self._pair_rows: dict[int, int] = {}
        if data.pairs is not None and data.prompts is not None and ROW_NUMBER in data.pairs.names:
            numbers = data.pairs.column(ROW_NUMBER)
            self._pair_rows = {number: row for row, number in enumerate(numbers) if number is not None}
        elif data.pairs is not None and data.prompts is None:
            self._pair_rows = dict(enumerate(_find_pairs(data.pairs)))
        self.size = len(self._pair_rows) if data.prompts is None else len(data.prompts)
        self.has_groups = _has_values(data.prompts, "confidence")
        self.columns = self._list_columns()

    def _list_columns(self) -> list[Column]:
        prompts, pairs = self._data.prompts, self._data.pairs
        columns = [Column("prompt")]
        if self.has_groups or prompts is None and _has_values(pairs, "confidence"):
            columns.append(Column("confidence", "number"))
        if prompts is not None and pairs is not None:
            columns.append(Column("status", "choice"))
        if pairs is not None:
            columns += [Column("chosen"), Column("rejected")]
        if _has_values(pairs, "chosen_reward"):
            columns += [Column("reward of chosen", "number"), Column("reward of rejected", "number")]
        if self._data.answers is not None:
            if pairs is not None:
                columns.append(Column("label", "choice"))
            columns.append(Column("known answer", "text", "detail"))
        if prompts is not None and "completions" in prompts.names:
            is_only = pairs is None and not self.has_groups
            columns.append(Column("completions", "texts", "cell" if is_only else "detail"))
        return columns

    def read(self, numbers: Sequence[int]) -> list[list[Any]]:
        """Returns the cells of rows."""
        with_pair = [number for number in numbers if number in self._pair_rows]
        taken = [] if self._data.pairs is None else self._data.pairs.take([self._pair_rows[n] for n in with_pair])
        pairs = dict(zip(with_pair, taken, strict=True))
        if self._data.prompts is None:
            return [self._build_cells(number, pairs[number], pairs[number]) for number in numbers]
        rows = zip(numbers, self._data.prompts.take(numbers), strict=True)
        return [self._build_cells(number, row, pairs.get(number)) for number, row in rows]

    def _build_cells(self, number: int, row: dict[str, Any], pair: dict[str, Any] | None) -> list[Any]:
        answers = None if self._data.answers is None else self._data.answers[number]
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
