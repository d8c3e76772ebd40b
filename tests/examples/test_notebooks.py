"""Every notebook runs from top to bottom with tiny settings and imports only public names of the package."""

import ast
import importlib
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.tiny_models import save, tiny_talker, tiny_tokenizer


NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples" / "notebooks").glob("*.ipynb"))
FEW_QUESTIONS = """
import trl_rlp.quickstart

few_questions = [trl_rlp.quickstart.Question("even", f"Is {{i}} even?", ("yes",)) for i in range(40)]
trl_rlp.quickstart.load_questions = lambda: few_questions
model_path = {model_path!r}
"""
TINY_SETTINGS = {
    "01_refine_a_reward_model.ipynb": """
num_policy_questions = num_preference_questions = 8
num_generations = 4
training = {{"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True}}
lora = {{"r": 2, "target_modules": ["q_proj"]}}
""",
    "02_ppo_with_rlp.ipynb": """
num_generations = 4
rollouts = 2
completions_per_rollout = 4
reward_training = {{"max_steps": 2, "per_device_train_batch_size": 4}}
""",
}
PRINTED = {
    "01_refine_a_reward_model.ipynb": ["questions accepted", "compared with the known answers", "spg", "uml"],
    "02_ppo_with_rlp.ipynb": [
        "objective/kl",
        "objective/scores",
        "val/explained_variance",
        "confidence",
        "synthetic pairs of",
        "compared with the known answers",
        "human pairs: accuracy",
        "policy pairs: accuracy",
        "PPO with RLP: accuracy",
        "PPO with RLP minus PPO",
    ],
}


def find_private_imports(code: str) -> list[str]:
    """Finds the imports of trl_rlp that are not in the `__all__` of the module that they are imported from."""
    private = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            private += [alias.name for alias in node.names if alias.name.startswith("trl_rlp.")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "trl_rlp":
            public = vars(importlib.import_module(node.module)).get("__all__", [])
            private += [f"{node.module}.{alias.name}" for alias in node.names if alias.name not in public]
    return private


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_runs_from_top_to_bottom(path, tmp_path):
    tokenizer = tiny_tokenizer()
    model_path = save(tiny_talker(tokenizer, [" yes", " yes", " no"]), tokenizer, tmp_path / "model")
    notebook = nbformat.read(path, as_version=4)
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    parameters = next(index for index, cell_tags in enumerate(tags) if "parameters" in cell_tags)
    settings = (FEW_QUESTIONS + TINY_SETTINGS[path.name]).format(model_path=model_path)
    notebook.cells.insert(parameters + 1, nbformat.v4.new_code_cell(settings))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    code_cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count is not None for cell in code_cells)
    text = "".join(output.get("text", "") for cell in code_cells for output in cell.outputs)
    assert [expected for expected in PRINTED[path.name] if expected not in text] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_imports_only_public_names(path):
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert find_private_imports("\n".join(cells)) == []


def test_private_imports_are_found():
    code = "import trl_rlp.quickstart.questions\nfrom trl_rlp.quickstart import SLOTS, load_questions"
    assert find_private_imports(code) == ["trl_rlp.quickstart.questions", "trl_rlp.quickstart.SLOTS"]
    assert find_private_imports("from trl_rlp.quickstart.questions import Question") != []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
