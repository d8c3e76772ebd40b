import csv

import numpy as np
import pytest
import scipy.optimize

from trl_rlp.evaluation.length_control import (
    Anchors,
    _build_anchor_rows,
    _build_features,
    _fit,
    _select_strength,
    _stack_rows,
    length_controlled_win_rate,
    load_anchors,
)


def simulate_preferences(count=400, quality=0.0, length_bias=0.0, extra_length=0.0, seed=0):
    """Simulates preferences with log odds `quality` + `length_bias` times the difference in length."""
    generator = np.random.default_rng(seed)
    differences = generator.normal(extra_length, 100, size=count).round()
    terms = np.tanh(differences / differences.std(ddof=1))
    probabilities = 1 / (1 + np.exp(-(quality + length_bias * terms)))
    reference = np.full(count, 1000)
    return (generator.random(count) < probabilities).astype(float), reference + differences, reference


def test_the_effect_of_length_is_removed():
    """The policy is longer but not better, and the judge prefers length. At equal length it wins one half."""
    preferences, lengths, reference = simulate_preferences(length_bias=2.0, extra_length=150)
    assert preferences.mean() > 0.7
    found = length_controlled_win_rate(preferences, lengths, reference, resamples=40)
    low, high = found["interval"]
    assert low < 0.5 < high and abs(found["length_controlled_win_rate"] - 0.5) < 0.12
    assert found["length_effect"] < -1 and found["prompts"] == 400


@pytest.mark.parametrize("quality", [-1.0, 1.0])
def test_without_length_bias_it_is_the_win_rate(quality):
    preferences, lengths, reference = simulate_preferences(quality=quality)
    found = length_controlled_win_rate(preferences, lengths, reference, resamples=40)
    assert found["length_controlled_win_rate"] == pytest.approx(preferences.mean(), abs=0.02)


@pytest.mark.parametrize(("wins", "count"), [(0, 40), (3, 100), (1, 20), (7, 10), (100, 100)])
@pytest.mark.parametrize("with_anchors", [False, True])
def test_few_wins_and_few_losses(wins, count, with_anchors):
    """The fit must not ignore a side that never wins, and must not pull a small sample to one half."""
    generator = np.random.default_rng(0)
    lengths, reference_lengths = generator.integers(50, 150, size=(2, count))
    preferences = generator.permutation([1.0] * wins + [0.0] * (count - wins))
    known = build_anchors(np.zeros(count), 400) if with_anchors else None
    found = length_controlled_win_rate(preferences, lengths, reference_lengths, anchors=known, resamples=20)
    value, (low, high) = found["length_controlled_win_rate"], found["interval"]
    tolerance = 0.3 if count < 20 else 0.1
    assert value == pytest.approx(wins / count, abs=tolerance)
    assert low - 1e-6 <= value <= high + 1e-6


def test_equal_differences_in_length_have_no_effect():
    preferences = [1.0] * 30 + [0.0] * 10
    found = length_controlled_win_rate(preferences, [50] * 40, [40] * 40, resamples=2)
    assert found["length_controlled_win_rate"] == pytest.approx(0.75, abs=0.02) and found["length_effect"] == 0


def test_the_fit_ignores_prompts_without_a_preference():
    preferences, lengths, reference = simulate_preferences(count=60, quality=1.0)
    some = [*preferences, None, float("nan")]
    found = length_controlled_win_rate(some, [*lengths, 900, 1], [*reference, 5, 2000], resamples=2)
    assert found["prompts"] == 60


def build_anchors(difficulties, count=60):
    """Builds anchors of a judge that prefers length."""
    length_terms = np.tile([-0.8, 0.8], count // 2)
    return Anchors(1 / (1 + np.exp(3 * length_terms)), length_terms, np.zeros(count), np.asarray(difficulties))


def test_anchors_reveal_the_length_bias():
    """Every output is longer by about the same amount. Only the anchors can separate length from quality."""
    generator = np.random.default_rng(0)
    preferences = (generator.random(200) < 0.85).astype(float)
    lengths = 1000 + 300 + generator.integers(-100, 100, size=200)
    arguments = preferences, lengths, [1000] * 200
    without_anchors = length_controlled_win_rate(*arguments, resamples=2)["length_controlled_win_rate"]
    found = length_controlled_win_rate(*arguments, anchors=build_anchors(np.zeros(200), 2000), resamples=2)
    assert found["length_controlled_win_rate"] < 0.5 < without_anchors
    assert found["length_effect"] == pytest.approx(-3, abs=0.7)


def test_difficulties_match_the_rows_of_the_evaluation_set():
    preferences, lengths, reference = simulate_preferences(count=200)
    difficulties = np.where(preferences > 0, 1.0, -1.0)
    known = build_anchors(difficulties)
    found = length_controlled_win_rate(preferences, lengths, reference, anchors=known, resamples=2)
    assert found["length_controlled_win_rate"] == pytest.approx(preferences.mean(), abs=0.05)


def test_the_fit_matches_the_formula():
    """
    The length term is tanh(Δ / s), where s has n - 1 degrees of freedom. Anchors have a tenth of the weight of a row.
    The fit minimizes ‖(θ, φ, ψ)‖₁ + C · log loss: a general optimizer finds no lower loss, and the same terms.
    """

    differences = np.array([-20.0, 0.0, 20.0])
    assert _build_features(differences, None)[:, 0].tolist() == pytest.approx([-np.tanh(1), 0, np.tanh(1)])  # s = 20
    preferences, lengths, reference = simulate_preferences(count=60, quality=0.5, length_bias=1.0)
    known = build_anchors(np.linspace(-1, 1, 60))
    features = _build_features(reference - lengths, known)
    rows = _stack_rows(_build_anchor_rows(known), features, preferences)
    assert rows[2].tolist() == [0.1] * 60 + [1.0] * 60
    strength = _select_strength(*rows)
    found = _fit(*rows, strength, np.random.RandomState(0))

    def loss(terms):
        features, wins, weights = rows
        scores = features @ terms
        losses = wins * np.logaddexp(0, -scores) + (1 - wins) * np.logaddexp(0, scores)
        return np.abs(terms).sum() + strength * (weights * losses).sum()

    best = scipy.optimize.minimize(loss, found, method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12})
    assert loss(found) <= best.fun + 1e-3 and found == pytest.approx(best.x, abs=0.02)


def test_the_interval_depends_on_the_level_and_the_seed():
    preferences, lengths, reference = simulate_preferences(count=100, quality=1.0)
    wide, narrow, other = (
        length_controlled_win_rate(preferences, lengths, reference, resamples=20, **options)["interval"]
        for options in ({}, {"level": 0.5}, {"seed": 1})
    )
    assert wide[0] < narrow[0] < narrow[1] < wide[1] and other != wide


def test_anchors_are_loaded_from_alpaca_evals_file(tmp_path):
    path = tmp_path / "df_gamed.csv"
    columns = ["preference", "index", "std_delta_len", "instruction_difficulty", "model"]
    rows = [(0.75, 0, 1.0, 0.1, "verbose"), (0.5, 1, 0.0, 0.2, "verbose"), (0.25, 0, -1.0, 0.1, "concise")]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    found = load_anchors(path)
    assert found.preferences.tolist() == [0.75, 0.5, 0.25]
    assert found.length_terms.tolist() == pytest.approx([np.tanh(1), 0, -np.tanh(1)])
    assert (found.difficulties.tolist(), found.by_instruction.tolist()) == ([0.1, 0.2, 0.1], [0.1, 0.2])
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="lacks the columns .*'preference'.* Pass `df_gamed.csv`"):
        load_anchors(path)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (([1.0] * 6, [1] * 6, [1] * 5), "`preferences`, `lengths` and `reference_lengths` have 6, 6 and 5 entries"),
        (([1.0] * 6, [1] * 5 + [float("nan")], [1] * 6), "`lengths` row 5 is nan, but a length is a number"),
        (([1.0] * 6, [1] * 6, [None] + [1] * 5), "`reference_lengths` row 0 is None, but a length is a number"),
        (([1.0] * 6, [-1] * 6, [1] * 6), "`lengths` row 0 is -1, but a length is a number"),
        (([1.0, None, 1.0, 1.0, 1.0], [1] * 5, [1] * 5), "`preferences` has 4 values, but the fit needs at least 5"),
        (([1.0] * 5 + [2.0], [1] * 6, [1] * 6), r"`preferences` row 5 is 2.0, but a preference is in \[0, 1\]"),
        (([1.0] * 6, [1] * 6, [1] * 6, build_anchors([0.0] * 5)), "6 prompts, but `anchors` has 5 instructions"),
    ],
)
def test_invalid_input_raises_an_error(arguments, match):
    *lists, last = arguments if len(arguments) == 4 else (*arguments, None)
    with pytest.raises(ValueError, match=match):
        length_controlled_win_rate(*lists, anchors=last)
