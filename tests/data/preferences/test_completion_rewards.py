from datasets import Dataset

from trl_rlp.data.preferences.completion_rewards import CompletionRewards


def test_each_distinct_completion_is_scored_once_and_unfinished_ones_separately():
    samples = Dataset.from_dict(
        {"prompt": ["p", "q"], "completions": [["a", "a", "a"], ["a", "b", ""]], "finished": [[True, True, False]] * 2}
    )
    calls = []

    def score_rows(*columns):
        calls.append(list(zip(*columns, strict=True)))
        return [float(len(calls[-1]) * 10 + index) for index in range(len(calls[-1]))]

    rewards = CompletionRewards(samples, score_rows)
    assert rewards.fetch([(0, 0), (0, 1), (0, 2), (1, 0)]) == [30.0, 30.0, 31.0, 32.0]
    assert rewards.fetch([(1, 1), (0, 2)]) == [10.0, 31.0]
    assert calls == [[("p", "a", True), ("p", "a", False), ("q", "a", True)], [("q", "b", True)]]
