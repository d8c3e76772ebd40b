from collections import Counter

import pytest
from datasets import Dataset

from trl_rlp.data.groups.clustering import largest_group
from trl_rlp.data.preferences.output_rewards import OutputRewards
from trl_rlp.data.preferences.pairing import CHOSEN, GENERATORS, GROUP_METHODS, Request, group_sizes


def grouped(cluster_ids, completions=None, finished=None, **columns):
    """One row a list of ids; completions default to letters, confidence to the share of the largest group."""
    completions = completions or [[f"{'abcdefghij'[i]}" for i in range(len(ids))] for ids in cluster_ids]
    confidence = [len(largest_group(ids)) / len(ids) for ids in cluster_ids]
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


def by_letter(prompts, completions, finished):
    """A reward model that prefers letters late in the alphabet."""
    return [float(ord(completion[0])) if completion else -1.0 for completion in completions]


def request(samples, score_rows=by_letter, **overrides):
    fields = {
        "equivalence": None,
        "rewards": score_rows and OutputRewards(samples, score_rows),
        "judge": None,
        "threshold": 0.5,
        "chosen": "reward",
        "allow_unfinished_chosen": False,
        "seed": 0,
    }
    return Request(**{**fields, **overrides})


def test_group_sizes_come_in_the_order_of_opening_and_leave_out_what_has_no_group():
    assert list(group_sizes([2, -1, 0, 2]).items()) == [(2, 2), (0, 1)]
    assert group_sizes([-1, -1]) == {}


def test_of_equally_large_groups_the_first_opened_counts():
    samples = grouped([[0, 1, 1, 0]])
    (pair,), _ = GENERATORS["spg"](samples, request(samples))
    assert pair.chosen == 3 and pair.alternatives == [1, 2]


def test_spg_prefers_the_best_member_of_the_largest_group_to_an_outsider():
    # Letters a to e; the group is b, c, d, of which d scores highest; outside are a and e, which scores higher still.
    samples = grouped([[0, 1, 1, 1, 2]])
    (pair,), rejections = GENERATORS["spg"](samples, request(samples))
    assert pair.chosen == 3 and pair.rejected in (0, 4)
    assert pair.alternatives == [0, 4]
    assert pair.cluster_ids == [0, 1, 1, 1, 2] and pair.confidence == 0.6
    assert not rejections


def test_spg_draws_the_rejected_output_uniformly_and_the_random_chosen_one_too():
    # 400 prompts, three outsiders each and three members: 133 of each expected, deviation 9.4.
    samples = grouped([[0, 0, 0, 1, 1, 2]] * 400)
    pairs, _ = GENERATORS["spg"](samples, request(samples, chosen="random"))
    for counts in (Counter(pair.rejected for pair in pairs), Counter(pair.chosen for pair in pairs)):
        assert len(counts) == 3 and all(95 < count < 171 for count in counts.values())
    assert {pair.rejected for pair in pairs} == {3, 4, 5} and {pair.chosen for pair in pairs} == {0, 1, 2}
    seeds = [[pair.rejected for pair in GENERATORS["spg"](samples, request(samples, seed=seed))[0]] for seed in (0, 1)]
    assert seeds[0] == [pair.rejected for pair in pairs]  # how y_w is picked does not change y_l
    assert seeds[0] != seeds[1]


def test_each_row_is_rejected_for_its_reason():
    samples = grouped(
        [
            [0, 1, 2, 3],  # confidence .25
            [0, 0, 0, 0],  # all agree
            [0, 0, 1, 1],  # exactly .5, the members are unfinished
            [0, 0, 1, 2],  # exactly .5: accepted
            [-1, -1, -1, -1],  # all empty
        ],
        finished=[[True] * 4, [True] * 4, [False, False, True, True], [True, False, False, False], [True] * 4],
    )
    pairs, rejections = GENERATORS["spg"](samples, request(samples))
    assert [(pair.row, pair.chosen) for pair in pairs] == [(3, 0)]
    assert rejections == {"below_threshold": 2, "all_agree": 1, "nothing_left": 1}
    pairs, rejections = GENERATORS["spg"](samples, request(samples, allow_unfinished_chosen=True))
    assert [(pair.row, pair.chosen) for pair in pairs] == [(2, 1), (3, 1)]  # b beats a
    assert rejections == {"below_threshold": 2, "all_agree": 1}


def test_a_group_of_one_is_no_agreement_but_select_all_takes_it():
    # At n = 2 disagreement itself has confidence .5.
    samples = grouped([[0, 1], [0, 0]])
    assert GENERATORS["spg"](samples, request(samples)) == ([], {"single_member": 1, "all_agree": 1})
    pairs, rejections = GENERATORS["select_all"](samples, request(samples))
    assert [(pair.row, pair.chosen, pair.rejected) for pair in pairs] == [(0, 0, 1)]
    assert rejections == {"all_agree": 1}


def test_select_all_is_spg_without_a_threshold_and_skips_only_what_has_no_group():
    samples = grouped([[0, 1, 2, 1], [0, 0, 1, 2], [-1] * 4])
    everything, rejections = GENERATORS["select_all"](samples, request(samples, threshold=1.0))
    assert [pair.row for pair in everything] == [0, 1]
    assert rejections == {"nothing_left": 1}
    assert GENERATORS["spg"](samples, request(samples, threshold=0.0))[0] == everything


def test_empty_outputs_can_only_be_rejected():
    samples = grouped([[0, 0, -1]], completions=[["a", "b", ""]])
    (pair,), _ = GENERATORS["spg"](samples, request(samples))
    assert (pair.chosen, pair.rejected) == (1, 2)


@pytest.mark.parametrize("method", GROUP_METHODS)
def test_one_call_scores_the_members_and_the_rejected_outputs_and_nothing_else(method):
    calls = []

    def count(prompts, completions, finished):
        if prompts:
            calls.append(list(zip(prompts, completions, finished, strict=True)))
        return by_letter(prompts, completions, finished)

    samples = grouped([[0, 0, 0, 1, 1], [0, 1, 2, 3, 4]], completions=[list("aabcd"), list("vwxyz")])
    pairs, _ = GENERATORS[method](samples, request(samples, count, threshold=0.5))
    (call,) = calls
    scored = {(prompt, completion) for prompt, completion, _ in call}
    assert len(call) == len(scored)  # "a" stands twice in the group and is scored once
    first = {("prompt 0", "a"), ("prompt 0", "b"), ("prompt 0", "abbcd"[pairs[0].rejected])}
    second = {("prompt 1", "v"), ("prompt 1", "vwxyz"[pairs[-1].rejected])}
    assert scored == (first if method == "spg" else first | second)


def test_groups_that_were_stopped_early_for_another_threshold_are_refused():
    samples = grouped([[0, 0, -1, -1, -1, -1]], confidence_upper=[0.66])
    samples = samples.remove_columns("confidence").add_column("confidence", [0.33])
    assert GENERATORS["spg"](samples, request(samples, threshold=0.7))[1] == {"below_threshold": 1}
    with pytest.raises(
        ValueError, match="`samples` row 0 was clustered for another threshold: its confidence is betw"
    ):
        GENERATORS["spg"](samples, request(samples, threshold=0.3))
    with pytest.raises(ValueError, match="between 0.33 and 0.66, so 0.0 decides nothing"):
        GENERATORS["select_all"](samples, request(samples))


@pytest.mark.parametrize("method", ["reward", "rlaif"])
def test_pairs_are_two_texts_that_differ_labeled_by_what_labels(method):
    completions = [["a", "b"], ["Same.", "same"], ["", "z"], ["c", "C!"]]
    samples = grouped([[0, 1]] * 4, completions=completions)

    def judge(prompts, firsts, seconds):
        assert prompts == ["prompt 0", "prompt 2"]
        return [0.25 if first < second else 0.75 for first, second in zip(firsts, seconds, strict=True)]

    pairs, rejections = GENERATORS[method](samples, request(samples, judge=judge))
    assert [(pair.row, pair.chosen, pair.rejected) for pair in pairs] == [(0, 1, 0), (2, 1, 0)]
    assert rejections == {"all_agree": 2}
    # sigma(98 - 97) and, after the empty output's -1, sigma(122 + 1).
    expected = [0.7310585786, 1.0] if method == "reward" else [0.75, 0.75]
    assert [pair.probability for pair in pairs] == pytest.approx(expected)


def test_pairs_are_drawn_uniformly_from_all_that_differ():
    # Texts a, a, b, c: five pairs differ; 500 rows, 100 of each expected, deviation 9.
    samples = grouped([[0, 0, 1, 2]] * 500, completions=[["a", "A", "b", "c"]] * 500)
    drawn = Counter()

    def judge(prompts, firsts, seconds):
        drawn.update(zip(firsts, seconds, strict=True))
        return [0.9] * len(prompts)

    GENERATORS["rlaif"](samples, request(samples, None, judge=judge))
    assert set(drawn) == {("a", "b"), ("a", "c"), ("A", "b"), ("A", "c"), ("b", "c")}
    assert all(64 < count < 136 for count in drawn.values())


def test_ties_are_skipped_and_what_may_not_be_chosen_is_never_preferred():
    samples = grouped(
        [[0, 1]] * 4,
        completions=[["a", "b"], ["c", "d"], ["e", "f"], ["", "g"]],
        finished=[[True, True], [True, False], [False, False], [True, True]],
    )
    probabilities = [0.5 + 1e-9, 0.1, 0.9]  # a tie; the unfinished d; the empty output

    def judge(prompts, firsts, seconds):
        assert prompts == ["prompt 0", "prompt 1", "prompt 3"]
        return probabilities

    pairs, rejections = GENERATORS["rlaif"](samples, request(samples, None, judge=judge))
    assert not pairs
    assert rejections == {"ties": 1, "nothing_left": 3}


@pytest.mark.parametrize("answer", [[0.5], [0.5, 1.5], [0.5, float("nan")]])
def test_a_judge_that_answers_rubbish_is_named(answer):
    samples = grouped([[0, 1]] * 2)
    with pytest.raises(
        ValueError, match="`judge` (gave 1 probabilities for 2 pairs|said .* of pair 1, but must give)"
    ):
        GENERATORS["rlaif"](samples, request(samples, None, judge=lambda *_: answer))


@pytest.mark.parametrize("method", GENERATORS)
def test_draws_of_a_row_do_not_depend_on_the_rows_around_it(method):
    samples = grouped([[0, 0, 0, 1, 2]] * 12)
    arguments = {"judge": lambda prompts, firsts, seconds: [0.9] * len(prompts), "chosen": "random"}

    def drawn(samples):
        pairs, _ = GENERATORS[method](samples, request(samples, **arguments))
        return {samples[pair.row]["prompt"]: pair[1:3] for pair in pairs}

    everything, half = drawn(samples), drawn(samples.select([11, 4, 7, 2]))
    assert len(set(everything.values())) > 1
    assert half == {prompt: everything[prompt] for prompt in half} and len(half) == 4


def test_how_the_chosen_one_is_picked_is_a_matter_of_the_shortlist():
    assert set(CHOSEN) == {"reward", "random"}
