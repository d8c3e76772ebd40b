import bz2
import gzip
import json
import lzma
import os
import zipfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset, List, Value

from trl_rlp.storage.data_files import COMPRESSIONS, looks_like_data_file, read_dataset, read_rows


ROWS = [{"prompt": "1945-09-02", "answers": ["007", "NA"]}, {"prompt": "é", "answers": []}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def write_zstandard(path, data):
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        file.write(data)


def write_zip(path, data):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/", b"")
        archive.writestr("folder/rows.jsonl", data)


def write_with(opener):
    def write(path, data):
        with opener(path, "wb") as file:
            file.write(data)

    return write


WRITERS = {
    "gz": write_with(gzip.open),
    "bz2": write_with(bz2.open),
    "xz": write_with(lzma.open),
    "zst": write_zstandard,
    "zip": write_zip,
}


def test_every_compression_has_a_writer():
    assert len(WRITERS) == len(COMPRESSIONS)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.ndjson", "rows.txt", "rows"])
def test_json_lines_are_read_under_any_name(tmp_path, name):
    (tmp_path / name).write_text(LINES, encoding="utf-8")
    assert read_dataset(tmp_path / name).to_list() == read_rows(tmp_path / name) == ROWS


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_a_list_of_objects_is_read(tmp_path, name):
    (tmp_path / name).write_text(f"\n\n  {json.dumps(ROWS, indent=2)}", encoding="utf-8")
    assert read_dataset(tmp_path / name).to_list() == ROWS


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("named", [True, False])
def test_compressed_files_are_read(tmp_path, suffix, named):
    path = tmp_path / (f"rows.jsonl.{suffix}" if named else "rows.jsonl")
    WRITERS[suffix](path, LINES.encode())
    assert read_dataset(path).to_list() == ROWS


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_compressed_file_that_is_cut_is_named(tmp_path, suffix):
    path = tmp_path / f"rows.jsonl.{suffix}"
    WRITERS[suffix](path, os.urandom(1000).hex().encode())
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ValueError, match=rf"rows.jsonl.{suffix}' is damaged or incomplete"):
        read_dataset(path)


def test_an_archive_of_several_files_is_an_error(tmp_path):
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as archive:
        archive.writestr("a.jsonl", LINES)
        archive.writestr("b.jsonl", LINES)
    with pytest.raises(ValueError, match="rows.zip' holds 2 files. Extract it"):
        read_dataset(tmp_path / "rows.zip")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_files_with_a_byte_order_mark_are_read(tmp_path, encoding):
    (tmp_path / "rows.jsonl").write_text(LINES, encoding=encoding)
    assert read_dataset(tmp_path / "rows.jsonl").to_list() == ROWS
    (tmp_path / "rows.csv").write_text("prompt,n\né,1\n", encoding=encoding)
    assert read_dataset(tmp_path / "rows.csv").to_list() == [{"prompt": "é", "n": "1"}]


@pytest.mark.parametrize(("name", "header"), [("rows.jsonl", '{"prompt": "a"}'), ("rows.csv", "prompt")])
def test_text_that_is_not_utf_8_is_named_with_its_line(tmp_path, name, header):
    (tmp_path / name).write_text(f'{header}\n{{"prompt": "é"}}\n', encoding="latin-1")
    with pytest.raises(ValueError, match=f"{name}' is not text in line 2 .*Save it as UTF-8"):
        read_dataset(tmp_path / name)


def test_the_cells_of_a_csv_file_are_text(tmp_path):
    """Types that are guessed would change `007` to 7, and `NA` and `None` to missing values."""
    cells = 'prompt,answers,n\n"a, ""b""\nc",007,1\n1945-09-02,NA,\n,None,12345678901234567890\n'
    expected = [
        {"prompt": 'a, "b"\nc', "answers": "007", "n": "1"},
        {"prompt": "1945-09-02", "answers": "NA", "n": None},
        {"prompt": None, "answers": "None", "n": "12345678901234567890"},
    ]
    (tmp_path / "rows.csv").write_text(cells)
    with gzip.open(tmp_path / "rows.CSV.gz", "wt") as file:
        file.write(cells)
    (tmp_path / "rows.tsv").write_text("prompt\tanswers\na,b\t007\n")
    assert read_dataset(tmp_path / "rows.csv").to_list() == read_rows(tmp_path / "rows.CSV.gz") == expected
    assert read_dataset(tmp_path / "rows.csv").features["prompt"].dtype == "string"  # as in other formats
    assert read_dataset(tmp_path / "rows.tsv").to_list() == [{"prompt": "a,b", "answers": "007"}]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("prompt,n\na,1\nb,2,3\n", "is not a table .*line 3, saw 3.* Write cells that hold ',' in quotes"),
        ("prompt,n\na,1,2\nb,2,3\n", "has rows with more cells than columns"),
        ('prompt,n\na,"1\n', "is not a table"),
        ("prompt,n\n", "is empty. Write at least one row"),
        ("", "is empty. Write the names of the columns"),
    ],
)
def test_a_broken_csv_file_is_named(tmp_path, text, match):
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(ValueError, match=f"rows.csv' {match}"):
        read_dataset(tmp_path / "rows.csv")


def test_parquet_and_arrow_files_are_read(tmp_path):
    rows = Dataset.from_list(ROWS)
    rows.to_parquet(tmp_path / "rows.parquet")
    rows.save_to_disk(tmp_path / "saved")
    (stream,) = (tmp_path / "saved").glob("*.arrow")
    table = rows.data.table
    with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    WRITERS["gz"](tmp_path / "rows.parquet.gz", (tmp_path / "rows.parquet").read_bytes())
    for path in (tmp_path / "rows.parquet", stream, tmp_path / "rows.arrow", tmp_path / "rows.parquet.gz"):
        assert read_dataset(path).to_list() == read_rows(path) == ROWS


def test_the_nullable_integers_of_pandas_stay_integers(tmp_path):
    pd.DataFrame({"n": pd.array([1, None], "Int64")}).to_parquet(tmp_path / "rows.parquet")
    assert read_dataset(tmp_path / "rows.parquet").to_list() == [{"n": 1}, {"n": None}]


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow"])
def test_a_damaged_table_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"PAR1" + bytes(100) if name == "rows.parquet" else b"\xff\xff\xff\xff" + bytes(9))
    with pytest.raises(ValueError, match=f"{name}' is (damaged or incomplete|empty)"):
        read_dataset(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"a": 1}\n' * 999 + '{"a": \n' + '{"a": 1}\n', r"is not JSON \(line 1000, column 7: Expecting value\)"),
        ('{"a": 1}\n\n{"a": "b', "is not JSON .line 3, column 7: Unterminated string"),
        ('\n[\n{"a": 1},\n{"a" 2}]', "is not JSON .line 4, column 6: "),
        ('{\n"a": 1\n}', "is not JSON .line 1, .* Write one JSON object per line, or one list of objects"),
        ('{"a": 1}\n3\n', "has rows that are not objects, first in line 2"),
        ('[{"a": 1}, 3]', "has rows that are not objects, first in row 1"),
        ('{"a": ' + "1" * 5000 + "}", "is not JSON .line 1: Exceeds the limit"),
        ('{"a": ' * 100_000, "is not JSON .line 1: maximum recursion depth"),
        ("\n \n", "is empty"),
        ("[]", "is empty"),
    ],
)
def test_a_broken_json_file_is_named_with_the_line(tmp_path, text, match):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(ValueError, match=f"rows.jsonl' {match}"):
        read_dataset(tmp_path / "rows.jsonl")


def test_large_integers_and_numbers_that_are_not_finite_are_read_exactly(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        '{"id": 12345678901234567890, "x": NaN, "n": 1}\n{"id": null, "x": -Infinity, "n": null}\n'
    )
    first, second = read_dataset(tmp_path / "rows.jsonl").to_list()
    assert first["id"] == 12345678901234567890 and second["id"] is None
    assert first["x"] != first["x"] and second["x"] == float("-inf")
    assert (first["n"], second["n"]) == (1, None)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (
            ["1", "18446744073709551616"],
            "an integer of more than 64 bits in the column `a`, line 2. Write it in quotes",
        ),
        (["12345678901234567890", "-1"], "an integer of more than 64 bits in the column `a`, line "),
        (["[1]", "[12345678901234567890]"], "an integer of more than 64 bits in the column `a`, line 2"),
        (["9007199254740993", "2.5"], "several kinds of values in one column: `a` changes its kind in line "),
        (['"x"', '"y"', '["z"]'], "several kinds of values in one column: `a` changes its kind in line 3"),
        (["1", '"y"', "2"], "several kinds of values in one column: `a` changes its kind in line 2"),
        (['"x"', '"\\ud83d"'], "half of a character in the column `a`, line 2"),
        (['{"x": 1}', '{"y": "\\ud83d"}'], "half of a character in the column `a`, line 2"),
        (['{"x": 1}', '{"y": 18446744073709551616}'], "an integer of more than 64 bits in the column `a`, line 2"),
    ],
)
def test_values_that_no_table_can_hold_are_named(tmp_path, values, match):
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"b": 1, "a": {value}}}\n' for value in values))
    with pytest.raises(ValueError, match=f"rows.jsonl' has {match}"):
        read_dataset(tmp_path / "rows.jsonl")
    assert len(read_rows(tmp_path / "rows.jsonl")) == len(values)


def test_keys_that_appear_late_are_none_before(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"b": 2}\n{"a": 3, "c": [{"d": 1}]}\n{"c": [{"e": 2}]}\n')
    assert read_dataset(tmp_path / "rows.jsonl")[:] == {
        "a": [1, None, 3, None],
        "b": [None, 2, None, None],
        "c": [None, None, [{"d": 1}], [{"e": 2}]],
    }


def call(arguments) -> list[dict]:
    message = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    return [{"role": "user", "content": "7"}, message]


@pytest.mark.parametrize(
    "values",
    [
        [call({"a": 1}), call({"b": 1})],
        [call({"a": 1}), call({"a": "7"})],  # a text that is JSON stays text
        [call({"a": 1}), None, call({"a": 2.5, "b": 1e-12})],
        [call('{"a": 1}'), call({"a": None})],
        [[{"function": {"name": "f"}}], [{"function": {"name": "g"}, "strict": True}]],
        [{"enable_thinking": False}, {"date": "2024-01-02"}, {}],
    ],
)
def test_dicts_are_as_in_the_file(tmp_path, values):
    """Structs fill in the keys of other rows, so a template would write `"b": null` into a call."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"a": value}) + "\n" for value in values))
    assert [str(value) for value in read_dataset(tmp_path / "rows.jsonl")["a"]] == [str(value) for value in values]


def test_plain_messages_keep_their_struct(tmp_path):
    named = {"role": "user", "content": "x", "name": "Ann"}
    rows = [[named], [{"role": "user", "content": "y"}]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"a": row}) + "\n" for row in rows))
    assert read_dataset(tmp_path / "rows.jsonl").features["a"] == List({name: Value("string") for name in named})


@pytest.mark.parametrize(
    ("name", "expected"),
    [("rows.jsonl", True), ("rows.CSV.gz", True), ("rows.gz", False), ("org/name", False), ("org/name.v2", False)],
)
def test_the_suffix_tells_files_from_hub_names(name, expected):
    assert looks_like_data_file(name) == expected


def test_the_operating_systems_errors_stay(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_dataset(Path(tmp_path / "no.jsonl"))
