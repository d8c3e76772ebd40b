import json

import pytest

from trl_rlp.report.elements import Column, RowTable
from trl_rlp.report.embedded_rows import embed_tables, encode


def build_table(name, size, text="x"):
    def read(numbers):
        return [[number, f"{text}{number}"] for number in numbers]

    return RowTable(name, [Column("number", "number"), Column("text")], size, read)


def read_rows(embedded):
    return json.loads(embedded.json)["rows"]


def test_all_rows_are_kept_in_order_if_they_fit():
    embedded = embed_tables([build_table("a", 1200)], 1_000_000)["a"]
    assert read_rows(embedded) == [[number, f"x{number}"] for number in range(1200)]
    assert (embedded.shown, embedded.total, embedded.is_sampled) == (1200, 1200, False)
    assert json.loads(embedded.json)["columns"] == [["number", "number", "cell"], ["text", "text", "cell"]]


def test_a_table_without_rows_is_kept():
    assert read_rows(embed_tables([build_table("a", 0)], 1000)["a"]) == []


def test_a_large_table_is_sampled_with_a_seed_and_leaves_the_small_one_whole():
    tables = [build_table("large", 1000, "y" * 90), build_table("small", 10)]
    embedded = embed_tables(tables, 20_000)
    assert embedded["small"].shown == 10
    assert sum(len(entry.json) for entry in embedded.values()) <= 20_000
    large = embedded["large"]
    assert large.is_sampled and 150 < large.shown < 200  # about 100 bytes per row
    numbers = [number for number, _ in read_rows(large)]
    assert numbers == sorted(numbers) and max(numbers) > 500  # not the first rows
    assert embed_tables(tables, 20_000)["large"].json == large.json


def test_texts_are_visible_and_cut_and_numbers_are_short():
    table = RowTable(
        "a",
        [Column("b\u202e")],
        1,
        lambda numbers: [["\x1b", "x" * 30_000, 1 / 3, float("nan"), None, [["\u202e", "b"]]]],
    )
    embedded = embed_tables([table], 1_000_000)["a"]
    (cells,) = read_rows(embedded)
    assert json.loads(embedded.json)["columns"] == [["b⟨U+202E⟩", "text", "cell"]]
    assert cells[0] == "⟨U+001B⟩" and cells[1].endswith("[cut here: 30,000 characters]")
    assert cells[2:] == [0.333333, None, None, [["⟨U+202E⟩", "b"]]]


@pytest.mark.parametrize("text", ["</script><!--", "\ud83d", "ü\u2028", "a\\b\"'"])
def test_no_text_can_end_the_element(text):
    encoded = encode([text])
    assert "<" not in encoded and encoded.isascii()
    assert json.loads(encoded) == [text]
