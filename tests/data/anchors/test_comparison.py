from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from tests.data.anchors.fakes import FirstLetter
from tests.programs import require_agreement
from trl_rlp.data.anchors import AnchorComparison, SemanticAnchors, comparison
from trl_rlp.data.groups import ExactMatch


def make_comparison(equivalence=None, **columns):
    """Prompt a has the anchor x1 with the members x1 and x2. Prompt b has none."""
    rows = {"prompt": ["a", "b"], "completions": [["x1", "x2", "y"], ["x", "y", "z"]], "finished": [[True] * 3] * 2}
    anchors = SemanticAnchors.from_samples(Dataset.from_dict({**rows, **columns}), FirstLetter())
    return AnchorComparison(anchors, equivalence or FirstLetter())


def compare(comparison, prompts, completions, **options):
    return comparison.compare({"prompt": list(prompts), "completion": completions}, **options)


def test_only_new_texts_are_asked_about():
    """
    x1 and x2 are members. An empty completion says nothing. `x3.` and `x3` are two texts, because the answers about
    them may differ, and must not depend on which came first. Prompt b has no anchor, and prompt c is unknown.
    """
    comparison = make_comparison()
    completions = ["x2.", "x1", " ", "x3.", "x3", "x3.", "y", "y", "x1"]
    verdicts = compare(comparison, "aaaaaaabc", completions)
    assert verdicts == [True, True, False, True, True, True, False, None, None]
    assert comparison.equivalence.calls == [[("a", "x1", "x3."), ("a", "x1", "x3"), ("a", "x1", "y")]]
    assert comparison.num_questions == 3
    assert compare(comparison, "aaa", ["x3", "y", "z"]) == [True, False, False]
    assert comparison.equivalence.calls[1:] == [[("a", "x1", "z")]] and comparison.num_questions == 4


def test_no_new_text_is_no_call():
    comparison = make_comparison()
    assert compare(comparison, "ab", ["x1", "y"]) == [True, None]
    assert compare(comparison, "", []) == []
    assert comparison.equivalence.calls == [] and comparison.num_questions == 0


def test_the_same_text_is_asked_about_for_each_prompt():
    rows = {"prompt": ["a", "ab"], "completions": [["x", "x"], ["y", "y"]], "finished": [[True] * 2] * 2}
    anchors = SemanticAnchors.from_samples(Dataset.from_dict(rows), FirstLetter())
    comparison = AnchorComparison(anchors, FirstLetter())
    # The texts of prompt and completion together are equal, too.
    assert compare(comparison, ["a", "ab"], ["by2", "y2"]) == [False, True]
    assert comparison.num_questions == 2


def test_the_instruction_comes_from_its_column():
    equivalence = FirstLetter(instruction="question")
    comparison = make_comparison(equivalence)
    columns = {"prompt": ["b", "a"], "completion": ["x", "x3"], "question": ["Why?", "What?"]}
    assert comparison.compare(columns) == [None, True]
    assert equivalence.calls == [[("What?", "x1", "x3")]]
    with pytest.raises(ValueError, match="`instruction`='question' names no column of `columns`"):
        compare(comparison, "a", ["x1"])


def test_nothing_of_a_failed_call_is_remembered():
    comparison = make_comparison()
    ask = comparison.equivalence.are_equivalent

    def fail(*pairs):
        raise RuntimeError("out of memory")

    comparison.equivalence.are_equivalent = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        compare(comparison, "a", ["x3"])
    comparison.equivalence.are_equivalent = lambda *pairs: [True]
    with pytest.raises(ValueError, match="`are_equivalent` of `FirstLetter` returned 1 verdicts for 2 pairs. It must"):
        compare(comparison, "aa", ["x3", "x4"])
    assert comparison.num_questions == 0
    comparison.equivalence.are_equivalent = ask
    assert compare(comparison, "aa", ["x3", "z"]) == [True, False] and comparison.num_questions == 2


def test_the_oldest_verdicts_are_forgotten(monkeypatch):
    monkeypatch.setattr(comparison, "CACHE_SIZE", 2)
    made = make_comparison()
    assert compare(made, "aaa", ["x3", "y3", "z3"]) == [True, False, False] and made.num_questions == 3
    assert compare(made, "aa", ["y3", "z3"]) == [False, False] and made.num_questions == 3
    assert compare(made, "a", ["x3"]) == [True] and made.num_questions == 4


@pytest.mark.parametrize("form", [np.array, torch.tensor, iter])
def test_verdicts_may_come_in_any_container(form):
    comparison = make_comparison()
    ask = comparison.equivalence.are_equivalent
    comparison.equivalence.are_equivalent = lambda *pairs: form(ask(*pairs))
    for _ in range(2):
        verdicts = compare(comparison, "aa", ["x3", "z"])
        assert verdicts == [True, False] and {type(verdict) for verdict in verdicts} == {bool}


def test_a_comparison_equals_the_rule_of_the_clusters():
    """A completion of the initial policy means what the anchor means exactly if it is in the largest group."""
    texts = ["x1", "y1", "x2", "", "x3", "z"]
    rows = {"prompt": ["a"], "completions": [texts], "finished": [[True] * 6]}
    anchors = SemanticAnchors.from_samples(Dataset.from_dict(rows), FirstLetter())
    assert compare(AnchorComparison(anchors, FirstLetter()), "a" * 6, texts) == [True, False, True, False, True, False]


def test_the_leader_is_asked_first_as_by_the_clusters():
    """The relation is not symmetric: the second text must be longer. A comparison asks as the clustering asked."""
    equivalence = FirstLetter(are_equivalent=lambda prompts, firsts, seconds: list(map(is_longer, firsts, seconds)))
    rows = {"prompt": ["a"], "completions": [["xx", "x", "xxx", "xxxx"]], "finished": [[True] * 4]}
    anchors = SemanticAnchors.from_samples(Dataset.from_dict(rows), equivalence)
    assert anchors.find("a").members == ["xx", "xxx", "xxxx"]
    assert compare(AnchorComparison(anchors, equivalence), "aaa", ["x", "xxx", "xxxxx"]) == [False, True, True]


def is_longer(first, second):
    return len(second) > len(first)


def test_one_process_shares_with_nobody():
    comparison = make_comparison()
    assert compare(comparison, "aab", ["x3", "y", "x"], share_questions=True) == [True, False, None]
    assert compare(comparison, "a", ["x3"]) == [True] and comparison.num_questions == 2


def test_arguments_of_wrong_types_are_refused():
    with pytest.raises(TypeError, match="got the class `ExactMatch`"):
        make_comparison(ExactMatch)
    with pytest.raises(TypeError, match="`anchors` must be `SemanticAnchors`, got `dict`. Make them with"):
        AnchorComparison({"a": "x1"}, ExactMatch())


def test_two_processes_share_the_questions(tmp_path):
    require_agreement(Path(__file__).with_name("two_process_anchors.py"), tmp_path)
