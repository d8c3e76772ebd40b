"""Tests of our methods in the laboratory: their names, wrong anchors on purpose, and the penalty on length."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset

from trl_rlp import SemanticAnchors


@pytest.fixture(autouse=True)
def import_path(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples" / "laboratory"))


def build_prompt(animal, wording="what is the colour of the {animal} ? "):
    return wording.format(animal=animal)


def test_names_of_results_lead_back_to_their_methods():
    from methods import LOOP_METHODS, list_loop_results, list_results, split_result

    assert list_loop_results("anchored, random y_w") == ["anchored, random y_w, β 0.1"]
    assert list_loop_results("majority_sft") == ["majority_sft"]
    for name in LOOP_METHODS:
        assert {split_result(result)[0] for result in list_loop_results(name)} == {name}
    assert split_result("anchored, β 0.05") == ("anchored", 0.05)
    both = list_results((0.1, 0.4))
    assert len(both) == len(set(both)) and set(both) == {
        *list_results((0.1, 0.4), "paper"),
        *list_results((0.1, 0.4), "ours"),
    }


def test_a_method_and_its_base_differ_in_one_thing():
    """GRPO, and SPG's groups of the current policy, also need several completions of a prompt."""
    from dataclasses import asdict

    from methods import LOOP_METHODS

    for name, method in LOOP_METHODS.items():
        if method.base is not None:
            fields, base = asdict(method), asdict(LOOP_METHODS[method.base])
            differences = {key for key in fields if fields[key] != base[key]}
            differences -= {"table", "base", "kl_coefs"}
            assert len(differences - {"num_generations"} or differences) == 1, (name, differences)
            assert set(method.kl_coefs) <= set(LOOP_METHODS[method.base].kl_coefs), name


def test_anchors_are_made_wrong_by_fact_until_the_share_is_reached(tmp_path):
    """
    Four facts have one anchor each, one of them wrong already. A share of .5 needs one more, a share of .25 none.
    """
    from bench import Bench
    from loop_start import list_anchors, spoil_anchors
    from settings import SMOKE
    from task import SameValue, parse

    bench = Bench(tmp_path, 0, SMOKE)
    prompts = [build_prompt(animal) for animal in ("fox", "owl", "bear", "wolf")]
    truths = [bench.world.facts[animal, "colour"] for animal in ("fox", "owl", "bear", "wolf")]
    texts = [["red" if truths[0] != "red" else "blue"] * 2] + [
        [f"it is {truth}", f"sure , {truth} indeed"] for truth in truths[1:]
    ]
    samples = Dataset.from_dict({"prompt": prompts, "completions": texts, "finished": [[True, True]] * 4})
    anchors = SemanticAnchors.from_samples(samples, SameValue())

    def list_wrong(share):
        rows = list_anchors(spoil_anchors(bench, anchors, share))
        return [row for row in rows if not bench.is_correct(row["prompt"], row["anchor"])]

    assert [row["prompt"] for row in list_wrong(0.25)] == prompts[:1]
    assert len(list_wrong(0.5)) == 2 and len(list_wrong(1.0)) == 4
    assert (
        len(list_anchors(anchors)) == 4
        and sum(bench.is_correct(*pair) for pair in zip(prompts, anchors.dataset["anchor"], strict=True)) == 3
    )
    changed = next(row for row in list_wrong(1.0) if row["prompt"] == prompts[1])
    values = {parse(prompts[1], text).values for text in changed["members"]}
    assert len(values) == 1 and len(changed["members"]) == 2 and changed["members"][1].startswith("sure , ")
    assert changed["members"][0] == changed["anchor"]


def test_length_penalty_counts_words_above_the_mean_of_the_members():
    """The members have 1 and 3 words, so the mean is 2. Five words are 3 too many."""
    from loop import build_length_penalty
    from task import SameValue

    prompts = [build_prompt("fox"), build_prompt("owl")]
    samples = Dataset.from_dict(
        {
            "prompt": prompts,
            "completions": [["red", "it is red"], ["red", "blue"]],
            "finished": [[True, True]] * 2,
        }
    )
    penalty = build_length_penalty(SemanticAnchors.from_samples(samples, SameValue(), threshold=0.6))
    completions = ["it is red indeed really", "red", "it is red indeed really"]
    assert penalty([prompts[0], prompts[0], prompts[1]], completions, log_metric=None) == [-3.0, 0.0, 0.0]


@pytest.mark.parametrize(("count", "rollouts", "expected"), [(8, 40, 8), (8, 2, 1), (16, 20, 8)])
def test_rollouts_scale_with_the_length_of_the_run(count, rollouts, expected):
    from loop import scale_rollouts

    assert scale_rollouts(count, rollouts) == expected


def test_without_new_pairs_the_reward_model_of_a_round_stays(monkeypatch, tmp_path):
    import seed_run

    from trl_rlp.data.preferences.pairing import NoPairsError

    def find_no_pairs(*args, **options):
        raise NoPairsError("None of 2 prompts has a pair.")

    monkeypatch.setattr(seed_run, "synthesize_preferences", find_no_pairs)
    run = seed_run.SeedRun(tmp_path, 0, SimpleNamespace(copies=1, num_generations=2))
    monkeypatch.setattr(run.bench, "sample", lambda *args, **options: None)
    last = seed_run.Round("r̂", "D̂", "π̂", [])
    assert run._refine_again(last) == ("r̂", "D̂")
