"""Reads what the folder of a run holds, and refuses folders that hold no run."""

from pathlib import Path

from trl_rlp.report.command_reader import read_command, read_evaluation, read_trainer
from trl_rlp.report.run_contents import RunContents
from trl_rlp.report.stage_reader import RLP_FOLDER, find_missing_stages, read_stages
from trl_rlp.storage.paths import expand_path
from trl_rlp.storage.run_folder import MANIFEST


_WHAT_TO_PASS = (
    "Pass the output folder of `trl-rlp run`, `sample`, `prefer`, `anchors`, `evaluate` or `quickstart`, or the "
    "`output_dir` of a trainer."
)


def read_contents(folder: str | Path) -> RunContents:
    """
    Reads what the folder of a run holds.

    Args:
        folder (`str` or `Path`):
            Output folder of a command or of a trainer.

    Returns:
        [`RunContents`]: Everything that a report can show.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the folder is empty, holds no run, or a file in it is damaged.
    """
    path = Path(expand_path(folder))
    if not path.is_dir():
        raise FileNotFoundError(f"There is no folder '{folder}'. {_WHAT_TO_PASS}")
    if not any(path.iterdir()):
        raise ValueError(f"The folder '{folder}' is empty. {_WHAT_TO_PASS}")
    contents = RunContents(path)
    roots = [root for root in (path, path / RLP_FOLDER) if (root / MANIFEST).is_file()]
    for root in roots:
        read_stages(contents, root)
    read_trainer(contents)
    read_command(contents)
    contents.missing += find_missing_stages(roots, contents)
    read_evaluation(contents)
    if not contents.has_parts():
        raise ValueError(_explain_foreign(path))
    return contents


def _explain_foreign(path: Path) -> str:
    if (path / "training_args.bin").is_file():
        return (
            f"The folder '{path}' holds a model but no log of its training. Call `trainer.save_state()` after "
            "`trainer.train()`, or save checkpoints (`save_strategy`)."
        )
    return f"The folder '{path}' holds no run that a report can show. {_WHAT_TO_PASS}"
