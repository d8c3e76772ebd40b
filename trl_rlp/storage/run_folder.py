"""A folder of stages: each is written whole or not at all, and a second run goes on after the last finished one."""

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trl_rlp.storage.processes import process_state


logger = logging.getLogger(__name__)

MANIFEST = "run.json"
RESULT = "stage.json"


def read_json(path: Path) -> Any:
    """
    Reads a JSON file.

    Args:
        path (`Path`):
            The file.

    Returns:
        What it holds.
    """
    return json.loads(Path(path).read_text(encoding="utf-8"))


def replace_nan(value: Any) -> Any:
    """
    Gives the same value with `None` for numbers that JSON does not have.

    Args:
        value:
            Dicts, lists and plain values.

    Returns:
        What JSON can write.
    """
    if isinstance(value, dict):
        return {key: replace_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [replace_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """
    Writes a JSON file whole or not at all.

    Args:
        path (`Path`):
            The file.
        value:
            Anything `json` can write.
    """
    partial = Path(path).with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


class RunFolder:
    """
    The output folder of one run, which knows what is finished and refuses the leftovers of another run.

    Args:
        path (`str` or `Path`):
            The folder; made if it is not there.
        settings (`dict`):
            Everything that decides the results, as plain values. Written on the first run, compared on later ones.

    Raises:
        ValueError: if the folder holds files of something else, or of a run with other settings.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any]):
        self.path = Path(path)
        self.state = process_state()
        settings = json.loads(json.dumps(settings))  # tuples become lists, as they will be when read back
        with self.state.main_process_first():
            self._claim(settings)

    def _claim(self, settings: dict[str, Any]) -> None:
        manifest = self.path / MANIFEST
        if manifest.exists():
            try:
                known = dict(read_json(manifest))
            except (ValueError, TypeError):
                raise ValueError(
                    f"{manifest} is damaged, so that nothing says whose run `output_dir` holds. Choose another "
                    "`output_dir`, or delete this one to start again."
                ) from None
            changed = sorted(key for key in known.keys() | settings.keys() if known.get(key) != settings.get(key))
            if changed:
                raise ValueError(
                    f"`output_dir` {self.path} holds a run with other settings ({', '.join(changed)} differ). Choose "
                    "another `output_dir`, or delete this one to start again."
                )
        elif self.path.exists() and any(self.path.iterdir()):
            raise ValueError(
                f"`output_dir` {self.path} is not empty and holds no {MANIFEST}. Choose an empty folder for the run."
            )
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(manifest, settings)

    def finished(self, name: str) -> bool:
        """
        Says whether a stage has its result.

        Args:
            name (`str`):
                Name of the stage.

        Returns:
            `bool`.
        """
        return (self.path / name / RESULT).exists()

    def stage(self, name: str, work: Callable[..., dict[str, Any] | None], **arguments: Any) -> Path:
        """
        Does a stage once: later calls find its folder and return at once.

        The work is done in `<name>.partial`, which takes its name only when all is written. What an interrupted stage
        left there stays for it to go on from: checkpoints, shards of samples.

        Args:
            name (`str`):
                Name of the stage and of its folder.
            work (`Callable[..., dict | None]`):
                Called as `work(folder, **arguments)`: writes the stage's files into the folder and returns its
                figures; NaN and infinity are written as null. With several processes each calls it.
            arguments:
                For `work`.

        Returns:
            `Path` of the finished stage; its `stage.json` holds the figures and `seconds`.
        """
        folder = self.path / name
        if not self.finished(name):
            partial = self.path / f"{name}.partial"
            partial.mkdir(exist_ok=True)
            logger.info("%s: started", name)
            start = time.perf_counter()
            figures = work(partial, **arguments) or {}
            self.state.wait_for_everyone()
            if self.state.is_main_process:
                write_json(partial / RESULT, {"figures": replace_nan(figures), "seconds": time.perf_counter() - start})
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(partial, folder)
            self.state.wait_for_everyone()
        return folder

    def figures(self, name: str) -> dict[str, Any]:
        """
        Gives the figures of a finished stage.

        Args:
            name (`str`):
                Name of the stage.

        Returns:
            `dict`: what its work returned.
        """
        return read_json(self.path / name / RESULT)["figures"]

    def results(self) -> dict[str, dict[str, Any]]:
        """
        Gives what every finished stage left.

        Returns:
            `dict`: by the stage's name, its `figures` and `seconds` (wall time of the call that finished it).
        """
        return {file.parent.name: read_json(file) for file in sorted(self.path.glob(f"*/{RESULT}"))}
