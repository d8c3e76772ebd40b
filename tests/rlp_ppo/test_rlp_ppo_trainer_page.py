"""The page of the RLP-PPO trainer agrees with the code, and its snippet runs."""

import inspect
import re
from dataclasses import fields
from pathlib import Path

import trl_rlp
from tests.ppo_runs import SETTINGS, prompts
from tests.reward_runs import preferences
from tests.rlp_ppo.test_rlp_ppo_trainer import RLP, SameParity, rlp_trainer
from tests.tiny_models import tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.rlp_ppo.rlp_ppo_config import RLPPPOConfig
from trl_rlp.rlp_ppo.rlp_ppo_trainer import RLP_FOLDER, RLPPPOTrainer
from trl_rlp.rlp_ppo.run_settings import INHERITED
from trl_rlp.trainer.ppo.ppo_config import PPOConfig
from trl_rlp.trainer.ppo.ppo_trainer import PPOTrainer


PAGE = (Path(__file__).parents[2] / "docs" / "rlp_ppo_trainer.md").read_text()


def get_section(heading: str) -> str:
    """Returns the text below a heading, up to the next one."""
    return PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def read_table(heading: str) -> dict[str, list[str]]:
    """Reads the table of a section: the cells of each row after the first, by the name in the first cell."""
    cells = [line.strip("| ").split(" | ") for line in get_section(heading).splitlines() if line.startswith("| `")]
    return {first.strip("`"): rest for first, *rest in cells}


def get_arguments(trainer_class: type) -> list[str]:
    return list(inspect.signature(trainer_class.__init__).parameters)


def test_snippet_refines_the_reward_model(tmp_path, monkeypatch):
    """The snippet runs with fewer episodes, another equivalence, and values for the names that it assumes."""
    monkeypatch.chdir(tmp_path)
    tokenizer, small = tiny_tokenizer(), {**SETTINGS, **RLP, "total_episodes": 4}
    monkeypatch.setattr(trl_rlp, "RLPPPOConfig", lambda folder, **fields: RLPPPOConfig(folder, **{**fields, **small}))
    monkeypatch.setattr(trl_rlp, "NLIEquivalence", SameParity)
    names = {
        "tokenizer": tokenizer,
        "policy": tiny_causal_lm(tokenizer),
        "reward_model": tiny_reward_model(tokenizer, seed=3),
        "prompts": prompts(),
        "preferences": preferences(10),
    }
    (snippet,) = re.findall(r"```python\n(.*?)```", get_section("Quick start"), flags=re.S)
    exec(compile(snippet, "rlp_ppo_trainer.md, Quick start", "exec"), names)
    assert names["trainer"].refinement.reward_model.is_dir()


def test_fields_on_the_page_are_those_that_the_configuration_adds():
    names = {field.name for field in fields(PPOConfig)}
    added = {field.name: field.default for field in fields(RLPPPOConfig) if field.name not in names}
    expected = {name: repr(default).replace("'", '"') for name, default in added.items()}
    assert {name: cells[0] for name, cells in read_table("Fields").items()} == expected
    assert all(f"`{name}`" in get_section("Fields") for name in INHERITED)


def test_arguments_on_the_page_are_those_that_the_trainer_adds():
    ours, theirs = get_arguments(RLPPPOTrainer), get_arguments(PPOTrainer)
    assert ours[: len(theirs)] == theirs
    assert list(read_table("Arguments")) == ours[len(theirs) :]


def test_stages_on_the_page_are_those_of_a_run(tmp_path):
    trainer = rlp_trainer(tmp_path, "uml+spg")
    trainer.train()
    folder = tmp_path / RLP_FOLDER
    assert set(read_table(f"The folder `{RLP_FOLDER}/`")) == {path.name for path in folder.iterdir() if path.is_dir()}
    assert (folder / "run.json").is_file() and "`rlp/run.json`" in PAGE
