import pytest
from datasets import Dataset

from trl_rlp.quickstart.simulation import restore_labels, simulate_preferences


ANSWERS = [["4"], ["Paris"], ["no"]]


def samples(rows=1):
    completions = [
        [" 4", " 5", " 5.", " 6", " 4", ""],
        [" Paris", " Paris", " paris", " Paris.", " Paris", " Paris"],  # all right: no pair
        [" yes", " maybe", " perhaps", " yes", " yes", " no"],  # the right one is not finished: no pair
    ]
    finished = [[True] * 6, [True] * 6, [True] * 5 + [False]]
    return Dataset.from_dict(
        {"prompt": [f"{i}?" for i in range(3 * rows)], "completions": completions * rows, "finished": finished * rows}
    )


def test_right_completions_are_chosen_without_noise():
    pairs = simulate_preferences(samples(), ANSWERS, pairs_per_prompt=5, label_noise=0)
    assert pairs["prompt"][:] == ["0?", "0?"]  # wrong texts: 5 (twice the same after normalization) and 6
    assert {row["chosen"] for row in pairs} == {" 4"}
    assert {row["rejected"].strip(" .") for row in pairs} == {"5", "6"}
    assert not any(pairs["is_flipped"])


def test_all_labels_are_flipped_at_noise_one_and_can_be_restored():
    pairs = simulate_preferences(samples(), ANSWERS, label_noise=1)
    assert all(pairs["is_flipped"])
    assert {row["rejected"] for row in pairs} == {" 4"}
    assert {row["chosen"] for row in restore_labels(pairs)} == {" 4"}


def test_a_quarter_of_the_labels_is_flipped():
    pairs = simulate_preferences(samples(200), ANSWERS * 200)
    assert len(pairs) == 400
    assert sum(pairs["is_flipped"]) == pytest.approx(100, abs=4 * (400 * 0.25 * 0.75) ** 0.5)


def test_equal_seeds_give_equal_pairs():
    first = simulate_preferences(samples(20), ANSWERS * 20, seed=3)
    assert first[:] == simulate_preferences(samples(20), ANSWERS * 20, seed=3)[:]
    assert first[:] != simulate_preferences(samples(20), ANSWERS * 20, seed=4)[:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"answers": ANSWERS[:2]}, "`answers` has 2 entries, but `samples` has 3 rows"),
        ({"answers": ANSWERS, "label_noise": 1.5}, r"`label_noise` must be in \[0, 1\], got 1.5"),
        ({"answers": ANSWERS, "pairs_per_prompt": 0}, "`pairs_per_prompt` must be at least 1"),
        (
            {"answers": [["9"], ["Rome"], ["x"]]},
            "No prompt of `samples` has both a right and a wrong finished completion",
        ),
    ],
)
def test_invalid_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        simulate_preferences(samples(), **arguments)
