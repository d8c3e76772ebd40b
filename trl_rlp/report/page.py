"""The page: one HTML file that loads nothing, and in which no text of a run can become markup or a script."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from trl_rlp.data.hidden_characters import show_hidden
from trl_rlp.report.elements import Element, Figure, Image, RowTable, Section, Table, Text
from trl_rlp.report.embedded_rows import SEED, EmbeddedRows, embed_tables
from trl_rlp.report.visible_text import cut_text, plain_text


MAX_BYTES = 50_000_000
"""Largest size of a page. Rows that do not fit are left out at random."""

MAX_CELL_CHARACTERS = 2000
"""Largest number of characters of a cell of a small table, such as a setting."""

_FOLDER = Path(__file__).parent
_SHARE_OF_PLOTS_AND_TABLES = 2
_SHARE_OF_A_TABLE = 20
"""Plots and small tables get at most this part of the page (a half), and a table this one (a twentieth)."""

_BYTES_AROUND_ROWS = 100
_BYTES_AROUND_CELL = 30


def render_page(title: str, lead: Sequence[Text], sections: Sequence[Section]) -> tuple[str, list[str]]:
    """
    Renders a page.

    A content security policy allows the one script and the one style sheet of this package, by their hashes, and
    images inside the page. Texts of the run reach the page as escaped text, or as JSON that its script shows with
    `textContent`.

    Args:
        title (`str`):
            Title of the page.
        lead (`Sequence[Text]`):
            Paragraphs below the title.
        sections (`Sequence[Section]`):
            The parts of the page. Equal sections give equal pages.

    Returns:
        `tuple[str, list[str]]`: The HTML text, and one sentence for each element of which only a part fits.

    Raises:
        ValueError: If the page is too large even without rows.
    """
    sections, notes = _limit_elements(sections)
    tables = [element for section in sections for element in section.elements if isinstance(element, RowTable)]
    without_rows = {table.name: EmbeddedRows("", 0, table.size) for table in tables}
    free = MAX_BYTES - len(_render(title, lead, sections, without_rows).encode()) - _BYTES_AROUND_ROWS * len(tables)
    embedded = embed_tables(tables, free)
    page = _render(title, lead, sections, embedded)
    if len(page.encode()) > MAX_BYTES:
        raise ValueError(
            f"The page would have {len(page.encode()) / 1e6:.0f} MB, more than {MAX_BYTES // 1_000_000}. Move a part "
            "of the folder away to report the rest."
        )
    return page, notes + [f"{name}: {describe_sample(rows)}" for name, rows in embedded.items() if rows.is_sampled]


def _render(
    title: str, lead: Sequence[Text], sections: Sequence[Section], embedded: Mapping[str, EmbeddedRows]
) -> str:
    style, script = ((_FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, finalize=format_cell
    )
    return environment.from_string((_FOLDER / "page.html").read_text(encoding="utf-8")).render(
        title=title,
        lead=lead,
        sections=sections,
        embedded=embedded,
        style=Markup(style),
        script=Markup(script),
        policy=_build_policy(style, script),
        kind_of=lambda element: type(element).__name__,
        as_data=lambda svg: Markup(_as_data(svg)),
        describe_sample=describe_sample,
    )


def _limit_elements(sections: Sequence[Section]) -> tuple[list[Section], list[str]]:
    """Leaves out rows of small tables and plots that need too much space. Returns also sentences about them."""
    limited, notes, free = [], [], MAX_BYTES // _SHARE_OF_PLOTS_AND_TABLES
    for section in sections:
        elements: list[Element] = []
        for element in section.elements:
            left_out = ""
            if isinstance(element, Table):
                rows = _limit_rows(element, min(free, MAX_BYTES // _SHARE_OF_A_TABLE))
                left_out = _describe_rest(len(rows), len(element.rows), "rows of a table")
                element, free = replace(element, rows=rows), free - sum(map(_count_bytes, rows))
            elif isinstance(element, Figure):
                images = _limit_images(element.images, free)
                left_out = _describe_rest(len(images), len(element.images), "plots")
                element, free = replace(element, images=images), free - sum(map(_count_image_bytes, images))
            elements.append(element)
            if left_out:
                elements.append(Text(left_out, is_caution=True))
                notes.append(f"{section.title}: {left_out}")
        limited.append(Section(section.title, elements))
    return limited, notes


def _describe_rest(kept: int, total: int, what: str) -> str:
    if kept == total:
        return ""
    return f"{total - kept:,} of {total:,} {what} are left out, because a report is limited in size."


def _limit_rows(table: Table, max_bytes: int) -> list[list[Any]]:
    rows = []
    max_bytes -= _count_bytes(table.columns)
    for row in table.rows:
        cells = [cut_text(cell, MAX_CELL_CHARACTERS) if isinstance(cell, str) else cell for cell in row]
        max_bytes -= _count_bytes(cells)
        if max_bytes < 0:
            break
        rows.append(cells)
    return rows


def _limit_images(images: Sequence[Image], max_bytes: int) -> list[Image]:
    kept = []
    for image in images:
        max_bytes -= _count_image_bytes(image)
        if max_bytes < 0:
            break
        kept.append(image)
    return kept


def _count_bytes(cells: Sequence[Any]) -> int:
    return sum(len(escape(format_cell(cell)).encode()) + _BYTES_AROUND_CELL for cell in cells)


def _count_image_bytes(image: Image) -> int:
    return len(_as_data(image.svg)) + _count_bytes([image.title])


def _build_policy(style: str, script: str) -> str:
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _as_data(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def describe_sample(rows: EmbeddedRows) -> str:
    """
    Describes which rows of a table are on the page.

    Args:
        rows ([`EmbeddedRows`]):
            Rows of which some are missing.

    Returns:
        `str`: A sentence with both numbers and the seed.
    """
    return (
        f"{rows.shown:,} of {rows.total:,} rows are on this page, drawn at random (seed {SEED}), because a report is "
        f"limited to {MAX_BYTES // 1_000_000} MB. Plots and tables of numbers are about all rows. Searches, filters "
        "and their counts are about the rows on this page."
    )


def format_cell(value: Any) -> Any:
    """
    Formats what a template prints.

    Args:
        value:
            Text, number, `None`, markup of this package, or any other value of JSON.

    Returns:
        Markup as it is. Other text is made visible and cut, a float has three decimals or three digits, and `None` is
        a dash.
    """
    if isinstance(value, Markup):
        return value
    if isinstance(value, str):
        return show_hidden(cut_text(value))
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) >= 0.1 or value == 0 else f"{value:#.3g}"
    return value if isinstance(value, int) else format_cell(plain_text(value))
