import json

import pytest
from datasets import Dataset

from trl_rlp.data.judges.judge import function_judge
from trl_rlp.evaluation.alpaca_eval import (
    annotate,
    get_preferences,
    leaderboard_row,
    read_annotations,
    read_model_outputs,
    write_model_outputs,
    write_rows,
)


def build_outputs(texts, generator):
    return [{"instruction": f"{row}?", "output": text, "generator": generator} for row, text in enumerate(texts)]


LONGER = function_judge(lambda prompt, output: len(output))


def build_annotations(preferences):
    return [
        {"instruction": str(row), "output_1": "ref", "output_2": "answer", "preference": value}
        for row, value in enumerate(preferences)
    ]


def test_written_outputs_can_be_read(tmp_path):
    path = tmp_path / "model_outputs.json"
    samples = Dataset.from_dict(
        {
            "prompt": ["Who?", "Wié?"],
            "completions": [["Ada", "Bob"], ["Čeněk", ""]],
            "finished": [[True, True]] * 2,
            "dataset": ["own", "own"],
        }
    )
    write_model_outputs(path, samples, "policy")
    assert read_model_outputs(path) == [
        {"dataset": "own", "instruction": "Who?", "output": "Ada", "generator": "policy"},
        {"dataset": "own", "instruction": "Wié?", "output": "Čeněk", "generator": "policy"},
    ]
    question, prefill = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "It is"}
    answer = [{"role": "tool", "content": "found: Ada"}, {"role": "assistant", "content": " Ada"}]
    write_model_outputs(path, Dataset.from_dict({"prompt": [[question, prefill]], "completion": [answer]}), "policy")
    assert read_model_outputs(path) == [{"instruction": "Who?", "output": "It is Ada", "generator": "policy"}]
    chats = Dataset.from_dict({"prompt": [[question]], "completion": ["Ada"]})
    write_model_outputs(path, chats, "policy")
    assert read_model_outputs(path) == [{"instruction": "Who?", "output": "Ada", "generator": "policy"}]


def test_annotations_start_with_the_reference_and_preferences_start_at_one(tmp_path):
    reference = build_outputs(["long answer", "b", "same"], "reference")
    reference[0]["dataset"] = "own"
    model = build_outputs(["a", "longer", "same"], "policy")[::-1]
    calls = []

    def judge(prompts, firsts, seconds):
        calls.append((prompts, firsts, seconds))
        return LONGER(prompts, firsts, seconds)

    rows = annotate(model, reference, judge, "length")
    assert calls == [(["0?", "1?"], ["a", "longer"], ["long answer", "b"])]
    assert [row["preference"] for row in rows] == [1.0, 2.0, 1.5]
    assert rows[0] == {
        "instruction": "0?",
        "output_1": "long answer",
        "generator_1": "reference",
        "output_2": "a",
        "generator_2": "policy",
        "dataset": "own",
        "annotator": "length",
        "preference": 1.0,
    }
    write_rows(tmp_path / "annotations.json", rows)
    assert read_annotations(tmp_path / "annotations.json") == rows


def test_leaderboard_row_computed_by_hand():
    """
    1.5 and 0 are draws. null, NaN and 3 are ignored. The values are 1, 1/2, 1/2, 0, 9/10 with mean 2.9 / 5 = .58. The
    differences from the mean are .42, -.08, -.08, -.58, .32. Their squares are .1764, .0064, .0064, .3364, .1024
    with sum .628. The rounded values are 1, 1/2, 1/2, 0, 1.
    """
    rows = build_annotations([2, 1.5, 0, 1, 1.9, None, float("nan"), 3])
    assert get_preferences(rows) == pytest.approx([1, 0.5, 0.5, 0, 0.9, None, None, None])
    assert leaderboard_row(rows) == {
        "win_rate": pytest.approx(58),
        "standard_error": pytest.approx(100 * (0.628 / 4) ** 0.5 / 5**0.5),
        "n_wins": 2,
        "n_wins_base": 1,
        "n_draws": 2,
        "n_total": 5,
        "discrete_win_rate": pytest.approx(60),
        "avg_length": 6,
    }


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "is not JSON"),
        ("{}", r"row 0 lacks \['instruction', 'output'\]"),
        ("[]", "has no list of entries"),
        ('[{"instruction": "a"}]', r"row 0 lacks \['output'\]"),
        ('[{"instruction": "a", "output": "b"}, 3]', "has rows that are not objects, first in row 1"),
        ('[{"instruction": "a", "output": null}]', "row 0: `output` is 'None', but must be text"),
        ('[{"instruction": ["a"], "output": "b"}]', "row 0: `instruction` is .*, but must be text"),
        ('[{"instruction": "a", "output": "b"}, {"instruction": "a", "output": "c"}]', "row 1 has the instruction of"),
    ],
)
def test_invalid_files_raise_an_error(tmp_path, text, match):
    path = tmp_path / "outputs.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=match):
        read_model_outputs(path)
    path.write_text(json.dumps([{"instruction": "a", "output_1": "b", "output_2": "c"}]))
    with pytest.raises(ValueError, match=r"row 0 lacks \['preference'\]"):
        read_annotations(path)
    path.write_text(json.dumps([{"instruction": "a", "output_1": "b", "output_2": "c", "preference": "1.5"}]))
    with pytest.raises(ValueError, match="row 0: `preference` is '1.5', but must be a number or null"):
        read_annotations(path)


def test_duplicate_prompts_are_not_written(tmp_path):
    outputs = Dataset.from_dict({"prompt": ["a", "a"], "completion": ["b", "c"]})
    with pytest.raises(ValueError, match="`outputs` has a duplicate prompt"):
        write_model_outputs(tmp_path / "outputs.json", outputs, "policy")
    assert not (tmp_path / "outputs.json").exists()


def test_duplicate_instructions_and_missing_files_raise_an_error(tmp_path):
    row = {"instruction": "a", "output_1": "b", "output_2": "c", "preference": 1}
    (tmp_path / "twice.json").write_text(json.dumps([row, row]))
    with pytest.raises(ValueError, match=r"twice\.json row 1 has the instruction of an earlier row"):
        read_annotations(tmp_path / "twice.json")
    with pytest.raises(FileNotFoundError, match=r"none\.json cannot be read \(No such file"):
        read_annotations(tmp_path / "none.json")


def test_different_instructions_and_invalid_judges_raise_an_error():
    model, reference = build_outputs(["a", "b"], "policy"), build_outputs(["c", "d", "e"], "reference")
    with pytest.raises(ValueError, match=r"^`outputs` lacks 1 of the 3 instructions, such as '2\?'\. C"):
        annotate(model, reference, LONGER, "length")
    with pytest.raises(ValueError, match="^`reference_outputs` lacks 1 of the 3 instructions, such as '2"):
        annotate(reference, model, LONGER, "length")
    with pytest.raises(ValueError, match="`outputs` lacks 1 of .* '1.*' and `reference_outputs` lacks 1 of .* '2"):
        annotate([reference[0], reference[2]], model, LONGER, "length")
    with pytest.raises(ValueError, match="`outputs` has a duplicate instruction"):
        annotate([*model, model[0]], reference[:2], LONGER, "length")
    for answers in ([1.5] * 2, [0.5], ["A"] * 2, [float("nan")] * 2):
        with pytest.raises(ValueError, match="`judge` returned (.* for pair 0. It must|1 probabilities for 2 pairs)"):
            annotate(model, reference[:2], lambda *_, answers=answers: answers, "wrong")
