"""Tests of the experiment with policies on a real model, with a tiny model instead."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from datasets import Dataset, load_from_disk

from tests.yes_or_no import QUESTIONS, train_yes_or_no_model
from trl_rlp import ExactMatch, SemanticAnchorReward, SemanticAnchors, save_data
from trl_rlp.storage.json_files import write_json
from trl_rlp.storage.run_folder import RunFolder


FOLDER = Path(__file__).parents[2] / "examples" / "laboratory"


@pytest.fixture(autouse=True)
def import_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Calls the script with a tiny model and the settings `smoke`."""
    import real_policies

    model = Path(train_yes_or_no_model(tmp_path / "model"))
    monkeypatch.setattr(real_policies, "load_smollm2", lambda: model)
    monkeypatch.setattr(real_policies, "load_questions", lambda: QUESTIONS)

    def main(*words):
        options = ["--settings", "smoke", "--output_dir", str(tmp_path / "runs")]
        monkeypatch.setattr("sys.argv", ["real_policies.py", *words, *options])
        real_policies.main()

    return main


def test_all_methods_run_resume_and_appear_in_the_report(tmp_path, call, capsys):
    """The second seed is a copy of the first one, because the stages are the same."""
    from real_methods import METHODS, PICK_METHODS

    runs = tmp_path / "runs"
    call("run", "--seeds", "0")
    times = {path: path.stat().st_mtime_ns for path in runs.glob("seed-*/*/stage.json")}
    call("run", "--seeds", "0")
    assert times == {path: path.stat().st_mtime_ns for path in runs.glob("seed-*/*/stage.json")}
    table = (runs / "seed-0" / "policies.md").read_text()
    assert table.strip() in capsys.readouterr().out and "| anchored 0.02 |" in table
    shutil.copytree(runs / "seed-0", runs / "seed-1")
    with pytest.raises(SystemExit, match="seed-1 contains a run of seed 0. Restore its name, or remove it"):
        call("report")
    manifest = json.loads((runs / "seed-1" / "run.json").read_text())
    write_json(runs / "seed-1" / "run.json", {**manifest, "seed": 1})
    capsys.readouterr()
    call("report")
    page = (runs / "policies.md").read_text()
    assert page.strip() in capsys.readouterr().out
    assert "| above ppo at the same β, held-out questions | anchored − ppo, β 0.02 |" in page
    for name in (*METHODS, *PICK_METHODS, "pi_sft"):
        assert f"| {name} |" in page, name
    metrics = json.loads((runs / "policies.json").read_text())["seeds"]["0"]
    assert metrics["known_answers 0.02"]["kl"] > 0 and metrics["pi_sft"]["kl"] == 0
    assert len(metrics["anchored 0.02"]["verdicts"]) == 2  # windows of one rollout
    assert any("refinement/accepted" in row for row in metrics["refined_in_loop 0.02"]["curve"])
    assert not any("refinement/accepted" in row for row in metrics["anchor_reward 0.02"]["curve"])
    picks = load_from_disk(str(runs / "seed-0" / "picks" / "r" / "sft" / "data"))
    assert set(picks.column_names) == {"prompt", "completion"}


def test_verdicts_are_counted_by_window_against_the_known_answers():
    """Two windows of two and one rollouts. In the first, two of three are the same, and one of these is wrong."""
    from real_rewards import summarize_verdicts

    rows = [{"same": True, "right": True}, {"same": True, "right": False}, {"same": False, "right": False}]
    counts = summarize_verdicts([rows[:2], rows[2:], [rows[1]]], 2)
    assert counts[0] == {"anchored": 3, "same": 2, "contradicted": 1}
    assert counts[1] == {"anchored": 1, "same": 1, "contradicted": 1}


def test_the_anchor_reward_is_recorded_and_unchanged():
    """The anchor of the first prompt is wrong, and the second prompt has none."""
    from real_rewards import RecordedAnchorReward

    samples = Dataset.from_dict(
        {"prompt": ["a", "b"], "completions": [["4", "4"], ["1", "2"]], "finished": [[True] * 2] * 2}
    )
    reward = SemanticAnchorReward(SemanticAnchors.from_samples(samples, ExactMatch(), threshold=0.9), ExactMatch())
    record = RecordedAnchorReward(reward)
    assert record(["a", "a", "b"], ["4", "5", "1"], answers=[["5"], ["5"], ["1"]]) == [1.0, 0.0, None]
    assert record.rollouts == [
        [
            {"prompt": "a", "completion": "4", "same": True, "right": False},
            {"prompt": "a", "completion": "5", "same": False, "right": True},
        ]
    ]


def test_known_answers_have_mean_0_and_standard_deviation_1_on_the_samples():
    """Of four completions one is correct: (1 - 1/4) / √(3/16) = √3, and -1/4 / √(3/16) = -1/√3."""
    from real_rewards import KnownAnswers

    samples = Dataset.from_dict({"completions": [["4", "5", "6", "7"]], "finished": [[True] * 4], "answers": [["4"]]})
    reward = KnownAnswers(samples)
    assert reward(["4", "5"], answers=[["4"], ["4"]]) == pytest.approx([3**0.5, -(3**-0.5)])
    with pytest.raises(ValueError, match="A share of 1 of the samples is correct"):
        KnownAnswers(samples.map(lambda row: {"answers": ["4", "5", "6", "7"]}))


def test_the_table_of_a_seed_pairs_policies_by_question(tmp_path):
    """Correct shares of two questions: π_SFT 1/2 and 0, the policy 1 and 1/2. Both differences are +1/2."""
    from real_seed_table import build_seed_table

    shares = {"pi_sft": [["4", "5"], ["1", "1"]], "ppo 0.1": [["4", "4"], ["2", "1"]], "ppo 0.02": [["5", "5"]] * 2}
    for name, completions in shares.items():
        for part in ("trained", "heldout"):
            columns = {"completions": completions, "finished": [[True] * 2] * 2, "answers": [["4"], ["2"]]}
            save_data(Dataset.from_dict({"prompt": ["a", "b"], **columns}), tmp_path / name / part)
        metrics = {"kl": 0.5, **dict.fromkeys(("trained", "heldout"), {"right": 0.25, "proxy": 1.0})}
        write_json(tmp_path / name / "stage.json", {"metrics": metrics})
    rows = [line.split(" | ") for line in build_seed_table(tmp_path).splitlines()[2:]]
    assert [row[0] for row in rows] == ["| pi_sft", "| ppo 0.02", "| ppo 0.1"]
    assert rows[2][1:5] == ["0.250", "0.250", "+0.500 ± 0.000", "+0.500 ± 0.000"]
    assert rows[1][3] == "-0.250 ± 0.250"  # the differences are -1/2 and 0


def test_results_list_the_policy_of_ppo_before_spg():
    from real_methods import list_results

    assert list_results(["spg", "majority_dpo"], (0.1, 0.2)) == [
        ("majority_dpo", None),
        ("ppo", 0.1),
        ("spg", 0.1),
        ("ppo", 0.2),
        ("spg", 0.2),
    ]


def test_the_curve_is_averaged_by_window():
    """Three rollouts in windows of two: the means of 1 and 2, and of 4. Steps without the metric do not count."""
    from real_policy_report import list_windows, select_curve
    from real_settings import RealSettings

    run = {"ppo 0.1": {"curve": [{"r": 1.0}, {"kl": 0.0}, {"r": 2.0}, {"r": 4.0}]}}
    windows = list_windows(RealSettings(rollouts=3, window=2))
    assert windows == [(0, 2), (2, 3)]
    assert [select_curve("ppo 0.1", "r", window)(run) for window in windows] == [1.5, 4.0]


@pytest.mark.parametrize(
    ("commits", "is_smoke", "message"),
    [
        ({400: "a", 401: "b"}, True, r"different commits: a \(seeds 400\), b \(seeds 401\)"),
        ({400: "a-dirty", 401: "a-dirty"}, False, "made at a-dirty, with changes that are not committed"),
        ({90: "a", 401: "a"}, False, "Seed 90 was used to choose the settings"),
        (
            {400: "unknown", 401: "unknown"},
            False,
            "The commit of the results is 'unknown', so the code that made them",
        ),
    ],
)
def test_runs_that_cannot_be_in_one_table_are_refused(commits, is_smoke, message):
    from real_policy_report import check_runs

    with pytest.raises(SystemExit, match=message):
        check_runs({seed: {"pi_sft": {"commit": commit}} for seed, commit in commits.items()}, is_smoke)


def test_stages_without_a_commit_do_not_mix_with_others():
    from real_policy_report import check_runs

    with pytest.raises(SystemExit, match=r"different commits: a \(seeds 400\), unknown \(seeds 401\)"):
        check_runs({400: {"pi_sft": {"commit": "a"}}, 401: {"pi_sft": {}}}, True)


def test_claims_compare_policies_at_the_same_kl_weight():
    """
    Two seeds. Anchors minus PPO on held-out questions is .1 and .2 at the two β that both have, so .15 in the mean.
    Anchors ran at a third β, too, which is not compared.
    """
    from real_claims import build_claims_table

    def policy(right, proxy=0.0):
        return {"trained": {"right": 0.5, "proxy": proxy}, "heldout": {"right": right}}

    selection = {"single": 0.4, "best": 0.3, "majority": 0.5}
    run = {"pi_sft": policy(0.4), "known_answers 0.1": policy(0.5), "majority_sft": policy(0.3)}
    run |= {"ppo 0.02": policy(0.2, proxy=1.5), "ppo 0.1": policy(0.4, proxy=1.0)}
    run |= {f"anchored {beta}": policy(right) for beta, right in (("0.02", 0.3), ("0.1", 0.6), ("0.4", 0.9))}
    run["picks"] = {f"{part}, r": selection for part in ("trained", "heldout")}
    results = [(name, float(beta) if beta else None) for name, _, beta in (key.partition(" ") for key in run)]
    table = build_claims_table({1: run, 2: run}, [pair for pair in results if pair[0] != "picks"])
    rows = {(row[0], row[1]): row[2:] for row in (line.strip("| ").split(" | ") for line in table.splitlines()[2:])}
    expected = {
        ("above π_SFT, held-out questions", "known_answers 0.1 − π_SFT"): 0.1,
        ("above π_SFT, held-out questions", "majority_sft − π_SFT"): -0.1,
        ("above ppo at the same β, held-out questions", "anchored − ppo, β 0.02, 0.1"): 0.15,
        ("over-optimization of a fixed r", "r: ppo 0.02 − ppo 0.1"): 0.5,
        ("over-optimization of a fixed r", "correct, held-out questions: ppo 0.1 − ppo 0.02"): 0.2,
        ("majority, then reward, held-out questions", "majority − best-of-n"): 0.2,
        ("majority, then reward, trained questions", "majority − one sample"): 0.1,
    }
    for claim, value in expected.items():
        verdict = "replicated" if value > 0 else "reversed"
        assert rows[claim] == [f"{value:+.3f} [{value:+.3f}, {value:+.3f}]", "0.000", verdict]
    assert rows["above π_SFT, trained questions", "known_answers 0.1 − π_SFT"][-1] == "not replicated"
    assert len(rows) == 2 * 2 + 2 + 3 + 4


def test_results_that_only_some_seeds_have_are_named():
    from real_policy_report import describe_missing
    from real_settings import RealSettings

    runs = {400: {"pi_sft": {}, "ppo 0.1": {}}, 401: {"pi_sft": {}}}
    settings = RealSettings(kl_coefs=(0.1,))
    assert describe_missing(runs, settings) == " Not shown, because some seeds lack them: `ppo 0.1` (seeds 400)."
    assert describe_missing({400: runs[400]}, settings) == ""


def test_unfinished_completions_are_never_correct_picks():
    """Two picks equal the known answer. One of them is not finished."""
    from real_policy_run import compute_share

    outputs = Dataset.from_dict({"prompt": ["a", "b"], "completion": ["4", "5"], "finished": [True, False]})
    samples = Dataset.from_dict({"prompt": ["a", "b"], "answers": [["4"], ["5"]]})
    assert compute_share(outputs, samples) == 0.5


def test_fewer_than_two_seeds_and_other_settings_are_refused(tmp_path):
    from real_policy_report import load_runs
    from real_settings import SETTINGS

    settings = asdict(SETTINGS["smollm2"])
    for seed in (400, 401):
        RunFolder(tmp_path / f"seed-{seed}", {"seed": seed, "settings": settings})
    with pytest.raises(SystemExit, match="contains 0 seeds"):  # no stage is finished
        load_runs(tmp_path, "smollm2")
    with pytest.raises(SystemExit, match="seed-400 was run with other settings than 'smoke'"):
        load_runs(tmp_path, "smoke")
    (tmp_path / "seed-400" / "pi_sft").mkdir()
    write_json(tmp_path / "seed-400" / "pi_sft" / "stage.json", {"metrics": {"commit": "a"}, "seconds": 1.0})
    with pytest.raises(SystemExit, match="contains 1 seeds"):
        load_runs(tmp_path, "smollm2")


def test_seeds_of_other_reports_are_added_once_and_with_the_same_settings(tmp_path):
    from real_policy_report import load_runs, write_report
    from real_settings import SETTINGS

    settings, metrics = asdict(SETTINGS["smoke"]), {"commit": "a"}
    for folder, seeds in (("first", (3, 1)), ("second", (2,))):
        for seed in seeds:
            stage = tmp_path / folder / f"seed-{seed}" / "sft"
            RunFolder(stage.parent, {"seed": seed, "settings": settings})
            stage.mkdir()
            write_json(stage / "stage.json", {"metrics": metrics, "seconds": float(seed)})
    data = tmp_path / "first" / "policies.json"
    write_json(data, {"settings": settings, "seeds": load_runs(tmp_path / "first", "smoke")[0]})
    runs, commit = load_runs(tmp_path / "second", "smoke", [data])
    assert commit == "a" and list(runs) == [1, 2, 3]
    assert [run["sft"]["seconds"] for run in runs.values()] == [1.0, 2.0, 3.0]
    assert load_runs(tmp_path / "none", "smoke", [data])[0].keys() == {1, 3}
    with pytest.raises(SystemExit, match=r"policies.json contains seeds that were read before: 1, 3"):
        load_runs(tmp_path / "first", "smoke", [data])
    write_json(data, {**json.loads(data.read_text()), "settings": asdict(SETTINGS["smollm2"])})
    with pytest.raises(SystemExit, match="policies.json was run with other settings than 'smoke'"):
        write_report(tmp_path / "second", "smoke", [data])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run"], "--seeds is required"),
        (["run", "--seeds", "0", "--kl_coefs", "0.3"], "--kl_coefs must be among"),
        (["run", "--seeds", "0", "--threads", "0"], "--threads must be at least 1"),
    ],
)
def test_wrong_options_end_before_any_work(monkeypatch, words, message, capsys):
    import real_policies

    monkeypatch.setattr("sys.argv", ["real_policies.py", *words])
    with pytest.raises(SystemExit):
        real_policies.main()
    assert message in capsys.readouterr().err
