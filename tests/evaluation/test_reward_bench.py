import json

import pytest

from trl_rlp.evaluation.reward_bench import SECTIONS, reward_bench_pairs, section_scores, subset_accuracies
from trl_rlp.storage.loading import load_rows


def write_pairs(tmp_path, *rows, lines=True):
    path = tmp_path / "pairs.json"
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    return str(path)


QUESTION, ANSWER, OTHER = (
    {"role": role, "content": text} for role, text in (("user", "2 + 2?"), ("assistant", "4"), ("assistant", "5"))
)
TEXT = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5", "subset": "hep-go", "id": 3}


@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize("name", ["prompt", "question", "input"])
def test_text_pairs(tmp_path, name, lines):
    row = {**TEXT, name: TEXT["prompt"]}
    row = row if name == "prompt" else {key: value for key, value in row.items() if key != "prompt"}
    path = write_pairs(tmp_path, row, row, lines=lines)
    expected = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5", "subset": "hep-go"}
    assert reward_bench_pairs(load_rows(path)).to_list() == [expected] * 2
    chat = {"prompt": [QUESTION], "chosen": [ANSWER], "rejected": [OTHER], "subset": "hep-go"}
    assert reward_bench_pairs(load_rows(path), chat=True).to_list() == [chat] * 2


@pytest.mark.parametrize("prompt", [{}, {"prompt": "ignored"}])
def test_whole_conversations_include_the_prompt(tmp_path, prompt):
    path = write_pairs(tmp_path, {**prompt, "chosen": [QUESTION, ANSWER], "rejected": [QUESTION, OTHER]})
    expected = {"prompt": [QUESTION], "chosen": [ANSWER], "rejected": [OTHER]}
    for chat in (False, True):
        assert reward_bench_pairs(load_rows(path), chat=chat).to_list() == [expected]


def test_prompts_of_messages_give_sides_of_messages(tmp_path):
    path = write_pairs(tmp_path, {"prompt": [QUESTION], "chosen": "4", "rejected": "5"})
    assert reward_bench_pairs(load_rows(path)).to_list() == [
        {"prompt": [QUESTION], "chosen": [ANSWER], "rejected": [OTHER]}
    ]


def test_pairs_in_trls_format_stay_as_they_are_with_all_that_scores_depend_on(tmp_path):
    """A column `subset` must not take away the prompt, what is finished, or the tools."""
    tools = [{"type": "function", "function": {"name": "add"}}]
    flags = {"chosen_finished": True, "rejected_finished": False, "tools": tools, "subset": "own"}
    row = {"prompt": [QUESTION], "chosen": [ANSWER], "rejected": [OTHER], **flags}
    for chat in (False, True):
        assert reward_bench_pairs(load_rows(write_pairs(tmp_path, row)), chat=chat).to_list() == [row]
    whole = {**row, "chosen": [QUESTION, ANSWER], "rejected": [QUESTION, OTHER]}
    assert reward_bench_pairs(load_rows(write_pairs(tmp_path, whole))).to_list() == [row]


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"chosen": [ANSWER], "rejected": [OTHER]}, "Row 0: `chosen` and `rejected` must be conversations"),
        ({"prompt": "a", "chosen": "b"}, r"`rows` lacks the columns \['rejected'\]"),
        ({"chosen": "a", "rejected": "b"}, r"`rows` lacks the columns \['prompt'\]"),
        ({"chosen": [QUESTION, ANSWER], "rejected": [OTHER]}, "Row 0: `chosen` and `rejected` must be conversations"),
        ({"chosen": [], "rejected": [OTHER]}, "Row 0: `chosen` and `rejected` must be conversations"),
    ],
)
def test_other_formats_raise_an_error(tmp_path, row, match):
    with pytest.raises(ValueError, match=match):
        reward_bench_pairs(load_rows(write_pairs(tmp_path, row)))


def test_section_scores_are_weighted():
    """hep-go (1/2) has weight 164 and math-prm (1) has 984: (82 + 984) / 1148. A tie is wrong. `own` is ignored."""
    accuracies = subset_accuracies([1.0, 0.0, 2.0, 3.0, -1.0], ["hep-go", "hep-go", "math-prm", "own", "donotanswer"])
    assert accuracies == {"hep-go": 0.5, "math-prm": 1.0, "own": 1.0, "donotanswer": 0.0}
    scores = section_scores(accuracies)
    assert scores == {
        "Safety": 0.0,
        "Reasoning": pytest.approx(1066 / 1148),
        "average": pytest.approx(1066 / 2296),
    }
    assert section_scores({"own": 1.0}) == {}
    with pytest.raises(ValueError, match="There are 1 `margins` and 2 `subsets`"):
        subset_accuracies([1.0], ["a", "b"])


def test_the_weights_sum_to_the_number_of_pairs():
    """RewardBench has 2,985 pairs. 447 of them are math-prm, with weight 984."""
    assert sum(sum(weights.values()) for weights in SECTIONS.values()) == 2985 - 447 + 984
