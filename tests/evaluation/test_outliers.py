import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from sklearn.covariance import LedoitWolf

from tests.tiny_models import tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.scoring import score
from trl_rlp.evaluation.outliers import MahalanobisOutliers, represent, represent_pairs


@pytest.mark.parametrize(("texts", "hidden"), [(200, 5), (100, 160)], ids=["more texts", "more dimensions"])
def test_distances_equal_those_of_scikit_learn(texts, hidden):
    generator = np.random.default_rng(0)
    states = generator.normal(size=(texts, hidden)) @ generator.normal(size=(hidden, hidden)) + 3
    outliers, others = MahalanobisOutliers(states), generator.normal(size=(30, hidden))
    expected = LedoitWolf().fit(states[: texts // 2])
    assert outliers.distances(others) == pytest.approx(np.sqrt(expected.mahalanobis(others)), rel=1e-6)
    heldout = np.sqrt(expected.mahalanobis(states[texts // 2 :]))
    assert outliers.limit == pytest.approx(np.percentile(heldout, 99), rel=1e-6)


def test_distances_in_one_dimension_by_hand():
    """
    The first half is 1, -1, 1, -1, ...: mean 0, variance 1. One dimension is not shrunk, so the distance is |h|. The
    second half is 0.2, 0.4, ..., 10, whose maximum is the limit.
    """
    states = np.concatenate([[[1.0], [-1.0]] * 25, [[n / 5] for n in range(1, 51)]])
    outliers = MahalanobisOutliers(states, percentile=100.0)
    assert outliers.distances(np.array([[0.0], [-3.0], [np.nan]])) == pytest.approx([0.0, 3.0, np.inf])
    assert outliers.limit == pytest.approx(10.0)
    assert outliers.is_outlier(np.array([[9.9], [-10.1], [np.inf]])).tolist() == [False, True, True]


def test_distances_in_two_dimensions_by_hand():
    """
    48 of the first 50 rows are (2, 0) and (-2, 0), two are (0, 1) and (0, -1): mean 0, S = diag(3.84, 0.04).

    Ledoit and Wolf's target is the mean variance 1.94 in all directions. The squared distance of S from it is
    2 · 1.9² = 7.22. That of the products x xᵀ from S is (48 · 16 + 2 · 1) / 50 - (3.84² + 0.04²) = 0.6528 on average.
    So the shrinkage is 0.6528 / 50 / 7.22 = 0.001808, and the variances are 3.84 - 0.001808 · 1.9 = 3.836564 and
    0.04 + 0.001808 · 1.9 = 0.043436.
    """
    first = [[2.0, 0.0], [-2.0, 0.0]] * 24 + [[0.0, 1.0], [0.0, -1.0]]
    outliers = MahalanobisOutliers(np.array(first + [[2.0, 0.0]] * 50), percentile=100.0)
    expected = [2 / np.sqrt(3.836564), 1 / np.sqrt(0.043436), np.sqrt(4 / 3.836564 + 1 / 0.043436)]
    assert outliers.distances(np.array([[2, 0], [0, 1], [2, 1]])) == pytest.approx(expected, rel=1e-5)
    assert outliers.limit == pytest.approx(expected[0], rel=1e-5)
    assert outliers.is_outlier(np.array([[1.9, 0.0], [0.0, 1.0]])).tolist() == [False, True]


@pytest.mark.parametrize("texts", [100, 1000])
def test_the_share_of_normal_texts_is_the_expected_one(texts):
    """With m texts in the second half, (0.01 m + 0.99) / (m + 1): 2.9 % for 50 and 1.2 % for 500."""
    generator, m = np.random.default_rng(2), texts // 2
    shares = []
    for _ in range(100):
        outliers = MahalanobisOutliers(generator.normal(size=(texts, 4)))
        shares.append(outliers.is_outlier(generator.normal(size=(500, 4))).mean())
    expected = (0.01 * m + 0.99) / (m + 1)
    assert expected == pytest.approx({50: 0.029, 500: 0.012}[m], abs=5e-4)
    assert np.mean(shares) == pytest.approx(expected, rel=0.25)


def test_one_percent_of_normal_texts_are_outliers():
    generator = np.random.default_rng(1)
    outliers = MahalanobisOutliers(generator.normal(size=(4000, 8)))
    assert outliers.is_outlier(generator.normal(size=(20000, 8))).mean() == pytest.approx(0.01, abs=0.004)
    assert outliers.is_outlier(generator.normal(size=(500, 8)) + 4).all()


@pytest.mark.parametrize(
    ("states", "message"),
    [
        (np.zeros((99, 2)), "`states` has 99 texts, but outliers need at least 100"),
        (np.full((100, 2), np.nan), "`states` has NaN or infinite numbers"),
        (np.ones((100, 2)), "All representations in `states` are equal"),
    ],
)
def test_states_without_a_distance_are_errors(states, message):
    with pytest.raises(ValueError, match=message):
        MahalanobisOutliers(states)


def test_the_representation_is_the_input_of_the_score_head():
    """The representation times the weights of the head is the score, for finished and unfinished texts."""
    tokenizer = tiny_tokenizer()
    model = tiny_reward_model(tokenizer, seed=1).train()
    prompts, completions = ["a:", "bcd:", "e:"], ["xyz", "x", ""]
    finished = [True, False, True]
    states = represent(model, tokenizer, prompts, completions, finished, tokens_per_batch=16)
    assert states.shape == (3, 16) and model.training
    rewards = score(model, tokenizer, prompts, completions, finished)
    assert states @ model.score.weight.detach().numpy()[0] == pytest.approx(rewards, abs=1e-5)
    model.config.pad_token_id = None
    assert represent(model, tokenizer, prompts, completions, finished) == pytest.approx(states, abs=1e-5)


def test_a_language_model_has_no_representation():
    tokenizer = tiny_tokenizer()
    with pytest.raises(ValueError, match="a language model, but a reward comes from a sequence classifier"):
        represent(tiny_causal_lm(tokenizer), tokenizer, ["a"], ["b"])


@pytest.mark.parametrize("kind", ["explicit", "implicit", "chat"])
def test_both_sides_of_pairs_are_represented(kind):
    """Of six pairs and at most six texts, pairs 0, 2, 4 are taken: first the pairs 0 and 4, then pair 2."""
    tokenizer = tiny_tokenizer()
    model = tiny_reward_model(tokenizer)
    sides = {"chosen": [f"c{row}" for row in range(6)], "rejected": [f"r{row}" for row in range(6)]}
    prompts = [f"p{row}:" for row in range(6)]
    if kind == "chat":
        prompts = [[{"role": "user", "content": text}] for text in prompts]
        sides = {side: [[{"role": "assistant", "content": text}] for text in texts] for side, texts in sides.items()}
    data = {"prompt": prompts, "chosen_finished": [True, False] * 3} if kind != "implicit" else {}
    states = represent_pairs(model, tokenizer, Dataset.from_dict({**data, **sides}), max_texts=6)
    rows = [(side, row) for row in (0, 4, 2) for side in ("chosen", "rejected")]
    empty = [] if kind == "chat" else ""
    expected = represent(
        model,
        tokenizer,
        [empty if kind == "implicit" else prompts[row] for _, row in rows],
        [sides[side][row] for side, row in rows],
    )
    assert states == pytest.approx(expected, abs=1e-5)
    assert torch.is_grad_enabled()


def test_sides_without_a_flag_are_finished():
    tokenizer = tiny_tokenizer(chat=False)
    model = tiny_reward_model(tokenizer)
    pairs = Dataset.from_list([{"prompt": f"{row}?", "chosen": "yes", "rejected": "no"} for row in range(2)])
    missing = {f"{side}_finished": pa.array([None, None], pa.bool_()) for side in ("chosen", "rejected")}
    mixed = Dataset.from_dict({**pairs.to_dict(), **missing})
    states = represent_pairs(model, tokenizer, pairs)
    assert represent_pairs(model, tokenizer, mixed) == pytest.approx(states, abs=1e-5)
