"""
Executes notebooks from top to bottom, and saves them with their outputs and plots.

    python examples/notebooks/execute.py                             # all notebooks of this folder
    python examples/notebooks/execute.py 05_judge_models.ipynb
    python examples/notebooks/execute.py 06_your_own_data.ipynb --set 'nli_model_path="FOLDER"'

A notebook runs in an empty temporary folder. `--set` replaces a parameter for this run only. Nothing that changes
without a reason is saved: no time stamps, no version of Python and no cell of `--set`. A notebook whose outputs hold a
folder of this machine or a warning is not saved. The message names the cell.
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode


FOLDER = Path(__file__).parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def list_outputs(notebook: NotebookNode) -> list[tuple[int, NotebookNode]]:
    """Lists the outputs of the code cells, each with the number of its cell."""
    cells = [(number, cell) for number, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    return [(number, output) for number, cell in cells for output in cell.outputs]


def read_text(output: NotebookNode) -> str:
    """Returns all text of an output. Images are left out."""
    data = output.get("data", {})
    texts = [text for kind, text in data.items() if not kind.startswith("image/")]
    return "\n".join(["".join(text) for text in [output.get("text", ""), *output.get("traceback", []), *texts]])


def find_problems(notebook: NotebookNode, folders: list[str]) -> list[str]:
    """Lists outputs that should not be saved: errors, warnings, and text with one of `folders`."""
    problems = []
    for number, output in list_outputs(notebook):
        text = read_text(output)
        if output.output_type == "error" or output.get("name") == "stderr":
            problems.append(f"cell {number}: {text.strip()[-300:]}")
        problems += [f"cell {number} shows the folder {folder}" for folder in folders if folder in text]
    return problems


def execute(notebook: NotebookNode, folder: str | Path, settings: str = "", **options: Any) -> NotebookNode:
    """
    Executes a notebook in a folder, with `settings` as a further cell after that of the parameters. `options` are
    those of `NotebookClient`.
    """
    notebook = nbformat.from_dict(notebook)
    if settings:
        tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
        parameters = next(number for number, cell_tags in enumerate(tags) if "parameters" in cell_tags)
        cell = nbformat.v4.new_code_cell(settings, metadata={"tags": ["settings"]})
        notebook.cells.insert(parameters + 1, cell)
    NotebookClient(
        notebook,
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
        **options,
    ).execute(env={**os.environ, "PYTHONWARNINGS": "ignore"})
    return clean(notebook)


def clean(notebook: NotebookNode) -> NotebookNode:
    """Removes the cell of the settings and everything else that changes from run to run, apart from the outputs."""
    notebook.cells = [cell for cell in notebook.cells if "settings" not in cell.metadata.get("tags", [])]
    code_cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for count, cell in enumerate(code_cells, start=1):
        cell.execution_count = count
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", help="File names in this folder. Default: all.")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="A parameter, as Python.")
    args = parser.parse_args()
    paths = [FOLDER / name for name in args.notebooks] or sorted(FOLDER.glob("*.ipynb"))
    for path in paths:
        print(f"{path.name} ...", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(nbformat.read(path, as_version=4), folder, "\n".join(args.set))
        problems = find_problems(notebook, [str(Path.home()), tempfile.gettempdir(), str(FOLDER.parents[1])])
        if problems:
            raise SystemExit("\n".join([f"{path.name} is not saved:", *problems]))
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
