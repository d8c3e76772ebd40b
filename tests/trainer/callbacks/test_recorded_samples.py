"""Policy samples from recorded rollouts."""

import pytest
from datasets import Dataset

from tests.tiny_models import tiny_tokenizer
from trl_rlp.data.preferences.pairing import NoPairsError
from trl_rlp.data.preferences.views import ViewSampler
from trl_rlp.data.validation import require_samples
from trl_rlp.trainer.callbacks.recorded_samples import choose_count, have_views, select_equal_counts


def window(**completions: list[str]) -> Dataset:
    rows = [
        {"prompt": prompt, "completions": texts, "finished": [True] * len(texts), "rewards": [0.0] * len(texts)}
        for prompt, texts in completions.items()
    ]
    return Dataset.from_list(rows)


@pytest.mark.parametrize(
    "counts, expected",
    [
        ([2, 2], 2),
        ([4, 1, 4], 4),
        ([2, 8, 8], 8),  # 2 keeps 6 completions, and 8 keeps 16
        ([2, 2, 2, 3], 2),  # 2 keeps 8 completions, and 3 keeps 3
        ([2, 4], 4),  # both keep 4
        ([1, 1], None),
        ([], None),
    ],
)
def test_the_number_that_keeps_the_most_completions(counts, expected):
    assert choose_count(counts) == expected


def test_windows_are_joined_and_cut_to_the_last_completions():
    first, second = window(a=["1", "2"], b=["3"], c=["4", "5"]), window(a=["6"], b=["7"])
    samples = require_samples(select_equal_counts([first, second]))
    assert samples["prompt"][:] == ["a", "b", "c"]
    assert samples["completions"][:] == [["2", "6"], ["3", "7"], ["4", "5"]]
    assert samples.column_names == ["prompt", "completions", "finished"]


def test_columns_are_kept_and_messages_are_prompts():
    prompt = [{"role": "user", "content": "x"}]
    rows = [{"prompt": prompt, "question": "x?", "completions": ["1", "2"], "finished": [True, False]}]
    samples = select_equal_counts([Dataset.from_list(rows)] * 2, ["question"])
    assert samples["question"][:] == ["x?"] and samples["completions"][:] == [["1", "2", "1", "2"]]
    assert samples["finished"][:] == [[True, False, True, False]]


def test_a_window_of_single_completions_has_no_samples():
    with pytest.raises(NoPairsError, match="No prompt has two recorded completions"):
        select_equal_counts([window(a=["1"], b=["2"])])


@pytest.mark.parametrize(
    "texts, groups, expected",
    [
        ([["a", "b"], ["c", "d"]], None, True),
        ([["a", "b"], ["c", "c."]], None, False),  # equal after normalization
        ([["a", "b"], ["c", ""]], None, False),
        ([["a", "b"], ["c", "d"]], [[0, 0], [0, 0]], True),
        ([["a", "b"], ["c", "d"]], [[0, 0], [0, 1]], False),
        ([["a", "b"], ["c", "d"]], [[0, 0], [-1, -1]], False),
    ],
)
def test_it_says_whether_the_sampler_finds_views(texts, groups, expected):
    samples = Dataset.from_dict({"prompt": ["p", "q"], "completions": texts, "finished": [[True, True]] * 2})
    if groups is not None:
        samples = samples.add_column("cluster_ids", groups)
    assert have_views(samples, same_group=groups is not None) == expected
    try:
        ViewSampler(samples, tiny_tokenizer(), same_group=groups is not None)
        assert expected
    except ValueError:
        assert not expected
