import os
import shutil
from dataclasses import asdict

import pytest
from datasets import Dataset

from tests.report.run_folders import (
    SETTINGS,
    build_samples,
    log_policy,
    log_reward_model,
    write_json_settings,
    write_lines,
    write_log,
    write_preferences,
    write_run,
    write_stage,
)
from trl_rlp.cli.anchors import main as make_anchors
from trl_rlp.data.anchors import SemanticAnchors
from trl_rlp.data.groups import ExactMatch
from trl_rlp.data.preferences import synthesize_preferences
from trl_rlp.quickstart.narration import STAGE_TITLES
from trl_rlp.quickstart.quickstart_config import QuickstartConfig
from trl_rlp.report.run_contents import list_expected_stages, read_contents
from trl_rlp.report.run_report import write_report
from trl_rlp.storage.artifacts import save_data
from trl_rlp.storage.json_files import write_json
from trl_rlp.storage.run_folder import RunFolder


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
    assert list_expected_stages({"args.rlp_method": "uml"})[-1] == "gate"  # one round by default
    assert list_expected_stages({"seed": 1}) == []


def test_the_quickstart_expects_the_stages_that_it_announces():
    assert list_expected_stages(asdict(QuickstartConfig())) == list(STAGE_TITLES)


def test_an_unfinished_quickstart_is_described(run, tmp_path):
    """Algorithm 1 has a folder and a manifest of its own, which do not exist before step 2."""
    folder = tmp_path / "quickstart"
    settings = asdict(QuickstartConfig())
    RunFolder(folder, {name: value for name, value in settings.items() if name not in ("output_dir", "minutes")})
    write_stage(folder / "sft", {"step": 1})
    (folder / "preferences.partial").mkdir()
    (text,) = read_contents(folder).missing
    assert "missing: preferences, reward_model, policy, policy_samples, groups, synthetic_preferences" in text
    assert "gate, retrained_policy, outcome. Of these, preferences has started. The same command goes on" in text

    (folder / "preferences.partial").rmdir()
    write_stage(folder / "preferences", {})
    shutil.copytree(run, folder / "rlp")
    write_json(folder / "rlp" / "run.json", {**SETTINGS, "eval_prompt_dataset": None})
    (folder / "outcome.partial").mkdir()
    (text,) = read_contents(folder).missing
    assert "These stages are missing: outcome. Of these, outcome has started." in text
    write_stage(folder / "outcome", {})
    assert read_contents(folder).missing == []


def test_a_trainer_with_rlp_that_left_no_log_of_its_own_says_so(run, tmp_path):
    """Step 5 is the trainer's own training. Before its first checkpoint, it leaves nothing."""
    folder = tmp_path / "trainer"
    shutil.copytree(run, folder / "rlp")
    write_json(folder / "rlp" / "run.json", {"args.rlp_method": "spg", "args.rlp_rounds": 1})
    (text,) = read_contents(folder).missing
    assert text.startswith("The log of step 5, the training of π̂ by the trainer itself, is missing.")
    write_log(folder, log_policy())
    assert read_contents(folder).missing == []


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


def test_pairs_of_several_trainings_are_those_that_were_written_last(tmp_path):
    """The folders are named after hashes, so their order says nothing."""
    write_log(tmp_path, log_reward_model())
    for number, name in enumerate(("pairs-b", "pairs-c", "pairs-a"), start=1):
        folder = tmp_path / "_refinement" / name
        samples, options = build_samples(10 * number), {"threshold": 0.5, "chosen": "random"}
        synthesize_preferences(samples, "spg", equivalence=ExactMatch(), output_dir=folder, shard_size=10, **options)
        for shard in folder.glob("shard-*.arrow"):
            os.utime(shard, (number, number))
    contents = read_contents(tmp_path)
    (data,) = contents.rounds
    assert data.number == 1 and len(data.pairs) == 30
    assert contents.missing == [
        "The folder _refinement holds the pairs of 3 trainings. Only those that were written last are shown."
    ]


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
    write_preferences(tmp_path)
    contents = read_contents(tmp_path)
    assert contents.rounds[0].counts == {"below_threshold": 7} and len(contents.rounds[0].pairs) == 10
    (text,) = contents.missing
    assert text.startswith("`trl-rlp prefer` has not finished")


def test_unfinished_samples_are_described(tmp_path):
    (tmp_path / "shards").mkdir()
    write_json(tmp_path / "shards" / "samples.json", {"seed": 1})
    (tmp_path / "shards" / "shard-00000.arrow").touch()
    (text,) = read_contents(tmp_path).missing
    assert text.startswith("`trl-rlp sample` has not finished (1 finished shards")


def test_unfinished_anchors_are_described(tmp_path, monkeypatch, capsys):
    """The command also samples, into the same files as `trl-rlp sample`."""
    samples = write_lines(tmp_path / "samples.jsonl", build_samples().to_list())
    folder = tmp_path / "out"
    options = ["--samples", str(samples), "--equivalence", "exact", "--output_dir", str(folder)]
    with monkeypatch.context() as patch:
        patch.setattr(SemanticAnchors, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make_anchors(options)
    (folder / "shards").mkdir()
    for name in ("run.json", "shards/samples.json", "shards/shard-00000.arrow", "samples.jsonl"):
        (folder / name).touch()
        assert read_contents(folder).missing == [
            "`trl-rlp anchors` has not finished. The same command goes on after the last finished shard."
        ]
    make_anchors(options)
    assert read_contents(folder).missing == [] and len(read_contents(folder).anchors) == 6


@pytest.mark.parametrize(
    ("columns", "left_out"),
    [
        ({"answers": {"text": ["4"], "answer_start": [1]}}, ["answers"]),
        ({"answers": 42}, ["answers"]),
        ({"confidence": "high", "answers": "4"}, ["confidence"]),
        ({"confidence": 87.5}, ["confidence"]),
        ({"cluster_ids": [0, 0, 1, 1], "confidence": "high"}, ["cluster_ids", "confidence"]),
        ({"answers": ["4"], "cluster_ids": [0, 0, 1, 1], "confidence": 0.5}, []),
    ],
)
def test_columns_of_the_prompts_with_our_names_are_no_damage(tmp_path, columns, left_out):
    """`trl-rlp sample` keeps the columns of the prompts and does not check them."""
    write_lines(tmp_path / "samples.jsonl", [{**row, **columns} for row in build_samples().to_list()])
    contents = read_contents(tmp_path)
    (data,) = contents.rounds
    assert data.prompts.names == {"prompt", "completions", "finished", *columns} - set(left_out)
    assert (data.answers is None) == ("answers" not in data.prompts.names)
    assert all(text.endswith(f": {', '.join(left_out)}.") for text in contents.missing)
    assert len(contents.missing) == bool(left_out)
    assert write_report(tmp_path).is_file()


@pytest.mark.parametrize("text", ['{"loss": 1}\n{"loss": 2}\n', '{"policy": {"loss": "low"}}'])
def test_metrics_of_another_program_do_not_hide_a_training(tmp_path, text):
    write_log(tmp_path, log_policy())
    (tmp_path / "metrics.json").write_text(text)
    contents = read_contents(tmp_path)
    assert list(contents.logs) == ["trainer"] and contents.evaluation == {}
    (tmp_path / "judge_answers.jsonl").touch()
    with pytest.raises(ValueError, match="metrics.json' is damaged .* Run `trl-rlp evaluate` again"):
        read_contents(tmp_path)


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
