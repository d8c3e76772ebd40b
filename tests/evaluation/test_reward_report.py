import numpy as np
import pytest
from datasets import Dataset

from tests.tiny_models import tiny_reward_model, tiny_tokenizer
from trl_rlp.evaluation.intervals import bootstrap_interval
from trl_rlp.evaluation.reward_metrics import evaluate_reward_model, reward_margins
from trl_rlp.evaluation.reward_report import (
    describe_reward_model,
    describe_rewards,
    margin_histogram,
    rank_correlation,
)


PAIRS = Dataset.from_dict(
    {
        "prompt": ["a?", "b?", "c?", "d?"],
        "chosen": ["yes", "yes!", "y", "it is"],
        "rejected": ["no", "n", "not", "it is not so"],
    }
)


def test_the_histogram_is_symmetric_around_zero():
    """There are four bins of width 1 from -2 to 2: one pair in the first, two in the third, one in the last."""
    found = margin_histogram([-2.0, 0.5, 0.0, 2.0], num_bins=4)
    assert found == {"edges": [-2.0, -1.0, 0.0, 1.0, 2.0], "counts": [1, 0, 2, 1]}
    assert margin_histogram([0.0, 0.0])["counts"][10] == 2


def test_rank_correlation_computed_by_hand():
    """The squared differences of ranks 1 2 3 4 and 2 1 4 3 are 1 each. So it is 1 - 6 * 4 / (4 * 15) = .6."""
    assert rank_correlation([1, 2, 3, 4], [20, 10, 400, 300]) == pytest.approx(0.6)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None


def test_the_metrics_reveal_a_length_bias(monkeypatch):
    rewards = {"chosen": [3.0, 4.0, 1.0, 5.0], "rejected": [2.0, 1.0, 3.0, 12.0]}
    lengths = {"chosen": [3, 4, 1, 5], "rejected": [2, 1, 3, 12]}
    monkeypatch.setattr("trl_rlp.evaluation.reward_report.score_pairs", lambda *_: (rewards, lengths))
    found = describe_reward_model(None, None, PAIRS)
    assert found["length_correlation"] == found["margin_length_correlation"] == pytest.approx(1)
    assert found["accuracy"] == found["length_accuracy"] == 0.5
    assert sum(found["margin_histogram"]["counts"]) == 4
    low, high = found["accuracy_interval"]
    assert low < 0.5 < high


def test_pairs_of_one_prompt_are_resampled_together():
    """Ten prompts with ten equal pairs each have the interval of ten pairs."""
    chosen, rejected, prompts = np.repeat([1.0, 0.0] * 5, 10), np.full(100, 0.5), np.repeat(np.arange(10), 10)
    found = describe_rewards(chosen, rejected, groups=prompts)
    assert found["accuracy_interval"] == describe_rewards([1.0, 0.0] * 5, [0.5] * 10)["accuracy_interval"]
    assert found["accuracy_interval"] != describe_rewards(chosen, rejected)["accuracy_interval"]
    assert not {"length_accuracy", "length_correlation"} & set(found)


def test_prompts_are_the_groups(monkeypatch):
    rewards = {"chosen": [1.0, 0.0] * 20, "rejected": [0.5] * 40}
    monkeypatch.setattr("trl_rlp.evaluation.reward_report.score_pairs", lambda *_: (rewards, rewards))
    prompts = [str(number // 10) for number in range(40)]
    pairs = Dataset.from_dict({"prompt": prompts, "chosen": ["c"] * 40, "rejected": ["d"] * 40})
    found = describe_reward_model(None, None, pairs)["accuracy_interval"]
    assert found == bootstrap_interval([1.0, 0.0] * 20, groups=prompts) == (0.5, 0.5)
    assert found != bootstrap_interval([1.0, 0.0] * 20)


def test_invalid_input_raises_an_error():
    with pytest.raises(ValueError, match=r"Rewards, lengths and groups have \[1, 2\] entries"):
        describe_rewards([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match=r"Rewards, lengths and groups have \[1, 2\] entries"):
        describe_rewards([1.0, 2.0], [1.0, 2.0], groups=["a"])
    with pytest.raises(ValueError, match=r"`lengths` has the keys \['chosen'\]"):
        describe_rewards([1.0], [1.0], {"chosen": [1]})
    for reward in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="A reward of pair 1 is not finite"):
            describe_rewards([0.0, 1.0], [0.0, reward])
    with pytest.raises(ValueError, match="The difference in length of pair 0 is NaN"):
        describe_rewards([1.0], [0.0], {"chosen": [float("nan")], "rejected": [1]})


def test_the_metrics_include_those_of_the_gate():
    tokenizer = tiny_tokenizer()
    model = tiny_reward_model(tokenizer)
    found = describe_reward_model(model, tokenizer, PAIRS)
    assert found.items() >= evaluate_reward_model(model, tokenizer, PAIRS).items()
    margins, _ = reward_margins(model, tokenizer, PAIRS)
    assert found["margin_histogram"]["edges"][-1] == pytest.approx(np.abs(margins).max())
    assert describe_reward_model(model, tokenizer, PAIRS.select([0]))["accuracy_interval"] is None
