import base64
import hashlib
import re

import pytest
from markupsafe import Markup

from trl_rlp.report import page as page_module
from trl_rlp.report.elements import Column, Figure, Image, RowTable, Section, Table, Text
from trl_rlp.report.embedded_rows import EmbeddedRows
from trl_rlp.report.page import describe_sample, format_cell, render_page


SECTION = Section(
    "Part <1>",
    [
        Text("a & b", is_caution=True),
        Table(("name", "value"), [["x", 0.12345], ["y", None]], "Folded"),
        Figure([Image("<svg/>", 'a "plot"')], "It shows this.", "It cannot show that."),
        RowTable("rows", [Column("text")], 1, lambda numbers: [["cell"] for _ in numbers]),
    ],
)


@pytest.fixture(scope="module")
def page():
    return render_page("Title <b>", [Text("lead")], [SECTION])[0]


def test_every_element_is_on_the_page_and_escaped(page):
    assert "<title>Title &lt;b&gt;</title>" in page and '<a href="#section-1">Part &lt;1&gt;</a>' in page
    assert '<p class="caution">a &amp; b</p>' in page
    assert (
        "<summary>Folded</summary>" in page and '<td class="n">0.123</td>' in page and '<td class="n">–</td>' in page
    )
    data = base64.b64encode(b"<svg/>").decode()
    assert f'<img alt="a &#34;plot&#34;" src="data:image/svg+xml;base64,{data}">' in page
    assert "It shows this. It cannot show that." in page
    assert '<div data-rows="rows-rows"></div>' in page and '"rows":[["cell"]]}</script>' in page


def test_the_policy_allows_only_the_script_and_the_style_of_the_package(page):
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.replace("&#39;", "'").split(";"))
    assert rules.pop("default-src") == "'none'" and rules.pop("img-src") == "data:"
    assert rules.pop("base-uri") == "'none'" and rules.pop("form-action") == "'none'"
    for rule, tag in (("style-src", "style"), ("script-src", "script")):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.S)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules.pop(rule) == f"'sha256-{digest}'"
    assert not rules
    assert page.index("Content-Security-Policy") < page.index("<title>")  # it holds for what comes after it


def test_the_page_loads_nothing(page):
    assert not re.search(r"https?://|@import|url\(|<link|<iframe| on\w+=| style=", page)


def build_table_section(rows, columns=("name", "value")):
    return Section("Settings", [Table(columns, rows, "Folded")])


def test_a_long_table_and_its_cells_are_cut_and_the_page_says_so(monkeypatch):
    """Each row has 2030 characters, so two rows fit into a twentieth of the page and not a third one."""
    monkeypatch.setattr(page_module, "MAX_BYTES", 100_000)
    section = build_table_section([["name", "&" * 400], ["long", "x" * 9000], *([["y" * 2000, "z"]] * 5)])
    page, notes = render_page("Title", [], [section])
    text = "5 of 7 rows of a table are left out, because a report is limited in size."
    assert f'<p class="caution">{text}</p>' in page and notes == [f"Settings: {text}"]
    assert "x" * 2000 + " … [cut here: 9,000 characters]" in page and "yyy" not in page
    assert len(page.encode()) <= 100_000


def test_plots_beyond_half_of_the_page_are_left_out(monkeypatch):
    monkeypatch.setattr(page_module, "MAX_BYTES", 100_000)
    figure = Figure([Image(f"<svg>{number}{'x' * 15_000}</svg>", "plot") for number in range(5)], "Shows.", "Not.")
    page, notes = render_page("Title", [], [Section("Plots", [figure])])  # 20 kB each in base64
    assert page.count("<img") == 2 and notes[0].startswith("Plots: 3 of 5 plots are left out")


def test_a_page_that_is_too_large_without_rows_is_an_error(monkeypatch):
    monkeypatch.setattr(page_module, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="The page would have 0 MB, more than 0. Move a part of the folder away"):
        render_page("Title", [], [])


def test_a_sampled_table_is_named():
    text = describe_sample(EmbeddedRows("", 12_345, 20_000))
    assert text.startswith("12,345 of 20,000 rows are on this page, drawn at random (seed 0)") and "50 MB" in text
    assert "filters and their counts are about the rows on this page" in text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Markup("\x1b"), Markup("\x1b")),
        ("\x1b", "⟨U+001B⟩"),
        (None, "–"),
        (0.0, "0.000"),
        (0.0246, "0.0246"),
        (1234.5678, "1234.568"),
        (3, 3),
        (["\x1b"], '["\\u001b"]'),
        (["\u202e"], '["⟨U+202E⟩"]'),
    ],
)
def test_cells_are_formatted(value, expected):
    assert format_cell(value) == expected
