import itertools
import math

import numpy as np
import pytest
from datasets import Dataset

from tests.tiny_models import tiny_reward_model, tiny_tokenizer
from trl_rlp.data.scoring import score
from trl_rlp.evaluation.best_of_n_sampling import best_of_n, best_of_n_kl, best_of_n_weights, best_outputs


def test_weights_computed_by_hand():
    """Of the pairs {.1, .3}, {.1, .2}, {.3, .2}, the sample with .3 wins two and the sample with .2 wins one."""
    assert best_of_n_weights([0.1, 0.3, 0.2], 2).tolist() == pytest.approx([0, 2 / 3, 1 / 3])
    assert best_of_n_weights([0.1, 0.3, 0.2], 1).tolist() == pytest.approx([1 / 3] * 3)
    assert best_of_n_weights([0.1, 0.3, 0.2], 3).tolist() == [0, 1, 0]


def test_equal_rewards_share_their_weights():
    """At n = 2 the three ranks have weights 0, 1/3, 2/3. The two upper ones are equal, so each gets one half."""
    assert best_of_n_weights([2.0, 1.0, 2.0], 2).tolist() == pytest.approx([0.5, 0, 0.5])
    assert best_of_n_weights([1.0] * 4, 3).tolist() == pytest.approx([0.25] * 4)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_the_estimate_is_the_mean_over_all_subsets(n):
    generator = np.random.default_rng(0)
    rewards, values = generator.normal(size=(2, 4, 6))
    expected = [
        np.mean([row_values[max(subset, key=lambda i: row[i])] for subset in itertools.combinations(range(6), n)])
        for row, row_values in zip(rewards, values, strict=True)
    ]
    found = best_of_n(rewards, values, n)
    assert found["value"] == pytest.approx(np.mean(expected))
    assert found["standard_error"] == pytest.approx(np.std(expected, ddof=1) / 2)
    assert found["interval"][0] < found["value"] < found["interval"][1] and found["prompts"] == 4


def test_many_samples_do_not_overflow():
    weights = best_of_n_weights(np.arange(2000.0), 700)
    assert weights.sum() == pytest.approx(1) and weights[-1] == pytest.approx(700 / 2000)


def test_kl_computed_by_hand():
    """ln 4 - 3/4."""
    assert best_of_n_kl(4) == pytest.approx(math.log(4) - 0.75)
    assert best_of_n_kl(1) == 0
    with pytest.raises(ValueError, match="`n` must be at least 1, got 0"):
        best_of_n_kl(0)


@pytest.mark.parametrize("form", ["text", "chat"])
def test_the_completion_with_the_highest_reward_is_selected(form):
    tokenizer = tiny_tokenizer()
    model = tiny_reward_model(tokenizer)
    texts = ["Who?", "What?"]
    prompts = texts if form == "text" else [[{"role": "user", "content": text}] for text in texts]
    completions, finished = [["a", "bb", "ccc"], ["d", "e", "f"]], [[True, False, True], [True, True, False]]
    samples = Dataset.from_dict({"prompt": prompts, "completions": completions, "finished": finished})
    selected = best_outputs(samples, model, tokenizer)
    for row, best in enumerate(selected):
        rewards = score(model, tokenizer, [prompts[row]] * 3, completions[row], finished[row])
        index = int(np.argmax(rewards))
        assert (best["prompt"], best["completion"], best["finished"]) == (
            prompts[row],
            completions[row][index],
            finished[row][index],
        )
        assert best["reward"] == pytest.approx(max(rewards), abs=1e-6)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: best_of_n_weights([1.0, 2.0], 3), "`n` must be from 1 to the number of samples, 2, got 3"),
        (lambda: best_of_n_weights([1.0, 2.0], 0), "got 0"),
        (lambda: best_of_n_weights([1.0, float("nan")], 1), "`rewards` entry 1 is NaN"),
        (
            lambda: best_of_n([[1.0, 2.0]], [[1.0]], 1),
            r"`rewards` \(1 prompts\) and `values` \(1\) must",
        ),
        (lambda: best_of_n([], [], 1), "at least one prompt"),
        (lambda: best_of_n([[1.0, 2.0]], [[1.0, float("nan")]], 1), "`values` row 0 contains NaN"),
    ],
)
def test_invalid_input_raises_an_error(call, match):
    with pytest.raises(ValueError, match=match):
        call()
