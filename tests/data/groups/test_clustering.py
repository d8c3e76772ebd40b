import logging
import random

import pytest
from datasets import Dataset

from tests.tiny_models import tiny_nli, tiny_tokenizer
from trl_rlp.data.groups.clustering import cluster, largest_group
from trl_rlp.data.groups.equivalence import ExactMatch, NLIEquivalence


def make(completions, prompts=None):
    rows = {"prompt": prompts or [f"q{row}" for row in range(len(completions))], "completions": completions}
    return Dataset.from_dict({**rows, "finished": [[True] * len(texts) for texts in completions]})


class Relation:
    """A judge with a random symmetric relation, not transitive; case and outer spaces do not count."""

    fingerprint = "relation"

    def __init__(self, seed, density):
        self.seed, self.density, self.calls = seed, density, []

    def normalize(self, text):
        return text.strip().casefold()

    def is_same(self, prompt, first, second):
        first, second = sorted([self.normalize(first), self.normalize(second)])
        return random.Random(f"{self.seed} {prompt} {first} {second}").random() < self.density

    def same(self, prompts, firsts, seconds):
        self.calls.append(list(zip(prompts, firsts, seconds, strict=True)))
        return [self.is_same(*question) for question in self.calls[-1]]


def plain(prompt, completions, judge):
    """The leader loop over the distinct outputs, and the groups as positions."""
    groups, home = [], {}
    for position, text in enumerate(completions):
        form = judge.normalize(text)
        if not form:
            continue
        if form not in home:
            found = (group for group in groups if judge.is_same(prompt, completions[group[0]], text))
            home[form] = next(found, None) or []
            if not home[form]:
                groups.append(home[form])
        home[form].append(position)
    return groups


def random_samples(generator, prompts, n):
    texts = ["a", "A ", "b", "B", "c", "d", "e", "f", "g", "", "  "]
    return make([generator.choices(texts, k=n) for _ in range(prompts)])


@pytest.mark.parametrize("density", [0.05, 0.3, 0.7])
@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.3, 0.5, 0.7, 1.0])
def test_confidence_and_largest_group_equal_the_plain_loops(density, threshold):
    samples = random_samples(random.Random(f"{density} {threshold}"), prompts=150, n=7)
    judge = Relation(1, density)
    for row in cluster(samples, judge, threshold=threshold):
        groups = plain(row["prompt"], row["completions"], judge)
        largest = max(groups, key=len, default=[])
        confidence = len(largest) / 7
        if confidence >= threshold:
            assert row["confidence"] == row["confidence_upper"] == confidence
            assert largest_group(row["cluster_ids"]) == largest
        else:
            assert row["confidence"] <= confidence <= row["confidence_upper"] < threshold


@pytest.mark.parametrize("density", [0.05, 0.3, 0.7])
def test_complete_groups_equal_the_plain_loops(density):
    samples = random_samples(random.Random(density), prompts=150, n=7)
    judge = Relation(2, density)
    for row in cluster(samples, judge, complete_groups=True):
        groups = plain(row["prompt"], row["completions"], judge)
        expected = [-1] * 7
        for cluster_id, group in enumerate(groups):
            for position in group:
                expected[position] = cluster_id
        assert row["cluster_ids"] == expected
        assert row["confidence"] == row["confidence_upper"] == max(map(len, groups), default=0) / 7


def test_duplicates_and_empty_outputs_cost_nothing():
    judge = Relation(0, 0.5)
    (row,) = cluster(make([["Yes", "yes ", "", " ", "YES"]]), judge)
    assert judge.calls == []
    assert row["cluster_ids"] == [0, 0, -1, -1, 0] and row["confidence"] == 0.6


def test_empty_outputs_lower_the_confidence_and_may_leave_no_group():
    grouped = cluster(make([["", ""], ["a", ""]]), Relation(0, 0.5), threshold=0.6)
    assert grouped["cluster_ids"][:] == [[-1, -1], [0, -1]]
    assert grouped["confidence"][:] == [0.0, 0.5]
    assert largest_group([-1, -1]) == []


def test_questions_of_all_prompts_go_out_together():
    judge = Relation(0, 0.0)
    cluster(make([["a", "b", "c"]] * 40), judge, threshold=1.0)
    assert [len(call) for call in judge.calls] == [40]


def test_more_prompts_than_are_searched_at_once(monkeypatch):
    monkeypatch.setattr("trl_rlp.data.groups.clustering._PROMPTS_AT_ONCE", 3)
    samples = random_samples(random.Random(0), prompts=20, n=5)
    judge = Relation(3, 0.3)
    grouped = cluster(samples, judge)
    assert max(len({prompt for prompt, _, _ in call}) for call in judge.calls) == 3
    monkeypatch.undo()
    assert grouped.to_dict() == cluster(samples, judge).to_dict()


def test_a_chat_prompt_is_put_to_the_judge_as_text():
    judge = Relation(0, 0.0)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    cluster(make([["a", "b"]], [chat]), judge, threshold=1.0)
    assert judge.calls == [[("Be brief.\nWho?", "a", "b")]]


def test_columns_are_added_or_replaced_and_others_kept():
    samples = make([["4", "5", "4."]]).add_column("audit", [7])
    grouped = cluster(samples, ExactMatch())
    assert grouped.column_names == [*samples.column_names, "cluster_ids", "confidence", "confidence_upper"]
    again = cluster(grouped, ExactMatch(), threshold=0.9)
    assert again.column_names == grouped.column_names
    assert again[0]["audit"] == 7 and again[0]["confidence"] == 2 / 3 < 0.9


def test_a_real_tokenizer_and_classifier_agree_with_the_plain_loop():
    tokenizer = tiny_tokenizer()
    judge = NLIEquivalence(tiny_nli(tokenizer, initializer_range=2.0), tokenizer, rule="no_contradiction")
    judge.is_same = lambda *question: judge.same(*([part] for part in question))[0]
    generator = random.Random(0)
    samples = make([generator.choices(["a", "B", "cc", "d d", "e", "f?"], k=6) for _ in range(12)])
    sizes = set()
    for row in cluster(samples, judge, complete_groups=True):
        groups = plain(row["prompt"], row["completions"], judge)
        assert largest_group(row["cluster_ids"]) == max(groups, key=len)
        sizes |= {len(group) for group in groups}
    assert len(sizes) > 1, "the random classifier must find some outputs alike, or this test shows nothing"


@pytest.mark.parametrize("threshold", [-0.1, 1.01, float("nan")])
def test_a_threshold_that_is_no_share_is_refused(threshold):
    with pytest.raises(ValueError, match=r"`threshold` is a share of the outputs and must lie in \[0, 1\], got"):
        cluster(make([["a", "b"]]), ExactMatch(), threshold=threshold)


def test_samples_that_are_none_are_refused():
    with pytest.raises(ValueError, match="`samples` has 1 completions a prompt"):
        cluster(make([["a"]]), ExactMatch())


@pytest.mark.parametrize(("threshold", "warns"), [(0.5, True), (0.51, False), (0.0, False)])
def test_a_threshold_that_any_single_output_reaches_is_warned_of(threshold, warns, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("trl_rlp"), "propagate", True)
    cluster(make([["a", "b"]]), ExactMatch(), threshold=threshold)
    assert any("is at most one output" in record.getMessage() for record in caplog.records) == warns
