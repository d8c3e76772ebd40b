import logging
from collections import Counter

import pytest
from datasets import Dataset

from tests.tiny_models import tiny_tokenizer
from trl_rlp.data.preferences.views import ViewSampler
from trl_rlp.data.scoring import scoring_ids


COMPLETIONS = [
    ["one", "two", "three", "two."],
    ["same", "Same", "same!", ""],  # one text only: skipped
    ["a", "b", "", " "],
    ["x", "y", "z", "w"],
]
GROUPS = [[0, 1, 2, 1], [0, 0, 0, -1], [0, 0, -1, -1], [0, 1, 0, 1]]


def samples(form="text", **overrides):
    prompts = [f"p{row}" for row in range(4)]
    if form == "chat":
        prompts = [[{"role": "user", "content": prompt}] for prompt in prompts]
    columns = {"prompt": prompts, "completions": COMPLETIONS, "finished": [[True, True, False, True]] * 4}
    return Dataset.from_dict({**columns, **overrides})


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def texts(tokenizer, view):
    """Both outputs of a view, without their prompt `p<row>` and EOS."""
    return tuple(tokenizer.decode(ids, skip_special_tokens=True)[2:] for ids in (view.first, view.second))


def test_each_round_of_slots_holds_every_instruction_once_in_another_order(tokenizer):
    sampler = ViewSampler(samples(), tokenizer)
    assert (len(sampler), sampler.skipped) == (3, 1)
    rounds = [
        tuple(view.instruction for view in sampler.views(epoch, range(3 * turn, 3 * turn + 3)))
        for epoch in range(4)
        for turn in range(4)
    ]
    assert all(sorted(instructions) == [0, 2, 3] for instructions in rounds)
    assert len(set(rounds)) > 3


def test_a_slot_is_a_function_of_seed_epoch_and_slot_alone(tokenizer):
    sampler = ViewSampler(samples(), tokenizer, seed=5)
    everything = sampler.views(2, range(12))
    assert sampler.views(2, [7, 0, 11]) == [everything[7], everything[0], everything[11]]
    assert ViewSampler(samples(), tokenizer, seed=5).views(2, range(12)) == everything
    assert ViewSampler(samples(), tokenizer, seed=6).views(2, range(12)) != everything
    assert sampler.views(3, range(12)) != everything


def test_pairs_are_drawn_uniformly_in_either_order_from_outputs_whose_texts_differ(tokenizer):
    sampler = ViewSampler(samples(), tokenizer)
    drawn = {0: Counter(), 2: Counter(), 3: Counter()}
    for view in sampler.views(0, range(3 * 600)):
        drawn[view.instruction][texts(tokenizer, view)] += 1
    # Row 0: "two" and "two." are one text, which leaves 5 pairs in 2 orders: 60 of each expected, deviation 7.3.
    assert len(drawn[0]) == 10 and all(30 < count < 90 for count in drawn[0].values())
    assert ("two", "two.") not in drawn[0] and ("one", "two.") in drawn[0] and ("two.", "one") in drawn[0]
    # Row 2: the empty outputs are no views. Row 3: all 6 pairs.
    assert set(drawn[2]) == {("a", "b"), ("b", "a")}
    assert len(drawn[3]) == 12


@pytest.mark.parametrize("form", ["text", "chat"])
def test_views_are_tokenized_as_they_are_scored(form, tokenizer):
    rows = samples(form)
    sampler = ViewSampler(rows, tokenizer)
    for view in sampler.views(0, range(30)):
        row = rows[view.instruction]
        outputs = zip(row["completions"], row["finished"], strict=True)
        allowed = [scoring_ids(tokenizer, row["prompt"], text, finished) for text, finished in outputs]
        assert view.first in allowed and view.second in allowed
    assert all(isinstance(token, int) for token in view.first)


def test_views_of_one_group_share_their_group(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        sampler = ViewSampler(samples(cluster_ids=GROUPS), tokenizer, same_group=True)
    # Row 0's only group of two is "two" and "two.", one text; row 1 is one text.
    assert (len(sampler), sampler.skipped) == (2, 2)
    assert "2 of 4 instructions have no two different non-empty outputs in one group" in caplog.text
    drawn = {texts(tokenizer, view) for view in sampler.views(0, range(200))}
    assert drawn == {("a", "b"), ("b", "a"), ("x", "z"), ("z", "x"), ("y", "w"), ("w", "y")}
    assert "were not grouped" not in caplog.text  # the outputs with -1 are empty


def test_groups_that_were_not_finished_are_doubtful(tokenizer, caplog):
    groups = [[0, 0, 0, -1], *GROUPS[1:]]
    with caplog.at_level(logging.WARNING):
        sampler = ViewSampler(samples(cluster_ids=groups), tokenizer, same_group=True)
    assert "1 of 4 instructions have outputs that were not grouped" in caplog.text
    assert all("two." not in texts(tokenizer, view) for view in sampler.views(0, range(100)))


def test_long_views_lose_the_beginning_of_their_prompt(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        sampler = ViewSampler(samples(), tokenizer, max_length=5)
    views = [view for view in sampler.views(0, range(60)) if view.instruction == 0]
    assert {tokenizer.decode(view.first) for view in views} == {"0one<eos>", "0two<eos>", "three", "two.<eos>"}
    # With `p`, row and EOS rows 0 and 1 have 6 or 7 tokens, but for the empty output; rows 2 and 3 have at most 4.
    assert "7 of 16 texts are longer than `max_length`=5" in caplog.text


def test_what_cannot_bring_views_is_named(tokenizer):
    with pytest.raises(
        ValueError, match="1 of 2 instructions have two different non-empty outputs; the loss compares"
    ):
        ViewSampler(samples().select([0, 1]), tokenizer)
    with pytest.raises(ValueError, match=r"`samples` lacks the columns \['cluster_ids'\]"):
        ViewSampler(samples(), tokenizer, same_group=True)
    with pytest.raises(ValueError, match="`seed` must be at least 0, got -3"):
        ViewSampler(samples(), tokenizer, seed=-3)
