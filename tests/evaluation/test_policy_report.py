import pytest
from datasets import Dataset

from tests.tiny_models import save, tiny_causal_lm, tiny_tokenizer
from trl_rlp.evaluation.policy_metrics import describe_outputs, kl_to_reference
from trl_rlp.evaluation.policy_report import describe_policies
from trl_rlp.storage.artifacts import load_data, load_policy


SAMPLING = {"num_generations": 2, "max_new_tokens": 2, "temperature": 0.7}


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("policies"), tiny_tokenizer(chat=False)
    return {
        name: save(tiny_causal_lm(tokenizer, seed=seed), tokenizer, folder / name)
        for seed, name in enumerate(("sft", "policy"))
    }


@pytest.mark.parametrize("has_answers", [False, True])
@pytest.mark.parametrize(("reference", "num_kl_prompts"), [("sft", None), ("sft", 1), ("policy", 5)])
def test_policies_are_evaluated_on_the_same_prompts(tmp_path, policies, has_answers, reference, num_kl_prompts):
    prompts = Dataset.from_dict({"prompt": ["1?", "2?", "3?"], "answers": [["a"], ["b"], ["c"]]})
    answers = prompts["answers"] if has_answers else None
    prompts = prompts if has_answers else prompts.remove_columns("answers")
    metrics, samples = describe_policies(
        tmp_path, policies, prompts, SAMPLING, reference=reference, num_kl_prompts=num_kl_prompts
    )
    reference_model, _ = load_policy(policies[reference])
    for name, path in policies.items():
        assert samples[name]["prompt"][:] == prompts["prompt"][:]
        assert load_data(tmp_path / name)[:] == samples[name][:]
        kl = metrics[name].pop("kl")
        assert metrics[name] == describe_outputs(samples[name], answers)
        kl_samples = samples[name].select(range(min(num_kl_prompts or 3, 3)))
        model, tokenizer = load_policy(path)
        assert kl == pytest.approx(kl_to_reference(model, reference_model, tokenizer, kl_samples), abs=1e-6)
        assert (kl == 0) == (name == reference)


def test_a_reference_that_is_not_among_the_policies_is_an_error(tmp_path, policies):
    prompts = Dataset.from_dict({"prompt": ["1?"]})
    with pytest.raises(ValueError, match=r"`reference` must be one of the policies \['sft', 'policy'\], got 'base'"):
        describe_policies(tmp_path, policies, prompts, SAMPLING, reference="base")


def test_a_policy_with_another_tokenizer_than_the_reference_is_an_error(tmp_path, policies):
    tokenizer = tiny_tokenizer(chat=False, offset=3)
    other = save(tiny_causal_lm(tokenizer), tokenizer, tmp_path / "other")
    with pytest.raises(ValueError, match="The tokenizers of the policy and of its reference differ"):
        describe_policies(
            tmp_path / "out",
            {"sft": policies["sft"], "policy": other},
            Dataset.from_dict({"prompt": ["1?"]}),
            SAMPLING,
            reference="sft",
        )
