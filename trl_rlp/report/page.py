"""The page: one HTML file that loads nothing, and in which no text of a run can become markup or a script."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from trl_rlp.report.elements import Figure, RowTable, Section, Text
from trl_rlp.report.embedded_rows import SEED, EmbeddedRows, embed_tables
from trl_rlp.report.visible_text import cut_text, show_hidden


MAX_BYTES = 50_000_000
"""Largest size of a page. Rows that do not fit are left out at random."""

_FOLDER = Path(__file__).parent
_BYTES_BESIDE_ROWS = 1_000_000
"""More than the page needs for everything but rows and plots."""


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
        `tuple[str, list[str]]`: The HTML text, and one sentence for each table of which only a sample fits.
    """
    elements = [element for section in sections for element in section.elements]
    images = [image for element in elements if isinstance(element, Figure) for image in element.images]
    free = MAX_BYTES - _BYTES_BESIDE_ROWS - sum(len(_as_data(image.svg)) for image in images)
    embedded = embed_tables([element for element in elements if isinstance(element, RowTable)], free)
    style, script = ((_FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, finalize=format_cell
    )
    page = environment.from_string((_FOLDER / "page.html").read_text(encoding="utf-8")).render(
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
    return page, [f"{name}: {describe_sample(rows)}" for name, rows in embedded.items() if rows.is_sampled]


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
        f"limited to {MAX_BYTES // 1_000_000} MB. Plots and counts are those of all rows."
    )


def format_cell(value: Any) -> Any:
    """
    Formats what a template prints.

    Args:
        value:
            Text, number, `None`, or markup of this package.

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
    return value
