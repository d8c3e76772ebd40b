"""The pages of the PPO trainer and of the migration agree with the code, and the snippet runs."""

import importlib
import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.ppo_runs import ppo_trainer
from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from tests.trainer.ppo.test_ppo_config import TRL_1_12_FIELDS
from tests.trainer.ppo.test_ppo_trainer import TRL_1_12_METRICS
from trl_rlp.trainer.ppo.ppo_checkpoints import STATE_FILE, VALUE_ADAPTER, VALUE_MODEL, VALUE_OPTIMIZER
from trl_rlp.trainer.ppo.ppo_config import PPOConfig
from trl_rlp.trainer.ppo.ppo_presets import PRESETS
from trl_rlp.trainer.ppo.ppo_trainer import PPOTrainer


DOCS = Path(__file__).parents[3] / "docs"
PAGE, MIGRATING = ((DOCS / name).read_text() for name in ("ppo_trainer.md", "migrating.md"))
DEFAULTS = {field.name: field.default for field in fields(PPOConfig)}
TRL_1_12_ARGUMENTS = (
    "args",
    "processing_class",
    "model",
    "ref_model",
    "reward_model",
    "train_dataset",
    "value_model",
    "data_collator",
    "eval_dataset",
    "optimizers",
    "callbacks",
    "peft_config",
)
"""Arguments of TRL 1.12's PPOTrainer, in order."""


def get_section(page: str, heading: str) -> str:
    """Returns the text of a page below a heading, up to the next one."""
    return page.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def read_table(page: str, heading: str) -> dict[str, list[str]]:
    """Reads the tables of a section: the cells of each row after the first, by each name in the first cell."""
    lines = get_section(page, heading).splitlines()
    cells = [line.strip("| \n").split(" | ") for line in lines if line.startswith("| `")]
    return {name: rest for first, *rest in cells for name in re.findall(r"`([\w/]+)(?:\(\))?`", first)}


def read_presets() -> dict[str, tuple[str, str, str]]:
    """Reads the default and the value of each preset by field."""
    pattern = r"^\| `(\w+)` \| ([^|]*) \| ([^|]*)\| ([^|]*)\|$"
    found = re.findall(pattern, get_section(PAGE, "Presets"), re.M)
    return {name: (default, *(cell.strip() for cell in cells)) for name, default, *cells in found}


def format_value(value) -> str:
    return repr(value).replace("'", '"')


@pytest.fixture(scope="module")
def quick_start(tmp_path_factory):
    """Runs the snippet of the quick start in a folder with the models that it names."""
    folder, tokenizer = tmp_path_factory.mktemp("page"), tiny_tokenizer()
    save(tiny_causal_lm(tokenizer), tokenizer, folder / "sft_model")
    save(tiny_reward_model(tokenizer, seed=3), tokenizer, folder / "reward_model")
    (snippet,) = re.findall(r"```python\n(.*?)```", get_section(PAGE, "Quick start"), flags=re.S)
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(snippet, "ppo_trainer.md, Quick start", "exec"), names)
    return folder, names["trainer"]


def test_quick_start_trains_and_saves(quick_start):
    folder, trainer = quick_start
    assert [row["episode"] for row in trainer.state.log_history if "episode" in row] == [4, 8]
    assert AutoModelForCausalLM.from_pretrained(folder / "ppo" / "final")


def test_functions_named_for_each_step_of_a_rollout_exist():
    section = get_section(PAGE, "What happens in a rollout")
    steps = re.findall(r"^\d+\. .*(?:\n   .*)*", section, flags=re.M)
    assert len(steps) == 14
    assert all(re.search(r"`[\w.]+` in `\w+\.py`", " ".join(step.split())) for step in steps)
    for path, file in re.findall(r"`([\w.]+)` in `(\w+)\.py`", " ".join(section.split())):
        module = importlib.import_module(f"trl_rlp.trainer.ppo.{file}")
        owner, *names = path.split(".")
        value = getattr(module, owner)
        assert value.__module__ == module.__name__, f"`{owner}` is not defined in {file}.py"
        for name in names:
            assert name in vars(value), path
            value = getattr(value, name)
        assert callable(value), path


def test_step_that_saves_names_the_functions_that_write_the_checkpoint():
    (step,) = re.findall(r"^5\. \*\*Save\*\*.*(?:\n   .*)*", PAGE, flags=re.M)
    written = {name for name, _ in re.findall(r"`([\w.]+)` in `(\w+)\.py`", " ".join(step.split()))}
    assert {"PPOTrainer._save_checkpoint", "RolloutCheckpoints.save"} <= written


def test_every_logged_metric_is_on_the_page(quick_start):
    _, trainer = quick_start
    logged = {key for row in trainer.state.log_history for key in row if not key.startswith(("train_", "total_flos"))}
    prefixes = ("completions/", "rewards/")
    missing = {key for key in logged - {"step"} if not key.startswith(prefixes) and f"`{key}`" not in PAGE}
    assert missing == set()


def test_every_file_of_a_checkpoint_is_on_the_page(tmp_path):
    trainer = ppo_trainer(tmp_path, save_strategy="steps", save_steps=3)
    trainer.train()
    for name in (VALUE_MODEL, VALUE_OPTIMIZER, STATE_FILE):
        assert (tmp_path / "checkpoint-6" / name).exists() and f"`{name}" in PAGE
    assert f"`{VALUE_ADAPTER}`" in PAGE


@pytest.mark.parametrize("name", PRESETS)
def test_presets_on_the_page_are_those_of_the_code(name):
    column = 1 + list(PRESETS).index(name)
    written = {field: cells[column] for field, cells in read_presets().items() if cells[column]}
    differing = {field: value for field, value in PRESETS[name].items() if value != DEFAULTS[field]}
    assert written == {field: format_value(value) for field, value in differing.items()}


def test_defaults_in_the_table_of_presets_are_those_of_the_configuration():
    presets = read_presets()
    assert presets
    assert {field: cells[0] for field, cells in presets.items()} == {
        field: format_value(DEFAULTS[field]) for field in presets
    }


def test_migration_page_has_every_field_of_trl_1_12_with_its_default():
    table = read_table(MIGRATING, "Fields of PPOConfig")
    theirs = {**TRL_1_12_FIELDS, "stop_token": None, "world_size": None}
    assert {name: table[name][0] for name in theirs} == {
        name: format_value(default) for name, default in theirs.items()
    }


def test_fields_called_kept_have_the_default_of_trl_1_12():
    table = read_table(MIGRATING, "Fields of PPOConfig")
    kept = {name for name, cells in table.items() if cells[-1].startswith("kept")} & set(TRL_1_12_FIELDS)
    assert all(DEFAULTS[name] == TRL_1_12_FIELDS[name] for name in kept) and len(kept) > 20


def test_arguments_of_trl_1_12_are_kept_in_their_order_and_are_on_the_migration_page():
    ours = list(inspect.signature(PPOTrainer.__init__).parameters)[1:]
    assert tuple(ours[: len(TRL_1_12_ARGUMENTS)]) == TRL_1_12_ARGUMENTS
    assert set(read_table(MIGRATING, "Arguments of the trainer")) == set(TRL_1_12_ARGUMENTS)
    new = MIGRATING.split("New: ")[1].split("\n")[0]
    assert re.findall(r"`(\w+)`", new) == ours[len(TRL_1_12_ARGUMENTS) :]


def test_attributes_and_methods_called_kept_exist_and_those_called_removed_do_not(quick_start):
    _, trainer = quick_start
    table = read_table(MIGRATING, "Attributes and methods")
    kept = [name for name, cells in table.items() if cells[0].startswith("kept")]
    assert len(kept) > 10 and [name for name in kept if not hasattr(trainer, name)] == []
    removed = [name for name, cells in table.items() if cells[0].startswith("removed.")]
    assert len(removed) > 5 and [name for name in removed if hasattr(trainer, name)] == []


def test_migration_page_has_every_metric_of_trl_1_12():
    assert set(read_table(MIGRATING, "Logged metrics")) == TRL_1_12_METRICS
