import itertools
import math

import numpy as np
import pytest
from datasets import Dataset

from tests.tiny_models import tiny_reward_model, tiny_tokenizer
from trl_rlp.data.groups import ExactMatch, cluster, find_largest_group
from trl_rlp.data.scoring import score
from trl_rlp.evaluation.best_of_n_sampling import best_of_n, best_of_n_kl, best_of_n_weights, best_outputs


def test_weights_computed_by_hand():
    """Of the pairs {.1, .3}, {.1, .2}, {.3, .2}, the sample with .3 wins two and the sample with .2 wins one."""
    assert best_of_n_weights([0.1, 0.3, 0.2], 2).tolist() == pytest.approx([0, 2 / 3, 1 / 3])
    assert best_of_n_weights([0.1, 0.3, 0.2], 1).tolist() == pytest.approx([1 / 3] * 3)
    assert best_of_n_weights([0.1, 0.3, 0.2], 3).tolist() == [0, 1, 0]


def test_equal_rewards_share_their_weights():
    """At n = 2 the three ranks have weights 0, 1/3, 2/3. The two upper ones are equal, so each gets one half."""
    assert best_of_n_weights([2.0, 1.0, 2.0], 2).tolist() == pytest.approx([0.5, 0, 0.5])
    assert best_of_n_weights([1.0] * 4, 3).tolist() == pytest.approx([0.25] * 4)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_the_estimate_is_the_mean_over_all_subsets(n):
    generator = np.random.default_rng(0)
    rewards, values = generator.normal(size=(2, 4, 6))
    expected = [
        np.mean([row_values[max(subset, key=lambda i: row[i])] for subset in itertools.combinations(range(6), n)])
        for row, row_values in zip(rewards, values, strict=True)
    ]
    found = best_of_n(rewards, values, n)
    assert found["value"] == pytest.approx(np.mean(expected))
    assert found["standard_error"] == pytest.approx(np.std(expected, ddof=1) / 2)
    assert found["interval"][0] < found["value"] < found["interval"][1] and found["prompts"] == 4


def test_the_best_within_the_majority_computed_by_hand():
    """
    Groups are a, b, a, a of rewards 1, 4, 2, 3 and values 10, 20, 30, 40. At n = 4, three of four are a: the best is
    the last one, 40. At n = 3, three of four subsets are {a, b, a}, whose best a is 30, 40, 40, and one is {a, a, a}
    with 40. At n = 2, half of the subsets are {a, b}, which do not agree, so the best is b: 20. The others are 30, 40,
    40.
    """
    rewards, values, groups = [[1, 4, 2, 3]], [[10, 20, 30, 40]], [[0, 1, 0, 0]]
    found = {n: best_of_n(rewards, values, n, cluster_ids=groups) for n in (1, 2, 3, 4)}
    assert [found[n]["value"] for n in (1, 2, 3, 4)] == [25, (3 * 20 + 30 + 40 + 40) / 6, (30 + 40 + 40 + 40) / 4, 40]
    assert [found[n]["majority_share"] for n in (1, 2, 3, 4)] == [0, 0.5, 1, 1]
    assert found[4]["kl"] == best_of_n_kl(4) and found[4]["interval"] is None and found[4]["prompts"] == 1
    # No group has four fifths of four samples, so the best of all counts.
    strict = best_of_n(rewards, values, 4, cluster_ids=groups, threshold=0.8)
    assert (strict["value"], strict["majority_share"]) == (20, 0)


def test_the_earliest_of_equally_large_groups_counts_and_equal_rewards_share():
    """Groups of two: b, a, a, b. The earliest sample is a b, and both have the reward 1 and the mean value 1/2."""
    tie = best_of_n([[1, 9, 9, 1]], [[0, 5, 5, 1]], 4, cluster_ids=[[1, 0, 0, 1]])
    assert tie["value"] == 0.5
    # Samples without a group are no majority, although they are the most.
    none = best_of_n([[1, 9, 2, 3]], [[0, 5, 6, 7]], 4, cluster_ids=[[0, -1, -1, 0]])
    assert none["value"] == 7


def average_over_all_subsets(rewards, values, groups, n):
    """Applies the definition to each subset: groups its samples in their order, and takes the best of the largest."""
    best = []
    for subset in itertools.combinations(range(len(rewards)), n):
        order = {}  # the groups, numbered in the order in which the subset opens them
        ids = [-1 if groups[i] < 0 else order.setdefault(groups[i], len(order)) for i in subset]
        group = find_largest_group(ids)
        is_clear = len(group) >= 2 and len(group) / n >= 0.5
        best.append(values[max((subset[i] for i in (group if is_clear else range(n))), key=lambda i: rewards[i])])
    return np.mean(best)


def test_random_subsets_approach_the_mean_over_all_subsets():
    generator = np.random.default_rng(0)
    rewards, values = generator.normal(size=(2, 4, 10))
    groups = generator.integers(-1, 3, size=(4, 10))
    # Each prompt has 210 subsets.
    expected = np.mean([average_over_all_subsets(*row, 4) for row in zip(rewards, values, groups, strict=True)])
    assert best_of_n(rewards, values, 4, cluster_ids=groups, num_draws=210)["value"] == pytest.approx(expected)
    drawn = [best_of_n(rewards, values, 4, cluster_ids=groups, seed=seed)["value"] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and drawn == pytest.approx([expected] * 3, abs=0.1)


@pytest.mark.parametrize("groups", [[0] * 8, range(8), [-1] * 8])
def test_one_group_or_none_is_best_of_n(groups):
    rewards, values = np.random.default_rng(1).normal(size=(2, 3, 8))
    plain, within = (best_of_n(rewards, values, 3, **kwargs) for kwargs in ({}, {"cluster_ids": [groups] * 3}))
    assert within["value"] == pytest.approx(plain["value"])
    assert within["standard_error"] == pytest.approx(plain["standard_error"])
    assert within["majority_share"] == (1 if list(groups) == [0] * 8 else 0) and "majority_share" not in plain


def test_many_samples_do_not_overflow():
    weights = best_of_n_weights(np.arange(2000.0), 700)
    assert weights.sum() == pytest.approx(1) and weights[-1] == pytest.approx(700 / 2000)


def test_kl_computed_by_hand():
    """ln 4 - 3/4."""
    assert best_of_n_kl(4) == pytest.approx(math.log(4) - 0.75)
    assert best_of_n_kl(1) == 0
    with pytest.raises(ValueError, match="`n` must be at least 1, got 0"):
        best_of_n_kl(0)


@pytest.mark.parametrize("form", ["text", "chat"])
def test_the_completion_with_the_highest_reward_is_selected(form):
    tokenizer = tiny_tokenizer()
    model = tiny_reward_model(tokenizer)
    texts = ["Who?", "What?"]
    prompts = texts if form == "text" else [[{"role": "user", "content": text}] for text in texts]
    completions, finished = [["a", "bb", "ccc"], ["d", "e", "f"]], [[True, False, True], [True, True, False]]
    samples = Dataset.from_dict({"prompt": prompts, "completions": completions, "finished": finished})
    selected = best_outputs(samples, model, tokenizer)
    for row, best in enumerate(selected):
        rewards = score(model, tokenizer, [prompts[row]] * 3, completions[row], finished[row])
        index = int(np.argmax(rewards))
        assert (best["prompt"], best["completion"], best["finished"]) == (
            prompts[row],
            completions[row][index],
            finished[row][index],
        )
        assert best["reward"] == pytest.approx(max(rewards), abs=1e-6)


def build_samples(form="text"):
    """The texts x and "x." mean the same. Prompt 0 has three of them of five, and prompt 1 has one."""
    texts = ["Who?", "What?"]
    prompts = texts if form == "text" else [[{"role": "user", "content": text}] for text in texts]
    completions = [["x", "y", "x.", "zz", " x"], ["x", "y", "z", "zz", "yy"]]
    return Dataset.from_dict({"prompt": prompts, "completions": completions, "finished": [[True] * 5] * 2})


@pytest.fixture(scope="module")
def models():
    tokenizer = tiny_tokenizer()
    return tiny_reward_model(tokenizer), tokenizer


@pytest.mark.parametrize("form", ["text", "chat"])
def test_the_selection_is_within_the_majority_if_it_is_clear(form, models):
    samples = build_samples(form)
    ungrouped = best_outputs(samples, *models, within="majority", equivalence=ExactMatch())
    grouped = best_outputs(cluster(samples, ExactMatch()), *models, within="majority")
    assert grouped.to_list() == ungrouped.to_list()
    names = ["prompt", "completion", "finished", "reward", "confidence", "has_majority"]
    assert ungrouped.column_names == names and ungrouped["has_majority"][:] == [True, False]
    assert ungrouped["confidence"][0] == 0.6 and ungrouped["confidence"][1] <= 0.2
    for row, candidates in enumerate([(0, 2, 4), range(5)]):
        prompts, completions = [samples["prompt"][row]] * 5, samples["completions"][row]
        rewards = score(*models, prompts, completions)
        best = max(candidates, key=lambda i: rewards[i])
        assert ungrouped["completion"][row] == completions[best]
        assert ungrouped["reward"][row] == pytest.approx(rewards[best], abs=1e-6)
    everywhere = best_outputs(cluster(samples, ExactMatch()), *models)
    assert everywhere.column_names == names[:4]
    assert everywhere.to_list()[1] == ungrouped.select_columns(names[:4]).to_list()[1]


@pytest.fixture
def scored(monkeypatch):
    """The rewards say the opposite of the majority. Returns the list that gets the scored completions."""
    rewards, texts = {"x": 1.0, "y": 9.0, "x.": 3.0, "z": 3.0, "zz": 8.0, " x": 2.0, "yy": 2.0}, []

    def score_rows(model, tokenizer, prompts, completions, finished, **options):
        texts.extend(completions)
        return [rewards[text] for text in completions]

    monkeypatch.setattr("trl_rlp.evaluation.best_of_n_sampling.score", score_rows)
    return texts


def test_a_majority_without_a_best_completion_keeps_the_others_out(models, scored):
    options = {"within": "majority", "equivalence": ExactMatch()}
    best = best_outputs(build_samples(), *models, **options)
    assert best["completion"][:] == ["x.", "y"] and best["reward"][:] == [3.0, 9.0]
    assert scored == ["x", "x.", " x", "x", "y", "z", "zz", "yy"]  # only those that can be selected
    assert best_outputs(build_samples(), *models, **options, threshold=0.7)["completion"][:] == ["y", "y"]
    assert best_outputs(build_samples(), *models)["completion"][:] == ["y", "y"]


def test_an_unfinished_completion_is_selected_only_if_no_other_one_can_be(models, scored):
    samples = build_samples().remove_columns("finished")
    options = {"within": "majority", "equivalence": ExactMatch()}
    some = samples.add_column("finished", [[True, True, False, True, True], [True, False, True, False, True]])
    assert best_outputs(some, *models, **options)["completion"][:] == [" x", "z"]
    assert best_outputs(some, *models)["completion"][:] == ["y", "y"]
    none = samples.add_column("finished", [[False, True, False, True, False], [False] * 5])
    best = best_outputs(none, *models, **options)
    assert best["completion"][:] == ["x.", "y"] and best["finished"][:] == [False, False]


@pytest.mark.parametrize(
    ("grouped", "options", "match"),
    [
        (False, {"within": "majority"}, "`equivalence` is None, but `within`='majority' groups completions"),
        (True, {"within": "group"}, "`within` must be \"majority\" or None, got 'group'"),
        (True, {"within": "majority", "threshold": 1.5}, r"`threshold` is a share .* in \[0, 1\], got 1.5"),
        (True, {"within": "majority", "threshold": 0.3}, "`samples` row 1 was clustered for another threshold"),
        (False, {"equivalence": ExactMatch()}, '`equivalence` is read only with `within="majority"`'),
    ],
)
def test_wrong_selections_raise_before_any_work(grouped, options, match, monkeypatch):
    monkeypatch.setattr("trl_rlp.evaluation.best_of_n_sampling.score", lambda *_, **__: pytest.fail("scored"))
    samples = cluster(build_samples(), ExactMatch(), threshold=0.6) if grouped else build_samples()
    with pytest.raises(ValueError, match=match):
        best_outputs(samples, None, None, **options)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: best_of_n_weights([1.0, 2.0], 3), "`n` must be from 1 to the number of samples, 2, got 3"),
        (lambda: best_of_n_weights([1.0, 2.0], 0), "got 0"),
        (lambda: best_of_n_weights([1.0, float("nan")], 1), "`rewards` entry 1 is NaN"),
        (
            lambda: best_of_n([[1.0, 2.0]], [[1.0]], 1),
            r"`rewards` \(1 prompts\) and `values` \(1\) must",
        ),
        (lambda: best_of_n([], [], 1), "at least one prompt"),
        (lambda: best_of_n([[1.0, 2.0]], [[1.0, float("nan")]], 1), "`values` row 0 contains NaN"),
        (
            lambda: best_of_n([[1.0, 2.0]], [[1.0, 2.0]], 1, cluster_ids=[[0]]),
            r"`rewards` \(1 prompts\) and `cluster_ids` \(1\) must have the same shape",
        ),
        (lambda: best_of_n([[1.0, 2.0]], [[1.0, 2.0]], 3, cluster_ids=[[0, 0]]), "number of samples, 2, got 3"),
        (lambda: best_of_n([[1.0, math.nan]], [[1.0, 2.0]], 1, cluster_ids=[[0, 0]]), "`rewards` entry 1 is NaN"),
        (lambda: best_of_n([[1.0]], [[1.0]], 1, cluster_ids=[[0]], threshold=2), r"must be in \[0, 1\], got 2"),
        (lambda: best_of_n([[1.0]], [[1.0]], 1, cluster_ids=[[0]], num_draws=0), "`num_draws` must be at least 1"),
        (lambda: best_of_n([[1.0]], [[1.0]], 1, cluster_ids=[[0]], seed=-1), "`seed` must be at least 0, got -1"),
    ],
)
def test_invalid_input_raises_an_error(call, match):
    with pytest.raises(ValueError, match=match):
        call()
