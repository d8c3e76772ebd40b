import pytest
from datasets import Dataset

from tests.report.run_folders import (
    build_samples,
    write_json_settings,
    write_lines,
    write_stage,
)
from trl_rlp.report.contents_reader import read_contents
from trl_rlp.storage.artifacts import save_data
from trl_rlp.storage.json_files import write_json


def build_nothing(folder):
    folder.rmdir()


def build_empty(folder):
    pass


def build_foreign(folder):
    (folder / "notes.txt").write_text("hello")


def build_foreign_run(folder):
    write_json(folder / "run.json", {"seed": 1})


def build_foreign_metrics(folder):
    """Other programs write these names too."""
    write_json(folder / "metrics.json", {"win_rate": 0.5, "loss": 1.0})
    write_json(folder / "annotations.json", {"images": []})


def build_damaged_metrics(folder):
    (folder / "metrics.json").write_text("{")


def build_damaged_annotations(folder):
    write_json(folder / "metrics.json", {"win_rate": {"win_rate": 1.0}})
    write_json(folder / "annotations.json", [{"instruction": "a"}])


def build_model(folder):
    (folder / "training_args.bin").touch()


def build_damaged_settings(folder):
    (folder / "run.json").write_text("{")


def build_damaged_stage(folder):
    write_json_settings(folder)
    write_stage(folder / "gate", {})
    (folder / "gate" / "stage.json").write_text("[1")


def build_damaged_samples(folder):
    write_lines(folder / "samples.jsonl", [{"prompt": "a", "completions": ["b"]}, {"prompt": "a"}])


def build_wrong_gate(folder):
    write_json_settings(folder)
    write_stage(folder / "gate", {"passed": True, "problems": []})


def build_wrong_later_gate(folder):
    write_json_settings(folder)
    write_stage(folder / "gate_2", {"passed": True, "problems": []})


def build_wrong_rounds(folder):
    write_json_settings(folder, rounds=None)


def build_wrong_metrics(folder):
    write_json(folder / "metrics.json", {"policy": {"kl": "x"}})


def build_few_rewards(folder, rewards=((0.5,),)):
    write_json_settings(folder)
    save_data(build_samples(), folder / "evaluation" / "policy")
    write_json(folder / "evaluation" / "policy" / "rewards.json", {"r": rewards})


def build_no_reward(folder):
    build_few_rewards(folder, [[None]])


def build_damaged_policy(folder):
    write_json_settings(folder)
    samples = build_samples().map(lambda row: {"completions": [5]}, remove_columns="completions")
    save_data(samples, folder / "evaluation" / "policy")
    write_json(folder / "evaluation" / "policy" / "rewards.json", {"r": [[0.5]] * 6})


def build_few_answers(folder):
    write_json_settings(folder)
    save_data(build_samples(), folder / "policy_samples")
    save_data(Dataset.from_dict({"answers": [["4"]]}), folder / "gate")


def build_foreign_pairs(folder):
    write_json_settings(folder)
    save_data(build_samples(), folder / "policy_samples")
    pair = {"prompt": "a", "chosen": "b", "rejected": "c", "sample_row": 7}
    save_data(Dataset.from_list([pair]), folder / "synthetic_preferences")


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (build_nothing, "There is no folder '.*'. Pass the output folder of `trl-rlp run`"),
        (build_empty, "The folder '.*' is empty. Pass the output folder of `trl-rlp run`"),
        (build_foreign, "The folder '.*' holds no run that a report can show. Pass the output folder"),
        (build_foreign_run, "holds no run that a report can show"),
        (build_foreign_metrics, "holds no run that a report can show"),
        (build_damaged_metrics, r"metrics.json' is damaged \(.*\). Run `trl-rlp evaluate` again, with another"),
        (build_damaged_annotations, r"annotations.json' is damaged \(.*\). Run `trl-rlp evaluate` again"),
        (build_model, r"holds a model but no log of its training. Call `trainer.save_state\(\)`"),
        (build_damaged_settings, r"run.json' is damaged \(.*\). Without its settings, the run cannot be resumed"),
        (build_damaged_stage, r"stage.json' is damaged \(.*\). Delete the folder of this stage"),
        (build_damaged_samples, r"samples.jsonl' is damaged \(row 1: `completions` is missing\). Run the command"),
        (build_wrong_gate, r"gate/stage.json' is damaged \(`metrics.comparisons` is missing\). Delete the folder of"),
        (build_wrong_later_gate, r"gate_2/stage.json' is damaged \(`metrics.comparisons` is missing\)"),
        (build_wrong_rounds, r"run.json' is damaged \(`rounds` is None, not a valid integer\). Without its settings"),
        (build_wrong_metrics, r"metrics.json' is damaged \(`policy.kl` is 'x', not a valid number\)"),
        (build_few_rewards, r"policy/rewards.json' is damaged \(`r` does not have one reward for each completion\)"),
        (build_no_reward, r"policy/rewards.json' is damaged \(`r.0.0` is None, not a valid number\)"),
        (build_damaged_policy, r"^'[^']*policy/data' is damaged \(row 0: `completions.0` is 5, neither text nor mess"),
        (build_few_answers, r"gate/data' is damaged \(1 known answers for 6 prompts\). Delete the folder of this"),
        (build_foreign_pairs, r"data' is damaged \(a pair of the prompt 7, but there are 6 prompts\)"),
    ],
)
def test_a_wrong_folder_is_one_line(tmp_path, build, match):
    folder = tmp_path / "folder"
    folder.mkdir()
    build(folder)
    with pytest.raises((FileNotFoundError, ValueError), match=match) as error:
        read_contents(folder)
    assert "\n" not in str(error.value)
