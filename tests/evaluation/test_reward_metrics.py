import math

import pytest
from datasets import Dataset

from tests.tiny_models import tiny_reward_model, tiny_tokenizer
from trl_rlp.data.preferences.mixing import mix_preferences
from trl_rlp.data.scoring import score
from trl_rlp.evaluation.reward_metrics import (
    brier_score,
    evaluate_reward_model,
    expected_calibration_error,
    pair_metrics,
    preference_accuracy,
    reward_margins,
    score_pairs,
)


def test_accuracy_counts_a_tie_as_one_half():
    assert preference_accuracy([2.0, -1.0, 0.0, 0.5]) == (1 + 0 + 0.5 + 1) / 4


def test_calibration_error_computed_by_hand():
    """Margins ±ln 3 have confidence 3/4. With three of four right, the error is 0. With two of four, it is 1/4."""
    m = math.log(3)
    assert expected_calibration_error([m, m, m, -m]) == pytest.approx(0)
    assert expected_calibration_error([m, m, -m, -m]) == pytest.approx(0.25)


def test_calibration_error_weights_bins_by_their_pairs():
    """Bin 3/4 has one pair, which is right: gap 1/4. Bin 9/10 has three pairs, two right: gap |2 - 2.7| / 3."""
    low, high = math.log(3), math.log(9)
    expected = (1 / 4) * 0.25 + (3 / 4) * (0.7 / 3)
    assert expected_calibration_error([low, high, high, -high]) == pytest.approx(expected)


def test_calibration_error_of_extreme_margins():
    assert expected_calibration_error([1000.0, -1000.0]) == pytest.approx(0.5)


def test_brier_score_computed_by_hand():
    """Margins ±ln 3 give the chosen side 3/4 and 1/4. The errors are 1/4 and 3/4, their squares 1/16 and 9/16."""
    m = math.log(3)
    assert brier_score([m, -m]) == pytest.approx((1 / 16 + 9 / 16) / 2)
    assert brier_score([0.0, 0.0]) == 0.25
    assert brier_score([1e4, -1e4]) == pytest.approx(0.5)


def test_metrics_of_random_guesses_and_the_length_baseline():
    metrics = pair_metrics([0.0, 0.0], [3, -1])
    assert metrics["log_loss"] == pytest.approx(math.log(2))
    assert metrics["length_accuracy"] == 0.5 and metrics["pairs"] == 2 and metrics["margin"] == 0


def test_nan_raises_an_error():
    with pytest.raises(ValueError, match="The margin of pair 1 is NaN"):
        pair_metrics([1.0, float("nan")], [0, 0])


@pytest.mark.parametrize(("margins", "lengths"), [([], []), ([1.0], [])])
def test_no_pairs_or_unequal_lengths_raise_an_error(margins, lengths):
    with pytest.raises(ValueError, match="must have the same length, at least 1"):
        pair_metrics(margins, lengths)


@pytest.mark.parametrize("chat", [False, True])
def test_margins_are_differences_of_scores(chat):
    tokenizer = tiny_tokenizer()
    model = tiny_reward_model(tokenizer)
    prompt = [{"role": "user", "content": "Who?"}] if chat else "Who?"
    sides = {
        side: [{"role": "assistant", "content": text}] if chat else text
        for side, text in (("chosen", "Ada"), ("rejected", "No idea"))
    }
    preferences = Dataset.from_list([{"prompt": prompt, **sides, "chosen_finished": True, "rejected_finished": False}])
    margins, lengths = reward_margins(model, tokenizer, preferences)
    expected = score(model, tokenizer, [prompt] * 2, ["Ada", "No idea"], [True, False])
    assert margins == pytest.approx([expected[0] - expected[1]], abs=1e-5)
    assert lengths == [3 - 7]


@pytest.mark.parametrize("chat", [False, True])
def test_implicit_and_explicit_prompts_give_the_same_metrics(chat):
    tokenizer = tiny_tokenizer()
    model = tiny_reward_model(tokenizer)
    explicit, implicit = {"prompt": "2 + 2 = "}, {}
    for side, text in (("chosen", "4"), ("rejected", "five")):
        explicit[side], implicit[side] = text, f"2 + 2 = {text}"
    if chat:
        turn = [{"role": "user", "content": "2 + 2?"}]
        answers = {side: [{"role": "assistant", "content": explicit[side]}] for side in ("chosen", "rejected")}
        explicit, implicit = {"prompt": turn, **answers}, {side: turn + answer for side, answer in answers.items()}
    first = evaluate_reward_model(model, tokenizer, Dataset.from_list([explicit]))
    assert evaluate_reward_model(model, tokenizer, Dataset.from_list([implicit])) == pytest.approx(first)


def test_human_pairs_of_mixed_data_have_the_rewards_of_the_pairs_alone():
    """Mixed data has no flags for human pairs, whose completions are finished."""
    tokenizer = tiny_tokenizer(chat=False)
    model = tiny_reward_model(tokenizer)
    human = Dataset.from_list([{"prompt": f"{row}?", "chosen": "yes", "rejected": "no"} for row in range(2)])
    flags = {"chosen_finished": True, "rejected_finished": False}
    synthetic = Dataset.from_list([{"prompt": "a", "chosen": "1", "rejected": "2", **flags}])
    alone, mixed = (score_pairs(model, tokenizer, pairs)[0] for pairs in (human, mix_preferences(human, synthetic)))
    for side, rewards in alone.items():
        assert mixed[side][:2] == pytest.approx(rewards, abs=1e-5)
