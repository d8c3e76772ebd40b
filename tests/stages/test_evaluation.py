import numpy as np
import pytest
from datasets import Dataset

from tests.tiny_models import save, tiny_causal_lm, tiny_tokenizer
from trl_rlp.data.sampling.engines import sample_completions
from trl_rlp.evaluation.policy_metrics import describe_outputs, kl_to_reference, mean_reward
from trl_rlp.stages.evaluation import evaluate_policies
from trl_rlp.storage.artifacts import load_data, load_policy, load_reward_model
from trl_rlp.storage.json_files import read_json


PROMPTS = Dataset.from_dict({"prompt": ["what is it?", "2?"], "answers": [["a"], ["b"]]})
SAMPLING = {"num_generations": 2, "max_new_tokens": 3, "seed": 1}


@pytest.mark.parametrize("max_length", [None, 4])
def test_every_reward_model_scores_the_samples_of_every_policy(
    tmp_path, sft_model, reward_model, opposite_reward_model, max_length
):
    tokenizer = tiny_tokenizer()
    policies = {"sft": sft_model, "policy": save(tiny_causal_lm(tokenizer, seed=1), tokenizer, tmp_path / "policy")}
    reward_models = {"first": reward_model, "opposite": opposite_reward_model}
    metrics = evaluate_policies(tmp_path / "out", policies, reward_models, PROMPTS, SAMPLING, max_length)
    assert list(metrics) == ["sft", "policy"] and metrics["policy"]["kl"] > metrics["sft"]["kl"] == 0
    reference, _ = load_policy(sft_model)
    for name, path in policies.items():
        policy, _ = load_policy(path)
        samples = sample_completions(PROMPTS.select_columns(["prompt"]), policy, tokenizer, **SAMPLING)
        assert load_data(tmp_path / "out" / name).to_list() == samples.to_list()
        reward = mean_reward(*load_reward_model(reward_model), samples, max_length)
        saved = read_json(tmp_path / "out" / name / "rewards.json")
        assert np.mean(saved["first"]) == pytest.approx(reward, abs=1e-6) and np.shape(saved["opposite"]) == (2, 2)
        assert metrics[name].pop("reward/first") == pytest.approx(reward, abs=1e-6)
        assert metrics[name].pop("reward/opposite") == pytest.approx(-reward, abs=1e-6)
        assert metrics[name].pop("kl") == pytest.approx(
            kl_to_reference(policy, reference, tokenizer, samples), abs=1e-5
        )
        assert metrics[name] == describe_outputs(samples, PROMPTS["answers"])
