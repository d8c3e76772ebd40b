import shutil

import pytest
from datasets import Dataset

from tests.report.run_folders import (
    SETTINGS,
    build_samples,
    log_policy,
    write_json_settings,
    write_lines,
    write_log,
    write_run,
    write_stage,
)
from trl_rlp.report.run_contents import list_expected_stages, read_contents
from trl_rlp.storage.artifacts import save_data
from trl_rlp.storage.json_files import write_json


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("contents") / "run")


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_a_finished_run_lacks_nothing(run):
    contents = read_contents(run)
    assert contents.missing == [] and contents.settings == {"run.json": SETTINGS}
    assert list(contents.stages)[:2] == ["reward_model", "policy"] and list(contents.stages)[-1] == "evaluation"
    assert list(contents.logs) == ["reward_model", "policy", "retrained_policy"]
    (data,) = contents.rounds
    assert data.threshold == 0.5 and data.answers == [["4"]] * 6 and "cluster_ids" in data.prompts.names
    assert len(data.pairs) + sum(data.counts.values()) == 6
    assert list(contents.policies) == ["sft", "policy", "retrained_policy"]
    assert contents.rewards["policy"]["reward_model"][0][0] == pytest.approx(1.1)


def test_an_unfinished_run_is_described_and_read_as_far_as_it_goes(run):
    shutil.rmtree(run / "evaluation")
    (run / "retrained_policy").rename(run / "retrained_policy.partial")
    (run / "retrained_policy.partial" / "stage.json").unlink()
    shutil.rmtree(run / "gate")
    contents = read_contents(run)
    (text,) = contents.missing
    assert (
        "These stages are missing: gate, retrained_policy, evaluation. Of these, retrained_policy has started." in text
    )
    assert "The same command goes on after the last finished stage." in text
    assert "retrained_policy (unfinished)" in contents.logs and contents.rounds[0].answers is None


def test_a_run_that_has_just_started_is_described(tmp_path):
    write_json_settings(tmp_path)
    (text,) = read_contents(tmp_path).missing
    assert "reward_model, policy, policy_samples, groups, synthetic_preferences" in text


@pytest.mark.parametrize(
    ("settings", "missing", "extra"),
    [
        ({**SETTINGS, "method": "uml"}, {"groups", "synthetic_preferences"}, set()),
        ({**SETTINGS, "sample_from": "sft"}, {"policy"}, set()),
        ({**SETTINGS, "eval_prompt_dataset": None}, {"evaluation"}, set()),
        ({**SETTINGS, "rounds": 2}, set(), {"policy_samples_2", "gate_2", "retrained_policy_2"}),
        ({"args.rlp_method": "spg", "args.rlp_rounds": 1}, {"retrained_policy", "evaluation"}, set()),
    ],
)
def test_the_expected_stages_are_those_of_the_settings(settings, missing, extra):
    stages, whole = set(list_expected_stages(settings)), set(list_expected_stages(SETTINGS))
    assert whole - stages == missing and extra <= stages
    assert list_expected_stages({"seed": 1}) == []


def test_a_trainer_with_rlp_holds_its_stages_in_a_subfolder(run, tmp_path):
    folder = tmp_path / "trainer"
    shutil.copytree(run, folder / "rlp")
    write_log(folder, log_policy())
    contents = read_contents(folder)
    assert list(contents.settings) == ["rlp/run.json", "trainer_state.json"]
    assert "trainer" in contents.logs and "policy" in contents.logs and len(contents.rounds) == 1


def test_pairs_and_completions_of_a_trainer_are_read(run, tmp_path):
    folder = tmp_path / "trainer"
    write_log(folder, log_policy())
    (arrow,) = (run / "synthetic_preferences" / "data").glob("*.arrow")
    (folder / "_refinement" / "pairs-1").mkdir(parents=True)
    shutil.copy(arrow, folder / "_refinement" / "pairs-1" / "shard-00000.arrow")
    (folder / "completions").mkdir()
    Dataset.from_list([{"step": 1, "prompt": "a", "completion": "b"}]).to_parquet(
        folder / "completions" / "completions_00001.parquet"
    )
    contents = read_contents(folder)
    assert contents.rounds[0].prompts is None and len(contents.rounds[0].pairs) > 0
    assert contents.completions.column("completion") == ["b"]


def test_samples_preferences_and_anchors_are_read(tmp_path):
    rows = [{**row, "answers": ["4"]} for row in build_samples().to_list()]
    write_lines(tmp_path / "sample" / "samples.jsonl", rows)
    (data,) = read_contents(tmp_path / "sample").rounds
    assert len(data.prompts) == 6 and data.answers == [["4"]] * 6

    (tmp_path / "prefer").mkdir()
    write_json(tmp_path / "prefer" / "run.json", {"generator": "spg", "threshold": 0.7})
    pairs = [{"prompt": "a", "chosen": "b", "rejected": "c", "confidence": 0.8}]
    write_lines(tmp_path / "prefer" / "preferences.jsonl", pairs)
    (data,) = read_contents(tmp_path / "prefer").rounds
    assert data.threshold == 0.7 and len(data.pairs) == 1

    save_data(Dataset.from_list([{"prompt": "a", "anchor": "b", "confidence": 0.8}]), tmp_path / "anchors")
    write_json(tmp_path / "anchors" / "anchors.json", {"threshold": 0.5})
    assert len(read_contents(tmp_path / "anchors").anchors) == 1


def test_shards_of_preferences_also_tell_why_a_prompt_has_no_pair(tmp_path):
    write_json(tmp_path / "run.json", {"generator": "spg", "threshold": 0.5})
    rows = [{"prompt": "a", "chosen": "b", "reason": None}, {"prompt": "c", "chosen": None, "reason": "all_agree"}]
    save_data(Dataset.from_list(rows), tmp_path / "made")
    (arrow,) = (tmp_path / "made" / "data").glob("*.arrow")
    (tmp_path / "shards").mkdir()
    arrow.rename(tmp_path / "shards" / "shard-00000.arrow")
    shutil.rmtree(tmp_path / "made")
    contents = read_contents(tmp_path)
    assert contents.rounds[0].counts == {"all_agree": 1}
    (text,) = contents.missing
    assert text.startswith("`trl-rlp prefer` has not finished")


def test_unfinished_samples_are_described(tmp_path):
    (tmp_path / "shards").mkdir()
    write_json(tmp_path / "shards" / "samples.json", {"seed": 1})
    (tmp_path / "shards" / "shard-00000.arrow").touch()
    (text,) = read_contents(tmp_path).missing
    assert text.startswith("`trl-rlp sample` has not finished (1 finished shards")


def test_an_evaluation_is_read_and_an_unfinished_one_is_described(tmp_path):
    annotation = {"instruction": "a", "output_1": "b", "output_2": "c", "preference": 2}
    write_json(tmp_path / "annotations.json", [annotation])
    (tmp_path / "judge_answers.jsonl").touch()
    contents = read_contents(tmp_path)
    (text,) = contents.missing
    assert text.startswith("`trl-rlp evaluate` has not finished.") and contents.evaluation == {}
    assert contents.annotations["outputs"].take([0]) == [annotation]
    write_json(tmp_path / "metrics.json", {"win_rate": {"win_rate": 1.0}})
    contents = read_contents(tmp_path)
    assert contents.evaluation["win_rate"] == {"win_rate": 1.0} and contents.missing == []
    assert list(contents.annotations) == ["outputs"]


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
