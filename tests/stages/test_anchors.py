import pytest
from datasets import Dataset

from tests.reward_runs import SameText
from trl_rlp.data.anchors.semantic_anchors import SemanticAnchors
from trl_rlp.stages.anchors import make_anchors
from trl_rlp.stages.samples import group_samples
from trl_rlp.storage.artifacts import load_data, save_data


class Released(SameText):
    """Counts how often its model was released."""

    def __init__(self):
        self.num_released = 0

    def release(self):
        self.num_released += 1


class Silent(SameText):
    """Answers no question."""

    def are_equivalent(self, prompts, firsts, seconds):
        raise NotImplementedError


def save_samples(folder, completions):
    prompts = [f"{row}?" for row in range(len(completions))]
    finished = [[True] * len(texts) for texts in completions]
    samples = Dataset.from_dict({"prompt": prompts, "completions": completions, "finished": finished})
    save_data(samples, folder / "samples")
    return folder / "samples"


def test_the_majority_of_each_prompt_becomes_its_anchor(tmp_path):
    """Three of four agree, then two of four, then nobody: confidences .75 and .5, so the mean is .625."""
    samples = save_samples(tmp_path, [["red", "red.", "red", "blue"], ["one", "one", "two", "three"], list("abcd")])
    equivalence = Released()
    metrics = make_anchors(tmp_path / "anchors", samples, equivalence, threshold=0.5)
    assert metrics == {"prompts": 3, "anchors": 2, "confidence": 0.625} and equivalence.num_released == 1
    anchors = SemanticAnchors.load(tmp_path / "anchors")
    assert anchors.find("0?").text == "red" and anchors.find("2?") is None and anchors.knows("2?")


def test_groups_are_used_unless_a_prompt_has_several_rows(tmp_path):
    """
    Red is two of six in row 1, and four of six in row 2, which has a majority. In both rows together, it is six of
    twelve. The groups of row 1 do not count, so the groups of both rows would give four of twelve, which is no anchor.
    """
    texts = [["red", "red", "blue", "a", "b", "c"], ["red", "red", "red", "red", "d", "e"]]
    samples = save_samples(tmp_path, texts)
    group_samples(tmp_path / "groups", samples, SameText(), threshold=0.5, complete_groups=False)
    make_anchors(tmp_path / "anchors", samples, Silent(), 0.5, groups=tmp_path / "groups")
    anchors = SemanticAnchors.load(tmp_path / "anchors")
    assert anchors.find("0?") is None and anchors.find("1?").confidence == 4 / 6

    save_data(load_data(samples).map(lambda row: {"prompt": "same?"}), tmp_path / "copies")
    group_samples(tmp_path / "grouped copies", tmp_path / "copies", SameText(), threshold=0.5, complete_groups=False)
    make_anchors(tmp_path / "joined", tmp_path / "copies", SameText(), 0.5, groups=tmp_path / "grouped copies")
    anchors = SemanticAnchors.load(tmp_path / "joined")
    assert (anchors.find("same?").text, anchors.find("same?").confidence) == ("red", 0.5)


def test_no_majority_at_all_is_an_error(tmp_path):
    samples = save_samples(tmp_path, [list("abcd"), list("efgh")])
    with pytest.raises(ValueError, match="anchor"):
        make_anchors(tmp_path / "anchors", samples, SameText(), threshold=0.5)
