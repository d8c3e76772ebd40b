import pytest
from datasets import Dataset

from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.quickstart.model_outcome import compare_rewards, compute_accuracies, measure_policies, wilson_interval
from trl_rlp.storage.artifacts import load_data


def test_wilson_interval_computed_by_hand():
    """p = .5, n = 16, z = 2: (.5 + 4/32 ± 2 √(.25/16 + 4/1024)) / 1.25 = (.625 ± 2 √.01953125) / 1.25."""
    low, high = wilson_interval(0.5, 16, z=2)
    assert (low, high) == pytest.approx(((0.625 - 2 * 0.01953125**0.5) / 1.25, (0.625 + 2 * 0.01953125**0.5) / 1.25))
    assert low + high == pytest.approx(1)
    assert wilson_interval(0.0, 10)[0] == pytest.approx(0)
    assert wilson_interval(1.0, 10)[1] == pytest.approx(1)


def test_an_unfinished_completion_is_not_correct():
    samples = Dataset.from_dict(
        {"completions": [[" 4", " 4."], [" Paris", " Rome"]], "finished": [[True, False], [True, True]]}
    )
    assert compute_accuracies(samples, [["4"], ["Paris"]]).tolist() == [0.5, 0.5]


def test_equal_policies_have_equal_results(tmp_path):
    tokenizer = tiny_tokenizer(chat=False)
    folder = save(tiny_causal_lm(tokenizer), tokenizer, tmp_path / "a")
    other = save(tiny_causal_lm(tokenizer, seed=1), tokenizer, tmp_path / "b")
    questions = Dataset.from_dict({"prompt": ["1?", "2?", "3?"], "answers": [["a"], ["b"], ["c"]]})
    sampling = {"num_generations": 2, "max_new_tokens": 2, "temperature": 0.7}
    policies = {"sft": folder, "policy": folder, "retrained_policy": other}
    outcome = measure_policies(tmp_path / "out", policies, questions, sampling)
    assert load_data(tmp_path / "out" / "sft")[:] == load_data(tmp_path / "out" / "policy")[:]
    assert outcome["comparisons"]["policy - sft"] == {"difference": 0.0, "standard_error": 0.0}
    assert outcome["policies"]["sft"]["kl"] == 0
    assert outcome["policies"]["policy"]["kl"] == pytest.approx(0, abs=1e-5)
    assert outcome["policies"]["retrained_policy"]["kl"] > 0
    assert (outcome["questions"], outcome["completions_per_question"]) == (3, 2)


def test_reward_models_are_compared_pair_by_pair():
    tokenizer = tiny_tokenizer(chat=False)
    model = tiny_reward_model(tokenizer)
    opposite = tiny_reward_model(tokenizer)
    opposite.score.weight.data.neg_()
    pairs = Dataset.from_dict({"prompt": ["1?"] * 3, "chosen": ["a", "b", "c"], "rejected": ["d", "ee", "f"]})
    metrics = compare_rewards((model, tokenizer), (opposite, tokenizer), {"some": pairs, "none": pairs.select([])})
    assert list(metrics) == ["some"]
    before, after = (metrics["some"][side]["accuracy"] for side in ("before", "after"))
    assert before + after == pytest.approx(1)
    assert metrics["some"]["difference"]["accuracy"] == pytest.approx(after - before)
    one = compare_rewards((model, tokenizer), (model, tokenizer), {"one": pairs.select([0])})
    assert one["one"]["difference"]["standard_error"] is None
