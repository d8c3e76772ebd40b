from collections import Counter

import pytest
from datasets import Dataset

from trl_rlp.data.groups import find_largest_group
from trl_rlp.data.preferences.completion_rewards import CompletionRewards
from trl_rlp.data.preferences.pairing import (
    CHOSEN,
    GENERATORS,
    GROUP_GENERATORS,
    JUDGE_GENERATORS,
    REWARD_GENERATORS,
    PairingSettings,
    build_row_generator,
    count_group_sizes,
)


def build_samples(cluster_ids, completions=None, finished=None, **columns):
    """Builds one row per list of group ids. The default completions are letters."""
    completions = completions or [[f"{'abcdefghij'[i]}" for i in range(len(ids))] for ids in cluster_ids]
    confidence = [len(find_largest_group(ids)) / len(ids) for ids in cluster_ids]
    return Dataset.from_dict(
        {
            "prompt": [f"prompt {row}" for row in range(len(cluster_ids))],
            "completions": completions,
            "finished": finished or [[True] * len(ids) for ids in cluster_ids],
            "cluster_ids": cluster_ids,
            "confidence": confidence,
            **columns,
        }
    )


def score_by_letter(prompts, completions, finished):
    """Returns rewards that are higher for letters later in the alphabet."""
    return [float(ord(completion[0])) if completion else -1.0 for completion in completions]


def build_settings(samples, score_rows=score_by_letter, **overrides):
    fields = {
        "equivalence": None,
        "rewards": score_rows and CompletionRewards(samples, score_rows),
        "judge": None,
        "threshold": 0.5,
        "chosen": "reward",
        "allow_unfinished_chosen": False,
        "seed": 0,
    }
    return PairingSettings(**{**fields, **overrides})


def test_every_generator_is_in_exactly_one_dict():
    assert list(GENERATORS) == [*GROUP_GENERATORS, *REWARD_GENERATORS, *JUDGE_GENERATORS]
    assert list(GROUP_GENERATORS) == ["spg", "select_all", "majority_best"]


def test_group_sizes_are_in_the_order_of_opening_and_skip_completions_without_a_group():
    assert list(count_group_sizes([2, -1, 0, 2]).items()) == [(2, 2), (0, 1)]
    assert count_group_sizes([-1, -1]) == {}


def test_the_first_opened_of_equally_large_groups_counts():
    samples = build_samples([[0, 1, 1, 0]])
    (pair,), _ = GENERATORS["spg"](samples, build_settings(samples))
    assert pair.chosen == 3 and pair.alternatives == [1, 2]


def test_spg_prefers_the_best_member_of_the_largest_group_to_a_completion_outside():
    # The completions are a to e, and the largest group is b, c, d. Its best member is d. Outside are a and e, although
    # the reward of e is higher than that of d.
    samples = build_samples([[0, 1, 1, 1, 2]])
    (pair,), rejections = GENERATORS["spg"](samples, build_settings(samples))
    assert pair.chosen == 3 and pair.rejected in (0, 4)
    assert pair.alternatives == [0, 4]
    assert pair.cluster_ids == [0, 1, 1, 1, 2] and pair.confidence == 0.6
    assert not rejections


def test_spg_draws_the_rejected_completion_uniformly_and_a_random_chosen_one_too():
    # 400 prompts have three members and three other completions each. The expected count of each is 133, with a
    # standard deviation of 9.4.
    samples = build_samples([[0, 0, 0, 1, 1, 2]] * 400)
    pairs, _ = GENERATORS["spg"](samples, build_settings(samples, chosen="random"))
    for counts in (Counter(pair.rejected for pair in pairs), Counter(pair.chosen for pair in pairs)):
        assert len(counts) == 3 and all(95 < count < 171 for count in counts.values())
    assert {pair.rejected for pair in pairs} == {3, 4, 5} and {pair.chosen for pair in pairs} == {0, 1, 2}
    seeds = [
        [pair.rejected for pair in GENERATORS["spg"](samples, build_settings(samples, seed=seed))[0]]
        for seed in (0, 1)
    ]
    assert seeds[0] == [pair.rejected for pair in pairs]  # The choice of y_w does not change y_l.
    assert seeds[0] != seeds[1]


def test_each_row_is_rejected_for_the_right_reason():
    samples = build_samples(
        [
            [0, 1, 2, 3],  # The confidence is 0.25.
            [0, 0, 0, 0],  # All agree.
            [0, 0, 1, 1],  # The confidence is exactly 0.5, but the members are unfinished.
            [0, 0, 1, 2],  # The confidence is exactly 0.5, which is accepted.
            [-1, -1, -1, -1],  # All are empty.
        ],
        finished=[[True] * 4, [True] * 4, [False, False, True, True], [True, False, False, False], [True] * 4],
    )
    pairs, rejections = GENERATORS["spg"](samples, build_settings(samples))
    assert [(pair.row, pair.chosen) for pair in pairs] == [(3, 0)]
    assert rejections == {"below_threshold": 2, "all_agree": 1, "nothing_left": 1}
    pairs, rejections = GENERATORS["spg"](samples, build_settings(samples, allow_unfinished_chosen=True))
    assert [(pair.row, pair.chosen) for pair in pairs] == [(2, 1), (3, 1)]  # b has a higher reward than a.
    assert rejections == {"below_threshold": 2, "all_agree": 1}


def test_spg_rejects_a_group_of_one_and_select_all_accepts_it():
    # With n = 2, two different completions have a confidence of 0.5 each.
    samples = build_samples([[0, 1], [0, 0]])
    assert GENERATORS["spg"](samples, build_settings(samples)) == ([], {"single_member": 1, "all_agree": 1})
    pairs, rejections = GENERATORS["select_all"](samples, build_settings(samples))
    assert [(pair.row, pair.chosen, pair.rejected) for pair in pairs] == [(0, 0, 1)]
    assert rejections == {"all_agree": 1}


def test_select_all_equals_spg_without_a_threshold_and_skips_only_rows_without_a_group():
    samples = build_samples([[0, 1, 2, 1], [0, 0, 1, 2], [-1] * 4])
    all_pairs, rejections = GENERATORS["select_all"](samples, build_settings(samples, threshold=1.0))
    assert [pair.row for pair in all_pairs] == [0, 1]
    assert rejections == {"nothing_left": 1}
    assert GENERATORS["spg"](samples, build_settings(samples, threshold=0.0))[0] == all_pairs


def test_empty_completions_can_only_be_rejected():
    samples = build_samples([[0, 0, -1]], completions=[["a", "b", ""]])
    (pair,), _ = GENERATORS["spg"](samples, build_settings(samples))
    assert (pair.chosen, pair.rejected) == (1, 2)


@pytest.mark.parametrize("method", ["spg", "select_all"])
def test_one_call_scores_only_the_members_and_the_rejected_completions(method):
    calls = []

    def record_and_score(prompts, completions, finished):
        if prompts:
            calls.append(list(zip(prompts, completions, finished, strict=True)))
        return score_by_letter(prompts, completions, finished)

    samples = build_samples([[0, 0, 0, 1, 1], [0, 1, 2, 3, 4]], completions=[list("aabcd"), list("vwxyz")])
    pairs, _ = GENERATORS[method](samples, build_settings(samples, record_and_score, threshold=0.5))
    (call,) = calls
    scored = {(prompt, completion) for prompt, completion, _ in call}
    assert len(call) == len(scored)  # "a" is in the group twice and is scored once.
    first = {("prompt 0", "a"), ("prompt 0", "b"), ("prompt 0", "abbcd"[pairs[0].rejected])}
    second = {("prompt 1", "v"), ("prompt 1", "vwxyz"[pairs[-1].rejected])}
    assert scored == (first if method == "spg" else first | second)


def test_majority_best_prefers_the_best_member_to_any_completion_with_another_text():
    # The group is a, d, "d.", c with a share of 4/6. Its best member is d, whose copy "d." is no y_l. The rest are a
    # and c in the group, and the empty completion and e outside, although the reward of e is higher than that of d.
    samples = build_samples([[0, 0, -1, 0, 0, 1]], completions=[["a", "d", "", "d.", "c", "e"]])
    (pair,), rejections = GENERATORS["majority_best"](samples, build_settings(samples))
    assert pair.chosen == 1 and pair.alternatives == [0, 2, 4, 5] and pair.rejected in pair.alternatives
    assert pair.cluster_ids == [0, 0, -1, 0, 0, 1] and pair.confidence == 4 / 6 and not rejections
    (other,), _ = GENERATORS["spg"](samples, build_settings(samples))
    assert other.chosen == 1 and other.alternatives == [2, 5]


def test_majority_best_draws_from_the_rest_uniformly():
    # 400 prompts have three completions besides the pick. The expected count of each is 133, with a standard deviation
    # of 9.4.
    samples = build_samples([[0, 0, 0, 1]] * 400)
    pairs, _ = GENERATORS["majority_best"](samples, build_settings(samples))
    counts = Counter(pair.rejected for pair in pairs)
    assert set(counts) == {0, 1, 3} and all(95 < count < 171 for count in counts.values())


def test_majority_best_rejects_each_row_for_the_right_reason():
    samples = build_samples(
        [
            [0, 1, 2, 3],  # The confidence is 0.25.
            [0, 0, 0, 0],  # All are one text.
            [0, 0, 0, 0],  # All agree, with two texts. This is a pair.
            [0, 0, 1, 1],  # The members are unfinished.
            [0, 0, 1, 2],  # One member is finished.
        ],
        completions=[list("abcd"), ["a", "a.", " a", "a"], ["a", "b", "a", "a"], list("abcd"), list("abcd")],
        finished=[[True] * 4] * 3 + [[False, False, True, True], [True, False, False, False]],
    )
    pairs, rejections = GENERATORS["majority_best"](samples, build_settings(samples))
    assert [(pair.row, pair.chosen) for pair in pairs] == [(2, 1), (4, 0)]
    assert rejections == {"below_threshold": 1, "all_agree": 1, "nothing_left": 1}
    single = build_samples([[0, 1]])
    assert GENERATORS["majority_best"](single, build_settings(single)) == ([], {"single_member": 1})


def test_majority_best_scores_all_members_in_one_call():
    calls = []

    def record_and_score(prompts, completions, finished):
        calls.append([*zip(prompts, completions, strict=True)] if prompts else None)
        return score_by_letter(prompts, completions, finished)

    samples = build_samples([[0, 0, 0, 1], [0, 0, 1, 1]], completions=[list("aabc"), list("vwxy")])
    GENERATORS["majority_best"](samples, build_settings(samples, record_and_score))
    expected = [("prompt 0", "a"), ("prompt 0", "b"), ("prompt 1", "v"), ("prompt 1", "w")]
    assert [call for call in calls if call] == [expected]


def test_groups_for_another_threshold_raise():
    samples = build_samples([[0, 0, -1, -1, -1, -1]], confidence_upper=[0.66])
    samples = samples.remove_columns("confidence").add_column("confidence", [0.33])
    assert GENERATORS["spg"](samples, build_settings(samples, threshold=0.7))[1] == {"below_threshold": 1}
    with pytest.raises(
        ValueError, match="`samples` row 0 was clustered for another threshold. Its confidence is betw"
    ):
        GENERATORS["spg"](samples, build_settings(samples, threshold=0.3))
    with pytest.raises(ValueError, match="between 0.33 and 0.66, and its largest group is not certain at 0.0"):
        GENERATORS["select_all"](samples, build_settings(samples))


@pytest.mark.parametrize("method", ["reward", "rlaif"])
def test_pairs_are_two_different_texts_with_the_label_of_the_method(method):
    completions = [["a", "b"], ["same.", "same"], ["", "z"], ["c", "c "]]
    samples = build_samples([[0, 1]] * 4, completions=completions)

    def judge(prompts, firsts, seconds):
        assert prompts == ["prompt 0", "prompt 2"]
        return [0.25 if first < second else 0.75 for first, second in zip(firsts, seconds, strict=True)]

    pairs, rejections = GENERATORS[method](samples, build_settings(samples, judge=judge))
    assert [(pair.row, pair.chosen, pair.rejected) for pair in pairs] == [(0, 1, 0), (2, 1, 0)]
    assert rejections == {"all_agree": 2}
    # The probabilities are sigma(98 - 97) and sigma(122 + 1), because the reward of the empty completion is -1.
    expected = [0.7310585786, 1.0] if method == "reward" else [0.75, 0.75]
    assert [pair.probability for pair in pairs] == pytest.approx(expected)


def test_pairs_are_drawn_uniformly_from_all_pairs_of_different_texts():
    # The texts a, a, b, c form five pairs of different texts. With 500 rows, the expected count of each is 100, with a
    # standard deviation of 9.
    samples = build_samples([[0, 0, 1, 2]] * 500, completions=[["a", "a.", "b", "c"]] * 500)
    drawn = Counter()

    def judge(prompts, firsts, seconds):
        drawn.update(zip(firsts, seconds, strict=True))
        return [0.9] * len(prompts)

    GENERATORS["rlaif"](samples, build_settings(samples, None, judge=judge))
    assert set(drawn) == {("a", "b"), ("a", "c"), ("a.", "b"), ("a.", "c"), ("b", "c")}
    assert all(64 < count < 136 for count in drawn.values())


def test_ties_are_skipped_and_unfinished_or_empty_completions_are_never_preferred():
    samples = build_samples(
        [[0, 1]] * 4,
        completions=[["a", "b"], ["c", "d"], ["e", "f"], ["", "g"]],
        finished=[[True, True], [True, False], [False, False], [True, True]],
    )
    probabilities = [0.5 + 1e-9, 0.1, 0.9]  # A tie, the unfinished d, and the empty completion.

    def judge(prompts, firsts, seconds):
        assert prompts == ["prompt 0", "prompt 1", "prompt 3"]
        return probabilities

    pairs, rejections = GENERATORS["rlaif"](samples, build_settings(samples, None, judge=judge))
    assert not pairs
    assert rejections == {"ties": 1, "nothing_left": 3}


@pytest.mark.parametrize("probabilities", [[0.5], [0.5, 1.5], [0.5, float("nan")]])
def test_a_judge_with_invalid_probabilities_raises(probabilities):
    samples = build_samples([[0, 1]] * 2)
    with pytest.raises(
        ValueError,
        match="`judge` returned (1 probabilities for 2 pairs|.* for pair 1. It must return the probability)",
    ):
        GENERATORS["rlaif"](samples, build_settings(samples, None, judge=lambda *_: probabilities))


@pytest.mark.parametrize("method", GENERATORS)
def test_the_draws_of_a_row_do_not_depend_on_other_rows(method):
    samples = build_samples([[0, 0, 0, 1, 2]] * 12)
    arguments = {"judge": lambda prompts, firsts, seconds: [0.9] * len(prompts), "chosen": "random"}

    def draw_pairs(samples):
        pairs, _ = GENERATORS[method](samples, build_settings(samples, **arguments))
        return {samples[pair.row]["prompt"]: pair[1:3] for pair in pairs}

    all_pairs, some_pairs = draw_pairs(samples), draw_pairs(samples.select([11, 4, 7, 2]))
    assert len(set(all_pairs.values())) > 1
    assert some_pairs == {prompt: all_pairs[prompt] for prompt in some_pairs} and len(some_pairs) == 4


def test_there_are_two_ways_to_pick_the_chosen_completion():
    assert set(CHOSEN) == {"reward", "random"}


def test_a_draw_does_not_depend_on_the_keys_of_other_rows():
    """If a message of another row has a name, datasets give all messages a name, which is None."""
    row = {"prompt": [{"role": "user", "content": "q"}], "completions": ["a", "b"]}
    filled = {**row, "prompt": [{"role": "user", "content": "q", "name": None}]}
    assert build_row_generator(0, row).integers(10**9) == build_row_generator(0, filled).integers(10**9)
