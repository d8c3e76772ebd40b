"""A manifest records the settings of the run that owns a folder, without secrets such as tokens."""

import json
import os
import uuid
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from trl_rlp.storage.json_files import read_json, write_json
from trl_rlp.storage.processes import process_state
from trl_rlp.storage.redaction import remove_secrets


def check_folder(folder: Path, name: str, settings: dict[str, Any], run_files: str = "*") -> None:
    """
    Checks that a folder is free or already belongs to the same run. It writes nothing.

    With several processes, every process must call this function. The main process looks at the folder, and all
    processes raise the same error.

    Args:
        folder (`Path`):
            The folder. It does not have to exist.
        name (`str`):
            File name of the manifest.
        settings (`dict`):
            Everything that decides the results of the run, as plain values by name.
        run_files (`str`, *optional*, defaults to `"*"`):
            Glob pattern of the files that a run writes. A folder that holds such files but no manifest is refused.

    Raises:
        ValueError: If the settings differ from those in the manifest, the folder belongs to another command, the
            manifest is damaged, the folder holds files of unknown origin, or the folder cannot be written.
    """
    error = [_find_conflict(folder, name, settings, run_files) if process_state().is_main_process else None]
    broadcast_object_list(error)
    if error[0] is not None:
        raise ValueError(error[0])


def require_writable(folder: Path) -> None:
    """
    Checks that a folder can be written. It does not have to exist. It writes nothing.

    Args:
        folder (`Path`):
            The folder of an `output_dir`.

    Raises:
        ValueError: If it cannot be written, for example because it is a file.
    """
    problem = _find_write_problem(folder)
    if problem is not None:
        raise ValueError(problem)


def claim_folder(folder: Path, name: str, settings: dict[str, Any], run_files: str = "*") -> None:
    """
    Claims a folder for a run, or checks that the folder already belongs to the same run.

    The first call creates the folder and writes the settings to its manifest, except secrets (see [`remove_secrets`]).
    Later calls compare their settings with the manifest. With several processes, every process must call this
    function. The main process does the work and all processes raise the same error.

    Args:
        folder (`Path`):
            The folder. It is created if it does not exist.
        name (`str`):
            File name of the manifest.
        settings (`dict`):
            Everything that decides the results of the run, as plain values by name.
        run_files (`str`, *optional*, defaults to `"*"`):
            Glob pattern of the files that a run writes. A folder that holds such files but no manifest is refused.

    Raises:
        ValueError: For the same reasons as [`check_folder`]. The folder is left unchanged.
    """
    check_folder(folder, name, settings, run_files)
    state = process_state()
    if state.is_main_process and not (folder / name).exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write_once(folder / name, remove_secrets(settings))
    state.wait_for_everyone()
    check_folder(folder, name, settings, run_files)


def _write_once(path: Path, settings: dict[str, Any]) -> None:
    """Writes a manifest, unless another run has written one since the check."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.draft")
    try:
        write_json(draft, settings)
        os.link(draft, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        write_json(path, settings)
    finally:
        draft.unlink(missing_ok=True)


def _find_conflict(folder: Path, name: str, settings: dict[str, Any], run_files: str) -> str | None:
    if (folder / name).exists():
        return _find_difference(folder, name, settings)
    return _find_write_problem(folder) or _find_foreign_files(folder, name, run_files)


def _find_write_problem(folder: Path) -> str | None:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return None
    return f"`output_dir` {folder} cannot be written, because {existing} is not a writable folder. Choose another one."


def _find_foreign_files(folder: Path, name: str, run_files: str) -> str | None:
    if not any(folder.glob(run_files)):
        return None
    return (
        f"`output_dir` {folder} is not empty and holds no {name}, so the origin of its files is unknown. Choose an "
        "empty folder for the run."
    )


def _find_difference(folder: Path, name: str, settings: dict[str, Any]) -> str | None:
    settings = json.loads(json.dumps(remove_secrets(settings)))  # like the manifest, which holds lists, not tuples
    remedy = "Choose another `output_dir`, or delete this one to start again."
    try:
        recorded = remove_secrets(dict(read_json(folder / name)))
    except (ValueError, TypeError):
        return f"{folder / name} is damaged, so the settings of the run in `output_dir` are unknown. {remedy}"
    if len(recorded.keys() & settings.keys()) < len(recorded.keys() | settings.keys()) / 2:
        return f"`output_dir` {folder} belongs to another command, which has other settings. Choose another folder."
    differences = [
        f"`{key}` was {recorded.get(key)!r} and is {settings.get(key)!r}"
        for key in sorted(recorded.keys() | settings.keys())
        if recorded.get(key) != settings.get(key)
    ]
    if not differences:
        return None
    return f"`output_dir` {folder} holds a run with other settings: {', '.join(differences)}. {remedy}"
