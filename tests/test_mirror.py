"""The tests mirror the package: a file of the package has a test file of the same name in the same folder."""

from pathlib import Path

import pytest

import trl_rlp


ROOT = Path(trl_rlp.__file__).parent
TESTS = Path(__file__).parent

TESTED_ELSEWHERE = {
    "evaluation/metrics/best_of_n/best_of_n.py": "evaluation/test_metrics.py tests all metrics of `evaluate`",
    "evaluation/metrics/length_controlled_win_rate/length_controlled_win_rate.py": "evaluation/test_metrics.py",
    "evaluation/metrics/preference_accuracy/preference_accuracy.py": "evaluation/test_metrics.py",
    "evaluation/metrics/win_rate/win_rate.py": "evaluation/test_metrics.py",
    "trainer/citation.py": "text only, test_packaging.py compares it with CITATION.cff",
    "trainer/reward/methods.py": "tables only, trainer/reward/test_rlp_reward_config.py tests every method and field",
}
"""Files of the package without a test file of their own, and the tests that cover them."""

OTHER_TESTS = {
    "test_architecture.py": "the package and docs/architecture.md",
    "test_floors.py": "the imports of the package",
    "test_migrating.py": "docs/migrating.md",
    "test_mirror.py": "the names of test files",
    "test_packaging.py": "what is installed: version, requirements, extras, workflows, headers of scripts",
    "test_public_names.py": "what the package exports",
    "test_site.py": "the site: its reference and the hooks of .mkdocs",
    "test_skill.py": "the skill for coding assistants",
    "test_trl_contract.py": "the names of TRL that the package uses",
    "test_docs.py": "the pages",
    "test_help_texts.py": "help texts and docstrings of all configurations",
    "evaluation/test_evaluation_page.py": "docs/evaluation.md",
    "evaluation/test_metrics.py": "evaluation/metrics, whose files have the folders that `evaluate` needs",
    "losses/test_examples.py": "the examples in docstrings",
    "quickstart/test_public_names.py": "what the quickstart exports",
    "rlp_ppo/test_rlp_ppo_trainer_page.py": "docs/rlp_ppo_trainer.md",
    "storage/test_examples.py": "the examples in docstrings",
    "trainer/callbacks/test_resumed_refinements.py": "runs with refinements that are killed and resumed",
    "trainer/ppo/test_ppo_trainer_page.py": "docs/ppo_trainer.md",
    "trainer/reward/test_rlp_reward_trainer_page.py": "docs/rlp_reward_trainer.md",
    "trainer/test_parity.py": "the reward trainer and TRL's own, step for step",
    "trainer/test_two_processes.py": "both trainers on two processes",
}
"""
Test files that test no single file of the package. tests/examples mirrors examples/ instead, tests/faults has one file
for each kind of fault, and tests/gpu compares a GPU with the CPU.
"""


def list_files(folder: Path, pattern: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob(pattern)}


MODULES = {name for name in list_files(ROOT, "*.py") if Path(name).name != "__init__.py"}
TEST_FILES = {name for name in list_files(TESTS, "test_*.py") if not name.startswith(("examples/", "faults/", "gpu/"))}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_file_has_its_test_file(name):
    expected = (Path(name).parent / f"test_{Path(name).name}").as_posix()
    assert (name in TESTED_ELSEWHERE) != (expected in TEST_FILES), f"Write tests/{expected}, or give a reason."


@pytest.mark.parametrize("name", sorted(TEST_FILES))
def test_every_test_file_has_its_file(name):
    expected = (Path(name).parent / Path(name).name.removeprefix("test_")).as_posix()
    assert (name in OTHER_TESTS) != (expected in MODULES), f"There is no trl_rlp/{expected}. Rename, or give a reason."


def test_the_exceptions_exist():
    assert set(TESTED_ELSEWHERE) <= MODULES and set(OTHER_TESTS) <= TEST_FILES
    for reason in TESTED_ELSEWHERE.values():
        assert any((TESTS / word.rstrip(",")).is_file() for word in reason.split()), reason
