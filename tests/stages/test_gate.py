import pytest
from datasets import Dataset

from trl_rlp.evaluation.gate_report import gate
from trl_rlp.evaluation.policy_pairs import answer_pairs
from trl_rlp.stages.gate import compare_reward_models
from trl_rlp.storage.artifacts import load_data, load_reward_model, save_data


HUMAN = Dataset.from_dict(
    {"prompt": ["1?", "2?", "3?"], "chosen": ["red", "blue", "x"], "rejected": ["a", "bb", "yy"]}
)
SYNTHETIC = Dataset.from_dict({"prompt": ["4?", "5?"], "chosen": ["red", "blue"], "rejected": ["gray", "black"]})
SAMPLES = Dataset.from_dict(
    {
        "prompt": ["what is it?", "6?"],
        "completions": [["red", "blue", "gray"], ["pink", "green", "white"]],
        "finished": [[True] * 3] * 2,
    }
)
ANSWERS = [["Red"], ["pink", "green"]]


@pytest.fixture
def folders(tmp_path):
    save_data(SAMPLES, tmp_path / "samples")
    save_data(SYNTHETIC, tmp_path / "synthetic")
    (tmp_path / "gate").mkdir()
    return tmp_path


def compare(folders, *models, **arguments):
    return compare_reward_models(folders / "gate", *models, HUMAN, folders / "samples", **arguments)


@pytest.mark.parametrize("max_length", [None, 4])
def test_the_report_is_that_of_gate(folders, reward_model, opposite_reward_model, max_length):
    report = compare(
        folders,
        reward_model,
        opposite_reward_model,
        answers=ANSWERS,
        synthetic=folders / "synthetic",
        max_length=max_length,
        seed=1,
    )
    models = load_reward_model(reward_model), load_reward_model(opposite_reward_model)
    pairs = HUMAN, answer_pairs(SAMPLES, ANSWERS, 1), SYNTHETIC
    assert report == gate(*models, *pairs, max_length=max_length).as_dict()
    assert report != gate(*models, *pairs, max_length=None if max_length else 4).as_dict()
    default_seed = HUMAN, answer_pairs(SAMPLES, ANSWERS), SYNTHETIC
    assert report != gate(*models, *default_seed, max_length=max_length).as_dict()
    assert load_data(folders / "gate").to_dict() == {"answers": ANSWERS}


def test_pairs_that_are_not_given_are_not_compared(folders, reward_model, opposite_reward_model, caplog):
    """Without answers, or without a correct completion, there are no policy pairs. The second is a warning."""
    models = load_reward_model(reward_model), load_reward_model(opposite_reward_model)
    expected = gate(*models, HUMAN).as_dict()
    assert compare(folders, reward_model, opposite_reward_model) == expected
    assert not list((folders / "gate").iterdir())
    assert "No prompt has a correct and a wrong completion" not in caplog.text
    assert compare(folders, reward_model, opposite_reward_model, answers=[["no"], ["no"]]) == expected
    assert "No prompt has a correct and a wrong completion, so the gate compares no policy pairs" in caplog.text


def test_a_worse_model_is_reported_and_not_refused(folders, reward_model, opposite_reward_model):
    """The two models order every pair in opposite ways. So one of the two directions is a regression."""
    reports = [
        compare(folders, *models)
        for models in ((reward_model, opposite_reward_model), (opposite_reward_model, reward_model))
    ]
    assert [report["passed"] for report in reports] in ([True, False], [False, True])
    assert compare(folders, reward_model, reward_model)["passed"]
