"""The report of a run: one HTML file about everything that its folder holds."""

import logging
from pathlib import Path

from trl_rlp.report.contents_reader import read_contents
from trl_rlp.report.elements import Section, Text
from trl_rlp.report.evaluation_sections import build_evaluation_sections
from trl_rlp.report.model_sections import (
    build_completion_section,
    build_length_section,
    build_policy_section,
    build_reward_model_section,
    build_sample_section,
    name_gate_sets,
)
from trl_rlp.report.page import render_page
from trl_rlp.report.preference_sections import (
    build_acceptance_section,
    build_anchor_section,
    build_prompt_section,
    name_prompt_section,
)
from trl_rlp.report.run_contents import RunContents
from trl_rlp.report.run_sections import build_run_section
from trl_rlp.report.training_sections import (
    build_other_curve_section,
    build_policy_curve_section,
    build_reward_curve_section,
)
from trl_rlp.storage.json_files import write_text
from trl_rlp.storage.paths import expand_path
from trl_rlp.storage.run_folder import round_name


logger = logging.getLogger(__name__)

PAGE = "report.html"


def write_report(folder: str | Path, output: str | Path | None = None) -> Path:
    """
    Writes a report of a run: one HTML file that needs no other file and no network.

    The report shows what the folder holds: stages, prompts with groups and pairs, acceptance and label accuracy
    against γ, the reward model before and after refinement, curves of the training, rewards against length, and
    samples of two policies side by side. It says what is missing. Texts of the run cannot become markup or scripts.

    For the folder of a quickstart, it writes a report without the sections and the caution of the quickstart's page.
    The command `trl-rlp report` writes that page.

    Args:
        folder (`str` or `Path`):
            Output folder of [`run_rlp`] or of a command (`run`, `sample`, `prefer`, `anchors`, `evaluate`,
            `quickstart`), or the `output_dir` of [`PPOTrainer`], [`RLPPPOTrainer`], [`RLPRewardTrainer`] or one of
            TRL's trainers.
        output (`str` or `Path`, *optional*):
            The file. Defaults to `report.html` in the folder. An existing file is replaced.

    Returns:
        `Path`: The file. It has at most 50 MB. If the rows need more, it holds a random sample of them, the page says
        so, and a warning is logged.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the folder is empty, holds no run, or a file in it is damaged, or `output` is a folder.

    Example:

    ```python
    from trl_rlp import write_report

    page = write_report("runs/spg")
    ```
    """
    path = resolve_page(folder, output)
    contents = read_contents(folder)
    name = contents.folder.resolve().name
    lead = [Text(f"What the folder '{name}' holds. Parts without data are left out.")]
    page, samples = render_page(f"Report: {name}", lead, list(build_sections(contents).values()))
    save_page(path, page, samples)
    return path


def resolve_page(folder: str | Path, output: str | Path | None) -> Path:
    """
    Returns the file of a report, and checks that it can be one.

    Args:
        folder (`str` or `Path`):
            Folder of the run.
        output (`str` or `Path`, *optional*):
            The file. `None` for `report.html` in the folder.

    Returns:
        `Path`: The file.

    Raises:
        ValueError: If it is a folder.
    """
    path = Path(expand_path(folder)) / PAGE if output is None else Path(expand_path(output))
    if path.is_dir():
        raise ValueError(f"`output` '{path}' is a folder. Pass the name of a file, such as '{path / PAGE}'.")
    return path


def save_page(path: Path, page: str, samples: list[str]) -> None:
    """
    Writes a rendered page, and warns of tables that are sampled.

    Args:
        path (`Path`):
            The file. Its folder is created.
        page (`str`):
            The page.
        samples (`list[str]`):
            Sentences of [`render_page`].
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    for text in samples:
        logger.warning(text)


def build_sections(contents: RunContents) -> dict[str, Section]:
    """
    Builds all parts of a report that have data.

    Args:
        contents ([`RunContents`]):
            What the folder holds.

    Returns:
        `dict[str, Section]`: Sections by name, in the order of the page. With several rounds, names have a number.
    """
    sections: dict[str, Section | None] = {"run": build_run_section(contents)}
    sections |= build_evaluation_sections(contents.evaluation, contents.annotations)
    evaluation = contents.stages.get("evaluation", {}).get("metrics")
    if evaluation:
        sections["policies"] = build_policy_section(evaluation)
    for number in range(1, len(contents.stages) + 1):
        name = round_name("gate", number)
        if name in contents.stages:
            gate = contents.stages[name]["metrics"]
            title = _number_title("Reward model before and after refinement", number)
            sections[round_name("reward_models", number)] = build_reward_model_section(
                name_gate_sets(gate["comparisons"]), gate, title
            )
    sections["policy_curves"] = build_policy_curve_section(contents.logs)
    sections["reward_curves"] = build_reward_curve_section(contents.logs)
    sections["other_curves"] = build_other_curve_section(contents.logs)
    for number, data in enumerate(contents.rounds, start=1):
        title = _number_title("Acceptance and label accuracy against γ", number)
        sections[round_name("acceptance", number)] = build_acceptance_section(data, title)
    sections["lengths"] = build_length_section(contents)
    for number, data in enumerate(contents.rounds, start=1):
        name = round_name("prompts", number)
        sections[name] = build_prompt_section(data, name, _number_title(name_prompt_section(data), number))
    sections["anchors"] = None if contents.anchors is None else build_anchor_section(contents.anchors)
    sections["samples"] = build_sample_section(contents)
    sections["completions"] = build_completion_section(contents)
    return {name: section for name, section in sections.items() if section is not None}


def _number_title(title: str, number: int) -> str:
    return title if number == 1 else f"{title} (round {number})"
