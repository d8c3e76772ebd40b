"""Tests of the laboratory: its world and statistics against numbers by hand, and a full run of two seeds."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tests.programs import run_program


FOLDER = Path(__file__).parents[2] / "examples" / "laboratory"


@pytest.fixture(autouse=True)
def import_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture
def world():
    from task import World

    return World.draw(0)


PROMPT = "what is the colour of the fox ? "


def test_world_is_balanced_and_depends_on_the_seed(world):
    from task import VALUES, World

    assert World.draw(0) == world != World.draw(1)
    for attribute, values in VALUES.items():
        facts = [value for (_, name), value in world.facts.items() if name == attribute]
        assert sorted(facts) == sorted([*values] * 4)
    assert len(world.mistakes) == round(0.12 * 40)
    assert all(world.facts[key] != value for key, value in world.mistakes.items())


def test_gold_reward_equals_numbers_by_hand(world):
    from task import VALUES, gold_reward, is_correct

    truth = world.facts["fox", "colour"]
    wrong = next(value for value in VALUES["colour"] if value != truth)
    rewards = {
        f"it is {truth}": 2.0,
        f"well , the fox has the colour {truth} indeed really": 2.0 + 0.6,
        f"{wrong} indeed": 0.4,
        f"{truth} indeed indeed": 2.0 + 0.4 - 0.3,
        f"{truth} or {wrong} indeed": -0.5 + 0.4,
        f"{truth} " + "indeed really truly surely clearly": 2.0 - 0.2,
        f"it it {truth}": -1.0,
        "it is forest": -1.0,
        f"the colour of the owl is {truth}": -1.0,
        "": -1.0,
    }
    for completion, reward in rewards.items():
        assert gold_reward(world, PROMPT, completion) == pytest.approx(reward), completion
        assert gold_reward(world, PROMPT, f"  {completion} ") == pytest.approx(reward)
    assert is_correct(world, PROMPT, truth) and not is_correct(world, PROMPT, f"{truth} or {wrong}")
    with pytest.raises(ValueError, match="is not a question of this world"):
        gold_reward(world, "why ?", "because")


def test_demonstrations_have_the_intended_share_of_correct_answers(world):
    from task import find_fact, is_correct, parse, write_demonstrations

    rows = write_demonstrations(world, 6000, 0)
    assert all(parse(row["prompt"], row["completion"]).values for row in rows)
    correct = np.array([is_correct(world, row["prompt"], row["completion"]) for row in rows])
    mistaken = np.array([find_fact(row["prompt"]) in world.mistakes for row in rows])
    assert correct.mean() == pytest.approx(0.97 * 0.6, abs=0.02)  # 3% hedge
    assert correct[mistaken].mean() == pytest.approx(0.97 * 0.2, abs=0.05)


def test_completions_with_the_same_value_are_the_same_except_for_noise():
    from task import SameValue

    pairs = [PROMPT] * 3, ["red", "it is red", "red"], ["sure , it is red indeed", "blue", "red or blue"]
    assert SameValue().are_equivalent(*pairs) == [True, False, False]
    assert SameValue(noise=1.0).are_equivalent(*pairs) == [False, True, True]
    many = [PROMPT] * 500, ["red"] * 500, [f"blue {' '.join(['indeed'] * row)}" for row in range(500)]
    noisy = SameValue(noise=0.15).are_equivalent(*many)
    assert 0.1 < np.mean(noisy) < 0.2 and noisy == SameValue(noise=0.15).are_equivalent(*many)


def test_log_ratio_is_the_reward(tmp_path):
    import torch
    from models import LogRatioRewardModel, make_policy, make_tokenizer

    from trl_rlp import score

    tokenizer = make_tokenizer()
    policy = make_policy(tokenizer, 0).eval()
    model = LogRatioRewardModel(policy)
    assert score(model, tokenizer, [PROMPT] * 2, ["red", "it is blue indeed"]) == [0.0, 0.0]
    changed = make_policy(tokenizer, 1).eval()
    model.model.load_state_dict(changed.state_dict())
    ids = torch.tensor([tokenizer(PROMPT + "it is blue" + tokenizer.eos_token)["input_ids"]])
    sums = []
    for model_of_side in (changed, policy):
        with torch.no_grad():
            log_probs = model_of_side(ids).logits[0, :-1].log_softmax(-1)
        sums.append(log_probs.gather(1, ids[0, 1:, None]).sum().item())
    rewards = score(model, tokenizer, [PROMPT] * 2, ["it is blue", "red indeed indeed indeed indeed"])
    assert rewards[0] == pytest.approx(sums[0] - sums[1], abs=1e-4)
    assert not any(parameter.requires_grad for parameter in model.reference.parameters())


def test_gold_at_a_kl_is_interpolated_between_two_policies():
    """Gold is 1 for π_SFT at KL 0. The policies of the sweep have gold 3 at KL 2 and gold 0 at KL 4."""
    from tables import compare_with_sweep, compute_interpolation_error, interpolate_gold, smooth

    assert smooth([0.0, 2.0, 4.0], width=2).tolist() == [0.0, 1.0, 3.0]
    run = {"sft": {"policy": {"kl": 0.0, "gold": 1.0}}}
    run |= {
        f"sweep {beta}": {"ppo": {"policy": {"kl": kl, "gold": gold}}} for beta, kl, gold in ((0.1, 4, 0), (0.4, 2, 3))
    }
    assert interpolate_gold(run, "ppo", 1.0) == pytest.approx(2)
    assert interpolate_gold(run, "ppo", 3.0) == pytest.approx(1.5)
    assert interpolate_gold(run, "ppo", 5.0) is None
    run |= {name: {"policy": {"kl": kl, "gold": 4.0}} for name, kl in (("spg", 3.0), ("far", 5.0))}
    assert compare_with_sweep("spg")(run) == pytest.approx(4 - 1.5)
    assert compute_interpolation_error("sweep 0.4")(run) == pytest.approx(3 - 0.5)  # between 1 at KL 0 and 0 at KL 4
    run["best-of-n"] = run["spg"]
    assert compare_with_sweep("far")(run) is compare_with_sweep("best-of-n")(run) is None


def test_pairs_of_the_gate_follow_those_of_d(tmp_path):
    """U has 6 pairs, one for each prompt. D has the first 4 of their random order, and the gate the other 2."""
    from dataclasses import replace

    from bench import Bench
    from datasets import Dataset
    from settings import SMOKE

    def build(human_pairs, heldout_pairs):
        bench = Bench(tmp_path, 0, replace(SMOKE, human_pairs=human_pairs, heldout_pairs=heldout_pairs, flipped=0.5))
        prompts = [PROMPT.replace("fox", animal) for animal in ("fox", "owl", "bear", "wolf", "hare", "toad")]
        rows = {"completions": [["red indeed", "red or blue"]] * 6, "finished": [[True, True]] * 6}
        bench.sample = lambda *args, **options: Dataset.from_dict({"prompt": prompts, **rows})
        return bench.build_human_pairs(None).to_list(), bench.build_heldout_pairs(None).to_list()

    everything, nothing = build(6, 3)
    assert len({row["prompt"] for row in everything}) == 6 and nothing == []
    assert len({row["chosen"] for row in everything}) == 2  # some labels are flipped
    assert build(4, 9) == (everything[:4], everything[4:])
    assert build(4, 1) == (everything[:4], everything[4:5])


def test_refinements_and_policies_of_a_seed_are_listed():
    """The taught policy has no curve. An entry of the sweep has a commit next to its two policies."""
    from loop_tables import build_refinement_table, build_seed_table, list_refinements

    metrics = {"win_rate": 0.3, "gold": 1.0, "right": 0.5, "malformed": 0.0, "kl": 0.0, "characters": 9.0}
    result = {"policy": metrics, "commit": "abc"}
    curve = [{"kl": 0.0}, {"kl": 0.1, "refinement/accepted": 1.0}]
    run = {"sft": result, "majority_sft": result, "anchored, β 0.1": {**result, "curve": curve}}
    run["sweep 0.1"] = {"ppo": result, "spg": result, "commit": "abc"}
    row = {"seed": 1, "method": "anchored, β 0.1", "rollout": 2, "refinement/accepted": 1.0}
    assert list_refinements({0: run, 1: run}) == [{**row, "seed": 0}, row]
    assert build_refinement_table({0: run, 1: run}).splitlines()[2:] == ["| anchored, β 0.1 | 2 | 1.000 |"]
    table = build_seed_table(run).splitlines()
    assert table[2] == "| sft | 0.300 | 1.000 | 0.500 | 0.000 | 0.000 | 9.000 |"
    assert [line.split(" | ")[0] for line in table[-2:]] == ["| sweep 0.1 ppo", "| sweep 0.1 spg"]


def test_seeds_are_parsed():
    import argparse

    from laboratory import parse_seeds

    assert (parse_seeds("0-2"), parse_seeds("0-1,5"), parse_seeds("7")) == ([0, 1, 2], [0, 1, 5], [7])
    for text in ("5-2", "1,1"):
        with pytest.raises(argparse.ArgumentTypeError, match="contains no seed, or a seed more than once"):
            parse_seeds(text)


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.1, 0.3, "replicated"), (-0.1, 0.3, "not replicated"), (-0.3, -0.1, "reversed")]
)
def test_verdict_follows_from_the_interval(low, high, expected):
    from claims import decide

    assert decide({"low": low, "high": high}) == expected


def test_heldout_information_uses_the_two_completions_of_each_prompt():
    """The heads receive the states at the last token, first views and second views, in batches as in training."""
    from types import SimpleNamespace

    import torch
    from datasets import Dataset
    from information import estimate_heldout_information
    from models import make_policy, make_reward_model, make_tokenizer

    tokenizer = make_tokenizer()
    model = make_reward_model(make_policy(tokenizer, 0).eval(), "log_ratio", FOLDER)
    samples = Dataset.from_dict(
        {
            "prompt": [PROMPT, PROMPT.replace("fox", "owl"), PROMPT.replace("fox", "cat")],
            "completions": [["red", "blue indeed"]] * 3,
            "finished": [[True, False]] * 3,
        }
    )
    calls = []

    def heads(first, second, prompt_ids):
        calls.append((first, second, prompt_ids.tolist()))
        return {"mi": torch.tensor(float(len(calls)))}

    trainer = SimpleNamespace(
        representation_term=SimpleNamespace(heads_callback=SimpleNamespace(heads=heads)),
        model=model,
        processing_class=tokenizer,
        args=SimpleNamespace(view_prompts_per_device=1),
    )
    assert estimate_heldout_information(trainer, samples) == 2  # the mean of 1, 2, 3
    assert [ids for *_, ids in calls] == [[0]] * 3
    views = torch.cat([first for first, *_ in calls]), torch.cat([second for _, second, _ in calls])
    for states, ending in zip(views, ("red" + tokenizer.eos_token, "blue indeed"), strict=True):
        expected = set()
        for prompt in samples["prompt"]:
            ids = torch.tensor([tokenizer(prompt + ending)["input_ids"]])
            with torch.no_grad():
                expected.add(round(model.model.model(ids).last_hidden_state[0, -1, 0].item(), 4))
        assert {round(value, 4) for value in states[:, 0].tolist()} == expected
    trainer.args.view_prompts_per_device = 2
    calls.clear()
    assert estimate_heldout_information(trainer, samples) == 1 and len(calls) == 1  # the incomplete batch is dropped


def test_p_values_are_corrected_for_dependent_rows():
    """Two rows have the same p. Benjamini and Yekutieli multiply it by 1 + 1/2, Benjamini and Hochberg by 1."""
    import scipy.stats
    from claims import compute_p_values

    values = [0.1, 0.4, 0.2, -0.1]
    p_value = scipy.stats.ttest_1samp(values, 0).pvalue
    assert compute_p_values([values, values]) == pytest.approx([1.5 * p_value] * 2)


def test_differences_are_paired_by_seed_over_all_files():
    """On three seeds spg − ppo is 1, 2 and 3 in gold. The mean is 2, and half the width is 4.303 / √3."""
    import pandas as pd
    from pooled import compute_differences

    rows = pd.DataFrame(
        [
            {"seed": seed, "method": method, "win_rate": 0.5, "gold": gold, "right": None}
            for seed in (0, 1, 2)
            for method, gold in (("ppo", 10.0 * seed), ("spg", 10.0 * seed + seed + 1))
        ]
    )
    assert compute_differences(rows, "spg", "ppo") == ["0.000 ± 0.000", "2.000 ± 2.484", "–"]


def test_win_rates_of_a_rerun_are_compared_by_seed():
    """
    Of seeds 0 and 1, only seed 0 ran again. Its win rates change by +.1 and +.3: mean .2, deviation .1·√2 = .141.
    The variances between the seeds are .02 and .08, so the deviation is √.05 = .224.
    """
    import pandas as pd
    from reruns import BASELINE, compare_runs, summarize_changes

    columns = ["seed", "method", "win_rate"]
    first = pd.DataFrame([(0, BASELINE, 0.4), (0, "ppo", 0.2), (1, BASELINE, 0.6), (1, "ppo", 0.6)], columns=columns)
    second = pd.DataFrame([(0, "ppo", 0.5), (0, BASELINE, 0.5)], columns=columns)
    both = compare_runs(first, second)
    gains = both.set_index("method").loc["ppo", ["gain_first", "gain_second"]]
    assert len(both) == 2 and gains.tolist() == pytest.approx([-0.2, 0.0])
    assert summarize_changes(first, both) == (
        "Win rates of 2 rows change by +0.200 on average, with a standard deviation of 0.141. "
        "Between the 2 seeds of a method it is 0.224."
    )


def test_report_without_runs_is_an_error(tmp_path):
    result = run("report", "--output_dir", str(tmp_path))
    assert result.returncode == 1 and result.stderr.strip().endswith("Run some seeds with this --output_dir first.")
    assert "Traceback" not in result.stderr


def test_unknown_method_is_an_error(tmp_path):
    result = run("seed", "--output_dir", str(tmp_path / "runs"), "--methods", "sft", "dpo")
    assert result.returncode == 2 and "--methods has no 'dpo'. Choose from: sft, best-of-n, ppo," in result.stderr
    assert not (tmp_path / "runs").exists()


def run(*words):
    return run_program(FOLDER / "laboratory.py", *words)


OURS = ["best-of-n, majority", "anchor_reward, β 0.1", "refined_in_loop, β 0.1", "anchored, β 0.1", "majority_sft"]
OURS += ["majority_dpo, β 0.1", "grpo, β 0.1", "spg, 2 rounds, β 0.1"]
"""Results of ours that run in the tests: each trainer once, and each kind of loop."""


def drop_commits(results):
    """Drops the commits, because a developer may commit while the test runs."""
    return {
        key: drop_commits(value) if isinstance(value, dict) else value
        for key, value in results.items()
        if key != "commit"
    }


def copy_missing_results(path, others):
    """Completes the results in a file: with those of the other seed, and for a β that did not run with another one."""
    from methods import BEST_OF_N, list_results, split_result

    results = json.loads(others) | json.loads(path.read_text())
    kinds = {**dict.fromkeys(BEST_OF_N, "best-of-n, majority"), "sweep 0.15": "sweep 0.1", "sweep 0.3": "sweep 0.4"}
    for name in list_results((0.1, 0.4), "ours"):
        method = split_result(name)[0]
        ran = [other for other in OURS if split_result(other)[0] == method]
        results.setdefault(name, results[ran[0] if ran else kinds.get(name, "anchored, β 0.1")])
    path.write_text(json.dumps(results))


def test_two_seeds_run_to_the_end_and_are_not_run_again(tmp_path):
    """Runs one seed with `seed` and one with `seeds`. Each has half of the results, with fewer of ours."""
    from methods import list_results

    folder = str(tmp_path / "runs")
    methods = [*list_results((0.1, 0.4), "paper"), *OURS]
    before = {}
    for seed in (0, 1):
        command = ["seed", "--seed", "0"] if seed == 0 else ["seeds", "--seeds", "1"]
        words = [*command, "--settings", "smoke", "--output_dir", folder, "--methods", *methods[seed::2]]
        first = run(*words)
        logs = [first.stdout, first.stderr, *(log.read_text() for log in (tmp_path / "runs").glob("*.log"))]
        assert first.returncode == 0, "\n".join(log[-3000:] for log in logs)
        path = tmp_path / "runs" / f"seed-{seed}" / "results.json"
        before[path] = path.read_bytes()
    assert run(*words).returncode == 0
    assert {path: path.read_bytes() for path in before} == before
    for path, others in zip(before, reversed(before.values()), strict=True):
        copy_missing_results(path, others)
    report = run("report", "--output_dir", folder)
    assert report.returncode == 0, report.stderr
    tables = (tmp_path / "runs" / "report" / "tables.md").read_text()
    for text in (
        "2 seeds: 0, 1.",
        "| spg − uml |",
        "over-optimization",
        "| best-of-n |",
        "| uml, last token |",
        "| SPG minus |",
        "β",
    ):
        assert text in tables, text
    assert "anchored" not in tables
    tables = (tmp_path / "runs" / "report" / "ours" / "tables.md").read_text()
    for text in ("2 seeds: 0, 1. Settings: `smoke`.", "| anchored, β 0.1 |", "| refined_in_loop, β 0.1 | 2 | "):
        assert text in tables, text
    assert (tmp_path / "runs" / "report" / "curves.png").stat().st_size > 10_000
    with (tmp_path / "runs" / "report" / "policies.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["seed"] for row in rows} == {"0", "1"}
    assert {"sft", "sweep 0.1 spg", "uml"} <= {row["method"] for row in rows}
    for name, method in (("reward_models", "uml"), ("labels", "spg"), ("ours/refinements", "refined_in_loop, β 0.1")):
        with (tmp_path / "runs" / "report" / f"{name}.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["method"] == method]
        assert {row["seed"] for row in rows} == {"0", "1"}
    results = json.loads(path.read_text())
    assert len(results["ppo"]["curve"]) == 2 and results["sft"]["policy"]["kl"] == pytest.approx(0, abs=1e-6)
    assert results["uml"]["loss"]["mi_zero"] == pytest.approx(-1.3863, abs=1e-3)
    own = next(run for run in map(json.loads, before.values()) if "sweep 0.4" in run)
    recorded = {name: own["sft"][name] for name in ("commit", "machine")}
    assert own["sweep 0.4"] == {name: own[name] for name in ("ppo", "spg")} | recorded
    assert results["anchor_reward, β 0.1"]["synthetic"] == results["anchored, β 0.1"]["synthetic"]
    for method, has_anchors, has_refinements in (
        ("anchor_reward", True, False),
        ("refined_in_loop", False, True),
        ("anchored", True, True),
    ):
        points = results[f"{method}, β 0.1"]["curve"]
        assert all(("semantic_anchor/same_share" in point) == has_anchors for point in points)
        assert ["refinement/count" in point for point in points] == [False, has_refinements]
    # An interrupted seed resumes and gives the same results.
    whole = before[path]
    dropped = ["sweep 0.1", *list(json.loads(whole))[-3:]]
    path.write_text(json.dumps({name: value for name, value in json.loads(whole).items() if name not in dropped}))
    assert run(*words).returncode == 0 and drop_commits(json.loads(path.read_text())) == drop_commits(
        json.loads(whole)
    )
    other = run("seed", "--seed", "0", "--output_dir", folder)
    assert other.returncode != 0 and "contains runs with different settings or methods" in other.stderr
