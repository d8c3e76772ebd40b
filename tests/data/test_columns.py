import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, Features, Json, List

from trl_rlp.data.columns import add_columns, flatten_samples, list_finished, read_columns, require_sample_columns


MESSAGES = [{"role": "user", "content": "a"}]
ROWS = {"prompt": [MESSAGES, MESSAGES], "completions": [["b", "c"], ["d"]], "finished": [[True, False], [True]]}


def as_ray_passes_it():
    """A batch of Ray Data with `batch_format="numpy"`: arrays of objects that hold arrays."""
    columns = {}
    for name, values in ROWS.items():
        columns[name] = np.empty(2, dtype=object)
        columns[name][:] = [np.array(value, dtype=None if name == "finished" else object) for value in values]
    return columns


BATCHES = {
    "lists": lambda: ROWS,
    "numpy": as_ray_passes_it,
    "arrow": lambda: pa.table(ROWS),
    "datasets": lambda: Dataset.from_dict(ROWS)[:],
}


@pytest.mark.parametrize("kind", BATCHES)
def test_every_kind_of_batch_is_read_as_plain_values(kind):
    columns = read_columns(BATCHES[kind]())
    assert columns == ROWS
    assert all(type(flag) is bool for flags in columns["finished"] for flag in flags)
    assert type(columns["prompt"][0]) is list and type(columns["completions"][0]) is list


def test_numbers_of_numpy_become_numbers_of_python():
    columns = read_columns({"sample_row": np.arange(2), "scores": [[np.float32(0.5)], []]})
    assert columns == {"sample_row": [0, 1], "scores": [[0.5], []]}
    assert type(columns["sample_row"][1]) is int and type(columns["scores"][0][0]) is float


def test_json_columns_of_a_table_are_decoded():
    rows = {"tools": [[{"name": "f"}], None, [{"x": 1}]], "kwargs": [{"a": "b"}, None, {"c": 1}]}
    features = Features({"tools": List(Json()), "kwargs": Json()})
    table = Dataset.from_dict(rows, features=features).with_format("arrow")[:]
    assert read_columns(table) == read_columns(table.replace_schema_metadata(None)) == rows


WRONG = [{"prompt": "one row"}, pd.DataFrame({"prompt": ["a"]}), [1], {"finished": torch.tensor([[True]])}]


@pytest.mark.parametrize("batch", WRONG)
def test_other_kinds_raise(batch):
    with pytest.raises(TypeError, match="`batch` must be columns by name .* Pass `batched=True` .* without a format"):
        read_columns(batch)


@pytest.mark.parametrize("kind", BATCHES)
def test_new_columns_replace_old_ones_in_the_form_of_the_batch(kind):
    types = {"ids": pa.list_(pa.int64())}
    once = add_columns(BATCHES[kind](), {"ids": [[0, 0], [1]]}, types)
    twice = add_columns(once, {"ids": [[2, 2], []]}, types)
    assert read_columns(twice) == {**ROWS, "ids": [[2, 2], []]}
    assert isinstance(twice, pa.Table) == (kind == "arrow")
    if kind == "arrow":
        assert twice.schema.field("ids").type == types["ids"]


@pytest.mark.parametrize(
    ("columns", "error", "match"),
    [
        ({"completions": None}, ValueError, r"The batch lacks the columns \['completions'\]. It has \['prompt', 'fin"),
        ({"completions": ["b"]}, TypeError, "Row 0 of the batch: `completions` must be a list of texts, got b"),
        ({"completions": [[]], "finished": [[]]}, ValueError, "Row 0 of the batch has no completions"),
        ({"prompt": [None]}, TypeError, "Row 0 of the batch: `prompt` must be text or a list of messages"),
        ({"finished": [None]}, TypeError, "Row 0 of the batch: `finished` must be a list of booleans, got None"),
        ({"finished": [[None]]}, TypeError, r"Row 0 of the batch: `finished` must be a list of booleans, got \[None"),
        ({"finished": [[]]}, ValueError, "Row 0 of the batch has 1 completions but 0 entries in `finished`"),
    ],
)
def test_rows_that_are_no_samples_raise(columns, error, match):
    columns = {"prompt": ["a"], "completions": [["b"]], "finished": [[True]], **columns}
    with pytest.raises(error, match=match):
        require_sample_columns({name: values for name, values in columns.items() if values is not None}, list(ROWS))


def test_samples_are_flattened_in_the_order_of_their_rows():
    columns = {
        "prompt": ["a", "b", "c"],
        "completions": [["1", "2"], [], ["3"]],
        "finished": [[True, False], [], [True]],
    }
    expected = (["a", "a", "c"], ["1", "2", "3"], [True, False, True])
    assert flatten_samples(columns) == flatten_samples(Dataset.from_dict(columns)) == expected


def test_only_a_false_flag_is_unfinished():
    columns = {"chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "chosen_finished": [None, False, True]}
    for pairs in (columns, Dataset.from_dict(columns)):
        assert list_finished(pairs, "chosen") == [True, False, True]
        assert list_finished(pairs, "rejected") == [True, True, True]
