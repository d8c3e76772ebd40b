import pytest
from datasets import Dataset, DatasetDict

from trl_rlp.data import validation
from trl_rlp.data.validation import (
    prompt_text,
    remove_format,
    require_answers,
    require_columns,
    require_encodable,
    require_one_split,
    require_preferences,
    require_prompts,
    require_samples,
    require_values,
)


def samples(**overrides):
    rows = {"prompt": ["a", "b"], "completions": [["x", "y"], ["z", ""]], "finished": [[True, True], [True, False]]}
    return Dataset.from_dict({**rows, **overrides})


def test_prompt_text_joins_the_contents_of_messages():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    assert prompt_text(messages) == "Be brief.\nWho?"
    assert prompt_text("Who?") == "Who?"


def test_valid_samples_pass():
    assert require_samples(samples())[:] == samples()[:]


@pytest.mark.parametrize(
    ("dataset", "error", "match"),
    [
        ([{"prompt": "a"}], TypeError, "`prompts` must be a `datasets.Dataset`, got `list`"),
        (
            Dataset.from_dict({"text": ["a"]}),
            ValueError,
            r"`prompts` lacks the columns \['prompt'\]. It has \['text'\]",
        ),
        (Dataset.from_dict({"prompt": []}), ValueError, "`prompts` is empty"),
        (Dataset.from_dict({"prompt": ["a", " \n"]}), ValueError, "`prompts` row 1 has an empty prompt"),
        (Dataset.from_dict({"prompt": [[{"role": "user", "content": ""}]]}), ValueError, "row 0 has an empty prompt"),
        (Dataset.from_dict({"prompt": [1]}), TypeError, "`prompt` must be text or a list of messages, .* got 1"),
        (Dataset.from_dict({"prompt": [["a"]]}), TypeError, r"row 0: `prompt` must be text .* got \['a'\]"),
        (Dataset.from_dict({"prompt": [[{"role": "user"}]]}), TypeError, "each with `role` and `content` as text"),
        (Dataset.from_dict({"prompt": ["a", None]}), TypeError, "row 1: `prompt` must be text .* got None"),
    ],
)
def test_bad_prompts_are_errors(dataset, error, match):
    with pytest.raises(error, match=match):
        require_prompts(dataset)


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ({"completions": [["x"], ["z"]], "finished": [[True], [True]]}, "has 1 completions per prompt"),
        ({"completions": [["x", "y"], ["z"]]}, "row 1 has 1 completions and row 0 has 2"),
        ({"finished": [[True, True], [True]]}, "row 1 has 2 completions but 1 entries in `finished`"),
    ],
)
def test_bad_samples_are_errors(overrides, match):
    with pytest.raises(ValueError, match=match):
        require_samples(samples(**overrides))


@pytest.mark.parametrize(
    "splits", [DatasetDict(train=samples(), test=samples()), {"train": [1], "test": [2]}], ids=type
)
def test_splits_instead_of_a_dataset_are_named(splits):
    message = rf"`data` is a `{type(splits).__name__}` with the splits \['train', 'test'\].*`data\['train'\]`"
    for check in (require_one_split, lambda dataset, name: require_columns(dataset, [], name)):
        with pytest.raises(TypeError, match=message):
            check(splits, "data")
    assert require_one_split(samples(), "data") is None


def test_missing_columns_are_listed_with_the_name_of_the_argument():
    with pytest.raises(ValueError, match=r"`preferences` lacks the columns \['chosen', 'rejected'\]"):
        require_columns(Dataset.from_dict({"prompt": ["a"]}), ["prompt", "chosen", "rejected"], "preferences")


@pytest.mark.parametrize(
    "overrides",
    [
        {"completions": [["x", "y"], ["z", None]]},
        {"completions": ["xy", "zz"]},
        {"finished": [True, False]},
        {"finished": [["yes", "no"], ["yes", "no"]]},
    ],
)
def test_samples_of_the_wrong_type_are_errors(overrides):
    with pytest.raises(TypeError, match="`completions` must be a list of texts and `finished` a list of booleans"):
        require_samples(samples(**overrides))


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"chosen": ["a", None], "rejected": ["b", "c"]}, "row 1: `chosen` must be text or a list of messages"),
        ({"chosen": ["a"], "rejected": [3]}, "row 0: `rejected` must be text or .* got 3"),
        ({"chosen": [[{"role": "user"}]], "rejected": [[{"role": "user"}]]}, "row 0: `chosen` must be"),
        ({"prompt": [None], "chosen": ["a"], "rejected": ["b"]}, "row 0: `prompt` must be"),
    ],
)
def test_pairs_of_the_wrong_type_are_errors(columns, match):
    with pytest.raises(TypeError, match=f"`preferences` {match}"):
        require_preferences(Dataset.from_dict(columns))


@pytest.mark.parametrize("answers", [["a", "b"], [["a"], ["b", "c"]]])
def test_answers_are_texts_or_lists_of_texts(answers):
    assert require_answers(Dataset.from_dict({"answers": answers}), "prompts") is None
    assert require_answers(Dataset.from_dict({"prompt": ["a"]}), "prompts") is None


@pytest.mark.parametrize("answers", [[3], ["a", None], [["a"], []], [["a", None]]])
def test_answers_of_the_wrong_type_are_errors(answers):
    with pytest.raises(TypeError, match="`prompts` row [01]: `answers` must be an accepted answer or a list of them"):
        require_answers(Dataset.from_dict({"answers": answers}), "prompts")


def test_a_message_with_tool_calls_or_thoughts_needs_no_content():
    question = {"role": "user", "content": "2 + 2?"}
    for keys in ({"tool_calls": [{"function": {"name": "add"}}]}, {"reasoning_content": "Add."}):
        prompt = [question, {"role": "assistant", "content": None, **keys}, {"role": "tool", "content": "4"}]
        rows = Dataset.from_list([{"prompt": prompt, "chosen": prompt[1:], "rejected": prompt[1:2]}])
        require_prompts(rows)
        require_preferences(rows)
        assert prompt_text(rows[0]["prompt"]) == "2 + 2?\n4"
    with pytest.raises(TypeError, match="`prompt` must be text or a list of messages"):
        require_prompts(Dataset.from_list([{"prompt": [{"role": "user", "content": None}]}]))


FORMATS = {
    "torch": lambda rows: rows.with_format("torch"),
    "numpy": lambda rows: rows.with_format("numpy"),
    "arrow": lambda rows: rows.with_format("arrow"),
    "columns": lambda rows: rows.with_format(columns=["prompt"]),
    "transform": lambda rows: rows.with_transform(dict),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_dataset_without_its_format_has_plain_values_and_the_original_keeps_its_format(kind):
    formatted = FORMATS[kind](samples())
    before = dict(formatted.format)
    for plain in (remove_format(formatted), require_samples(formatted)):
        assert plain[:] == samples()[:] and isinstance(plain[0]["finished"], list)
        assert plain.column_names == ["prompt", "completions", "finished"]
    assert formatted.format == before


def test_a_transform_is_applied_and_a_plain_dataset_is_returned_as_it_is():
    longer = samples().with_transform(lambda batch: {**batch, "prompt": [f"{text}!" for text in batch["prompt"]]})
    assert remove_format(longer)["prompt"][:] == ["a!", "b!"]
    plain = samples()
    assert remove_format(plain) is plain and remove_format(None) is None


def test_a_stream_loses_its_format():
    stream = Dataset.from_dict({"ids": [[1, 2]]}).to_iterable_dataset().with_format("torch")
    assert list(remove_format(stream)) == [{"ids": [1, 2]}]


def test_a_missing_value_is_named_by_its_row():
    rows = Dataset.from_dict({"prompt": ["a", "b", None], "chosen": ["a", None, "c"], "other": [None] * 3})
    with pytest.raises(ValueError, match="`pairs` row 2 has no `prompt`. Drop such rows"):
        require_values(rows, ["prompt", "missing"], "pairs")
    with pytest.raises(ValueError, match="`pairs` row 0 has no `chosen`"):
        require_values(rows.select([1, 2]), ["chosen"], "pairs")  # rows of the selection, not of the file
    require_values(rows.select([0]), ["prompt", "chosen"], "pairs")
    require_values(rows, ["missing"], "pairs")


@pytest.mark.parametrize("text", ["half \ud83d", "\udc00", [{"role": "user", "content": "\ud83d"}]])
def test_half_of_a_surrogate_pair_is_named(text):
    require_encodable(["whole \U0001f600", "", [{"role": "user", "content": "é"}]], "prompts")
    with pytest.raises(ValueError, match="`prompts` row 1 is no valid text. .* surrogate pair: .* Replace"):
        require_encodable(["whole", text], "prompts")


GOOD = {"prompt": ["a"] * 5, "completions": [["b", "c"]] * 5, "finished": [[True, False]] * 5}


@pytest.mark.parametrize(
    ("column", "value", "match"),
    [
        ("prompt", " ", "row 3 has an empty prompt"),
        ("prompt", "\u3000", "row 3 has an empty prompt"),
        ("prompt", None, "row 3: `prompt` must be text"),
        ("completions", ["b"], "row 3 has 1 completions and row 0 has 2"),
        ("completions", ["b", None], "row 3: `completions` must be a list of texts"),
        ("completions", None, "row 3: `completions` must be a list of texts"),
        ("finished", [True], "row 3 has 2 completions but 1 entries in `finished`"),
        ("finished", [True, None], "row 3: `completions` must be a list of texts and `finished`"),
    ],
)
def test_samples_are_checked_part_by_part(column, value, match, monkeypatch):
    """Row 3 is in the second of three parts of two rows."""
    monkeypatch.setattr(validation, "_ROWS_PER_CHECK", 2)
    samples = Dataset.from_dict(GOOD)
    assert require_samples(samples) is samples
    assert require_samples(samples.select([4, 3, 1])).num_rows == 3
    values = [*GOOD[column][:3], value, GOOD[column][4]]
    with pytest.raises((TypeError, ValueError), match=match):
        require_samples(Dataset.from_dict({**GOOD, column: values}))


@pytest.mark.parametrize("prompt", ["何ですか", "\u3000！", [{"role": "user", "content": "何"}]])
def test_prompts_in_any_script_are_not_empty(prompt):
    assert len(require_prompts(Dataset.from_dict({"prompt": [prompt]}))) == 1
