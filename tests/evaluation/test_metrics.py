import re

import evaluate
import pytest

from trl_rlp.evaluation.best_of_n_sampling import best_of_n
from trl_rlp.evaluation.length_control import length_controlled_win_rate
from trl_rlp.evaluation.metrics import FOLDER, METRICS, metric_path
from trl_rlp.evaluation.reward_report import describe_rewards
from trl_rlp.evaluation.win_rates import compare_win_rates, win_rate


def load_metric(name, tmp_path):
    return evaluate.load(metric_path(name), cache_dir=str(tmp_path / "cache"))


def test_every_folder_has_a_metric_and_a_card():
    assert sorted(path.name for path in FOLDER.iterdir() if (path / f"{path.name}.py").exists()) == list(METRICS)
    for name in METRICS:
        card = (FOLDER / name / "README.md").read_text()
        for part in ("tags: [evaluate, metric]", "| input |", "| output |", "**Limits.**", "**Source.**"):
            assert part in card, (name, part)
    with pytest.raises(ValueError, match="There is no metric 'bleu'. Choose one of"):
        metric_path("bleu")


def test_win_rate(tmp_path):
    metric = load_metric("win_rate", tmp_path)
    scores = {"predictions": [0.9, 0.2, 0.5, 0.7], "references": [0.1, 0.8, 0.5, 0.3]}
    assert metric.compute(**scores) == win_rate([1, 0, 0.5, 1])
    verdicts = metric.compute(predictions=[1, 0, 0.5, 1], references=[0.5] * 4, level=0.5, seed=1)
    assert verdicts == win_rate([1, 0, 0.5, 1], level=0.5, seed=1)
    with pytest.raises(ValueError, match=r"predictions \(2\).*references \(1\)|Mismatch"):
        metric.compute(predictions=[1.0, 2.0], references=[1.0])


def test_scores_that_are_not_finite_raise_an_error(tmp_path):
    with pytest.raises(ValueError, match="The scores of prompt 1 are"):
        load_metric("win_rate", tmp_path).compute(predictions=[1.0, float("nan")], references=[0.0, 0.0])
    with pytest.raises(ValueError, match="The scores of prompt 0 are"):
        load_metric("win_rate", tmp_path).compute(predictions=[float("inf")], references=[float("inf")])


def test_preference_accuracy(tmp_path):
    rewards = {"predictions": [1.2, 0.3, 2.0], "references": [0.1, 0.9, 2.0]}
    found = load_metric("preference_accuracy", tmp_path).compute(**rewards)
    assert found == describe_rewards([1.2, 0.3, 2.0], [0.1, 0.9, 2.0]) and "length_accuracy" not in found
    lengths = {"chosen": [5, 1, 2], "rejected": [3, 2, 2]}
    found = load_metric("preference_accuracy", tmp_path).compute(**rewards, lengths=lengths, level=0.5)
    assert found == describe_rewards([1.2, 0.3, 2.0], [0.1, 0.9, 2.0], lengths, level=0.5)
    assert found["length_accuracy"] == 0.5
    with pytest.raises(ValueError, match="must have the same length|empty"):
        load_metric("preference_accuracy", tmp_path).compute(predictions=[], references=[])


def test_two_policies_are_compared_prompt_by_prompt(tmp_path):
    """The wins are 1, 0, 1 and 0, 0, 1/2. The mean of the differences 1, 0, 1/2 is 1/2."""
    metric, references = load_metric("win_rate", tmp_path), [0.5, 0.5, 0.5]
    found = metric.compute(predictions=[1, 0, 1], references=references, others=[0, 0, 0.5])
    assert found["compared"] == compare_win_rates([1, 0, 1], [0, 0, 0.5])
    assert found["compared"]["difference"] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="There are 2 scores for 3 `references`"):
        metric.compute(predictions=[1, 0, 1], references=references, others=[0, 0])


@pytest.mark.parametrize("name", METRICS)
def test_the_example_of_each_card_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (code,) = re.findall(r"```python\n(.*?)```", (FOLDER / name / "README.md").read_text(), re.DOTALL)
    *lines, last = code.strip().splitlines()
    names = {}
    exec("\n".join(lines), names)
    expression, _, value = last.partition("  # ")
    found = eval(expression, names)
    assert found == pytest.approx(eval(value)) if value else 0 < found < 1


def test_best_of_n(tmp_path):
    rewards, values = [[0.1, 0.3, 0.2], [0.5, 0.4, 0.1]], [[0.0, 1.0, 0.0], [0.0, 1.0, 1.0]]
    found = load_metric("best_of_n", tmp_path).compute(predictions=rewards, references=values, n=2)
    assert found == best_of_n(rewards, values, 2)
    assert found["value"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    groups = {"cluster_ids": [[0, 0, 1], [0, 1, 1]], "threshold": 0.6, "num_draws": 2, "seed": 1}
    found = load_metric("best_of_n", tmp_path).compute(predictions=rewards, references=values, n=2, **groups)
    assert found == best_of_n(rewards, values, 2, **groups) and "majority_share" in found


def test_length_controlled_win_rate(tmp_path):
    preferences, lengths, others = [1, 0, 1, 1, 0, 1], [10, 20, 30, 15, 12, 14], [11, 12, 13, 14, 15, 16]
    found = load_metric("length_controlled_win_rate", tmp_path).compute(
        predictions=preferences, prediction_lengths=lengths, reference_lengths=others, resamples=5
    )
    assert found == length_controlled_win_rate(preferences, lengths, others, resamples=5)
