from dataclasses import fields
from pathlib import Path

import pytest

from tests.tiny_models import save, tiny_causal_lm, tiny_tokenizer
from trl_rlp.quickstart.quickstart_config import QuickstartConfig, build_pipeline_config, lora
from trl_rlp.quickstart.sizes import Sizes


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"minutes": 0}, "`minutes` must be above 0, got 0"),
        ({"method": "none"}, "`method` must be one of .*'spg'.* got 'none'"),
        ({"seed": -1}, "`seed` must be at least 0, got -1"),
        ({"question_seed": -1}, "`question_seed` must be at least 0"),
    ],
)
def test_values_out_of_range_raise(overrides, message):
    with pytest.raises(ValueError, match=message):
        QuickstartConfig(**overrides)


def test_every_field_has_help_and_a_docstring():
    for entry in fields(QuickstartConfig):
        assert entry.metadata["help"].endswith(".")
        assert f"{entry.name} (`" in QuickstartConfig.__doc__


def test_lora_adapts_the_last_layers(tmp_path):
    tokenizer = tiny_tokenizer(chat=False)
    folder = save(tiny_causal_lm(tokenizer, num_hidden_layers=4), tokenizer, tmp_path)
    assert lora(folder, 1 / 2)["layers_to_transform"] == [2, 3]
    assert lora(folder, 1 / 4)["layers_to_transform"] == [3]
    assert lora(folder, 0.01)["layers_to_transform"] == [3]


def test_the_pipeline_config_has_the_numbers_of_the_paper_and_the_sizes(tmp_path):
    tokenizer = tiny_tokenizer(chat=False)
    folder = save(tiny_causal_lm(tokenizer), tokenizer, tmp_path / "sft")
    sizes = Sizes(policy_rollouts=5, reward_epochs=2)
    config = build_pipeline_config(QuickstartConfig(seed=3), sizes, Path(folder), tmp_path / "run")
    assert (config.num_generations, config.temperature, config.evaluation_temperature) == (10, 1.0, 0.7)
    assert config.reward_config().confidence_threshold == 0.5
    assert (config.method, config.seed, config.policy_args["seed"], config.reward_args["seed"]) == ("spg", 3, 3, 3)
    assert (config.policy_args["max_steps"], config.reward_args["num_train_epochs"]) == (5, 2)
