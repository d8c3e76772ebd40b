import logging
from collections import Counter

import pytest
from datasets import Dataset

from tests.tiny_models import tiny_tokenizer
from trl_rlp.data.preferences.views import ViewSampler
from trl_rlp.data.scoring import scoring_ids


COMPLETIONS = [
    ["one", "two", "three", "two."],
    ["same", "same.", "same ", ""],  # Only one text, so this prompt is skipped.
    ["a", "b", "", " "],
    ["x", "y", "z", "w"],
]
GROUPS = [[0, 1, 2, 1], [0, 0, 0, -1], [0, 0, -1, -1], [0, 1, 0, 1]]


def build_samples(form="text", **overrides):
    prompts = [f"p{row}" for row in range(4)]
    if form == "chat":
        prompts = [[{"role": "user", "content": prompt}] for prompt in prompts]
    columns = {"prompt": prompts, "completions": COMPLETIONS, "finished": [[True, True, False, True]] * 4}
    return Dataset.from_dict({**columns, **overrides})


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def decode_texts(tokenizer, view):
    """Decodes both completions of a view, without their prompt `p<row>` and EOS."""
    return tuple(tokenizer.decode(ids, skip_special_tokens=True)[2:] for ids in (view.first, view.second))


def test_each_round_of_slots_holds_every_prompt_once_in_another_order(tokenizer):
    sampler = ViewSampler(build_samples(), tokenizer)
    assert (len(sampler), sampler.skipped) == (3, 1)
    rounds = [
        tuple(view.prompt_index for view in sampler.views(epoch, range(3 * turn, 3 * turn + 3)))
        for epoch in range(4)
        for turn in range(4)
    ]
    assert all(sorted(prompts) == [0, 2, 3] for prompts in rounds)
    assert len(set(rounds)) > 3


def test_a_slot_depends_only_on_seed_epoch_and_slot(tokenizer):
    sampler = ViewSampler(build_samples(), tokenizer, seed=5)
    all_views = sampler.views(2, range(12))
    assert sampler.views(2, [7, 0, 11]) == [all_views[7], all_views[0], all_views[11]]
    assert ViewSampler(build_samples(), tokenizer, seed=5).views(2, range(12)) == all_views
    assert ViewSampler(build_samples(), tokenizer, seed=6).views(2, range(12)) != all_views
    assert sampler.views(3, range(12)) != all_views


def test_pairs_are_drawn_uniformly_and_in_both_orders_from_different_texts(tokenizer):
    sampler = ViewSampler(build_samples(), tokenizer)
    drawn = {0: Counter(), 2: Counter(), 3: Counter()}
    for view in sampler.views(0, range(3 * 600)):
        drawn[view.prompt_index][decode_texts(tokenizer, view)] += 1
    # Row 0: "two" and "two." are one text, which leaves 5 pairs in 2 orders. The expected count of each is 60, with a
    # standard deviation of 7.3.
    assert len(drawn[0]) == 10 and all(30 < count < 90 for count in drawn[0].values())
    assert ("two", "two.") not in drawn[0] and ("one", "two.") in drawn[0] and ("two.", "one") in drawn[0]
    # Row 2: empty completions are never views. Row 3: all 6 pairs.
    assert set(drawn[2]) == {("a", "b"), ("b", "a")}
    assert len(drawn[3]) == 12


@pytest.mark.parametrize("form", ["text", "chat"])
def test_views_are_tokenized_as_for_scoring(form, tokenizer):
    samples = build_samples(form)
    sampler = ViewSampler(samples, tokenizer)
    for view in sampler.views(0, range(30)):
        row = samples[view.prompt_index]
        completions = zip(row["completions"], row["finished"], strict=True)
        allowed = [scoring_ids(tokenizer, row["prompt"], text, finished) for text, finished in completions]
        assert view.first in allowed and view.second in allowed
    assert all(isinstance(token, int) for token in view.first)


def test_views_of_one_group_come_from_the_same_group(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        sampler = ViewSampler(build_samples(cluster_ids=GROUPS), tokenizer, same_group=True)
    # The only group of two in row 0 is "two" and "two.", which are one text. Row 1 has one text.
    assert (len(sampler), sampler.skipped) == (2, 2)
    assert "2 of 4 prompts do not have two different non-empty completions in one group" in caplog.text
    drawn = {decode_texts(tokenizer, view) for view in sampler.views(0, range(200))}
    assert drawn == {("a", "b"), ("b", "a"), ("x", "z"), ("z", "x"), ("y", "w"), ("w", "y")}
    assert "without a group" not in caplog.text  # The completions with -1 are empty.


def test_incomplete_groups_log_a_warning(tokenizer, caplog):
    groups = [[0, 0, 0, -1], *GROUPS[1:]]
    with caplog.at_level(logging.WARNING):
        sampler = ViewSampler(build_samples(cluster_ids=groups), tokenizer, same_group=True)
    assert "1 of 4 prompts have completions without a group" in caplog.text
    assert all("two." not in decode_texts(tokenizer, view) for view in sampler.views(0, range(100)))


def test_long_views_lose_the_beginning_of_their_prompt(tokenizer, caplog, monkeypatch):
    with caplog.at_level(logging.WARNING):
        monkeypatch.setattr("trl_rlp.data.preferences.views._ROWS_PER_CALL", 3)
        sampler = ViewSampler(build_samples(), tokenizer, max_length=5)
    views = [view for view in sampler.views(0, range(60)) if view.prompt_index == 0]
    assert {tokenizer.decode(view.first) for view in views} == {"0one<eos>", "0two<eos>", "three", "two.<eos>"}
    # With `p`, the row and EOS, the completions of rows 0 and 1 have 6 or 7 tokens, except for the empty one. Those of
    # rows 2 and 3 have at most 4 tokens. There is one count for both batches.
    (message,) = (record.message for record in caplog.records if "texts are longer" in record.message)
    assert message.startswith("7 of 16 texts are longer than `max_length`=5")


def test_samples_without_views_raise(tokenizer):
    with pytest.raises(
        ValueError, match="1 of 2 prompts have two different non-empty completions, but the loss compares"
    ):
        ViewSampler(build_samples().select([0, 1]), tokenizer)
    with pytest.raises(ValueError, match=r"`samples` lacks the columns \['cluster_ids'\]"):
        ViewSampler(build_samples(), tokenizer, same_group=True)
    with pytest.raises(ValueError, match="`seed` must be at least 0, got -3"):
        ViewSampler(build_samples(), tokenizer, seed=-3)


def test_views_of_equal_prompts_have_one_index_and_are_not_two_prompts():
    """The lower bounds compare views of different prompts. Rows 0 and 2 have the same one."""
    completions = [["1", "2"], ["3", "4"], ["5", "6"]]
    samples = Dataset.from_dict({"prompt": ["a", "b", "a"], "completions": completions, "finished": [[True] * 2] * 3})
    views = ViewSampler(samples, tiny_tokenizer()).views(0, [0, 1, 2])
    assert sorted(view.prompt_index for view in views) == [0, 0, 1]
    with pytest.raises(ValueError, match="1 of 2 prompts have two different non-empty completions, but the loss"):
        ViewSampler(samples.select([0, 2]), tiny_tokenizer())
