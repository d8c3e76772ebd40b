import csv

import numpy as np
import pytest
import scipy.optimize

from trl_rlp.evaluation.length_control import Anchors, length_controlled_win_rate, load_anchors


def judge_pairs(count=400, quality=0.0, taste=0.0, longer=0.0, seed=0):
    """Preferences whose log odds are `quality` and `taste` times how much longer the policy's output is."""
    generator = np.random.default_rng(seed)
    differences = generator.normal(longer, 100, size=count).round()
    terms = np.tanh(differences / differences.std(ddof=1))
    chance = 1 / (1 + np.exp(-(quality + taste * terms)))
    reference = np.full(count, 1000)
    return (generator.random(count) < chance).astype(float), reference + differences, reference


def test_what_length_alone_wins_is_taken_out():
    """The policy is longer and no better, and the judge likes length: at equal length it wins half."""
    preferences, lengths, reference = judge_pairs(taste=2.0, longer=150)
    assert preferences.mean() > 0.7
    found = length_controlled_win_rate(preferences, lengths, reference, resamples=40)
    low, high = found["interval"]
    assert low < 0.5 < high and abs(found["length_controlled_win_rate"] - 0.5) < 0.12
    assert found["length_effect"] < -1 and found["prompts"] == 400


@pytest.mark.parametrize("quality", [-1.0, 1.0])
def test_without_a_taste_for_length_it_is_the_win_rate(quality):
    preferences, lengths, reference = judge_pairs(quality=quality)
    found = length_controlled_win_rate(preferences, lengths, reference, resamples=40)
    assert found["length_controlled_win_rate"] == pytest.approx(preferences.mean(), abs=0.02)


@pytest.mark.parametrize(("wins", "count"), [(0, 40), (3, 100), (1, 20), (7, 10), (100, 100)])
@pytest.mark.parametrize("with_anchors", [False, True])
def test_few_wins_and_few_losses_stay_what_they_are(wins, count, with_anchors):
    """A side that never wins must not be dropped from the fit; a small sample must not be drawn to one half."""
    generator = np.random.default_rng(0)
    lengths, others = generator.integers(50, 150, size=(2, count))
    preferences = generator.permutation([1.0] * wins + [0.0] * (count - wins))
    known = anchors(np.zeros(count), 400) if with_anchors else None
    found = length_controlled_win_rate(preferences, lengths, others, anchors=known, resamples=20)
    value, (low, high) = found["length_controlled_win_rate"], found["interval"]
    tolerance = 0.3 if count < 20 else 0.1
    assert value == pytest.approx(wins / count, abs=tolerance)
    assert low - 1e-6 <= value <= high + 1e-6


def test_equal_differences_tell_nothing_of_length():
    preferences = [1.0] * 30 + [0.0] * 10
    found = length_controlled_win_rate(preferences, [50] * 40, [40] * 40, resamples=2)
    assert found["length_controlled_win_rate"] == pytest.approx(0.75, abs=0.02) and found["length_effect"] == 0


def test_prompts_without_a_preference_do_not_enter_the_fit():
    preferences, lengths, reference = judge_pairs(count=60, quality=1.0)
    some = [*preferences, None, float("nan")]
    found = length_controlled_win_rate(some, [*lengths, 900, 1], [*reference, 5, 2000], resamples=2)
    assert found["prompts"] == 60


def anchors(difficulties, count=60):
    """A judge that likes length, of a baseline that is told to be longer and shorter."""
    length_terms = np.tile([-0.8, 0.8], count // 2)
    return Anchors(1 / (1 + np.exp(3 * length_terms)), length_terms, np.zeros(count), np.asarray(difficulties))


def test_anchors_show_the_taste_for_length_where_the_policy_s_own_lengths_do_not():
    """Every output is longer by much the same, so that only the anchors part length from quality."""
    generator = np.random.default_rng(0)
    preferences = (generator.random(200) < 0.85).astype(float)
    lengths = 1000 + 300 + generator.integers(-100, 100, size=200)
    arguments = preferences, lengths, [1000] * 200
    alone = length_controlled_win_rate(*arguments, resamples=2)["length_controlled_win_rate"]
    found = length_controlled_win_rate(*arguments, anchors=anchors(np.zeros(200), 2000), resamples=2)
    assert found["length_controlled_win_rate"] < 0.5 < alone
    assert found["length_effect"] == pytest.approx(-3, abs=0.7)


def test_difficulties_belong_to_the_rows_of_the_evaluation_set():
    preferences, lengths, reference = judge_pairs(count=200)
    difficulties = np.where(preferences > 0, 1.0, -1.0)
    found = length_controlled_win_rate(preferences, lengths, reference, anchors=anchors(difficulties), resamples=2)
    assert found["length_controlled_win_rate"] == pytest.approx(preferences.mean(), abs=0.05)


def test_the_fit_is_that_of_the_formula():
    """σ(θ + φ tanh(Δ / s)), s with one degree of freedom less, under a ridge; and, with anchors at a tenth of a row's
    weight, ‖(θ, φ, ψ)‖₁ + C · log loss: a general optimizer finds no lower loss, and the same terms."""
    from trl_rlp.evaluation.length_control import _anchor_rows, _chosen_strength, _features, _fit, _stacked

    differences = np.array([-20.0, 0.0, 20.0])
    assert _features(differences, None)[:, 0].tolist() == pytest.approx([-np.tanh(1), 0, np.tanh(1)])  # s = 20
    preferences, lengths, reference = judge_pairs(count=60, quality=0.5, taste=1.0)
    known = anchors(np.linspace(-1, 1, 60))
    own = _features(reference - lengths, known)
    rows = _stacked(_anchor_rows(known), own, preferences)
    assert rows[2].tolist() == [0.1] * 60 + [1.0] * 60
    strength = _chosen_strength(*rows)
    found = _fit(*rows, strength, np.random.RandomState(0))

    def loss(terms):
        features, wins, weights = rows
        scores = features @ terms
        losses = wins * np.logaddexp(0, -scores) + (1 - wins) * np.logaddexp(0, scores)
        return np.abs(terms).sum() + strength * (weights * losses).sum()

    best = scipy.optimize.minimize(loss, found, method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12})
    assert loss(found) <= best.fun + 1e-3 and found == pytest.approx(best.x, abs=0.02)


def test_the_interval_narrows_with_the_level_and_follows_the_seed():
    preferences, lengths, reference = judge_pairs(count=100, quality=1.0)
    wide, narrow, other = (
        length_controlled_win_rate(preferences, lengths, reference, resamples=20, **options)["interval"]
        for options in ({}, {"level": 0.5}, {"seed": 1})
    )
    assert wide[0] < narrow[0] < narrow[1] < wide[1] and other != wide


def test_anchors_are_read_from_alpacaeval_s_file(tmp_path):
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
        (([1.0] * 6, [1] * 6, [1] * 6, anchors([0.0] * 5)), "There are 6 prompts, but `anchors` knows 5 instruction"),
    ],
)
def test_bad_input_is_named(arguments, match):
    *lists, last = arguments if len(arguments) == 4 else (*arguments, None)
    with pytest.raises(ValueError, match=match):
        length_controlled_win_rate(*lists, anchors=last)
