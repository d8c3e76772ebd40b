"""How the commands load models reaches every model, and quantized weights are refused where numbers are compared."""

import pytest
import torch
from trl import ModelConfig

from trl_rlp.cli import evaluate, model_arguments, prefer, reward, sample, sampling
from trl_rlp.cli.arguments import EquivalenceArguments
from trl_rlp.cli.model_arguments import InferenceArguments, require_bitsandbytes
from trl_rlp.data.groups.nli import NLIEquivalence
from trl_rlp.evaluation import collected_metrics, judged_outputs
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


WORDS = ["--inference_dtype", "bfloat16", "--attn_implementation", "eager"]


class Loaded(Exception):
    """Ends a command after it has loaded a model."""


def stop_with(model):
    raise Loaded(model.dtype, model.config._attn_implementation)


@pytest.fixture
def bitsandbytes(monkeypatch):
    """As if bitsandbytes were installed."""
    monkeypatch.setattr(model_arguments.importlib.util, "find_spec", lambda name: name)


def test_without_options_the_models_are_loaded_as_the_device_decides():
    assert InferenceArguments().policy_options() == InferenceArguments().reward_options("reward_model") == {}


def test_options_of_from_pretrained():
    arguments = InferenceArguments("float32", "sdpa", "v1", trust_remote_code=True)
    expected = {"dtype": "float32", "attn_implementation": "sdpa", "revision": "v1", "trust_remote_code": True}
    assert arguments.policy_options() == arguments.reward_options("reward_model") == expected
    assert "attn_implementation" not in arguments.deciding() and arguments.deciding()["model_revision"] == "v1"


def test_quantization_is_that_of_trl(bitsandbytes, monkeypatch):
    monkeypatch.setattr(model_arguments, "get_quantization_config", lambda config: config)
    arguments = InferenceArguments(load_in_4bit=True, bnb_4bit_quant_type="fp4", use_bnb_nested_quant=True)
    expected = ModelConfig(dtype="float32", load_in_4bit=True, bnb_4bit_quant_type="fp4", use_bnb_nested_quant=True)
    assert arguments.policy_options() == {"quantization_config": expected}
    with pytest.raises(ValueError, match="`load_in_4bit` would quantize `reward_model`, whose numbers are compared"):
        arguments.reward_options("reward_model")


def test_wrong_values_are_named():
    with pytest.raises(ValueError, match="`inference_dtype` must be one of .*, got 'int8'"):
        InferenceArguments("int8")
    with pytest.raises(ValueError, match="`load_in_8bit` and `load_in_4bit` are both set. Set one of them"):
        InferenceArguments(load_in_8bit=True, load_in_4bit=True)


def test_a_missing_bitsandbytes_is_named(monkeypatch):
    monkeypatch.setattr(model_arguments.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="`load_in_8bit` needs bitsandbytes, which is not installed. Run `pip"):
        require_bitsandbytes(ModelConfig(load_in_8bit=True))


def test_sample_loads_its_policy_with_them(models, tmp_path, write_rows, monkeypatch):
    def stop(prompts, model, *, model_options, **settings):
        raise Loaded(model, model_options)

    monkeypatch.setattr(sampling, "sample_completions", stop)
    paths = ["--prompts", write_rows("prompts.jsonl", [{"prompt": "a"}]), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(Loaded, match="'dtype': 'bfloat16', 'attn_implementation': 'eager'"):
        sample.main(["--model", models["policy"], *paths, *WORDS])


@pytest.mark.parametrize(("generator", "name"), [("spg", "equivalence"), ("rlaif", "judge")])
def test_prefer_loads_its_models_with_them(models, tmp_path, samples, monkeypatch, generator, name):
    found = {}
    monkeypatch.setattr(prefer, "check_synthesis", lambda rows, **synthesis: found.update(synthesis))
    monkeypatch.setattr(prefer, "synthesize_preferences", lambda *_, **__: stop_with(found["reward_model"]))
    words = ["--samples", samples, "--output_dir", str(tmp_path / "out"), "--reward_model", models["reward"]]
    words += ["--generator", generator, "--equivalence_model", models["nli"]]
    words += ["--judge_model", models["policy"]] if generator == "rlaif" else []
    with pytest.raises(Loaded, match="bfloat16, 'eager'"):
        prefer.main([*words, *WORDS])
    assert found[name].model.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="`inference_dtype` was 'bfloat16' and is 'float32'"):
        prefer.main([*words, "--inference_dtype", "float32"])


def test_evaluate_loads_its_models_with_them(models, tmp_path, samples, preferences, monkeypatch):
    monkeypatch.setattr(collected_metrics, "describe_reward_model", lambda model, *_, **__: stop_with(model))
    words = ["--output_dir", str(tmp_path / "out"), *WORDS]
    with pytest.raises(Loaded, match="bfloat16, 'eager'"):
        evaluate.main([*words, "--reward_model", models["reward"], "--preferences", preferences])
    monkeypatch.setattr(collected_metrics, "kl_to_reference", lambda policy, reference, *_: stop_with(reference))
    policies = ["--policy", models["policy"], "--reference_policy", models["policy"]]
    with pytest.raises(Loaded, match="bfloat16, 'eager'"):
        evaluate.main([*words, "--samples", samples, *policies])
    options = {"dtype": "bfloat16"}
    assert (
        judged_outputs.load_judge("language_model", models["policy"], model_options=options).model.dtype
        == torch.bfloat16
    )
    monkeypatch.setattr(judged_outputs, "reward_judge", lambda model, *_, **__: stop_with(model))
    with pytest.raises(Loaded, match="bfloat16"):
        judged_outputs.load_judge("reward_model", models["reward"], model_options=options)


def test_reward_labels_with_them(models, samples):
    arguments = reward.RewardArguments("d", policy_samples=samples, labeling_reward_model=models["reward"])
    arguments.inference_dtype = "bfloat16"
    config = RLPRewardConfig("out", method="spg", use_cpu=True)
    found = arguments.load_refinement(EquivalenceArguments(equivalence_model=models["nli"]), config)
    assert found["labeling_reward_model"].dtype == torch.bfloat16
    assert isinstance(found["equivalence"], NLIEquivalence) and found["equivalence"].model.dtype == torch.bfloat16


@pytest.mark.parametrize("command", ["prefer", "evaluate"])
def test_a_quantized_reward_model_is_refused_before_any_work(command, bitsandbytes, tmp_path):
    words = {
        "prefer": ["--samples", "no-file", "--reward_model", "no-model"],
        "evaluate": ["--reward_model", "no-model", "--preferences", "no-file"],
    }[command]
    with pytest.raises(ValueError, match="`load_in_4bit` would quantize `reward_model`, whose numbers are compared"):
        {"prefer": prefer, "evaluate": evaluate}[command].main(
            [*words, "--output_dir", str(tmp_path / "out"), "--load_in_4bit", "true"]
        )
    assert not (tmp_path / "out").exists()
