import functools

import pytest
from datasets import Dataset

from trl_rlp.data.sampling.ready_samples import (
    describe_source,
    find_answers,
    find_prompt_rows,
    load_source,
    take_samples,
)


PROMPTS = Dataset.from_dict(
    {"prompt": ["a", "b", "a", "c"], "answers": [["1"], ["2"], ["3"], ["4"]], "source": list("wxyz")}
)
CHATS = Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in "ab"]})


def samples_of(prompts, **columns):
    size = len(prompts)
    return Dataset.from_dict(
        {"prompt": prompts, "completions": [["x", "y"]] * size, "finished": [[True, False]] * size, **columns}
    )


def test_rows_of_equal_prompts_are_found_in_order():
    assert find_prompt_rows(samples_of(["c", "a", "a"]), PROMPTS, "samples") == [3, 0, 2]
    assert find_answers(samples_of(["c", "a", "a"]), PROMPTS) == [["4"], ["1"], ["3"]]
    assert find_answers(samples_of(["c"]), PROMPTS.remove_columns("answers")) is None


def test_chats_are_found_whatever_keys_a_file_has_filled_in():
    filled = [[{"role": "user", "content": "b", "tool_calls": None}]]
    assert find_prompt_rows(samples_of(filled), CHATS, "samples") == [1]


def test_ready_samples_get_the_columns_of_their_prompts(tmp_path):
    ready = samples_of(["b", "a"], confidence=[0.5, 1.0])
    taken = take_samples(load_source(ready, PROMPTS), PROMPTS, ["source"], None)
    assert taken.to_list() == [
        {"prompt": text, "completions": ["x", "y"], "finished": [True, False], "source": source}
        for text, source in (("b", "x"), ("a", "w"))
    ]
    path = tmp_path / "samples.jsonl"
    ready.to_json(path)
    assert load_source(str(path), PROMPTS).to_list() == ready.to_list()
    assert load_source(path, PROMPTS).to_list() == ready.to_list()


def test_a_function_gets_the_prompts_and_its_samples_are_checked():
    seen = []

    def sample(prompts):
        seen.append(prompts.column_names)
        return samples_of(prompts["prompt"][:])

    assert take_samples(load_source(sample, PROMPTS), PROMPTS, ["source"], None)["source"][:] == list("wxyz")
    assert seen == [["prompt", "source"]]
    with pytest.raises(ValueError, match=r"`policy_samples` lacks the columns \['finished'\]"):
        take_samples(lambda prompts: samples_of(["a"]).remove_columns("finished"), PROMPTS, [], None)


def test_samples_of_chats_get_the_arguments_of_the_template():
    taken = take_samples(samples_of(CHATS["prompt"][:]), CHATS, [], {"enable_thinking": False})
    assert taken["chat_template_kwargs"][:] == [{"enable_thinking": False}] * 2


@pytest.mark.parametrize(
    ("source", "match"),
    [
        (samples_of(["a", "d"]), "`policy_samples` row 1 has a prompt that is not among the prompts U: 'd'"),
        (samples_of(["a"]).remove_columns("completions"), r"`policy_samples` lacks the columns \['completions'\]"),
        (5, "`policy_samples` must be a `datasets.Dataset`, a file or folder, or a function .* got `int`"),
    ],
)
def test_bad_sources_are_errors(source, match):
    with pytest.raises((TypeError, ValueError), match=match):
        load_source(source, PROMPTS)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_source(tmp_path / "none.jsonl", PROMPTS)


class Sampler:
    def __call__(self, prompts):
        return samples_of(prompts["prompt"][:])


class NamedSampler(Sampler):
    fingerprint = "seed 7"


def test_sources_are_recognized_in_a_resumed_run():
    assert describe_source(None) is None
    assert describe_source(samples_of(["a"])) == describe_source(samples_of(["a"])) != describe_source(samples_of("b"))
    assert describe_source(samples_of).endswith("test_ready_samples.samples_of")
    assert describe_source(Sampler()).endswith("test_ready_samples.Sampler")
    assert describe_source(NamedSampler()) == "seed 7"
    assert describe_source(functools.partial(samples_of)) == "functools.partial"
