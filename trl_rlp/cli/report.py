"""The command `trl-rlp report`."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trl_rlp.cli.arguments import parse
from trl_rlp.quickstart.report import is_quickstart_run, rewrite_page
from trl_rlp.report import write_report


@dataclass
class ReportArguments:
    """
    Arguments of `trl-rlp report`.

    Args:
        folder (`str`):
            Output folder of a command, or `output_dir` of a trainer. `trl-rlp report FOLDER` works too.
        output (`str`, *optional*):
            The HTML file. Defaults to `report.html` in the folder. An existing file is replaced.
    """

    folder: str = field(
        metadata={
            "help": ("Output folder of a command, or `output_dir` of a trainer. `trl-rlp report FOLDER` works too.")
        }
    )
    output: str | None = field(
        default=None,
        metadata={"help": "The HTML file. Defaults to `report.html` in the folder. An existing file is replaced."},
    )


def main(options: Sequence[str]) -> None:
    """
    Writes the report of a run and prints its path.

    Args:
        options (`Sequence[str]`):
            Command-line arguments after `trl-rlp report`.
    """
    (arguments,) = parse("report", "Writes one HTML file about a run.", _name_folder(options), ReportArguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    write = rewrite_page if is_quickstart_run(Path(arguments.folder)) else write_report
    page = write(arguments.folder, arguments.output)
    print(f"Report: {page} ({page.stat().st_size / 1e6:.1f} MB)")


def _name_folder(options: Sequence[str]) -> list[str]:
    """Adds `--folder` before the first word that is neither an option nor the value of one."""
    place = 0
    while place < len(options):
        word = options[place]
        if not word.startswith("-"):
            return [*options[:place], "--folder", *options[place:]]
        place += 1 if "=" in word or word in ("-h", "--help") else 2
    return list(options)
