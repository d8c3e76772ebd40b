"""The example configurations have valid fields and values."""

import re
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig

from trl_rlp.cli.arguments import EquivalenceArguments
from trl_rlp.pipeline_config import RLPConfig
from trl_rlp.trainer.ppo.ppo_presets import PRESETS


PAPER = Path(__file__).parents[2] / "examples/configs/paper.yaml"


@pytest.fixture
def paper():
    settings = yaml.safe_load(PAPER.read_text())
    for name in ("reward_args", "policy_args"):
        settings[name]["bf16"] = False  # the test machine may have no accelerator
    return settings


def test_the_configuration_of_the_paper_is_valid(paper, tmp_path):
    equivalence = {name: paper.pop(name) for name in list(paper) if name.startswith("equivalence")}
    assert EquivalenceArguments(**equivalence).equivalence_rule == "strict"
    config = RLPConfig(output_dir=str(tmp_path), sft_model="sft", **paper)
    assert (config.method, config.policy_trainer, config.num_generations) == ("spg", "ppo", 10)


def test_the_ppo_settings_are_the_preset(paper):
    preset = PRESETS["alpacafarm"]
    assert {name: paper["policy_args"][name] for name in preset} == preset
    assert set(paper["policy_args"]) - set(preset) == {"max_steps", "bf16"}


@pytest.mark.parametrize(
    "name, kind", [("fsdp2", "FSDP"), ("deepspeed_zero2", "DEEPSPEED"), ("deepspeed_zero3", "DEEPSPEED")]
)
def test_launch_configurations_are_valid(name, kind):
    config = ClusterConfig.from_yaml_file(PAPER.with_name(f"{name}.yaml"))
    assert config.distributed_type == kind
    assert "no GPU" in PAPER.with_name(f"{name}.yaml").read_text()


def test_weights_are_loaded_on_every_process():
    """Otherwise some versions of transformers leave them empty on all but the first."""
    config = ClusterConfig.from_yaml_file(PAPER.with_name("fsdp2.yaml"))
    assert config.fsdp_config["fsdp_cpu_ram_efficient_loading"] is False
    for name in ("deepspeed_zero2", "deepspeed_zero3"):
        settings = ClusterConfig.from_yaml_file(PAPER.with_name(f"{name}.yaml")).deepspeed_config
        assert not settings.get("zero3_init_flag", False)


def test_configurations_name_files_that_exist():
    root = PAPER.parents[2]
    texts = [path.read_text() for path in [*PAPER.parent.glob("*.yaml"), root / "docs/distributed.md"]]
    named = {name for text in texts for name in re.findall(r"examples/[\w/]+\.\w+", text)}
    assert "examples/configs/fsdp2.yaml" in named
    assert [name for name in named if not (root / name).is_file()] == []
