"""The HTML page and the console summary of a quickstart run. Both show the same numbers."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from trl_rlp.quickstart.narration import STAGE_TITLES
from trl_rlp.quickstart.plots import POLICY_NAMES, plot_confidence, plot_policies, plot_reward_models
from trl_rlp.quickstart.questions import WRONG_MAJORITY_KINDS
from trl_rlp.storage.json_files import write_text


TEMPLATE = Path(__file__).parent / "report.html"
CAUTION = (
    "A demonstration on one small model with one seed. It is not evidence for or against the method. The human "
    "preferences are simulated from the known answers, with a quarter of the labels flipped."
)


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


def format_difference(difference: float, standard_error: float | None) -> str:
    """
    Formats a difference with its standard error.

    Args:
        difference (`float`):
            After minus before.
        standard_error (`float` or `None`):
            Standard error of the difference. `None` for a single pair.

    Returns:
        `str`: For example `+0.050 ± 0.020`.
    """
    return f"{difference:+.3f}" + ("" if standard_error is None else f" ± {standard_error:.3f}")


def describe_difference(difference: float, standard_error: float | None) -> str:
    """
    Formats a paired difference and adds whether it is better or worse.

    Args:
        difference (`float`):
            After minus before.
        standard_error (`float` or `None`):
            Standard error of the difference. `None` for a single pair.

    Returns:
        `str`: For example `+0.050 ± 0.020: better`. Differences within two standard errors of 0 are marked.
    """
    text = format_difference(difference, standard_error)
    if difference == 0:
        return f"{text}: no difference"
    if standard_error is None:
        return f"{text}: on a single pair"
    direction = "better" if difference > 0 else "worse"
    certainty = "" if abs(difference) > 2 * standard_error else ", within two standard errors of no difference"
    return f"{text}: {direction}{certainty}"


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


def write_page(outcome: dict[str, Any], path: Path) -> Path:
    """
    Writes the HTML page. It is one file with its plots inside, without scripts or external files.

    Args:
        outcome (`dict`):
            Content of `outcome.json`.
        path (`Path`):
            File to write.

    Returns:
        `Path`: The same path.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["share"] = format_share
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    questions = sorted(outcome["questions"], key=lambda row: -row["confidence"])
    comparisons = collect_comparisons(outcome)
    page = template.render(
        outcome=outcome,
        caution=CAUTION,
        reductions=describe_reductions(outcome),
        comparisons=comparisons,
        describe_difference=describe_difference,
        names=POLICY_NAMES,
        accepted=[row for row in questions if row["status"] == "accepted"],
        rejected=[row for row in questions if row["status"] != "accepted"],
        statuses=count_statuses(questions),
        kept_kinds=WRONG_MAJORITY_KINDS,
        wrong_kinds=find_wrong_kinds(outcome["kinds"]),
        confidence_plot=Markup(
            plot_confidence(questions, outcome["sizes"]["num_generations"], outcome["settings"]["threshold"])
        ),
        reward_model_plot=Markup(plot_reward_models(comparisons)),
        policy_plot=Markup(plot_policies(outcome["policies"]["policies"])),
    )
    write_text(path, page)
    return path


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
        table.add_row(
            row["question"], f"{row['confidence']:.1f}", row["status"], f"{row['majority']} ({mark})", row["answer"]
        )
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
