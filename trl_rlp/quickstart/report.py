"""The page and the summary of a quickstart run; both say what the figures say and nothing else."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from trl_rlp.quickstart.plots import POLICY_NAMES, confidence_plot, policy_plot, reward_plot
from trl_rlp.quickstart.questions import WRONG_MAJORITY_KINDS


TEMPLATE = Path(__file__).parent / "report.html"
CAUTION = (
    "A demonstration on one small model with one seed, not evidence for or against the method. The human preferences "
    "are simulated from the known answers, with a quarter of the labels flipped."
)


def share(value: float | None) -> str:
    """
    Writes a share.

    Args:
        value (`float` or `None`):
            In [0, 1]; `None` where there was nothing to count.

    Returns:
        `str` with three digits, or a dash.
    """
    return "–" if value is None else f"{value:.3f}"


def reward_sets(outcome: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """
    Gives the comparisons of r and r̂ in the order in which they are shown.

    Args:
        outcome (`dict`):
            What the run came to.

    Returns:
        `dict` by a name in words: those of the gate, then those that do not gate.
    """
    gate = outcome["stages"]["gate"]["figures"]["figures"]
    names = {
        "human": "human, as labeled (gates)",
        "policy": "policy, on unlabeled questions (gates)",
        "synthetic": "agreement with D̂ itself (never gates)",
    }
    rest = outcome["rewards"]
    return {
        **{names[name]: gate[name] for name in ("human", "policy") if name in gate},
        **rest,
        **{names[name]: gate[name] for name in ("synthetic",) if name in gate},
    }


def plus_minus(difference: float, standard_error: float | None) -> str:
    """
    Writes a difference with its standard error.

    Args:
        difference (`float`):
            After minus before.
        standard_error (`float`, *optional*):
            Of the difference; `None` where a single pair has none.

    Returns:
        `str`.
    """
    return f"{difference:+.3f}" + ("" if standard_error is None else f" ± {standard_error:.3f}")


def verdict(difference: float, standard_error: float | None) -> str:
    """
    Says in words what a paired difference is worth.

    Args:
        difference (`float`):
            After minus before.
        standard_error (`float`, *optional*):
            Of the difference; `None` where a single pair has none.

    Returns:
        `str`.
    """
    text = plus_minus(difference, standard_error)
    if difference == 0:
        return f"{text}: no difference"
    if standard_error is None:
        return f"{text}: of a single pair"
    direction = "better" if difference > 0 else "worse"
    certainty = "" if abs(difference) > 2 * standard_error else ", within two standard errors of no difference"
    return f"{text}: {direction}{certainty}"


def wrong_kinds(kinds: Sequence[dict[str, Any]]) -> list[str]:
    """
    Gives the kinds on which this run's majority was wrong at least as often as right.

    Args:
        kinds (`Sequence[dict]`):
            Entries with `kind` and `majority_right`.

    Returns:
        `list[str]`.
    """
    return [entry["kind"] for entry in kinds if entry["majority_right"] <= 0.5]


def statuses(questions: Sequence[dict[str, Any]]) -> dict[str, int]:
    """
    Counts what became of the questions.

    Args:
        questions (`Sequence[dict]`):
            Entries with `status`.

    Returns:
        `dict[str, int]`, `accepted` first.
    """
    counts = Counter({"accepted": 0})
    counts.update(row["status"] for row in questions)
    return dict(counts)


def cuts(outcome: dict[str, Any]) -> list[str]:
    """
    Says what the time budget cut.

    Args:
        outcome (`dict`):
            What the run came to.

    Returns:
        `list[str]`: sentences; empty if nothing was cut.
    """
    texts = {"plan_preferences": "After the fine-tuning", "plan_algorithm": "Before Algorithm 1"}
    return [
        f"{texts[name]} this machine had taken {plan['slowdown']:.1f} times as long as two free cores, so the work "
        f"ahead was cut to {plan['share']:.0%}."
        for name, plan in outcome["plans"].items()
        if plan["share"] < 1
    ]


def write_page(outcome: dict[str, Any], path: Path) -> Path:
    """
    Writes the page: one file, with its plots inside, that loads nothing.

    Args:
        outcome (`dict`):
            What the run came to, as in `outcome.json`.
        path (`Path`):
            Where to.

    Returns:
        `Path`: the same.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["share"] = share
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    questions = sorted(outcome["questions"], key=lambda row: -row["confidence"])
    rewards = reward_sets(outcome)
    page = template.render(
        outcome=outcome,
        caution=CAUTION,
        cuts=cuts(outcome),
        rewards=rewards,
        verdict=verdict,
        names=POLICY_NAMES,
        accepted=[row for row in questions if row["status"] == "accepted"],
        rejected=[row for row in questions if row["status"] != "accepted"],
        statuses=statuses(questions),
        kept_kinds=WRONG_MAJORITY_KINDS,
        wrong_kinds=wrong_kinds(outcome["kinds"]),
        confidence_plot=Markup(
            confidence_plot(questions, outcome["sizes"]["num_generations"], outcome["settings"]["threshold"])
        ),
        reward_plot=Markup(reward_plot(rewards)),
        policy_plot=Markup(policy_plot(outcome["policies"]["policies"])),
    )
    path.write_text(page, encoding="utf-8")
    return path


def print_summary(outcome: dict[str, Any], console: Console) -> None:
    """
    Prints the same figures in short.

    Args:
        outcome (`dict`):
            What the run came to.
        console (`rich.console.Console`):
            Where to.
    """
    console.print()
    _print_questions(outcome, console)
    rewards = Table(title="Reward model: accuracy on labeled pairs", title_justify="left")
    for column in ("pairs", "number", "r, before", "r̂, after", "difference"):
        rewards.add_column(column, justify="left" if column == "pairs" else "right")
    for name, figures in reward_sets(outcome).items():
        before, after, difference = figures["before"], figures["after"], figures["difference"]
        rewards.add_row(
            name,
            str(before["pairs"]),
            share(before["accuracy"]),
            share(after["accuracy"]),
            plus_minus(difference["accuracy"], difference["standard_error"]),
        )
    console.print(rewards)
    gate = outcome["stages"]["gate"]["figures"]
    console.print("Gate: passed." if gate["passed"] else f"Gate: not passed. {'; '.join(gate['problems'])}.")
    evaluation = outcome["policies"]
    policies = Table(
        title=f"Policies: right answers to {evaluation['questions']} held-out questions, "
        f"{evaluation['outputs_per_question']} samples each at T = {outcome['settings']['evaluation_temperature']:g}",
        title_justify="left",
    )
    for column in ("policy", "accuracy", "95 % interval", "KL to π_SFT"):
        policies.add_column(column, justify="left" if column == "policy" else "right")
    for name, figures in evaluation["policies"].items():
        low, high = figures["interval"]
        policies.add_row(
            POLICY_NAMES[name], share(figures["accuracy"]), f"{low:.3f} – {high:.3f}", f"{figures['kl']:.4f}"
        )
    console.print(policies)
    paired = evaluation["comparisons"]["retrained_policy - policy"]
    console.print(f"π̂ against π: {verdict(paired['difference'], paired['standard_error'])}.")
    for text in cuts(outcome):
        console.print(text)
    console.print(CAUTION)


def _print_questions(outcome: dict[str, Any], console: Console) -> None:
    questions, synthetic = outcome["questions"], outcome["synthetic"]
    counts = ", ".join(f"{count} {status}" for status, count in statuses(questions).items())
    accepted = [row for row in questions if row["status"] == "accepted"]
    spg, select_all = synthetic["spg"], synthetic["select_all"]
    console.print(
        f"Synthetic preferences at γ = {outcome['settings']['threshold']:g}: {counts}, of {len(questions)} questions; "
        f"the preferred side is the right one in {share(spg['accuracy'])} of the {spg['decided']} pairs that the "
        f"known answers decide (select-all: {share(select_all['accuracy'])} of {select_all['decided']})."
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
