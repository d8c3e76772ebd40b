"""Models are loaded with all of their weights, although FSDP or DeepSpeed would leave some of them out."""

import os

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.integrations import deepspeed
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from tests.ppo_runs import ppo_trainer
from tests.reward_runs import rlp_trainer
from tests.tiny_models import save, tiny_causal_lm, tiny_nli, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.groups.nli import NLIEquivalence
from trl_rlp.data.sampling.engines import sample_completions
from trl_rlp.memory_estimate import measure_model
from trl_rlp.storage.artifacts import load_policy, load_reward_model
from trl_rlp.storage.whole_weights import EFFICIENT_LOADING, require_whole_weights, whole_weights
from trl_rlp.trainer.reward.initial_model import init_reward_model


TOKENIZER = tiny_tokenizer()


class Zero3:
    """Stands for the configuration of DeepSpeed that a trainer keeps."""

    def is_zero3(self) -> bool:
        return True


@pytest.fixture
def zero3(monkeypatch):
    monkeypatch.setattr(deepspeed, "_hf_deepspeed_config_weak_ref", None)
    config = Zero3()
    deepspeed.set_hf_deepspeed_config(config)
    return config


def test_both_ways_to_leave_weights_out_are_off_inside_and_as_before_afterwards(monkeypatch, zero3):
    monkeypatch.setenv(EFFICIENT_LOADING, "true")
    with pytest.raises(KeyError), whole_weights():
        assert EFFICIENT_LOADING not in os.environ and not is_deepspeed_zero3_enabled()
        raise KeyError
    assert os.environ[EFFICIENT_LOADING] == "true" and is_deepspeed_zero3_enabled()


def test_nothing_is_set_that_was_not_set(monkeypatch):
    monkeypatch.delenv(EFFICIENT_LOADING, raising=False)
    with whole_weights():
        pass
    assert EFFICIENT_LOADING not in os.environ and not is_deepspeed_zero3_enabled()


@pytest.mark.parametrize(
    "load, build",
    [
        (load_policy, tiny_causal_lm),
        (load_reward_model, tiny_reward_model),
        (lambda path: init_reward_model(path, 0), tiny_causal_lm),
        (lambda path: NLIEquivalence(path).are_equivalent(["x"], ["a"], ["b"]), tiny_nli),
    ],
    ids=["policy", "reward model", "start of a reward model", "NLI"],
)
def test_models_that_are_used_as_they_are_get_all_weights(tmp_path, monkeypatch, zero3, load, build):
    with whole_weights():
        path, seen = save(build(TOKENIZER), TOKENIZER, tmp_path), []
    monkeypatch.setenv(EFFICIENT_LOADING, "true")
    for auto_class in (AutoModelForCausalLM, AutoModelForSequenceClassification):
        original = auto_class.from_pretrained.__func__

        def record(cls, *args, original=original, **options):
            seen.append((EFFICIENT_LOADING in os.environ, is_deepspeed_zero3_enabled()))
            return original(cls, *args, **options)

        monkeypatch.setattr(auto_class, "from_pretrained", classmethod(record))
    load(path)
    assert seen == [(False, False)]


def test_processes_sample_without_waiting_for_each_other(monkeypatch, zero3):
    """With ZeRO-3, `generate` would take as many steps on all processes, but each samples shards of its own."""
    with whole_weights():
        model = tiny_causal_lm(TOKENIZER)
    seen, generate = [], type(model).generate

    def record(self, *args, **options):
        seen.append(is_deepspeed_zero3_enabled())
        return generate(self, *args, **options)

    monkeypatch.setattr(type(model), "generate", record)
    prompts = Dataset.from_dict({"prompt": ["a", "b"]})
    sample_completions(prompts, model, TOKENIZER, num_generations=2, max_new_tokens=2)
    assert seen and not any(seen)


def test_the_memory_of_a_whole_model_is_estimated(zero3):
    """ZeRO-3 would leave parameters without elements."""
    with whole_weights():
        model = tiny_causal_lm(TOKENIZER)
    assert measure_model(model.config).parameters == model.num_parameters()


def test_the_value_model_is_created_with_all_weights(tmp_path, monkeypatch, zero3):
    """It is created after TRL's constructor, which turns on ZeRO-3 for all models that are created later."""
    seen, original = [], AutoModelForSequenceClassification.from_config.__func__

    def record(cls, *args, **options):
        seen.append(is_deepspeed_zero3_enabled())
        return original(cls, *args, **options)

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_config", classmethod(record))
    with whole_weights():
        models = {"model": tiny_causal_lm(TOKENIZER), "reward_model": tiny_reward_model(TOKENIZER, seed=3)}
    ppo_trainer(tmp_path, value_model_init="policy", **models)
    assert seen == [False]


@pytest.fixture
def empty_weights(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv(EFFICIENT_LOADING, "true")
    monkeypatch.setattr("transformers.__version__", "5.17.0")


def test_loaded_models_with_empty_weights_are_refused(empty_weights):
    message = (
        "`ref_model` has empty weights on all processes but the first.*transformers is 5.17.0.*transformers>=5.23"
    )
    with pytest.raises(ValueError, match=message):
        require_whole_weights("ref_model")


@pytest.mark.parametrize("name, value", [("ACCELERATE_USE_FSDP", "false"), (EFFICIENT_LOADING, "false")])
def test_loaded_models_are_whole_without_fsdp_or_without_its_option(empty_weights, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    require_whole_weights("ref_model")


def test_loaded_models_are_whole_with_newer_versions(empty_weights, monkeypatch):
    monkeypatch.setattr("transformers.__version__", "5.23.0")
    require_whole_weights("ref_model")


def test_trainers_refuse_loaded_models_with_empty_weights(tmp_path, monkeypatch):
    """The environment is set after the configuration, because FSDP needs several processes."""
    refuse = lambda name: (_ for _ in ()).throw(ValueError(f"`{name}` has empty weights"))  # noqa: E731
    monkeypatch.setattr("trl_rlp.trainer.ppo.ppo_checks.require_whole_weights", refuse)
    with pytest.raises(ValueError, match="`reward_model` has empty weights"):
        ppo_trainer(tmp_path)
    monkeypatch.setattr("trl_rlp.trainer.ppo.ppo_setup.require_whole_weights", refuse)
    with pytest.raises(ValueError, match="`model` has empty weights"):
        ppo_trainer(tmp_path)
    monkeypatch.setattr("trl_rlp.trainer.reward.refinement_inputs.require_whole_weights", refuse)
    with pytest.raises(ValueError, match="`labeling_reward_model` has empty weights"):
        rlp_trainer(tmp_path, method="spg", labeling_reward_model=tiny_reward_model(TOKENIZER, seed=5))
