"""The rows that a page holds, as JSON that no browser runs. If they are too large, a random sample of them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trl_rlp.data.hidden_characters import show_hidden
from trl_rlp.report.elements import RowTable
from trl_rlp.report.visible_text import cut_text


SEED = 0
"""Seed of the sample of rows."""

_ROWS_AT_ONCE = 500
_ROWS_PER_ESTIMATE = 20


@dataclass(frozen=True)
class EmbeddedRows:
    """
    Rows as JSON.

    Args:
        json (`str`):
            An object with `columns` and `rows`, in ASCII and without `<`.
        shown (`int`):
            Number of rows in it.
        total (`int`):
            Number of rows that there are.
    """

    json: str
    shown: int
    total: int

    @property
    def is_sampled(self) -> bool:
        """Whether rows are missing."""
        return self.shown < self.total


def embed_tables(tables: Sequence[RowTable], max_bytes: int) -> dict[str, EmbeddedRows]:
    """
    Converts tables to JSON that is not larger than a limit.

    A table that is too large is sampled. Small tables come first, so a large one gets what they leave.

    Args:
        tables (`Sequence[RowTable]`):
            The tables.
        max_bytes (`int`):
            Largest size of all of them.

    Returns:
        `dict[str, EmbeddedRows]`: The rows of each table, by its name.
    """
    embedded = {}
    waiting = sorted(tables, key=_estimate_bytes)
    while waiting:
        table, share = waiting[0], max_bytes // len(waiting)
        embedded[table.name] = _embed(table, share)
        max_bytes -= len(embedded[table.name].json)
        waiting = waiting[1:]
    return embedded


def _embed(table: RowTable, max_bytes: int) -> EmbeddedRows:
    columns = encode([[_prepare_cell(column.name), column.kind, column.place] for column in table.columns])
    order = np.random.default_rng(SEED).permutation(table.size).tolist()
    rows: dict[int, str] = {}
    size = len(columns) + len('{"columns":,"rows":[]}')
    for number, row in _encode_rows(table, order):
        size += len(row) + 1
        if size > max_bytes:
            break
        rows[number] = row
    text = f'{{"columns":{columns},"rows":[{",".join(rows[number] for number in sorted(rows))}]}}'
    return EmbeddedRows(text, len(rows), table.size)


def _encode_rows(table: RowTable, order: Sequence[int]) -> Iterator[tuple[int, str]]:
    for start in range(0, len(order), _ROWS_AT_ONCE):
        numbers = order[start : start + _ROWS_AT_ONCE]
        for number, cells in zip(numbers, table.read(numbers), strict=True):
            yield number, encode([_prepare_cell(cell) for cell in cells])


def _estimate_bytes(table: RowTable) -> float:
    if not table.size:
        return 0.0
    numbers = np.unique(np.linspace(0, table.size - 1, _ROWS_PER_ESTIMATE, dtype=int)).tolist()
    sizes = [len(row) for _, row in _encode_rows(table, numbers)]
    return table.size * float(np.mean(sizes))


def _prepare_cell(cell: Any) -> Any:
    """Makes texts visible, cuts long ones, and rounds numbers."""
    if isinstance(cell, str):
        return show_hidden(cut_text(cell))
    if isinstance(cell, list | tuple):
        return [_prepare_cell(entry) for entry in cell]
    if isinstance(cell, float):
        return float(f"{cell:.6g}") if np.isfinite(cell) else None
    return cell


def encode(value: Any) -> str:
    """
    Encodes a value as JSON for a `<script>` element that is not run.

    Args:
        value:
            Texts, numbers and lists.

    Returns:
        `str`: JSON in ASCII. Without the character `<`, no text can close the element or open a comment.
    """
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
