"""Every notebook runs from top to bottom, with a cell of tiny settings put behind its cell of parameters."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.tiny_models import save, tiny_talker, tiny_tokenizer


NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples" / "notebooks").glob("*.ipynb"))
TINY_SETTINGS = {
    "01_refine_a_reward_model.ipynb": """
import trl_rlp.quickstart.questions as questions

questions.load_questions = lambda: [questions.Question("even", f"Is {{i}} even?", ("yes",)) for i in range(40)]
model_path = {model_path!r}
num_policy_questions = num_preference_questions = 8
num_generations = 4
training = {{"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True}}
lora = {{"r": 2, "target_modules": ["q_proj"]}}
""",
    "02_ppo_with_rlp.ipynb": """
import trl_rlp.quickstart.questions as questions

questions.load_questions = lambda: [questions.Question("even", f"Is {{i}} even?", ("yes",)) for i in range(40)]
model_path = {model_path!r}
num_generations = 4
rollouts = 2
completions_per_rollout = 4
reward_training = {{"max_steps": 2, "per_device_train_batch_size": 4}}
""",
}
PRINTED = {
    "01_refine_a_reward_model.ipynb": ["questions accepted", "spg", "uml"],
    "02_ppo_with_rlp.ipynb": [
        "objective/kl",
        "objective/scores",
        "val/explained_variance",
        "confidence",
        "synthetic pairs of",
        "human pairs: accuracy",
        "policy pairs: accuracy",
        "PPO with RLP: accuracy",
        "PPO with RLP minus PPO",
    ],
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_runs_from_top_to_bottom(path, tmp_path):
    tokenizer = tiny_tokenizer()
    model_path = save(tiny_talker(tokenizer, [" yes", " yes", " no"]), tokenizer, tmp_path / "model")
    notebook = nbformat.read(path, as_version=4)
    places = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    settings = TINY_SETTINGS[path.name].format(model_path=model_path)
    notebook.cells.insert(places[0] + 1, nbformat.v4.new_code_cell(settings))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    code_cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count is not None for cell in code_cells)
    text = "".join(output.get("text", "") for cell in code_cells for output in cell.outputs)
    assert [expected for expected in PRINTED[path.name] if expected not in text] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
