import pytest
from datasets import Dataset

from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.groups.equivalence import ExactMatch
from trl_rlp.data.preferences.preferences import synthesize_preferences
from trl_rlp.quickstart.outcome import measure_outcome
from trl_rlp.quickstart.question_outcome import describe_questions, label_accuracy, summarize_kinds
from trl_rlp.storage.artifacts import save_data


SAMPLES = Dataset.from_dict(
    {
        "prompt": ["1?", "2?", "3?"],
        "completions": [
            ["4", "4.", "5", "6"],  # half agree on a right answer
            ["Rome", "Oslo", "Bern", "Riga"],  # none agree
            ["7", "7", "7", "8"],  # three agree on a wrong answer
        ],
        "finished": [[True] * 4] * 3,
    }
)
UNLABELED = Dataset.from_dict(
    {
        "prompt": ["1?", "2?", "3?"],
        "answers": [["4", "four"], ["Oslo"], ["9"]],
        "kind": ["sum", "capital", "sum"],
        "question": ["2 + 2", "Norway", "4 + 5"],
    }
)
HELDOUT = Dataset.from_dict({"prompt": ["5?", "6?"], "answers": [["a"], ["b"]]})
PAIRS = Dataset.from_dict({"prompt": ["7?", "8?"], "chosen": ["a", "b"], "rejected": ["c", "dd"]})


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("models"), tiny_tokenizer(chat=False)
    opposite = tiny_reward_model(tokenizer)
    opposite.score.weight.data.neg_()
    built = {
        "sft": tiny_causal_lm(tokenizer),
        "policy": tiny_causal_lm(tokenizer, seed=1),
        "retrained_policy": tiny_causal_lm(tokenizer, seed=2),
        "reward_model": tiny_reward_model(tokenizer),
        "refined_reward_model": opposite,
    }
    for name, model in built.items():
        save(model, tokenizer, folder / name)
    return {name: folder / name for name in built}


def measure(folder, models, synthetic: Dataset | None):
    """The saved samples have groups that are wrong. The page finds its own groups."""
    save_data(SAMPLES.add_column("cluster_ids", [[0] * 4] * 3).add_column("confidence", [1.0] * 3), folder / "samples")
    if synthetic is not None:
        save_data(synthetic, folder / "synthetic")
    return measure_outcome(
        folder / "out",
        models,
        folder / "samples",
        None if synthetic is None else folder / "synthetic",
        UNLABELED,
        HELDOUT,
        PAIRS,
        threshold=0.5,
        sampling={"num_generations": 2, "max_new_tokens": 2},
        seed=4,
    )


def synthesize(method: str, seed: int = 4, **settings) -> Dataset:
    return synthesize_preferences(SAMPLES, method, equivalence=ExactMatch(), chosen="random", seed=seed, **settings)[0]


def test_saved_preferences_are_measured_as_they_are(tmp_path, models):
    """The saved D̂ has only the last question, whose chosen completion is the wrong 7."""
    saved = synthesize("spg", threshold=0.5).select([1])
    outcome = measure(tmp_path, models, saved)
    answers = list(UNLABELED["answers"])
    assert outcome["synthetic"] == {
        "spg": label_accuracy(saved, answers),
        "select_all": label_accuracy(synthesize("select_all"), answers),
    }
    assert outcome["synthetic"]["select_all"] != label_accuracy(synthesize("select_all", seed=0), answers)
    assert outcome["synthetic"]["spg"]["pairs"] == 1 and outcome["synthetic"]["spg"]["chosen_right"] == 0
    labeled = UNLABELED.add_column("completions", SAMPLES["completions"][:]).add_column(
        "finished", SAMPLES["finished"][:]
    )
    assert outcome["questions"] == describe_questions(labeled, saved, 0.5)
    assert outcome["questions"][2]["status"] == "accepted" and outcome["questions"][2]["chosen"] == "7"
    assert outcome["kinds"] == summarize_kinds(outcome["questions"])


def test_a_run_without_synthetic_preferences_makes_them_for_the_page(tmp_path, models):
    outcome = measure(tmp_path, models, None)
    assert outcome["synthetic"]["spg"] == label_accuracy(synthesize("spg", threshold=0.5), list(UNLABELED["answers"]))
    assert [row["status"] for row in outcome["questions"]] == ["accepted", "below γ", "accepted"]


def test_all_models_are_compared(tmp_path, models):
    """The refined reward model orders each pair in the opposite way."""
    outcome = measure(tmp_path, models, None)
    assert set(outcome) == {"policies", "rewards", "synthetic", "questions", "kinds"}
    assert list(outcome["policies"]["policies"]) == ["sft", "policy", "retrained_policy"]
    assert outcome["policies"]["questions"] == 2
    comparison = outcome["rewards"]["human, no label flipped"]
    assert comparison["before"]["pairs"] == 2
    assert comparison["before"]["accuracy"] + comparison["after"]["accuracy"] == pytest.approx(1)
