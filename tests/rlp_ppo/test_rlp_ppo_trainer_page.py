"""The page's snippets run, and page and code name the same metrics, files, presets, fields and arguments."""

import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from tests.ppo_runs import SETTINGS, ppo_trainer, prompts
from tests.reward_runs import preferences
from tests.rlp_ppo.test_rlp_ppo_trainer import FORMER_METRICS
from tests.rlp_ppo.test_rlp_run import RLP, SameParity
from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from tests.trainer.ppo.test_rlp_ppo_config import FORMER
from trl_rlp.rlp_ppo.rlp_ppo_trainer import RLPPPOTrainer
from trl_rlp.trainer.ppo.critic_files import VALUE_ADAPTER, VALUE_MODEL, VALUE_OPTIMIZER
from trl_rlp.trainer.ppo.ppo_presets import PRESETS
from trl_rlp.trainer.ppo.ppo_state import STATE_FILE
from trl_rlp.trainer.ppo.rlp_ppo_config import RLPPPOConfig


DOCS = Path(__file__).parents[2] / "docs"
PAGE, MIGRATING = ((DOCS / name).read_text() for name in ("rlp_ppo_trainer.md", "migrating.md"))
OURS = {field.name: field.default for field in fields(RLPPPOConfig)}
FORMER_ARGUMENTS = (
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
"""Of TRL 1.12's PPOTrainer, in its order."""


def rows(page: str, heading: str) -> dict[str, list[str]]:
    """The other cells of a table's rows by each name in their first one."""
    section = page.split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = [line.strip("| \n").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return {name: rest for first, *rest in cells for name in re.findall(r"`([\w/]+)(?:\(\))?`", first)}


def presets() -> dict[str, tuple[str, str, str]]:
    pattern = r"^\| `(\w+)` \| ([^|]*) \| ([^|]*)\| ([^|]*)\|$"
    return {
        name: (default, *(cell.strip() for cell in cells)) for name, default, *cells in re.findall(pattern, PAGE, re.M)
    }


def run(heading: str, names: dict[str, Any]) -> RLPPPOTrainer:
    """The trainer that the snippet of a section makes, with what it takes for granted in `names`."""
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE.split(f"## {heading}\n")[1].split("\n## ")[0], flags=re.S)
    exec(compile(snippet, f"rlp_ppo_trainer.md, {heading}", "exec"), names)
    return names["trainer"]


@pytest.fixture(scope="module")
def quick_start(tmp_path_factory):
    """The trainer of the quick start, trained in a folder with the models that it names."""
    folder, tokenizer = tmp_path_factory.mktemp("page"), tiny_tokenizer()
    save(tiny_causal_lm(tokenizer), tokenizer, folder / "sft_model")
    save(tiny_reward_model(tokenizer, seed=3), tokenizer, folder / "reward_model")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, run("Quick start", {})


def test_the_quick_start_trains_and_saves(quick_start):
    folder, trainer = quick_start
    assert [row["episode"] for row in trainer.state.log_history if "episode" in row] == [4, 8]
    assert AutoModelForCausalLM.from_pretrained(folder / "ppo" / "final")


def test_the_snippet_of_rlp_refines_the_reward_model(tmp_path, monkeypatch):
    """With fewer episodes, another judge and its own names."""
    monkeypatch.chdir(tmp_path)
    tokenizer, small = tiny_tokenizer(), {**SETTINGS, **RLP, "total_episodes": 4, "stop_token": None}
    names = {
        "RLPPPOConfig": lambda folder, **fields: RLPPPOConfig(folder, **{**fields, **small}),
        "RLPPPOTrainer": RLPPPOTrainer,
        "NLIEquivalence": SameParity,
        "tokenizer": tokenizer,
        "policy": tiny_causal_lm(tokenizer),
        "reward_model": tiny_reward_model(tokenizer, seed=3),
        "prompts": prompts(),
        "preferences": preferences(10),
    }
    assert run("RLP inside the trainer", names).refinement.reward_model.is_dir()


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
def test_the_presets_are_as_on_the_page(name):
    column = 1 + list(PRESETS).index(name)
    written = {field: cells[column] for field, cells in presets().items() if cells[column]}
    differing = {field: value for field, value in PRESETS[name].items() if value != OURS[field]}
    assert written == {field: repr(value).replace("'", '"') for field, value in differing.items()}


def test_the_defaults_beside_the_presets_are_those_of_the_configuration():
    assert {field: cells[0] for field, cells in presets().items()} == {
        field: repr(OURS[field]).replace("'", '"') for field in presets()
    }


def test_every_field_of_the_former_configuration_is_in_the_guide():
    table = rows(MIGRATING, "Fields of PPOConfig")
    former = {**FORMER, "stop_token": None, "world_size": None}
    assert {name: table[name][0] for name in former} == {
        name: repr(default).replace("'", '"') for name, default in former.items()
    }


def test_the_fields_that_are_called_kept_are():
    kept = {name for name, cells in rows(MIGRATING, "Fields of PPOConfig").items() if cells[-1].startswith("kept")}
    assert all(OURS[name] == FORMER[name] for name in kept & set(FORMER)) and len(kept & set(FORMER)) > 20


def test_every_argument_of_the_former_trainer_is_there_in_its_order_and_in_the_guide():
    ours = list(inspect.signature(RLPPPOTrainer.__init__).parameters)[1:]
    assert tuple(ours[: len(FORMER_ARGUMENTS)]) == FORMER_ARGUMENTS
    assert set(rows(MIGRATING, "Arguments of the trainer")) == set(FORMER_ARGUMENTS)
    new = MIGRATING.split("New: ")[1].split("\n")[0]
    assert re.findall(r"`(\w+)`", new) == ours[len(FORMER_ARGUMENTS) :]


def test_attributes_and_methods_that_are_called_kept_are_there(quick_start):
    _, trainer = quick_start
    table = rows(MIGRATING, "Attributes and methods")
    kept = [name for name, cells in table.items() if cells[0].startswith("kept")]
    assert len(kept) > 10 and [name for name in kept if not hasattr(trainer, name)] == []
    gone = [name for name, cells in table.items() if cells[0].startswith("gone:") or cells[0].startswith("gone;")]
    assert [name for name in gone if hasattr(trainer, name)] == []


def test_every_metric_of_the_former_trainer_is_in_the_guide():
    assert set(rows(MIGRATING, "Logged metrics")) == FORMER_METRICS
