"""Tests of the report of the laboratory on made-up results: what it refuses, and the tables of ours by hand."""

import json
import re
import subprocess
from pathlib import Path

import pytest


FOLDER = Path(__file__).parents[2] / "examples" / "laboratory"


@pytest.fixture(autouse=True)
def import_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def make_policy(win_rate=0.5, gold=2.0, kl=1.0, malformed=0.0):
    values = {"win_rate": win_rate, "gold": gold, "kl": kl, "malformed": malformed}
    return {"policy": {**values, "right": 0.5, "proxy": 0.0, "characters": 9.0}}


def make_run(sweep=(0.1, 0.4), part="ours", commit="abc", **policies):
    """Makes a result for each name of a part, the same one except for those in `policies`."""
    from methods import list_results

    names = list_results(sweep, part)
    run = {name: {**make_policy(), "commit": commit} for name in names}
    run |= {name: {"ppo": make_policy(), "spg": make_policy(), "commit": commit} for name in names if "sweep" in name}
    return run | {name: run[name] | result for name, result in policies.items()}


@pytest.fixture
def few_methods(monkeypatch):
    """Replaces our methods: three at β .1 and .2, each also with noise, rounds, one without β. No finer β values."""
    import methods
    from methods import LOOP_METHODS, LoopMethod

    monkeypatch.setattr(methods, "FINER", ())
    for name in list(LOOP_METHODS):
        monkeypatch.delitem(LOOP_METHODS, name)
    for name in ("anchor_reward", "refined_in_loop", "anchored"):
        monkeypatch.setitem(LOOP_METHODS, name, LoopMethod("ours", kl_coefs=(0.1, 0.2)))
        noisy = LoopMethod("controls of ours", base=name, kl_coefs=(0.1,), noise=0.15)
        monkeypatch.setitem(LOOP_METHODS, f"{name}, 15% noise", noisy)
    rounds = LoopMethod("controls of ours", trainer="rounds", kl_coefs=(0.4, 0.8))
    monkeypatch.setitem(LOOP_METHODS, "spg, 2 rounds", rounds)
    monkeypatch.setitem(LOOP_METHODS, "majority_dpo", LoopMethod("ours", kl_coefs=()))


def read_rows(table):
    """Reads the rows of a Markdown table by their first cell, or by the first two if the first ones are equal."""
    cells = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    firsts = [row[0] for row in cells]
    return {
        row[0] if firsts.count(row[0]) == 1 else f"{row[0]} | {row[1]}": dict(
            zip(table.splitlines()[0].strip("| ").split(" | "), row, strict=True)
        )
        for row in cells
    }


# What the report refuses


def write_runs(folder, commits, settings="laboratory", part="ours"):
    """Writes a folder of runs from the commit of each seed. π_SFT differs by seed."""
    from provenance import describe_settings
    from settings import SETTINGS

    folder.mkdir(exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(describe_settings(settings)))
    for seed, commit in commits.items():
        path = folder / f"seed-{seed}" / "results.json"
        path.parent.mkdir(exist_ok=True)
        run = make_run(SETTINGS[settings].sweep, part, commit)
        run["sft"]["policy"]["proxy"] = seed / 1000
        path.write_text(json.dumps(run))
    return folder


def check_refusal(folder, message, part="ours"):
    from provenance import load_parts

    with pytest.raises(SystemExit) as error:
        load_parts(folder, part)
    assert re.search(message, str(error.value)) and "\n" not in str(error.value), error.value


def test_fewer_than_two_finished_seeds_are_refused(tmp_path):
    check_refusal(tmp_path, "contains no runs. Run some seeds with this --output_dir first.")
    folder = write_runs(tmp_path, {400: "abc", 401: "abc"})
    (folder / "seed-401" / "results.json").write_text(json.dumps({"sft": make_policy()}))
    check_refusal(
        folder, "1 finished seed of the part 'ours', but an interval needs at least two. Run more seeds with"
    )
    check_refusal(folder, "0 finished seeds of the part 'paper' and 1 finished seed of the part 'ours', but an", None)


def test_explored_seeds_are_refused(tmp_path):
    message = "Seed 220 was used to choose the settings of the part 'ours'. Move the folders of explored seeds out of"
    check_refusal(write_runs(tmp_path / "one", {220: "abc", 400: "abc"}), message)
    check_refusal(write_runs(tmp_path / "all", {220: "abc", 221: "abc"}), "Seeds 220, 221 were used")
    check_refusal(write_runs(tmp_path / "paper", {10: "abc", 100: "abc"}, part="paper"), "Seed 100 was", "paper")


def test_results_of_different_commits_are_refused(tmp_path):
    folder = write_runs(tmp_path, {400: "abc", 401: "def", 402: "abc"})
    check_refusal(
        folder, "The results come from different commits: abc \\(seeds 400, 402\\), def \\(seeds 401\\). Run all"
    )
    folder = write_runs(tmp_path, {400: "abc", 401: "abc", 402: "abc"})
    path = folder / "seed-402" / "results.json"
    run = json.loads(path.read_text())
    run["sweep 0.1"]["spg"]["commit"] = "old"
    del run["sft"]["commit"]
    path.write_text(json.dumps(run))
    check_refusal(folder, "abc \\(seeds 400, 401, 402\\), old \\(seeds 402\\), unknown \\(seeds 402\\)")


def test_changes_that_are_not_committed_are_refused_for_ours(tmp_path):
    from provenance import load_parts

    folder = write_runs(tmp_path / "ours", {400: "abc-dirty", 401: "abc-dirty"})
    check_refusal(
        folder, "results were made at abc-dirty, with changes that are not committed. Commit the changes and"
    )
    paper = write_runs(tmp_path / "paper", {10: "abc-dirty", 11: "abc-dirty"}, part="paper")
    assert load_parts(paper)[0].describe().startswith("2 seeds: 10, 11. Settings: `laboratory`. Commit: `abc-dirty`.")


def test_results_of_an_unknown_commit_are_refused_for_ours(tmp_path):
    from provenance import load_parts

    check_refusal(write_runs(tmp_path / "ours", {400: "unknown", 401: "unknown"}), "is 'unknown', so the code that")
    mixed = "abc with trl_rlp at unknown"
    check_refusal(write_runs(tmp_path / "mixed", {400: mixed, 401: mixed}), f"is '{mixed}', so")
    assert load_parts(write_runs(tmp_path / "paper", {10: "unknown", 11: "unknown"}, part="paper"))


def test_a_copy_of_a_seed_is_refused(tmp_path):
    folder = write_runs(tmp_path, {400: "abc", 401: "abc"})
    (folder / "seed-402").mkdir()
    (folder / "seed-402" / "results.json").write_text((folder / "seed-400" / "results.json").read_text())
    check_refusal(folder, "Seed 402 in .* has the results of seed 400, so one is a copy of the other")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "0.5"])
def test_a_metric_that_is_not_a_finite_number_is_refused(tmp_path, value):
    folder = write_runs(tmp_path, {400: "abc", 401: "abc"})
    path = folder / "seed-401" / "results.json"
    run = json.loads(path.read_text())
    run["sweep 0.1"]["spg"]["policy"]["kl"] = value
    path.write_text(json.dumps(run))
    check_refusal(folder, f"Seed 401 has no finite 'kl' of 'sweep 0.1 spg', but {value}. Remove 'sweep 0.1' from")


@pytest.mark.parametrize("result", [{}, {"policy": {"win_rate": 0.5}}])
def test_a_result_without_its_metrics_is_refused(tmp_path, result):
    folder = write_runs(tmp_path, {400: "abc", 401: "abc"})
    path = folder / "seed-401" / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"majority_sft": {**result, "commit": "abc"}}))
    check_refusal(folder, "Seed 401 has no finite '(win_rate|gold)' of 'majority_sft', but None")


def test_smoke_settings_allow_any_seed_and_changes(tmp_path):
    from provenance import load_parts

    folder = write_runs(tmp_path, {0: "abc-dirty", 220: "abc-dirty"}, settings="smoke")
    (loaded,) = load_parts(folder)
    assert (loaded.part, list(loaded.runs), loaded.settings_name) == ("ours", [0, 220], "smoke")


def test_other_settings_than_those_of_the_code_are_refused(tmp_path):
    folder = write_runs(tmp_path, {400: "abc", 401: "abc"})
    settings = json.loads((folder / "settings.json").read_text())
    settings["learning_rate"] = 1.0
    settings["methods"]["anchored"]["anchor_weight"] = 9.0
    (folder / "settings.json").write_text(json.dumps(settings))
    check_refusal(
        folder, "differs from the settings 'laboratory' of this code in learning_rate, methods.anchored. Rep"
    )
    (folder / "settings.json").write_text("{}")
    check_refusal(folder, " and \\d+ more. Report these runs with the code that made them")


def test_nothing_is_written_if_a_part_is_refused(tmp_path):
    """The paper's results are fine, but those of ours come from an explored seed."""
    from report import write_report

    folder = write_runs(tmp_path / "runs", {10: "abc", 220: "abc"}, part="paper")
    for path in folder.glob("seed-*/results.json"):
        path.write_text(json.dumps(make_run((0.05, 0.1, 0.2, 0.4, 0.8)) | json.loads(path.read_text())))
    with pytest.raises(SystemExit, match="Seeds 10, 220 were used to choose the settings of the part 'ours'"):
        write_report(folder, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_the_commit_says_whether_the_tree_has_changes(tmp_path, monkeypatch):
    import provenance

    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    monkeypatch.setattr(provenance.trl_rlp, "__file__", str(tmp_path / "__init__.py"))
    read = provenance.read_commit.__wrapped__
    assert read() == "unknown"
    git("init")
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "-m", "a")
    assert re.fullmatch("[0-9a-f]{12}", clean := read())
    (tmp_path / "file").write_text("b")
    assert read() == f"{clean}-dirty"
    (tmp_path.parent / "package").mkdir()
    monkeypatch.setattr(provenance.trl_rlp, "__file__", str(tmp_path.parent / "package" / "__init__.py"))
    assert read() == f"{clean}-dirty with trl_rlp at unknown"
    monkeypatch.setattr(provenance.trl_rlp, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setenv("PATH", "")
    assert read() == "unknown"


# The tables of ours


def test_the_best_beta_is_chosen_by_the_mean_over_seeds(few_methods):
    """At β .1 the win rates are .5 and .3, at β .2 they are .45 twice. Gold is 3 and 1 against 1.9 twice."""
    from ours_results import choose_beta

    runs = {
        seed: make_run(**{"anchored, β 0.1": make_policy(*first), "anchored, β 0.2": make_policy(0.45, 1.9)})
        for seed, first in enumerate([(0.5, 3.0), (0.3, 1.0)])
    }
    assert choose_beta(runs, "anchored", "win_rate") == 0.2
    assert choose_beta(runs, "anchored", "gold") == 0.1
    assert choose_beta(runs, "anchor_reward", "gold") == 0.2  # equal means: the larger β
    assert choose_beta(runs, "majority_dpo", "gold") is None


def make_sweep_runs():
    """
    Two seeds. Gold of π_SFT is 1 at KL 0. That of SPG is 3 at KL 2 and 0 at KL 4.

    `anchored` has gold 2.5 at KL 1, and 2 at KL 3. On the second seed, its second policy has KL 5.
    """
    return {
        seed: make_run(
            sft=make_policy(0.3, 1.0, 0.0),
            **{
                "sweep 0.4": {"ppo": make_policy(0.4, 2.0, 2.0), "spg": make_policy(0.5, 3.0, 2.0)},
                "sweep 0.1": {"ppo": make_policy(0.1, 0.0, 4.0, 0.7), "spg": make_policy(0.2, 0.0, 4.0, 0.5)},
                "anchored, β 0.2": make_policy(0.6, 2.5, 1.0, 0.01),
                "anchored, β 0.1": make_policy(0.4, 2.0, kl, 0.04),
            },
        )
        for seed, kl in enumerate((3.0, 5.0))
    }


def test_gold_is_compared_at_equal_kl(few_methods):
    """
    SPG has gold 2 at KL 1. At KL 2, `anchored` has 2.25 on the first seed and 2.375 on the second, and SPG 3.

    Win rate: that of SPG at KL 1 is .4, between .3 and .5, and that of `anchored` is .6.
    """
    from ours_tables import build_fixed_kl_table, build_own_kl_table

    own = read_rows(build_own_kl_table(make_sweep_runs()))
    column = "gold − spg's sweep at the same KL"
    assert own["anchored, β 0.2"] == {
        "method": "anchored, β 0.2",
        "KL, nats": "1.000 ± 0.000",
        column: "0.500 ± 0.000",
        "win rate − spg's sweep at the same KL": "0.200 ± 0.000",
    }
    assert own["anchored, β 0.1"][column] == "–"  # only one seed is within SPG's KL
    win_rate = read_rows(build_fixed_kl_table(make_sweep_runs(), "win_rate"))
    assert win_rate["anchored − spg"]["1 nats"] == "0.200 ± 0.000"
    fixed = read_rows(build_fixed_kl_table(make_sweep_runs(), "gold"))
    assert fixed["spg"]["2 nats"] == "3.000 ± 0.000" and fixed["anchored − spg"]["1 nats"] == "0.500 ± 0.000"
    assert fixed["anchored − spg"]["2 nats"].startswith("-0.688 ± ") and fixed["anchored − spg"]["4 nats"] == "–"
    assert fixed["ppo − spg"]["1 nats"] == "-0.500 ± 0.000" and "majority_dpo − spg" not in fixed


def test_policies_and_malformed_completions_are_listed_by_beta(few_methods):
    from ours_tables import build_malformed_table, build_policy_tables

    tables = build_policy_tables(make_sweep_runs())
    assert list(tables) == ["for comparison", "ours", "controls of ours"]
    assert read_rows(tables["for comparison"])["spg, β 0.1"]["malformed"] == "0.500 ± 0.000"
    assert list(read_rows(tables["ours"]))[-3:] == ["anchored, β 0.1", "anchored, β 0.2", "majority_dpo"]
    malformed = read_rows(build_malformed_table(make_sweep_runs()))
    cells = ["anchored", "0.040 ± 0.000", "0.010 ± 0.000", "–", "–"]
    assert list(malformed["anchored"].values()) == cells and "majority_dpo" not in malformed
    assert list(malformed["ppo"].values()) == ["ppo", "0.700 ± 0.000", "–", "0.000 ± 0.000", "–"]


def test_a_method_is_compared_with_its_base_at_the_same_beta(few_methods):
    """
    The control has a win rate of .35 and .3, and its base .4.

    Two rounds of SPG are compared with the sweep, which has β .4 but not .8.
    """
    from ours_tables import build_control_table

    runs = make_sweep_runs()
    for run, win_rate in zip(runs.values(), (0.35, 0.3), strict=True):
        run["anchored, 15% noise, β 0.1"] = make_policy(win_rate)
        run["spg, 2 rounds, β 0.4"] = make_policy(0.7)
    rows = read_rows(build_control_table(runs))
    assert rows["anchored, 15% noise, β 0.1 − anchored, β 0.1"]["win rate"].startswith("-0.075 ± ")
    assert rows["spg, 2 rounds, β 0.4 − spg, β 0.4"]["win rate"] == "0.200 ± 0.000"
    assert rows["anchored, β 0.2 − refined_in_loop, β 0.2"]["win rate"] == "0.100 ± 0.000"  # .6 − .5
    assert len(rows) == 8


def test_methods_with_equal_pairs_share_a_row(few_methods):
    from ours_tables import build_quality_table

    runs = {seed: make_run() for seed in (0, 1)}
    for run in runs.values():
        for name, accuracy in (("anchored, β 0.1", 0.9), ("anchor_reward, β 0.1", 0.9), ("majority_dpo", 0.7)):
            run[name]["synthetic"] = {"accuracy": accuracy, "right": None, "pairs": 20}
    rows = read_rows(build_quality_table(runs))
    assert list(rows) == ["anchor_reward; anchored", "majority_dpo"]
    assert list(rows["majority_dpo"].values())[1:4] == ["0.700 ± 0.000", "–", "20 ± 0"]


def make_claim_runs():
    """
    Three seeds. The win rate of SPG is .4, .5 and .6 at β .4, its best.

    - `anchored` is best at β .2, with .08, .09 and .10 more. Its gold at KL 1 is 2.4, 2.5 and 2.6, and SPG's is 2.
    - Noise costs `anchor_reward` .1, .2 and .3 at β .1, and `anchored` .05 each time.
    - The best of n within the majority wins .01, −.01 and .03 more than the best of n.
    """
    runs = {}
    for seed in range(3):
        spg = 0.4 + 0.1 * seed
        names = {
            "sweep 0.4": {"ppo": make_policy(spg - 0.1, 2.0, 2.0), "spg": make_policy(spg, 3.0, 2.0)},
            "sweep 0.1": {"ppo": make_policy(0.1, 0.0, 4.0), "spg": make_policy(0.1, 0.0, 4.0)},
            "anchored, β 0.2": make_policy(spg + 0.08 + 0.01 * seed, 2.4 + 0.1 * seed, 1.0),
            "anchored, β 0.1": make_policy(0.4, 1.5 + 0.1 * seed, 3.0, 0.02 + 0.01 * seed),
            "anchored, 15% noise, β 0.1": make_policy(0.35),
            "anchor_reward, β 0.1": make_policy(0.4),
            "anchor_reward, 15% noise, β 0.1": make_policy(0.3 - 0.1 * seed),
            "best-of-n": make_policy(0.5),
            "best-of-n, majority": make_policy(0.5 + (0.01, -0.01, 0.03)[seed]),
        }
        runs[seed] = make_run(sft=make_policy(0.3, 1.0, 0.0), **names)
    return runs


def test_claims_of_ours_by_hand(few_methods):
    """
    A difference with the mean m and values m − d, m, m + d has the standard error d / √3. t is 4.303 with 2 degrees.

    Win rate above SPG: .09 ± 4.303 · .01 / √3 = .09 ± .025. Loss under noise: .2 − .05 = .15 ± .248.

    Its p is .004 for the row alone, and above .05 after the correction for all rows. Gold is 2 for PPO at its best β.
    """
    from ours_claims import build_claims_table

    rows = read_rows(build_claims_table(make_claim_runs()))

    def read(claim):
        row = rows[claim]
        return row["mean and 95% interval"], row["verdict"]

    win = "anchored, β 0.2 − spg, β 0.4"
    assert read(f"win rate above SPG | {win}") == ("+0.090 [+0.065, +0.115]", "confirmed before correction only")
    assert read(f"win rate above SPG by more than 0.05 | {win} − 0.05")[0] == "+0.040 [+0.015, +0.065]"
    gold = "gold above SPG at equal KL | anchored, β 0.2 − spg's sweep"
    assert read(gold) == ("+0.500 [+0.252, +0.748]", "confirmed before correction only")
    assert read("malformed below 0.05 | 0.05 − anchored, β 0.1") == ("+0.020 [-0.005, +0.045]", "not decided")
    assert read("gold above PPO at a quarter of β | anchored, β 0.1 − ppo, β 0.1")[0] == "+1.600 [+1.352, +1.848]"
    best = "no collapse: gold at a quarter of β above the best of PPO | anchored, β 0.1 − ppo, β 0.4"
    assert read(best) == ("-0.400 [-0.648, -0.152]", "reversed before correction only")
    noise = "refinement loses less win rate to 15% noise | loss of anchor_reward − loss of anchored, β 0.1"
    assert read(noise) == ("+0.150 [-0.098, +0.398]", "not decided")
    assert read("majority, then reward: win rate") == ("+0.010 [-0.040, +0.060]", "not decided")
    assert not any("malformed below 0.1 |" in name for name in rows)  # no method has β .05


def test_the_limits_of_malformed_completions_are_not_for_dpo(few_methods, monkeypatch):
    """β of DPO is on another scale. Here, `majority_dpo` has β .1, and so have three methods by PPO."""
    from methods import LOOP_METHODS, LoopMethod
    from ours_claims import build_claims_table, build_goal_table

    monkeypatch.setitem(LOOP_METHODS, "majority_dpo", LoopMethod("ours", trainer="dpo", kl_coefs=(0.1,)))
    runs = make_claim_runs()
    rows = read_rows(build_claims_table(runs))
    assert [name for name in rows if "malformed" in name] == [
        f"malformed below 0.05 | 0.05 − {name}, β 0.1" for name in ("anchor_reward", "refined_in_loop", "anchored")
    ]
    shares = {name: row["malformed, β 0.1"] for name, row in read_rows(build_goal_table(runs)).items()}
    assert [name for name, share in shares.items() if share == "–"] == ["majority_dpo, β 0.1 − spg, β 0.4"]


def test_claims_below_zero_are_reversed_and_missing_values_not_decided(few_methods):
    """`anchor_reward` has a win rate of about .2 below that of SPG. Its KL is above all of SPG's on two seeds."""
    from ours_claims import build_claims_table

    runs = make_claim_runs()
    for seed, run in runs.items():
        for beta in ("0.1", "0.2"):
            run[f"anchor_reward, β {beta}"] = make_policy(0.2 + 0.11 * seed, 1.0, 1.0 if seed == 0 else 9.0)
    rows = read_rows(build_claims_table(runs))
    label = "anchor_reward, β 0.2 − spg, β 0.4"
    assert rows[f"win rate above SPG | {label}"]["verdict"] == "reversed"
    gold = rows["gold above SPG at equal KL | anchor_reward, β 0.2 − spg's sweep (1 of 3 seeds)"]
    assert list(gold.values())[2:] == ["–", "–", "not decided"]


def test_each_method_is_compared_with_spg_at_the_best_beta_of_both(few_methods):
    """p of the values .08, .09 and .10: t = .09 √3 / .01 = 15.6 with 2 degrees, so p = .004."""
    from ours_claims import build_best_table

    row = read_rows(build_best_table(make_claim_runs(), "win_rate"))["anchored, β 0.2 − spg, β 0.4"]
    assert row["win rate"] == "+0.090 [+0.065, +0.115]" and row["win rate, p"] == "0.004"
    assert row["win rate, seeds worse"] == "0 of 3" and row["gold, seeds worse"] == "3 of 3"
    assert float(row["win rate, p, corrected"]) > 0.004
    assert "ppo, β 0.4 − spg, β 0.4" in read_rows(build_best_table(make_claim_runs(), "gold"))


def test_a_verdict_needs_no_mark_if_the_corrected_p_supports_it():
    """The gains .08, .09 and .10 have p = .004. In a table of one row, this is also the corrected p."""
    from claims import format_claims
    from ours_claims import VERDICTS

    runs = {seed: {"gain": gain} for seed, gain in enumerate((0.08, 0.09, 0.1))}
    table = format_claims(runs, [("claim", "gain", lambda run: run["gain"])], VERDICTS, marks_uncorrected=True)
    assert table.endswith("| 0.004 | confirmed |")


def test_the_beta_of_a_seed_can_be_chosen_on_the_other_seeds(few_methods):
    """
    At β .1 the win rates are .9, .4 and .4, and at β .2 always .5. SPG has .5.

    The first seed gets β .2, since the others have .4 and .5, and gains 0. The others get β .1 and lose .1.
    """
    from ours_claims import build_best_table, compare_with_held_out

    runs = {
        seed: make_run(**{"anchored, β 0.1": make_policy(win_rate), "anchored, β 0.2": make_policy(0.5)})
        for seed, win_rate in enumerate((0.9, 0.4, 0.4))
    }
    value = compare_with_held_out(runs, "anchored", "spg", "win_rate", "win_rate")
    assert [value(run) for run in runs.values()] == pytest.approx([0.0, -0.1, -0.1])
    row = read_rows(build_best_table(runs, "win_rate"))["anchored, β 0.1 − spg, β 0.4"]
    assert row["win rate"].startswith("+0.067 ")
    assert row["win rate, β chosen on the other seeds"].startswith("-0.067 ")


def test_methods_by_grpo_are_also_compared_with_spg_by_grpo(few_methods, monkeypatch):
    """SPG has a win rate of .5 by PPO and .6 by GRPO. `anchored, grpo` has .7. GRPO's start is not that of ours."""
    from methods import LOOP_METHODS, LoopMethod
    from ours_claims import build_best_table, build_claims_table
    from ours_tables import build_quality_table

    for name, fields in {
        "spg, grpo": {"table": "by GRPO", "reward": "spg"},
        "anchored, grpo": {"table": "ours", "base": "anchored"},
    }.items():
        monkeypatch.setitem(LOOP_METHODS, name, LoopMethod(trainer="grpo", kl_coefs=(0.1,), **fields))
    runs = {
        seed: make_run(**{"spg, grpo, β 0.1": make_policy(0.6), "anchored, grpo, β 0.1": make_policy(0.7)})
        for seed in (0, 1)
    }
    rows = read_rows(build_best_table(runs, "win_rate"))
    assert rows["anchored, grpo, β 0.1 − spg, β 0.4"]["win rate"].startswith("+0.200 ")
    assert rows["anchored, grpo, β 0.1 − spg, grpo, β 0.1"]["win rate"].startswith("+0.100 ")
    assert rows["spg, grpo, β 0.1 − spg, β 0.4"]["win rate"].startswith("+0.100 ")
    monkeypatch.setitem(LOOP_METHODS, "majority_dpo", LoopMethod("ours", trainer="dpo", kl_coefs=(0.1,)))
    for run in runs.values():
        run["majority_dpo, β 0.1"] = make_policy()
    claims = build_claims_table(runs)
    assert "anchored, grpo, β 0.1 − ppo, β 0.1" in claims and "majority_dpo, β 0.1 − ppo" not in claims
    claim = read_rows(claims)["win rate above SPG by GRPO"]
    assert claim["difference, claimed above 0"] == "anchored, grpo, β 0.1 − spg, grpo, β 0.1"
    for run in runs.values():
        for name in ("spg, grpo", "anchored, grpo"):
            run[f"{name}, β 0.1"]["synthetic"] = {"accuracy": 0.9, "right": 0.9, "pairs": 20}
    assert list(read_rows(build_quality_table(runs))) == ["anchored, grpo"]


def test_the_goal_needs_all_of_its_parts(few_methods, monkeypatch):
    """`anchored` gains .09 with p = .004, but without β .05 the goal is open. It is met once β .2 counts instead."""
    import ours_claims

    def read(win_rates=None, golds=None, malformed=0.0):
        runs = make_claim_runs()
        for seed, run in runs.items():
            policy = run["anchored, β 0.2"]["policy"]
            policy["malformed"] = malformed
            if win_rates is not None:
                policy["win_rate"] = run["sweep 0.4"]["spg"]["policy"]["win_rate"] + win_rates[seed]
            if golds is not None:
                policy["gold"] = golds[seed]
        row = read_rows(ours_claims.build_goal_table(runs))["anchored, β 0.2 − spg, β 0.4"]
        return [cell for cell in row.values() if cell in ("yes", "no", "–")]

    monkeypatch.setattr(ours_claims, "list_main", lambda: ["anchored"])
    assert read() == ["yes", "yes", "yes", "–", "–", "–"]
    monkeypatch.setattr(ours_claims, "MALFORMED", {0.1: 0.05, 0.2: 0.25})
    assert read() == ["yes"] * 5
    assert read(win_rates=(0.039, 0.04, 0.041)) == ["no", "yes", "yes", "yes", "no"]  # p < .001, but too small
    assert read(win_rates=(0.05, 0.1, 0.15)) == ["no", "yes", "yes", "yes", "no"]  # .1 ± .124
    assert read(golds=(1.9, 2.1, 2.3)) == ["yes", "no", "yes", "yes", "no"]  # 2 is SPG's gold: .1 ± .497
    assert read(malformed=0.25) == ["yes", "yes", "yes", "no", "no"]


def test_p_values_of_equal_differences():
    from claims import compute_p_value

    assert [compute_p_value(values) for values in ([0.0] * 3, [0.1] * 3, [0.4 - 0.1, 0.5 - 0.2])] == [1.0, 0.0, 0.0]


def test_the_report_of_ours_is_written(tmp_path, capsys):
    """All methods of ours have made-up results here, with what their trainers record."""
    from methods import LOOP_METHODS, list_loop_results
    from report import write_report

    folder = write_runs(tmp_path / "runs", {400: "abc", 401: "abc"})
    for path in folder.glob("seed-*/results.json"):
        run = json.loads(path.read_text())
        first, second = (list_loop_results(name)[0] for name in list(LOOP_METHODS)[:2])
        run[first]["curve"] = [{"kl": 0.0}, {"kl": 0.1, "refinement/accepted": 1.0}]
        run[second] |= {"curve": [{"kl": 0.0, "refinement/new_pairs": 3.0}], "reward_model": {"human": {"pairs": 2}}}
        run[second]["synthetic"] = {"accuracy": 0.9, "right": 0.8, "pairs": 20, "rejections": {"ties": 1}}
        path.write_text(json.dumps(run))
    write_report(folder, tmp_path / "report")
    page = tmp_path / "report" / "ours"
    skipped = "Not reported: 0 finished seeds of the part 'paper'. An interval needs at least two."
    assert capsys.readouterr().out.splitlines() == [skipped, f"Tables and figures: {page}"]
    text = (page / "tables.md").read_text()
    assert text.startswith("2 seeds: 400, 401. Settings: `laboratory`. Commit: `abc`. Machine: unknown. Each cell")
    for title in ("The goal", "Claims", "At fixed KL: gold", "Malformed completions", "Refinements in the loop"):
        assert f"\n\n## {title}\n\n|" in text
    assert f"| {first} | 2 | 1.000 | – |" in text and f"| {second} | 1 | – | 3.000 |" in text
    names = {"beta.png", "kl.png", "labels.csv", "policies.csv", "refinements.csv", "reward_models.csv", "tables.md"}
    assert {path.name for path in page.iterdir()} == names
    assert all((page / name).stat().st_size > 10_000 for name in ("beta.png", "kl.png"))
    assert len((page / "policies.csv").read_text().splitlines()) == 1 + 2 * len(list_policies_of(folder))


def list_policies_of(folder):
    from tables import list_policies

    return list_policies(json.loads((folder / "seed-400" / "results.json").read_text()))


def test_a_machine_is_described_by_its_cpu_threads_and_versions(tmp_path):
    import torch
    from provenance import describe_machine, read_cpu

    described = describe_machine()
    assert f"threads: {torch.get_num_threads()}, torch {torch.__version__}" in described and "peft" in described
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nmodel\t\t: 207\nmodel name\t: Some CPU\n\nprocessor\t: 1\n")
    assert read_cpu(path) == "Some CPU, model 207"
    assert read_cpu(tmp_path / "missing")


def test_a_seed_of_two_machines_is_refused(tmp_path):
    """Results from before machines were recorded count as unknown."""
    from provenance import load_parts

    folder = write_runs(tmp_path, {400: "a", 401: "a"})
    assert "Machine: unknown. Each cell" in load_parts(folder, "ours")[0].describe()
    path = folder / "seed-401" / "results.json"
    run = json.loads(path.read_text())
    path.write_text(json.dumps({**run, "sft": {**run["sft"], "machine": "b"}}))
    with pytest.raises(SystemExit, match="of seed 401 come from different machines, threads or versions: b; unknown"):
        load_parts(folder, "ours")
