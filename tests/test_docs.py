"""The Python snippets of README.md and docs/ import only public names. Most of them run in a test."""

import functools
import re
import textwrap
from pathlib import Path

import pytest
import trl
from datasets import Dataset

import trl_rlp
import trl_rlp.quickstart
import trl_rlp.trainer.callbacks  # a config that a test replaces would break this import
from tests.examples.test_notebooks import find_private_imports
from tests.reward_runs import preferences
from tests.test_pipeline import TRAINING, SameParity, data, save_finishing_policy
from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp import RLPConfig


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPET = re.compile(r"^( *)```(python|diff)\n(.*?)^\1```", flags=re.M | re.S)


def find_snippets(page: str) -> list[str]:
    """Returns the Python snippets of a page, and from each `diff` the imports in the lines that it adds."""
    snippets = []
    for _, language, text in SNIPPET.findall(page):
        text = textwrap.dedent(text)
        if language == "diff":
            text = "\n".join(re.findall(r"^\+(from .*|import .*)", text, flags=re.M))
        snippets.append(text)
    return snippets


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_snippets_import_only_public_names(path):
    private = [
        name for snippet in find_snippets(path.read_text(encoding="utf-8")) for name in find_private_imports(snippet)
    ]
    assert private == []


def test_private_imports_in_snippets_are_found():
    page = (
        "1. A list:\n\n   ```python\n   from trl_rlp.pipeline_config import RLPConfig\n   ```\n\n"
        "```diff\n-from trl_rlp.losses import gone\n+from trl_rlp.losses import heads\n```\n"
    )
    private = [name for snippet in find_snippets(page) for name in find_private_imports(snippet)]
    assert private == ["trl_rlp.pipeline_config.RLPConfig", "trl_rlp.losses.heads"]


def test_all_fenced_python_is_read():
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        assert len(re.findall(r"^ *```(?:py\w*|diff)", page, flags=re.M)) == len(SNIPPET.findall(page)), path.name


def test_pages_tell_how_to_train_a_policy_on_a_cpu():
    """TRL's configurations of policies turn on bf16, and fail on a machine that cannot compute in it."""
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        found = re.search(r"(?:GRPO|RLOO)Config\(", "\n".join(find_snippets(page)))
        assert not found or "On a CPU,\nadd `bf16=False`" in page or "On a CPU, add `bf16=False`" in page, path.name


def test_install_commands_work_before_the_first_release():
    """The package is on no index yet. docs/releasing.md says when this changes."""
    for path in PAGES:
        if path.name != "outreach.md":  # texts for after the release
            found = re.search(r"pip install ['\"]?trl[-_]rlp", path.read_text(encoding="utf-8"))
            assert not found, f"{path.name} installs from an index"


def shorten_algorithm_1(monkeypatch):
    """Gives `RLPConfig` tiny settings, except for presets."""
    args = {"reward_args": TRAINING, "policy_args": {**TRAINING, "max_completion_length": 4}}
    config = functools.partial(RLPConfig, num_generations=6, max_new_tokens=4, heldout_share=0.25, **args)
    config.from_preset = RLPConfig.from_preset
    monkeypatch.setattr(trl_rlp, "RLPConfig", config)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("anchors.md", 2),
        ("clustering.md", 1),
        ("gate.md", 1),
        ("monitor.md", 1),
        ("pipeline.md", 2),
        ("quickstart.md", 1),
        ("refinement_in_the_loop.md", 1),
        ("report.md", 1),
        ("sampling.md", 1),
        ("scale.md", 1),
        ("scoring.md", 1),
        ("synthetic_preferences.md", 6),
        ("tracking.md", 2),
        ("views.md", 1),
        ("which_part.md", 9),
    ],
)
def test_snippets_run(name, count, tmp_path, monkeypatch):
    """
    Runs the first snippets of a page, with tiny models as the names that the page assumes. Algorithm 1 trains for two
    steps and needs no NLI model, and the quickstart only gets its configuration.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trl_rlp.quickstart, "quickstart", lambda config: config)
    monkeypatch.setattr(trl_rlp, "NLIEquivalence", lambda model: SameParity())
    shorten_algorithm_1(monkeypatch)
    for module, config in (
        (trl, "RewardConfig"),
        (trl, "GRPOConfig"),
        (trl, "RLOOConfig"),
        (trl, "SFTConfig"),
        (trl, "DPOConfig"),
        (trl_rlp, "RLPPPOConfig"),
        (trl_rlp, "RLPRewardConfig"),
    ):
        # The pages tell to add `bf16=False` to TRL's configurations on a CPU. Ours need no help.
        on_cpu = {"use_cpu": True, "report_to": "none", **({"bf16": False} if module is trl else {})}
        monkeypatch.setattr(module, config, functools.partial(getattr(module, config), **on_cpu))
    tokenizer = tiny_tokenizer()
    names = {
        "__name__": "__main__",
        "tokenizer": tokenizer,
        "policy": tiny_causal_lm(tokenizer),
        "reward_model": tiny_reward_model(tokenizer),
        "refined": tiny_reward_model(tokenizer, seed=1),
        "samples": Dataset.from_dict(
            {"prompt": ["2 + 2 = "], "completions": [["4", "5"]], "finished": [[True, True]]}
        ),
        "answers": ["4"],
        "human_pairs": preferences(50),
        "heldout_pairs": preferences(8),
        "synthetic_pairs": preferences(4),
    }
    names["preferences"], names["prompts"] = data(chat=False)
    save(names["policy"], tokenizer, "sft_model")
    save_finishing_policy("my-sft-model")
    save(names["reward_model"], tokenizer, "reward_model")
    snippets = find_snippets((ROOT / "docs" / name).read_text(encoding="utf-8"))
    assert len(snippets) >= count, f"{name} has {len(snippets)} snippets. Adapt the count of this test."
    for snippet in snippets[:count]:
        exec(compile(snippet, name, "exec"), names)
