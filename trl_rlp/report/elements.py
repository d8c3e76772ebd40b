"""The elements of a page: texts, tables, figures, and tables of rows that can be searched."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Text:
    """
    A paragraph.

    Args:
        text (`str`):
            The sentences.
        is_caution (`bool`, *optional*, defaults to `False`):
            Whether the paragraph is highlighted.
    """

    text: str
    is_caution: bool = False


@dataclass(frozen=True)
class Table:
    """
    A small table.

    Args:
        columns (`Sequence[str]`):
            Names of the columns.
        rows (`Sequence[Sequence]`):
            Cells: texts, numbers, or `None` for an unknown value.
        summary (`str`, *optional*):
            Line that the table is folded under. A table without it is always visible.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    summary: str | None = None

    @cached_property
    def are_numbers(self) -> list[bool]:
        """Whether all cells of each column are numbers or unknown. Such columns are aligned on the right."""
        return [
            all(row[column] is None or isinstance(row[column], int | float) for row in self.rows)
            for column in range(len(self.columns))
        ]


@dataclass(frozen=True)
class Image:
    """
    A plot.

    Args:
        svg (`str`):
            The SVG document.
        title (`str`):
            What the plot is, for readers who cannot see it.
    """

    svg: str
    title: str


@dataclass(frozen=True)
class Figure:
    """
    Plots with one caption.

    Args:
        images (`Sequence[Image]`):
            The plots.
        shows (`str`):
            Sentence that says what the plots show.
        limits (`str`):
            Sentence that says what they cannot show.
    """

    images: Sequence[Image]
    shows: str
    limits: str


KINDS = ("text", "number", "choice", "texts")
"""Kinds of columns of rows. A `choice` gets a filter. `texts` are pairs of a text and a label."""

PLACES = ("cell", "detail", "option")
"""Where a column is shown: always, in the opened row only, or if the reader selects it among the others."""


@dataclass(frozen=True)
class Column:
    """
    A column of rows.

    Args:
        name (`str`):
            Name of the column.
        kind (`str`, *optional*, defaults to `"text"`):
            One of [`KINDS`].
        place (`str`, *optional*, defaults to `"cell"`):
            One of [`PLACES`].
    """

    name: str
    kind: str = "text"
    place: str = "cell"


@dataclass(frozen=True)
class RowTable:
    """
    A table of many rows, which the reader searches, filters, sorts and opens in the page.

    Args:
        name (`str`):
            Identifier on the page.
        columns (`Sequence[Column]`):
            The columns.
        size (`int`):
            Number of rows.
        read (`Callable[[Sequence[int]], list[list]]`):
            Returns the cells of the rows with these numbers, in the order of the columns.
    """

    name: str
    columns: Sequence[Column]
    size: int
    read: Callable[[Sequence[int]], list[list[Any]]] = field(repr=False)


Element = Text | Table | Figure | RowTable


@dataclass(frozen=True)
class Section:
    """
    A part of the page.

    Args:
        title (`str`):
            Heading.
        elements (`Sequence[Element]`):
            What stands below it, in order.
    """

    title: str
    elements: Sequence[Element]
