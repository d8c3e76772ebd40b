import numpy as np
import pytest
from datasets import Dataset, Value

from tests.data.anchors.fakes import FirstLetter
from trl_rlp.data.anchors.anchor_rows import FEATURES, REASONS, build_rows, pool_rows, replace_majorities
from trl_rlp.data.groups import cluster
from trl_rlp.data.groups.clustering import require_decided_groups


def make_rows(completions, threshold=0.5):
    columns = {"prompt": [str(row) for row in range(len(completions))], "completions": completions}
    columns["finished"] = [[True] * len(texts) for texts in completions]
    samples = cluster(Dataset.from_dict(columns), FirstLetter(), threshold=threshold)
    return build_rows(samples, FirstLetter(), threshold)


def pool(rows, labels, equivalence=None, threshold=0.5, allow_contradiction=True):
    return pool_rows(rows, labels, equivalence or FirstLetter(), threshold, allow_contradiction=allow_contradiction)


def test_a_row_is_built_for_each_prompt():
    rows = make_rows([["x", "x", "y"], ["x", "y", "z"]])
    assert rows.column_names == ["prompt", *FEATURES]
    assert rows["anchor"][:] == ["x", None] and rows["reason"][:] == [None, "below_threshold"]
    assert set(rows["reason"]) - {None} <= set(REASONS)


def test_a_confidence_in_32_bits_reaches_the_same_threshold():
    """The NumPy format of `datasets` rounds .7 to a number below .7."""
    columns = {"prompt": ["a"], "completions": [["x"] * 7 + ["y"] * 3], "finished": [[True] * 10]}
    samples = cluster(Dataset.from_dict(columns), FirstLetter(), threshold=0.7)
    rounded = samples.cast_column("confidence", Value("float32"))
    assert rounded["confidence"][0] < 0.7
    assert build_rows(rounded, FirstLetter(), 0.7)["anchor"][:] == ["x"]


def test_undecided_confidences_in_32_bits_are_refused():
    """.7 may be reached, also if 32 bits round it to a number below .7."""
    bounds = {"confidence": [0.6], "confidence_upper": [0.7]}
    with pytest.raises(ValueError, match="row 0 was clustered for another threshold"):
        require_decided_groups({name: [float(np.float32(value)) for value in bounds[name]] for name in bounds}, 0.7)


def test_labels_without_a_second_row_are_not_asked_about():
    equivalence = FirstLetter()
    rows = make_rows([["x", "x"], ["y", "y"]])
    majorities, num_contradictions = pool(rows, ["a", "b"], equivalence)
    assert replace_majorities(rows, majorities).to_list() == rows.to_list()
    assert equivalence.calls == [] and num_contradictions == 0


def test_the_largest_pooled_group_wins_by_completions_and_not_by_rows():
    """One row says x with 4 of 4, and two say y with 2 of 4 and 2 of 4: 4 of 12 each. The first wins a tie."""
    rows = make_rows([["x"] * 4, ["y", "y", "z", "w"], ["y", "y", "v", "u"]])
    majorities, num_contradictions = pool(rows, ["a"] * 3, threshold=1 / 3)
    assert [majority["anchor"] for majority in majorities] == ["x"] * 3 and num_contradictions == 1
    assert majorities[0]["confidence"] == 4 / 12 and majorities[0]["num_generations"] == 12
    majorities, _ = pool(rows.select([1, 2, 0]), ["a"] * 3, threshold=1 / 3)
    assert majorities[0]["anchor"] == "y"


@pytest.mark.parametrize(("allowed", "anchor", "reason"), [(True, "x", None), (False, None, "contradiction")])
def test_a_contradiction_may_be_outvoted_or_not(allowed, anchor, reason):
    """x has 4 + 4 of 12 completions."""
    rows = make_rows([["x"] * 4, ["y"] * 4, ["x"] * 4])
    majorities, num_contradictions = pool(rows, ["a"] * 3, allow_contradiction=allowed)
    assert {(majority["anchor"], majority["reason"]) for majority in majorities} == {(anchor, reason)}
    assert num_contradictions == 1 and majorities[0]["confidence"] == 8 / 12


def test_rows_without_an_anchor_pool_their_lower_bounds():
    rows = make_rows([["x", "y"], ["x", "y"]], threshold=1.0)
    majorities, _ = pool(rows, ["a", "a"], threshold=1.0)
    assert majorities[0] == {
        "anchor": None,
        "members": [],
        "members_finished": [],
        "confidence": 1 / 4,
        "num_generations": 4,
        "reason": "below_threshold",
    }


def test_a_member_is_finished_if_any_row_has_it_finished():
    rows = make_rows([["x1", "x2"], ["x2", "x2"]])
    first = rows[0] | {"members_finished": [False, False]}
    majorities, _ = pool(replace_majorities(rows, [first, rows[1]]), ["a", "a"])
    assert majorities[0]["members"] == ["x1", "x2"] and majorities[0]["members_finished"] == [False, True]
