import pytest
from datasets import Dataset

from trl_rlp.data.validation import (
    prompt_text,
    require_answers,
    require_columns,
    require_preferences,
    require_prompts,
    require_samples,
)


def samples(**overrides):
    rows = {"prompt": ["a", "b"], "completions": [["x", "y"], ["z", ""]], "finished": [[True, True], [True, False]]}
    return Dataset.from_dict({**rows, **overrides})


def test_prompt_text_joins_the_contents_of_messages():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    assert prompt_text(messages) == "Be brief.\nWho?"
    assert prompt_text("Who?") == "Who?"


def test_valid_samples_pass():
    assert require_samples(samples()) is None


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
