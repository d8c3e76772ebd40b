"""Run as two processes, without the agent of `torchrun`, which would end the other process of one that died."""

import os
import signal
import sys
import time
from pathlib import Path

from accelerate.utils import gather_object
from datasets import Dataset

from trl_rlp.storage import shard_folder
from trl_rlp.storage.processes import process_state
from trl_rlp.storage.shards import map_shards


ROWS = Dataset.from_dict({"number": list(range(20))})
SHARDS = [[row, row + 1] for row in range(18, -2, -2)]


def halve(index, batch, advance):
    advance(len(batch["number"]))
    return {"half": [number / 3 for number in batch["number"]]}


def run(work, folder, **settings):
    return map_shards(ROWS, work, description="Halving", output_dir=folder, fingerprint={}, **settings)


def wait_for(paths) -> None:
    """Waits until `paths()` is true."""
    deadline = time.monotonic() + 60
    while not paths() and time.monotonic() < deadline:
        time.sleep(0.05)


def share_the_work(folder: Path | None, marks: Path) -> None:
    """Process 1 holds its first shard until process 0 has done all others, which then waits for it."""
    rank = process_state().process_index
    marks.mkdir(exist_ok=True)
    own = []

    def work(index, batch, advance):
        own.append(index)
        (marks / f"started-{rank}").touch()
        wait_for((marks / "started-1").exists if rank == 0 else lambda: len(list(marks.glob("done-*"))) == 9)
        (marks / f"done-{index}").touch()
        return halve(index, batch, advance)

    result = run(work, folder, shards=SHARDS)
    assert result["half"][:] == [number / 3 for number in range(20)]
    both = gather_object([own])
    assert [len(part) for part in both] == [9, 1] and sorted(both[0] + both[1]) == list(range(10)), both
    assert gather_object([result.to_list()]) == [result.to_list()] * 2


def stop_together(folder: Path) -> None:
    """Process 1 raises an error in its first shard, and process 0 stops with one line."""
    rank = process_state().process_index

    def work(index, batch, advance):
        if rank == 1:
            raise LookupError("no\nanswer")
        time.sleep(0.5)
        return halve(index, batch, advance)

    try:
        run(work, folder, shard_size=1)
    except (LookupError, RuntimeError) as error:
        text = str(error)
    expected = "no\nanswer" if rank == 1 else "Halving stopped, because process 1 stopped with LookupError: no answer"
    assert text == expected, text
    process_state().wait_for_everyone()
    assert run(halve, folder, shard_size=1)["half"][:] == [number / 3 for number in range(20)]


def refuse_different_folders(folder: Path) -> None:
    shard_folder.SHARED_FOLDER_SECONDS = 1.0
    own = folder / str(process_state().process_index)
    try:
        run(halve, own)
    except ValueError as error:
        text = str(error)
    assert "is not the same folder on all processes: process 1 on " in text and "Pass an `output_dir`" in text
    make, shard_folder._make_temporary_folder = shard_folder._make_temporary_folder, lambda: own
    for work in (lambda: run(halve, None), shard_folder.require_shared_temporary_folder):
        text = ""
        try:
            work()
        except ValueError as error:
            text = str(error)
        assert "process 1 on " in text and "Set the environment variable TMPDIR to a folder" in text
    shard_folder._make_temporary_folder = make


def outlive_a_process(folder: Path) -> None:
    """Process 1 is killed in a shard. Process 0 makes this shard too."""

    def work(index, batch, advance):
        if process_state().process_index == 1:
            (folder / "has begun").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        wait_for((folder / "has begun").exists)
        return halve(index, batch, advance)

    assert run(work, folder, shard_size=8)["half"][:] == [number / 3 for number in range(20)]


if __name__ == "__main__":
    root = Path(sys.argv[1])
    assert process_state().num_processes == 2
    share_the_work(root / "shared", root / "marks of shared")
    share_the_work(None, root / "marks of a temporary folder")
    stop_together(root / "stopped")
    refuse_different_folders(root / "different")
    process_state().wait_for_everyone()
    assert not list(root.rglob(".claim-*")) and not list(root.rglob(".run-*"))
    outlive_a_process(root / "killed")
    (root / "the other process was killed").touch()
    os._exit(0)  # its process group cannot be left any more
