"""A manifest records the settings of the run that owns a folder."""

import json
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from trl_rlp.storage.json_files import read_json, write_json
from trl_rlp.storage.processes import process_state


def claim_folder(folder: Path, name: str, settings: dict[str, Any], run_files: str = "*") -> bool:
    """
    Claims a folder for a run, or checks that the folder already belongs to the same run.

    The first call creates the folder and writes the settings to its manifest. Later calls compare their settings with
    the manifest. With several processes, every process must call this function. The main process does the work and
    all processes raise the same error.

    Args:
        folder (`Path`):
            The folder. It is created if it does not exist.
        name (`str`):
            File name of the manifest.
        settings (`dict`):
            Everything that decides the results of the run, as plain values by name.
        run_files (`str`, *optional*, defaults to `"*"`):
            Glob pattern of the files that a run writes. A folder that holds such files but no manifest is refused.

    Returns:
        `bool`: Whether this call wrote the manifest.

    Raises:
        ValueError: If the settings differ from those in the manifest, the manifest is damaged, or the folder holds
            files of unknown origin. The folder is left unchanged.
    """
    state = process_state()
    error, is_new = None, False
    if state.is_main_process:
        settings = json.loads(json.dumps(settings))  # like the manifest, which holds lists instead of tuples
        is_new = not (folder / name).exists()
        error = _find_foreign_files(folder, name, run_files) if is_new else _find_difference(folder, name, settings)
        if is_new and error is None:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / name, settings)
    outcome = [error, is_new]
    broadcast_object_list(outcome)
    error, is_new = outcome
    if error is not None:
        raise ValueError(error)
    return is_new


def _find_foreign_files(folder: Path, name: str, run_files: str) -> str | None:
    if not any(folder.glob(run_files)):
        return None
    return (
        f"`output_dir` {folder} is not empty and holds no {name}, so the origin of its files is unknown. Choose an "
        "empty folder for the run."
    )


def _find_difference(folder: Path, name: str, settings: dict[str, Any]) -> str | None:
    remedy = "Choose another `output_dir`, or delete this one to start again."
    try:
        recorded = dict(read_json(folder / name))
    except (ValueError, TypeError):
        return f"{folder / name} is damaged, so the settings of the run in `output_dir` are unknown. {remedy}"
    differences = [
        f"`{key}` was {recorded.get(key)!r} and is {settings.get(key)!r}"
        for key in sorted(recorded.keys() | settings.keys())
        if recorded.get(key) != settings.get(key)
    ]
    if not differences:
        return None
    return f"`output_dir` {folder} holds a run with other settings: {', '.join(differences)}. {remedy}"
