"""The HTML page and the console summary of a quickstart run. Both show the same numbers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text as ConsoleText

from trl_rlp.data.hidden_characters import show_hidden
from trl_rlp.quickstart.narration import STAGE_TITLES
from trl_rlp.quickstart.plots import POLICY_NAMES, plot_confidence, plot_policies
from trl_rlp.quickstart.questions import WRONG_MAJORITY_KINDS
from trl_rlp.report import elements
from trl_rlp.report.contents_reader import read_contents
from trl_rlp.report.elements import Column, Figure, RowTable, Section, Text
from trl_rlp.report.model_sections import build_reward_model_section, describe_difference, format_difference
from trl_rlp.report.page import render_page
from trl_rlp.report.rows import explain_damage, read_object
from trl_rlp.report.run_report import build_sections, resolve_page, save_page
from trl_rlp.storage.paths import expand_path
from trl_rlp.storage.run_folder import MANIFEST


OUTCOME = "outcome.json"
CAUTION = (
    "A demonstration on one small model with one seed. It is not evidence for or against the method. The human "
    "preferences are simulated from the known answers, and each label is flipped with probability .25."
)
_REMEDY = "Run `trl-rlp quickstart` again, with another `output_dir`."
_REPLACED = "reward_models"
"""Section of a report that the quickstart's page has with more in it."""


def format_share(value: float | None) -> str:
    """
    Formats a share with three decimals.

    Args:
        value (`float` or `None`):
            The share, in [0, 1]. `None` if there is nothing to count.

    Returns:
        `str`: The number, or a dash for `None`.
    """
    return "–" if value is None else f"{value:.3f}"


def collect_comparisons(outcome: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """
    Collects the comparisons of r and r̂ in the order of the page.

    Args:
        outcome (`dict`):
            Content of `outcome.json`.

    Returns:
        `dict`: Comparisons by display name. Those that decide the gate come first.
    """
    gate = outcome["stages"]["gate"]["metrics"]["comparisons"]
    names = {
        "human": "human, as labeled (gates)",
        "policy": "policy, on unlabeled questions (gates)",
        "synthetic": "agreement with D̂ itself (never gates)",
    }
    return {
        **{names[name]: gate[name] for name in ("human", "policy") if name in gate},
        **outcome["rewards"],
        **{names[name]: gate[name] for name in ("synthetic",) if name in gate},
    }


def find_wrong_kinds(kinds: Sequence[dict[str, Any]]) -> list[str]:
    """
    Finds the kinds for which the majority was wrong at least as often as right.

    Args:
        kinds (`Sequence[dict]`):
            Entries with `kind` and `majority_right`.

    Returns:
        `list[str]`: Names of the kinds.
    """
    return [entry["kind"] for entry in kinds if entry["majority_right"] <= 0.5]


def count_statuses(questions: Sequence[dict[str, Any]]) -> dict[str, int]:
    """
    Counts the questions by status.

    Args:
        questions (`Sequence[dict]`):
            Entries with `status`.

    Returns:
        `dict[str, int]`: Number of questions by status, `accepted` first.
    """
    counts = Counter({"accepted": 0})
    counts.update(row["status"] for row in questions)
    return dict(counts)


def describe_reductions(outcome: dict[str, Any]) -> list[str]:
    """
    Describes how the time budget reduced the work.

    Args:
        outcome (`dict`):
            Content of `outcome.json`.

    Returns:
        `list[str]`: Sentences. Empty if all the work was done.
    """
    sentences = [
        f"{STAGE_TITLES[stage]}: before this stage, the machine had taken {plan['slowdown']:.1f} times as long as two "
        f"free cores. The rest of the work was changed to fit the time budget: {plan['changes']}."
        for stage, plan in outcome["plans"].items()
        if plan["changes"]
    ]
    rollouts = outcome["sizes"]["retrained_policy_rollouts"], outcome["sizes"]["policy_rollouts"]
    if rollouts[0] < rollouts[1]:
        sentences.append(
            f"π̂ was trained on {rollouts[0]} rollouts and π on {rollouts[1]}, so the comparison of π̂ with π is not "
            "fair."
        )
    return sentences


def is_quickstart_run(folder: str | Path) -> bool:
    """
    Checks whether a folder is that of a finished quickstart run.

    Args:
        folder (`str` or `Path`):
            Any folder.

    Returns:
        `bool`.
    """
    path = Path(expand_path(folder))
    return (path / OUTCOME).is_file() and (path / MANIFEST).is_file()


def rewrite_page(folder: str | Path, output: str | Path | None = None) -> Path:
    """
    Writes the page of a finished quickstart run again.

    Args:
        folder (`str` or `Path`):
            Folder of the run.
        output (`str` or `Path`, *optional*):
            The file. Defaults to `report.html` in the folder.

    Returns:
        `Path`: The file.

    Raises:
        ValueError: If a file in the folder is damaged, or `output` is a folder.
    """
    page, path = resolve_page(folder, output), Path(expand_path(folder))
    return write_page(read_object(path / OUTCOME, dict, _REMEDY), page, path)


def write_page(outcome: dict[str, Any], path: Path, folder: Path) -> Path:
    """
    Writes the HTML page: the sections of the quickstart, and those of a report of its folder.

    Args:
        outcome (`dict`):
            Content of `outcome.json`.
        path (`Path`):
            File to write.
        folder (`Path`):
            Folder of the run.

    Returns:
        `Path`: The same path.
    """
    sections = build_sections(read_contents(folder))
    parts = explain_damage(folder / OUTCOME, _REMEDY, lambda: build_page(outcome, sections))
    page, samples = render_page(*parts)  # it reads rows of other files, whose errors name them
    save_page(path, page, samples)
    return path


def build_page(outcome: dict[str, Any], report: Mapping[str, Section]) -> tuple[str, list[Text], list[Section]]:
    """
    Builds the page.

    Args:
        outcome (`dict`):
            Content of `outcome.json`.
        report (`Mapping[str, Section]`):
            Sections of the report of the folder, by name.

    Returns:
        `tuple`: Title, paragraphs and sections, the arguments of [`render_page`].
    """
    settings = outcome["settings"]
    model = settings["model"] or "SmolLM2-135M-Instruct (4-bit weights, dequantized)"
    lead = [
        Text(
            f"Reward learning on policy (arXiv 2403.19279): all of Algorithm 1 on {model}, method "
            f"{settings['method']}."
        ),
        Text(f"{CAUTION} All results are shown.", is_caution=True),
        *(Text(text, is_caution=True) for text in describe_reductions(outcome)),
    ]
    own = [
        _build_steps(outcome),
        _build_policies(outcome),
        _build_reward_models(outcome),
        _build_synthetic(outcome),
        _build_kinds(outcome),
        _build_questions(outcome["questions"]),
    ]
    others = [section for name, section in report.items() if name not in (_REPLACED, "run")]
    return (
        "RLP quickstart",
        lead,
        [*own, *others, *([report["run"]] if "run" in report else []), _build_machine(outcome)],
    )


def _build_steps(outcome: dict[str, Any]) -> Section:
    sizes, preferences, settings = outcome["sizes"], outcome["preferences"], outcome["settings"]
    heldout = format_share(preferences["heldout"]["accuracy"])
    rollouts = (sizes["policy_rollouts"], sizes["retrained_policy_rollouts"])
    questions = f"{sizes['unlabeled_questions']} unlabeled questions"
    rows = [
        (
            "0 · fine-tuning",
            f"{sizes['demonstrations']} demonstrations",
            f"π_SFT, accuracy {heldout} on held-out questions at T = 1",
        ),
        (
            "1 · preferences D",
            f"{sizes['preference_questions']} questions",
            f"{preferences['train']['pairs']} pairs, {preferences['train']['flipped']} with a flipped label",
        ),
        ("2 · reward model", "D", "r"),
        ("3 · policy", f"{questions}, {rollouts[0]} rollouts of PPO", "π"),
        (
            "4 · refinement",
            f"{sizes['num_generations']} completions of π for each of these questions",
            f"{outcome['synthetic']['spg']['pairs']} synthetic pairs D̂, r̂",
        ),
        ("5 · retrained policy", f"the same questions, starting from π_SFT, {rollouts[1]} rollouts of PPO", "π̂"),
        ("evaluation", f"{outcome['policies']['questions']} held-out questions", "see below"),
    ]
    text = (
        f"The package has {sizes['all_questions']} questions. The split depends on their kind and never on the model "
        f"(seed {settings['question_seed']}). Training and sampling use seed {settings['seed']}. A completion is "
        "right if it equals an accepted answer after normalization of case, outer punctuation and white space."
    )
    return Section("Steps", [elements.Table(("step", "data", "result"), rows), Text(text)])


def _build_policies(outcome: dict[str, Any]) -> Section:
    evaluation = outcome["policies"]
    rows = []
    for name, row in evaluation["policies"].items():
        interval = " – ".join(map(format_share, row["interval"]))
        rows.append([POLICY_NAMES[name], row["accuracy"], interval, row["finished"], row["kl"]])
    differences = []
    for name, row in evaluation["comparisons"].items():
        after, before = name.split(" - ")
        text = describe_difference(row["difference"], row["standard_error"])
        differences.append([f"{POLICY_NAMES[after]} minus {POLICY_NAMES[before]}", text])
    figure = Figure(
        [plot_policies(evaluation["policies"])],
        f"The accuracy of each policy on {evaluation['questions']} held-out questions, "
        f"{evaluation['completions_per_question']} samples each at T = "
        f"{outcome['settings']['evaluation_temperature']}.",
        "The interval is binomial (Wilson), and its trials are the questions, because samples of one question are not "
        "independent. It does not cover other seeds.",
    )
    columns = ("policy", "accuracy", "95% interval", "finished", "KL to π_SFT, nats")
    paired = elements.Table(("difference, paired by question", ""), differences)
    return Section("Policies", [figure, elements.Table(columns, rows), paired])


def _build_reward_models(outcome: dict[str, Any]) -> Section:
    heldout = outcome["preferences"]["heldout"]
    gate = outcome["stages"]["gate"]["metrics"]
    section = build_reward_model_section(
        collect_comparisons(outcome), gate, "Reward model before and after refinement"
    )
    text = (
        f"The human pairs are on held-out questions. As labeled, {heldout['flipped']} of {heldout['pairs']} labels "
        "are flipped, and a model that knows every answer would reach "
        f"{format_share(1 - heldout['flipped'] / heldout['pairs'])}. A policy pair is a right and a wrong completion "
        "of π for one question. On the unlabeled questions, r̂ was trained on synthetic pairs, but never on the "
        "answers. Neither model was trained on the held-out questions (T = "
        f"{outcome['settings']['evaluation_temperature']})."
    )
    return Section(section.title, [*section.elements, Text(text)])


def _build_synthetic(outcome: dict[str, Any]) -> Section:
    questions, threshold = outcome["questions"], outcome["settings"]["threshold"]
    statuses = ", ".join(f"{count} {status}" for status, count in count_statuses(questions).items())
    figure = Figure(
        [plot_confidence(questions, outcome["sizes"]["num_generations"], threshold)],
        "The confidence of each unlabeled question, and whether its majority is right.",
        "The known answers were used neither for training nor for selection. It is one draw of completions.",
    )
    rows = [
        [name, row["pairs"], row["decided"], row["accuracy"], row["neither_right"]]
        for name, row in outcome["synthetic"].items()
    ]
    return Section(
        "Synthetic preferences",
        [
            figure,
            Text(
                f"{statuses}, of {len(questions)} questions at γ = {threshold}. If all completions agree, there is "
                "nothing to reject."
            ),
            elements.Table(("method", "pairs", "decided", "accuracy on these", "neither side right"), rows),
            Text("The known answers decide a pair if exactly one side is right."),
        ],
    )


def _build_kinds(outcome: dict[str, Any]) -> Section:
    wrong = find_wrong_kinds(outcome["kinds"])
    text = (
        "Some kinds were kept on purpose, although the majority of the model's completions was mostly wrong in "
        f"earlier runs: {', '.join(WRONG_MAJORITY_KINDS)}. For these kinds, agreement gives wrong labels. In this run "
        f"the majority was wrong at least as often as right for: {', '.join(wrong) if wrong else 'no kind'}."
    )
    names = ("kind", "questions", "accuracy", "confidence", "majority_right", "accepted", "accepted_right")
    columns = [name.replace("_right", ", majority right").replace("majority, ", "") for name in names]
    rows = [[row[name] for name in names] for row in outcome["kinds"]]
    return Section("Kinds of question", [Text(text), elements.Table(columns, rows)])


def _build_questions(questions: Sequence[dict[str, Any]]) -> Section:
    rows = [_build_question_cells(row) for row in sorted(questions, key=lambda row: -row["confidence"])]
    columns = [
        Column("question"),
        Column("kind", "choice"),
        Column("confidence", "number"),
        Column("status", "choice"),
    ]
    columns += [Column(name) for name in ("majority", "chosen", "rejected", "known answer")]

    def read(numbers: Sequence[int]) -> list[list[Any]]:
        return [rows[number] for number in numbers]

    text = "✓ and ✗ mark texts that are right and wrong by the known answers."
    return Section("All questions", [Text(text), RowTable("questions", columns, len(rows), read)])


def _build_question_cells(row: dict[str, Any]) -> list[Any]:
    sides = [
        f"{row[side]} {'✓' if row[f'{side}_right'] else '✗'}" if side in row else None
        for side in ("majority", "chosen", "rejected")
    ]
    return [row["question"], row["kind"], row["confidence"], row["status"], *sides, row["answer"]]


def _build_machine(outcome: dict[str, Any]) -> Section:
    machine = outcome["machine"]
    rows = [[name, round(seconds)] for name, seconds in outcome["seconds"].items()]
    threads = f"{' or '.join(map(str, machine['threads']))} of " if machine["threads"] else ""
    text = (
        f"{threads}{machine['cores']} cores ({machine['processor']}), torch {machine['torch']}, time budget "
        f"{outcome['settings']['minutes']} minutes."
    )
    return Section("Time and machine", [elements.Table(("step", "seconds"), rows), Text(text)])


def print_summary(outcome: dict[str, Any], console: Console) -> None:
    """
    Prints a short version of the page.

    Args:
        outcome (`dict`):
            Content of `outcome.json`.
        console (`rich.console.Console`):
            Console to print to.
    """
    console.print()
    _print_questions(outcome, console)
    _print_reward_models(outcome, console)
    _print_policies(outcome, console)
    for text in describe_reductions(outcome):
        console.print(text)
    console.print(CAUTION)


def _print_questions(outcome: dict[str, Any], console: Console) -> None:
    questions, synthetic = outcome["questions"], outcome["synthetic"]
    counts = ", ".join(f"{count} {status}" for status, count in count_statuses(questions).items())
    accepted = [row for row in questions if row["status"] == "accepted"]
    spg, select_all = synthetic["spg"], synthetic["select_all"]
    console.print(
        f"Synthetic preferences at γ = {outcome['settings']['threshold']:g}: {counts}, of {len(questions)} questions. "
        f"The known answers decide {spg['decided']} pairs. The chosen side is right in "
        f"{format_share(spg['accuracy'])} of them (select_all: {format_share(select_all['accuracy'])} of "
        f"{select_all['decided']})."
    )
    table = Table(title="Examples", title_justify="left")
    for column in ("question", "confidence", "status", "majority", "known answer"):
        table.add_column(column)
    rejected = [row for row in questions if row["status"] != "accepted"]
    for row in accepted[:6] + rejected[:6]:
        mark = "right" if row["majority_right"] else "wrong"
        texts = row["question"], f"{row['majority']} ({mark})", row["answer"]
        # `ConsoleText`, because rich would read `[/INST]` in a string as markup. A terminal would obey controls.
        question, majority, answer = (ConsoleText(show_hidden(text)) for text in texts)
        table.add_row(question, f"{row['confidence']:.1f}", row["status"], majority, answer)
    console.print(table)


def _print_reward_models(outcome: dict[str, Any], console: Console) -> None:
    table = Table(title="Reward model: accuracy on labeled pairs", title_justify="left")
    for column in ("pairs", "number", "r, before", "r̂, after", "difference"):
        table.add_column(column, justify="left" if column == "pairs" else "right")
    for name, comparison in collect_comparisons(outcome).items():
        before, after, difference = comparison["before"], comparison["after"], comparison["difference"]
        table.add_row(
            name,
            str(before["pairs"]),
            format_share(before["accuracy"]),
            format_share(after["accuracy"]),
            format_difference(difference["accuracy"], difference["standard_error"]),
        )
    console.print(table)
    gate = outcome["stages"]["gate"]["metrics"]
    console.print("Gate: passed." if gate["passed"] else f"Gate: not passed. {'; '.join(gate['problems'])}.")


def _print_policies(outcome: dict[str, Any], console: Console) -> None:
    evaluation = outcome["policies"]
    table = Table(
        title=f"Policies: accuracy on {evaluation['questions']} held-out questions, "
        f"{evaluation['completions_per_question']} samples each at "
        f"T = {outcome['settings']['evaluation_temperature']:g}",
        title_justify="left",
    )
    for column in ("policy", "accuracy", "95% interval", "KL to π_SFT"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for name, metrics in evaluation["policies"].items():
        low, high = metrics["interval"]
        table.add_row(
            POLICY_NAMES[name], format_share(metrics["accuracy"]), f"{low:.3f} – {high:.3f}", f"{metrics['kl']:.4f}"
        )
    console.print(table)
    paired = evaluation["comparisons"]["retrained_policy - policy"]
    console.print(f"π̂ against π: {describe_difference(paired['difference'], paired['standard_error'])}.")
