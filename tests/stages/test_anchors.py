import pytest
from datasets import Dataset

from tests.reward_runs import SameText
from trl_rlp.data.anchors.semantic_anchors import SemanticAnchors
from trl_rlp.stages.anchors import make_anchors
from trl_rlp.storage.artifacts import save_data


class Released(SameText):
    """Counts how often its model was released."""

    def __init__(self):
        self.num_released = 0

    def release(self):
        self.num_released += 1


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


def test_no_majority_at_all_is_an_error(tmp_path):
    samples = save_samples(tmp_path, [list("abcd"), list("efgh")])
    with pytest.raises(ValueError, match="anchor"):
        make_anchors(tmp_path / "anchors", samples, SameText(), threshold=0.5)
