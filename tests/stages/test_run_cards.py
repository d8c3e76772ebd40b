"""What a run adds to model cards: a section each, above the limits."""

import pytest
from datasets import Dataset

from trl_rlp import ExactMatch, RLPRewardConfig
from trl_rlp.stages.run_cards import describe_evaluation, describe_gate, describe_synthesis


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").write_text("---\nlibrary_name: transformers\n---\n\n## Limits\n\nMany.\n")
    return tmp_path / "model"


def read(folder):
    return (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("chosen", "text"), [("reward", "Its member with the highest reward"), ("random", "A random member of it")]
)
def test_a_card_says_how_its_pairs_were_made(folder, tmp_path, chosen, text):
    """n = 3 completions a prompt, γ = .4."""
    Dataset.from_dict({"prompt": ["One?"], "completions": [["1", "one", "2"]]}).save_to_disk(
        tmp_path / "samples" / "data"
    )
    config = RLPRewardConfig(str(tmp_path), method="spg", confidence_threshold=0.4, chosen=chosen)
    describe_synthesis(folder, config, tmp_path / "samples", ExactMatch(), {"accepted": 1})
    card = read(folder)
    assert "3 completions of a policy for each prompt were grouped with `ExactMatch`" in card and text in card
    assert "| `confidence_threshold` | 0.4 |" in card and "| `accepted` | 1 |" in card
    assert card.index("## Synthetic preferences") < card.index("## Limits")


def test_a_card_has_the_report_of_the_gate_once(folder):
    report = {"passed": True, "problems": [], "comparisons": {"human": {"after": {"accuracy": 0.75}}}}
    for _ in range(2):  # a resumed run
        describe_gate(folder, report)
    assert read(folder).count("## Gate\n") == 1 and "0.75" in read(folder)


def test_the_card_of_the_sft_policy_stays_as_it_is(folder, tmp_path):
    metrics = {"sft": {"reward": 1.0}, "policy": {"reward": 2.0}}
    describe_evaluation({"sft": str(folder)}, metrics)
    assert "Evaluation" not in read(folder)
    describe_evaluation({"policy": str(folder)}, metrics)
    assert "## Evaluation\n" in read(folder) and "2" in read(folder).split("## Evaluation")[1].split("## Limits")[0]
