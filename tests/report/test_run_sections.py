import pytest

from tests.report.run_folders import log_policy, write_json_settings, write_lines, write_log, write_run, write_stage
from trl_rlp.report.contents_reader import read_contents
from trl_rlp.report.elements import Table, Text
from trl_rlp.report.run_sections import build_run_section
from trl_rlp.storage.json_files import read_json, write_json


def read_section(folder):
    elements = build_run_section(read_contents(folder)).elements
    tables = [element for element in elements if isinstance(element, Table)]
    return tables, " ".join(element.text for element in elements if isinstance(element, Text))


def test_stages_have_their_times_and_results(tmp_path):
    (stages, metrics, settings), text = read_section(write_run(tmp_path / "run"))
    rows = {row[0]: row[1:] for row in stages.rows}
    result = "3 optimizer steps, reward 0.300 in the last log, KL 0.600 in the last log"
    assert rows["policy"] == ["step 3: policy π against r", 2, None, result]
    assert rows["policy_samples"][3] == "24 completions, 100% finished" and rows["gate"][3] == "passed"
    assert rows["groups"][3] == "80% of the prompts reach γ"
    assert rows["synthetic_preferences"][3].endswith("pairs of 6 prompts")
    assert rows["all stages"][1] == 2 * (len(rows) - 1)
    assert ["gate", "comparisons · human · after · pairs", 40] in metrics.rows
    assert ["method", "spg"] in settings.rows and ["rounds", "1"] in settings.rows
    assert "wall time" in text and "not finished" not in text


def test_stages_of_further_rounds_are_described(tmp_path):
    write_json_settings(tmp_path)
    for name in ("policy_samples", "policy_samples_2", "own_2", "own"):
        write_stage(tmp_path / name, {})
    (stages, *_), _ = read_section(tmp_path)
    assert {row[0]: row[1] for row in stages.rows if row[1] != ""} == {
        "policy_samples": "step 4: samples P of the policy",
        "policy_samples_2": "step 4: samples P of the policy, round 2",
    }


def test_what_is_missing_comes_first_and_is_highlighted(tmp_path):
    write_json_settings(tmp_path, rounds=2)
    first = build_run_section(read_contents(tmp_path)).elements[0]
    assert first.is_caution and "These stages are missing" in first.text


def test_a_trainer_has_its_time_and_the_settings_of_its_state(tmp_path):
    write_log(tmp_path, log_policy())
    (settings,), text = read_section(tmp_path)
    assert settings.rows == [["global_step", "3"], ["max_steps", "3"]]
    assert "took 12 s" in text and "training_args.bin" in text


@pytest.mark.parametrize(
    ("trained", "planned", "text"),
    [
        (
            25,
            25,
            "All 25 steps were trained. The time is not in a checkpoint: call `trainer.save_state()` to have it.",
        ),
        (1, 1, "The only step was trained. The time"),
        (20, 25, "The trainer logged no time, so it has not finished its training"),
        (0, 0, "The trainer logged no time"),
        (None, "25", "The trainer logged no time"),
    ],
)
def test_a_checkpoint_of_the_last_step_is_a_finished_training(tmp_path, trained, planned, text):
    """A trainer writes its last checkpoint before it logs the time."""
    state = {"global_step": trained, "max_steps": planned, "log_history": [{"step": 1, "loss": 0.5}]}
    folder = tmp_path / "checkpoint-25"
    folder.mkdir()
    write_json(folder / "trainer_state.json", state)
    assert text in read_section(tmp_path)[1]


def test_a_gate_on_a_single_pair_has_not_decided(tmp_path):
    folder = write_run(tmp_path / "run")
    stage = read_json(folder / "gate" / "stage.json")
    stage["metrics"]["comparisons"]["human"]["difference"]["standard_error"] = None
    write_json(folder / "gate" / "stage.json", stage)
    (stages, *_), _ = read_section(folder)
    assert {row[0]: row[4] for row in stages.rows}["gate"] == "passed, too few pairs to decide"


def test_samples_have_no_time(tmp_path):
    write_lines(tmp_path / "samples.jsonl", [{"prompt": "a", "completions": ["b"]}])
    assert read_section(tmp_path) == ([], "No time was recorded in this folder.")
