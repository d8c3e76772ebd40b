"""The output folder of a run. Each stage is written completely or not at all, and a second run resumes the first."""

import copy
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from trl_rlp.storage.claims import Claims
from trl_rlp.storage.device_memory import PeakMemory, release_at_end
from trl_rlp.storage.json_files import read_json, replace_nan, write_json
from trl_rlp.storage.manifest import check_folder, claim_folder
from trl_rlp.storage.paths import expand_path
from trl_rlp.storage.processes import process_state, run_on_main


logger = logging.getLogger(__name__)

MANIFEST = "run.json"
RESULT = "stage.json"
CHECKPOINTS = "checkpoints"
"""Name of the folder inside a stage's folder that holds the stage's checkpoints."""
SHARDS = "shards"
"""Name of the folder of shards, next to the dataset or the file of their rows."""


def round_name(name: str, number: int) -> str:
    """
    Returns the name of a stage in a round. Those of round 1 have no number.

    Args:
        name (`str`):
            Name of the stage in round 1.
        number (`int`):
            Number of the round, at least 1.

    Returns:
        `str`: For example `"gate"` for round 1, and `"gate_2"` for round 2.
    """
    return name if number == 1 else f"{name}_{number}"


StartCallback = Callable[["RunFolder", str, dict[str, Any]], None]

_start_callbacks: ContextVar[tuple[StartCallback, ...]] = ContextVar("start_callbacks", default=())


class RunFolder:
    """
    The output folder of one run, with one subfolder for each stage.

    It knows which stages are finished, and it refuses a folder that belongs to another run.

    Args:
        path (`str` or `Path`):
            The folder. It is created if it does not exist.
        settings (`dict`):
            Everything that decides the results, as plain values by name. The first run writes them to the folder.
            Later runs compare theirs with them. Secrets, such as `hub_token`, are neither written nor compared.

    Raises:
        ValueError: If the folder belongs to a run with other settings, holds files of unknown origin, or cannot be
            written.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any]):
        self.path = Path(expand_path(path))
        self.state = process_state()
        self._round = 1
        claim_folder(self.path, MANIFEST, settings)

    @staticmethod
    def check(path: str | Path, settings: dict[str, Any]) -> None:
        """
        Checks that a folder is free or belongs to a run with the same settings. It writes nothing.

        A program that writes its only result at the end calls it at the start. It claims the folder with
        `RunFolder(path, settings)` when it writes the result.

        Args:
            path (`str` or `Path`):
                The folder. It does not have to exist.
            settings (`dict`):
                Everything that decides the results, as plain values by name.

        Raises:
            ValueError: For the same reasons as [`RunFolder`].
        """
        check_folder(Path(expand_path(path)), MANIFEST, settings)

    def in_round(self, number: int) -> "RunFolder":
        """
        Returns the same run folder for the stages of a round.

        Args:
            number (`int`):
                Number of the round, at least 1.

        Returns:
            [`RunFolder`]: It runs each stage under the name of [`round_name`]. [`results`] has those of all rounds.
        """
        folder = copy.copy(self)
        folder._round = number
        return folder

    def is_finished(self, name: str) -> bool:
        """
        Checks whether a stage is finished.

        Args:
            name (`str`):
                Name of the stage.

        Returns:
            `bool`.
        """
        return (self.path / round_name(name, self._round) / RESULT).exists()

    def stage(self, name: str, work: Callable[..., dict[str, Any] | None], **arguments: Any) -> Path:
        """
        Runs a stage once. Later calls find its folder and return immediately.

        The work writes to `<name>.partial`. This folder is renamed to `<name>` when everything is written. After an
        interruption it keeps its files, such as checkpoints and shards of samples. The next call resumes from them.
        The shards of a finished stage are removed, because its dataset holds the same rows.

        After the work, also when it failed, its models, trainers and optimizers leave the memory, so that the next
        stage has the whole device. An error therefore keeps its traceback but not the local variables in it.

        During the work, no other program of this host can start a stage in the run folder.

        Args:
            name (`str`):
                Name of the stage and of its folder.
            work (`Callable[..., dict | None]`):
                Called as `work(folder, **arguments)`. It writes the files of the stage to the folder and returns its
                metrics. NaN and infinity are saved as null. With several processes, each process calls it.
            arguments:
                Keyword arguments of `work`.

        Returns:
            `Path`: The folder of the finished stage. Its `stage.json` holds `metrics`, `seconds` and
            `peak_memory_gib`.

        Raises:
            ValueError: If another program of this host works in the run folder.
        """
        is_finished, name = self.is_finished(name), round_name(name, self._round)
        if not is_finished:
            with Claims(self.path) as claims:
                if not run_on_main(lambda: self._claim(claims, name)):
                    self._work(name, work, arguments)
        return self.path / name

    def _claim(self, claims: Claims, name: str) -> bool:
        """Claims the folder for this program. Returns whether another one has finished the stage in the meantime."""
        while not claims.is_own(0):  # it is, if this stage is part of another one
            Claims.clear(self.path)
            claims.take(0)
        return (self.path / name / RESULT).exists()

    def _work(self, name: str, work: Callable[..., dict[str, Any] | None], arguments: dict[str, Any]) -> None:
        partial = self.path / f"{name}.partial"
        partial.mkdir(exist_ok=True)
        logger.info("%s: started", name)
        for callback in _start_callbacks.get():
            callback(self, name, arguments)
        start, peak = time.perf_counter(), PeakMemory()
        with release_at_end():
            metrics = work(partial, **arguments) or {}
            self.state.wait_for_everyone()
        self._finish(name, {"metrics": replace_nan(metrics), "seconds": time.perf_counter() - start}, peak.read())

    def _finish(self, name: str, result: dict[str, Any], peak_memory_gib: float | None) -> None:
        """Writes the result of a stage with the largest peak of all processes, and gives its folder the final name."""
        peaks = [peak for peak in gather_object([peak_memory_gib]) if peak is not None]
        folder, partial = self.path / name, self.path / f"{name}.partial"
        if self.state.is_main_process:
            write_json(partial / RESULT, {**result, "peak_memory_gib": max(peaks, default=None)})
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
            shutil.rmtree(folder / SHARDS, ignore_errors=True)
        self.state.wait_for_everyone()

    def metrics(self, name: str) -> dict[str, Any]:
        """
        Reads the metrics of a finished stage.

        Args:
            name (`str`):
                Name of the stage.

        Returns:
            `dict`: The return value of the work of the stage, with `None` for NaN and infinity.
        """
        return read_json(self.path / round_name(name, self._round) / RESULT)["metrics"]

    def results(self) -> dict[str, dict[str, Any]]:
        """
        Reads the results of all finished stages.

        Returns:
            `dict`: `metrics`, `seconds` and `peak_memory_gib` of each stage, by its name. `seconds` is the wall time
            of the call that finished the stage. `peak_memory_gib` is the peak memory of tensors on the device in that
            call. With several processes, it is the largest one. It is `None` on a CPU.
        """
        return {file.parent.name: read_json(file) for file in sorted(self.path.glob(f"*/{RESULT}"))}

    @staticmethod
    @contextmanager
    def on_start(callback: StartCallback) -> Iterator[None]:
        """
        Calls a function whenever a stage starts inside a `with` block. The function may change the stage's arguments.

        This includes the stages of run folders that other functions create, such as [`run_rlp`]. Finished stages do
        not start again. The callback belongs to the current context (`contextvars`). A new thread has its own context,
        so stages that start in it do not call the callback.

        Args:
            callback (`Callable[[RunFolder, str, dict], None]`):
                Called with the run folder, the name of the stage and the keyword arguments of its work, on every
                process. Changes of the `dict` have an effect.

        Example:

        ```python
        >>> import tempfile
        >>> from trl_rlp.storage.run_folder import RunFolder

        >>> def announce(run, name, arguments):
        ...     print(name, arguments)

        >>> with tempfile.TemporaryDirectory() as folder, RunFolder.on_start(announce):
        ...     _ = RunFolder(folder, {"seed": 0}).stage("policy", lambda folder, max_steps: {}, max_steps=4)
        policy {'max_steps': 4}

        ```
        """
        token = _start_callbacks.set((*_start_callbacks.get(), callback))
        try:
            yield
        finally:
            _start_callbacks.reset(token)
