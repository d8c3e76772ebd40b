import pytest
from datasets import Dataset

from trl_rlp.evaluation.policy_pairs import answer_pairs, is_correct, judged_pairs


SAMPLES = Dataset.from_dict(
    {
        "prompt": ["capital of France?", "2 + 2?", "colour of snow?"],
        "completions": [["Paris", "Lyon", "paris."], ["4", "4", "four"], ["white", "White", "white!"]],
        "finished": [[True, False, True], [True, True, True], [True, True, False]],
    }
)


@pytest.mark.parametrize(
    ("completion", "answers", "expected"),
    [(" Paris.", "paris", True), ("It is Paris", "Paris", False), ("4", ["four", "4"], True), ("", "4", False)],
)
def test_correct_completions_equal_an_answer_after_normalization(completion, answers, expected):
    assert is_correct(completion, answers) is expected


def test_answer_pairs_need_a_correct_and_a_wrong_completion():
    pairs = answer_pairs(SAMPLES, ["Paris", ["4", "four"], "white"])
    assert pairs["prompt"] == ["capital of France?"]
    assert pairs[0]["chosen"] in {"Paris", "paris."} and pairs[0]["rejected"] == "Lyon"
    assert pairs[0]["chosen_finished"] and not pairs[0]["rejected_finished"]


def test_a_pair_depends_only_on_the_seed_and_the_row():
    samples = Dataset.from_dict(
        {"prompt": ["q"] * 2, "completions": [["a", "a!", "b", "c"]] * 2, "finished": [[True] * 4] * 2}
    )
    pairs_by_seed = {seed: answer_pairs(samples, ["a", "a"], seed).to_list() for seed in range(8)}
    assert pairs_by_seed[3] == answer_pairs(samples, ["a", "a"], 3).to_list()
    assert pairs_by_seed[3][:1] == answer_pairs(samples.select([0]), ["a"], 3).to_list()
    assert len({str(pairs) for pairs in pairs_by_seed.values()}) > 1


def test_chat_prompts_get_assistant_turns():
    samples = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": "2 + 2?"}]],
            "completions": [["4", "5"]],
            "finished": [[True, True]],
        }
    )
    pair = answer_pairs(samples, ["4"])[0]
    assert pair["chosen"] == [{"role": "assistant", "content": "4"}]


def test_judged_pairs_follow_the_judge_without_ties():
    def judge(prompts, firsts, seconds):
        completions = zip(firsts, seconds, strict=True)
        return [0.5 if "4" in (first, second) else float(len(first) > len(second)) for first, second in completions]

    pairs = judged_pairs(SAMPLES, judge)
    assert len(pairs) > 0 and "2 + 2?" not in pairs["prompt"][:]
    for pair in pairs:
        assert len(pair["chosen"]) > len(pair["rejected"])


def test_invalid_answers_and_judges_raise_an_error():
    with pytest.raises(ValueError, match="`answers` has 1 entries for 3 samples"):
        answer_pairs(SAMPLES, ["Paris"])
    for probabilities, match in (
        ([2.0] * 3, r"returned 2\.0 for pair 0"),
        ([0.5], "returned 1 probabilities for 3 pairs"),
        (None, "returned None"),
    ):
        with pytest.raises(ValueError, match=f"`judge` {match}"):
            judged_pairs(SAMPLES, lambda *_, probabilities=probabilities: probabilities)
    for answers, match in (
        ("ab!", "must be a list .* got 'ab!'"),
        (None, "must be a list .* got 'None'"),
        (["Paris", None, "4"], "row 1 must be an accepted answer"),
        (["Paris", [], "4"], "row 1 must be an accepted answer"),
        (["Paris", "white", [3]], r"row 2 must be an accepted answer .* got \[3\]"),
    ):
        with pytest.raises(TypeError, match=f"`answers` .*{match}"):
            answer_pairs(SAMPLES, answers)
