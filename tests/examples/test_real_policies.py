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
    from real_runs import check_runs

    with pytest.raises(SystemExit, match=message):
        check_runs({seed: {"pi_sft": {"commit": commit}} for seed, commit in commits.items()}, is_smoke)


def test_stages_without_a_commit_do_not_mix_with_others():
    from real_runs import check_runs

    with pytest.raises(SystemExit, match=r"different commits: a \(seeds 400\), unknown \(seeds 401\)"):
        check_runs({400: {"pi_sft": {"commit": "a"}}, 401: {"pi_sft": {}}}, True)


def test_claims_compare_policies_at_the_same_kl_weight():
    """
    On held-out questions, anchors minus PPO is .1 and .3 at the two β that both have, so .2 on the first seed, and .3
    on the second. The mean is .25. With two seeds, half the width is 12.706 · .05 = .635. PPO ran at a third β, too.
    """
    from real_claims import build_claims_table

    def policy(right):
        return {"trained": {"right": 0.5}, "heldout": {"right": right}}

    def seed(gain):
        rights = {"pi_sft": 0.4, "majority_sft": 0.3, "ppo 0.02": 0.2, "ppo 0.1": 0.3, "ppo 0.4": 0.45, "spg 0.1": 0.5}
        rights |= {"anchored 0.02": 0.3 + gain, "anchored 0.1": 0.6 + gain, "known_answers 0.1": 0.9}
        selection = {"single": 0.4, "best": 0.3, "majority": 0.5}
        picks = {f"{part}, r": selection for part in ("trained", "heldout")}
        return {"picks": picks} | {name: policy(right) for name, right in rights.items()}

    runs = {1: seed(0.0), 2: seed(0.1)}
    results = [(name, float(beta) if beta else None) for name, _, beta in (key.partition(" ") for key in runs[1])]
    table = build_claims_table(runs, [pair for pair in results if pair[0] != "picks"])
    rows = {(row[0], row[1]): row[2:] for row in (line.strip("| ").split(" | ") for line in table.splitlines()[2:])}
    compared = rows["above ppo at the same β, held-out questions", "anchored − ppo, β 0.02, 0.1"]
    assert compared[0] == "+0.250 [-0.385, +0.885]" and compared[2] == "not decided"
    compared = rows["above spg at the same β, held-out questions", "anchored − spg, β 0.1"]
    assert compared[0] == "+0.150 [-0.485, +0.785]" and 0.2 < float(compared[1]) <= 1
    for claim, value in {
        ("above π_SFT, held-out questions", "majority_sft − π_SFT"): -0.1,
        ("above ppo at the same β, held-out questions", "spg − ppo, β 0.1"): 0.2,
        ("over-optimization of a fixed r, held-out questions", "ppo 0.4 − ppo 0.02"): 0.25,
        ("majority, then reward, held-out questions", "majority − best-of-n"): 0.2,
        ("majority, then reward, trained questions", "majority − one sample"): 0.1,
    }.items():
        verdict = "confirmed" if value > 0 else "reversed"
        assert rows[claim] == [f"{value:+.3f} [{value:+.3f}, {value:+.3f}]", "0.000", verdict]
    assert rows["over-optimization of a fixed r, trained questions", "ppo 0.4 − ppo 0.02"][-1] == "not decided"
    assert len(rows) == 2 + 3 * 2 + 2 + 4


def test_an_average_over_kl_weights_is_missing_if_one_of_its_values_is():
    from real_claims import average

    values = [lambda run: run["a"], lambda run: run["b"]]
    assert average(values)({"a": 1.0, "b": 2.0}) == 1.5 and average(values)({"a": 1.0, "b": None}) is None


def test_with_one_kl_weight_the_policies_of_r_are_compared_with_pi_sft():
    """PPO answers .1 and .3 fewer held-out questions correctly than π_SFT, and r is higher by 2 and 4."""
    from real_claims import build_claims_table

    def seed(loss, gain):
        lost = {"trained": {"right": 0.5, "proxy": gain}, "heldout": {"right": 0.6 - loss}}
        start = {"trained": {"right": 0.5, "proxy": 0.0}, "heldout": {"right": 0.6}}
        return {"pi_sft": start, "ppo 0.02": lost, "grpo 0.02": start, "anchored 0.02": start}

    results = [("pi_sft", None), ("ppo", 0.02), ("grpo", 0.02), ("anchored", 0.02)]
    table = build_claims_table({1: seed(0.1, 2.0), 2: seed(0.3, 4.0)}, results, has_one_kl_coef=True)
    rows = [line.strip("| ").split(" | ")[:3] for line in table.splitlines()[2:]]
    assert [name for name, *_ in rows] == [
        "above ppo at the same β, trained questions",
        "above ppo at the same β, held-out questions",
        *["over-optimization of a fixed r, trained questions", "over-optimization of a fixed r, held-out questions"],
        "… while r rises",
        *["over-optimization of a fixed r, trained questions", "over-optimization of a fixed r, held-out questions"],
        "… while r rises",
    ]
    assert rows[3][1:] == ["π_SFT − ppo 0.02", "+0.200 [-1.071, +1.471]"]  # 12.706 · .1 = 1.271
    assert rows[4][1:] == ["r of ppo 0.02 − r of π_SFT", "+3.000 [-9.706, +15.706]"]
    assert rows[6][1] == "π_SFT − grpo 0.02"


def test_unfinished_completions_are_never_correct_picks():
    """Two picks equal the known answer. One of them is not finished."""
    from real_policy_run import compute_share

    outputs = Dataset.from_dict({"prompt": ["a", "b"], "completion": ["4", "5"], "finished": [True, False]})
    samples = Dataset.from_dict({"prompt": ["a", "b"], "answers": [["4"], ["5"]]})
    assert compute_share(outputs, samples) == 0.5


@pytest.fixture
def write_seed():
    """Writes the folder of a seed with the given stages."""

    def write(folder, seed, settings_name="smoke", names=("sft", "pi_sft", "picks"), machine="a"):
        from real_settings import SETTINGS

        RunFolder(folder / f"seed-{seed}", {"seed": seed, "settings": asdict(SETTINGS[settings_name])})
        for name in names:
            (folder / f"seed-{seed}" / name).mkdir()
            stage = {"metrics": {"commit": "a", "machine": machine}, "seconds": float(seed)}
            write_json(folder / f"seed-{seed}" / name / "stage.json", stage)

    return write


def test_fewer_than_two_seeds_and_other_settings_are_refused(tmp_path, write_seed):
    from real_runs import load_runs

    with pytest.raises(SystemExit, match="Seeds that can be reported: none"):
        load_runs(tmp_path, "smollm2")
    write_seed(tmp_path, 400, "smollm2")
    write_seed(tmp_path, 401, "smollm2", ["sft", "pi_sft"])
    with pytest.raises(SystemExit, match=r"Seeds that can be reported: 400 .* Seed 401 lacks 'picks'\."):
        load_runs(tmp_path, "smollm2")
    with pytest.raises(SystemExit, match="seed-400 was run with other settings than 'smoke'"):
        load_runs(tmp_path, "smoke")


def test_seeds_that_lack_a_result_are_left_out_and_named(tmp_path, write_seed):
    """Seed 2 lacks a shared stage, and seed 4 a policy of the others. No seed has other policies."""
    from real_policy_report import build_page
    from real_runs import load_runs
    from real_settings import SETTINGS

    shared = ["sft", "pi_sft", "picks"]
    stages = {1: [*shared, "majority_sft"], 2: ["sft", "pi_sft"], 3: [*shared, "majority_sft"], 4: shared}
    for seed, names in stages.items():
        write_seed(tmp_path, seed, names=names)
    loaded = load_runs(tmp_path, "smoke")
    assert list(loaded.runs) == [1, 3]
    assert loaded.unfinished == {2: ["picks", "majority_sft"], 4: ["majority_sft"]}
    page = build_page(loaded, SETTINGS["smoke"], "smoke")
    words = "Unfinished seeds, not included: 2 (lacks `picks`, `majority_sft`), 4 (lacks `majority_sft`). Settings"
    assert page.startswith(f"2 seeds: 1, 3. {words}")


def test_machines_are_named_and_do_not_mix_within_a_seed(tmp_path, write_seed):
    from real_policy_report import write_report

    for seed, machine in ((1, "a"), (2, "b")):
        write_seed(tmp_path, seed, machine=machine)
    assert " Machine: a (seeds 1); b (seeds 2). Each cell" in write_report(tmp_path, "smoke")
    stage = tmp_path / "seed-2" / "sft" / "stage.json"
    write_json(stage, {"metrics": {"commit": "a", "machine": "a"}, "seconds": 1.0})
    with pytest.raises(SystemExit, match="results of seed 2 come from different machines, threads or versions: a; b"):
        write_report(tmp_path, "smoke")


def test_a_seed_with_the_results_of_another_is_refused():
    from real_runs import check_runs

    def seed(right):
        return {"pi_sft": {"commit": "a", "trained": {"right": 0.5}, "heldout": {"right": right}}}

    assert check_runs({400: seed(0.4), 401: seed(0.5)}, is_smoke=False) == "a"
    with pytest.raises(SystemExit, match="Seed 401 in the runs has the results of seed 400, so one is a copy"):
        check_runs({400: seed(0.4), 401: seed(0.4)}, is_smoke=False)


def test_seeds_of_other_reports_are_added_once_and_with_the_same_settings(tmp_path, write_seed):
    from real_policy_report import write_report
    from real_runs import load_runs

    for folder, seeds in (("first", (3, 1)), ("second", (2,))):
        for seed in seeds:
            write_seed(tmp_path / folder, seed)
    write_report(tmp_path / "first", "smoke")
    data = tmp_path / "first" / "policies.json"
    page = write_report(tmp_path / "second", "smoke", [data])
    assert page.startswith("3 seeds: 1, 2, 3. ")
    loaded = load_runs(tmp_path / "none", "smoke", [tmp_path / "second" / "policies.json"])
    assert [run["sft"]["seconds"] for run in loaded.runs.values()] == [1.0, 2.0, 3.0]
    assert write_report(tmp_path / "none", "smoke", [data]).startswith("2 seeds: 1, 3. ")
    for folder, files in (("first", [data]), ("second", [data, data])):
        with pytest.raises(SystemExit, match=r"policies.json contains seeds that .* has, too: 1, 3"):
            load_runs(tmp_path / folder, "smoke", files)
    write_json(data, {**json.loads(data.read_text()), "settings": {}})
    with pytest.raises(SystemExit, match="policies.json was run with other settings than 'smoke'"):
        load_runs(tmp_path / "second", "smoke", [data])


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"settings": {}, "seeds": {"x": {}}}', '{"0": {"sft": {}}}'])
def test_files_that_are_no_report_are_named(tmp_path, text):
    from real_runs import load_runs

    path = tmp_path / "other.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit, match=r"other.json is no policies.json of this report .*Run `report` where"):
        load_runs(tmp_path, "smoke", [path])


@pytest.mark.parametrize("right", [None, float("nan")])
def test_policies_without_a_finite_share_of_correct_answers_are_refused(right):
    from real_runs import check_runs

    runs = {1: {"ppo 0.1": {"commit": "a", "trained": {"right": 0.5}, "heldout": {"right": right}}}}
    with pytest.raises(SystemExit, match=r"'ppo 0.1' of seed 1 has no finite share of correct answers \(heldout\)"):
        check_runs(runs, is_smoke=True)


def test_files_and_threads_of_the_command_line_are_used(tmp_path, monkeypatch):
    import real_policies
    import torch

    calls = []
    monkeypatch.setattr(real_policies, "write_report", lambda *arguments: calls.append(arguments) or "")
    monkeypatch.setattr("sys.argv", ["real_policies.py", "report", "--output_dir", "a", "--data", "b.json", "c.json"])
    real_policies.main()
    assert calls == [(Path("a"), "smollm2", [Path("b.json"), Path("c.json")])]
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    monkeypatch.setattr(real_policies, "load_smollm2", lambda: 1 / 0)
    monkeypatch.setattr("sys.argv", ["real_policies.py", "run", "--seeds", "0", "--threads", "3"])
    with pytest.raises(ZeroDivisionError):
        real_policies.main()
    assert calls[1:] == [3]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run"], "the following arguments are required: --seeds"),
        (["run", "--seeds", "0", "--data", "policies.json"], "unrecognized arguments: --data policies.json"),
        (["report", "--threads", "2"], "unrecognized arguments: --threads 2"),
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
