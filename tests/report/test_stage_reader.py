import shutil
from dataclasses import asdict

import pytest

from tests.report.run_folders import (
    SETTINGS,
    log_policy,
    write_json_settings,
    write_log,
    write_stage,
)
from trl_rlp.quickstart.quickstart_config import QuickstartConfig
from trl_rlp.report.contents_reader import read_contents
from trl_rlp.storage.json_files import write_json
from trl_rlp.storage.run_folder import RunFolder


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
