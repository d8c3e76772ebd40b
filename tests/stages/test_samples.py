import pytest
from datasets import Dataset

import trl_rlp.data.sampling.transformers_engine as transformers_engine
from tests.reward_runs import SameText
from trl_rlp.data.groups.clustering import cluster
from trl_rlp.data.sampling.engines import sample_completions
from trl_rlp.evaluation.policy_metrics import describe_outputs
from trl_rlp.stages.samples import group_samples, sample_policy
from trl_rlp.storage.artifacts import load_data, load_policy, save_data


PROMPTS = Dataset.from_dict({"prompt": ["1?", "two?", "three?"], "answers": [["a"], ["b"], ["c"]]})
SAMPLING = {"num_generations": 2, "max_new_tokens": 3, "shard_size": 1, "seed": 7}


def test_the_stage_saves_the_samples_and_returns_their_metrics(tmp_path, sft_model):
    metrics = sample_policy(tmp_path, sft_model, PROMPTS, SAMPLING)
    samples = load_data(tmp_path)
    assert samples.column_names == ["prompt", "completions", "finished"]
    expected = sample_completions(PROMPTS.select_columns(["prompt"]), *load_policy(sft_model), **SAMPLING)
    assert samples.to_list() == expected.to_list()
    assert metrics == describe_outputs(expected)


def test_ready_samples_are_saved_without_a_policy(tmp_path):
    ready = Dataset.from_dict(
        {"prompt": ["two?", "1?"], "completions": [["x", "y"]] * 2, "finished": [[True, False]] * 2, "other": [1, 2]}
    )
    metrics = sample_policy(tmp_path, "no such policy", PROMPTS, SAMPLING, columns=["answers"], policy_samples=ready)
    samples = load_data(tmp_path)
    assert samples.column_names == ["prompt", "completions", "finished", "answers"]
    assert samples["answers"][:] == [["b"], ["a"]] and metrics["finished"] == 0.5


def test_an_interrupted_call_resumes_from_the_shards(tmp_path, sft_model, monkeypatch):
    """Each of the three prompts is a shard. The first call is interrupted at the second one."""
    sample_policy(tmp_path / "uninterrupted", sft_model, PROMPTS, SAMPLING)
    calls = []
    generate = transformers_engine.generate_samples

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(*arguments, **options)

    monkeypatch.setattr(transformers_engine, "generate_samples", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sample_policy(tmp_path / "run", sft_model, PROMPTS, SAMPLING)
    assert not (tmp_path / "run" / "data").exists()
    sample_policy(tmp_path / "run", sft_model, PROMPTS, SAMPLING)
    assert len(calls) == 2 + 2
    assert load_data(tmp_path / "run").to_list() == load_data(tmp_path / "uninterrupted").to_list()


GROUPS = Dataset.from_dict(
    {
        "prompt": ["1?", "2?", "3?"],
        "completions": [
            ["red", "red.", "blue", "blue"],
            ["red", "blue", "pink", "gray"],
            ["red", "red.", "red ", "blue"],
        ],
        "finished": [[True] * 4] * 3,
    }
)
"""The confidences are 2/4, 1/4 and 3/4."""


@pytest.mark.parametrize("threshold, accepted", [(0.5, 2 / 3), (0.6, 1 / 3), (0.75, 1 / 3), (0.0, 1.0), (0.8, 0.0)])
def test_the_accepted_share_counts_prompts_at_or_above_the_threshold(tmp_path, threshold, accepted):
    save_data(GROUPS, tmp_path / "samples")
    metrics = group_samples(tmp_path / "groups", tmp_path / "samples", SameText(), threshold, complete_groups=True)
    assert metrics == {"accepted": pytest.approx(accepted), "threshold": threshold}


@pytest.mark.parametrize("complete_groups", [True, False])
def test_the_saved_groups_equal_those_of_cluster(tmp_path, complete_groups):
    save_data(GROUPS, tmp_path / "samples")
    group_samples(tmp_path / "groups", tmp_path / "samples", SameText(), 0.75, complete_groups)
    groups = load_data(tmp_path / "groups").to_list()
    assert groups == cluster(GROUPS, SameText(), threshold=0.75, complete_groups=complete_groups).to_list()
    other = cluster(GROUPS, SameText(), threshold=0.75, complete_groups=not complete_groups)
    assert groups != other.to_list()
