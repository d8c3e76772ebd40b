"""The sections about models: reward models on labeled pairs, policies on the same prompts, rewards against length."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from trl_rlp.evaluation.reward_report import rank_correlation
from trl_rlp.report.elements import Column, Element, Figure, RowTable, Section, Table, Text
from trl_rlp.report.plots import plot_against_kl, plot_lengths, plot_reward_models
from trl_rlp.report.preference_sections import label_completions
from trl_rlp.report.rows import Rows
from trl_rlp.report.run_contents import RunContents
from trl_rlp.report.visible_text import plain_text


DECIDING = {"human": "human, held out", "policy": "policy, by known answers"}
GATE_NAMES = {
    **{name: f"{text} (decides)" for name, text in DECIDING.items()},
    "synthetic": "agreement with D̂ itself (never decides)",
}
"""Names of the sets of pairs that the gate compares."""

ROUNDING_ERROR = 1e-12
"""Largest standard error of equal values, which is not exactly 0 for fractions such as 0.2."""


def describe_difference(difference: float, standard_error: float | None) -> str:
    """
    Formats a paired difference and adds whether it is better or worse.

    Args:
        difference (`float`):
            After minus before.
        standard_error (`float` or `None`):
            Standard error of the difference. `None` for a single pair.

    Returns:
        `str`: For example `+0.050 ± 0.020: better`. Differences within two standard errors of 0 are marked. If all
        pairs changed alike, the standard error is 0 for any number of pairs, so there is no verdict.
    """
    text = format_difference(difference, standard_error)
    if standard_error is None:
        return f"{text}: on a single pair"
    if difference == 0:
        return f"{text}: no difference"
    if standard_error < ROUNDING_ERROR:
        return f"{text}: all changed alike, so the standard error says nothing"
    direction = "better" if difference > 0 else "worse"
    certainty = "" if abs(difference) > 2 * standard_error else ", within two standard errors of no difference"
    return f"{text}: {direction}{certainty}"


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


def build_reward_model_section(
    comparisons: Mapping[str, dict[str, Any]], gate: Mapping[str, Any], title: str
) -> Section:
    """
    Builds the section about the reward model before and after refinement.

    Args:
        comparisons (`Mapping[str, dict]`):
            Comparisons by display name, see [`GateReport`].
        gate (`Mapping`):
            `passed`, `problems` and `comparisons` of the gate.
        title (`str`):
            Heading.

    Returns:
        [`Section`]: Plots, table, and the decision of the gate.
    """
    rows = []
    for name, entry in comparisons.items():
        before, after, difference = entry["before"], entry["after"], entry["difference"]
        rows.append(
            [
                name,
                before["pairs"],
                before["accuracy"],
                after["accuracy"],
                describe_difference(difference["accuracy"], difference["standard_error"]),
                before["calibration_error"],
                after["calibration_error"],
                before["length_accuracy"],
            ]
        )
    columns = ("pairs", "number", "r", "r̂", "difference, paired", "calibration error r", "calibration error r̂")
    figure = Figure(
        [
            plot_reward_models(comparisons, "accuracy", "accuracy (dotted line: chance)"),
            plot_reward_models(comparisons, "calibration_error", "calibration error (lower is better)"),
        ],
        "The share of labeled pairs that r and r̂ order as labeled (± one standard error), and how far the confidence "
        "of each model is from that share.",
        "They cannot show how the policy will use the reward, nor errors that labels and models have in common. r̂ "
        "was trained on D̂, so agreement with it is no evidence.",
    )
    decision = "The gate passed." if gate["passed"] else f"The gate warned: {'; '.join(gate['problems'])}."
    few = list_small_sets(gate["comparisons"])
    if few:
        decision += f" But there are too few pairs to decide: {'; '.join(few)}."
    note = "Accuracy of length is the accuracy of a model that always prefers the longer completion."
    return Section(title, [figure, Table((*columns, "accuracy of length"), rows), Text(f"{decision} {note}")])


def list_small_sets(comparisons: Mapping[str, dict[str, Any]]) -> list[str]:
    """
    Lists the sets that are part of the gate's decision and have too few pairs for a standard error.

    Args:
        comparisons (`Mapping[str, dict]`):
            `comparisons` of a [`GateReport`].

    Returns:
        `list[str]`: Names and numbers of pairs, for example `human, held out (1 pair)`.
    """
    small = {
        text: comparisons[name]["before"]["pairs"]
        for name, text in DECIDING.items()
        if name in comparisons and comparisons[name]["difference"]["standard_error"] is None
    }
    return [f"{text} ({pairs} {'pair' if pairs == 1 else 'pairs'})" for text, pairs in small.items()]


def name_gate_sets(comparisons: Mapping[str, Any]) -> dict[str, Any]:
    """
    Replaces the names of the sets of pairs by those on the page.

    Args:
        comparisons (`Mapping[str, dict]`):
            Comparisons of the gate.

    Returns:
        `dict[str, dict]`: The same comparisons by display name.
    """
    return {GATE_NAMES.get(name, name): entry for name, entry in comparisons.items()}


def build_policy_section(metrics: Mapping[str, Mapping[str, Any]]) -> Section:
    """
    Builds the section about the policies on held-out prompts.

    Args:
        metrics (`Mapping[str, Mapping]`):
            Metrics by policy.

    Returns:
        [`Section`]: Plots of reward (proxy) and accuracy (gold) against KL, and the table.
    """
    names = list(dict.fromkeys(name for values in metrics.values() for name in values))
    rows = [[name, *(values.get(name) for values in metrics.values())] for name in names]
    elements: list[Element] = []
    images = []
    for key in names:
        if key != "accuracy" and not key.startswith("reward/"):
            continue
        title = "gold: accuracy by known answers" if key == "accuracy" else f"proxy: reward of {key.split('/', 1)[1]}"
        points = {
            name: (values["kl"], values[key], values.get("accuracy_standard_error") if key == "accuracy" else None)
            for name, values in metrics.items()
            if values.get("kl") is not None and values.get(key) is not None
        }
        if points:
            images.append(plot_against_kl(title, points))
    if images:
        limits = "It is one run: the points say nothing about another seed, and rewards of two models have two scales."
        if "accuracy" not in names:
            limits += " No gold measure was recorded, because the prompts have no known answers."
        shows = "What each policy reaches on held-out prompts, against how far it has moved from π_SFT."
        elements.append(Figure(images, shows, limits))
    elements.append(Table(("metric", *metrics), rows))
    return Section("Policies on held-out prompts", elements)


def build_sample_section(contents: RunContents) -> Section | None:
    """
    Builds the table of samples of two policies side by side.

    Args:
        contents ([`RunContents`]):
            What the folder holds.

    Returns:
        [`Section`] or `None`: `None` if there are not two policies on the same prompts.
    """
    policies = contents.policies
    if len(policies) < 2:
        return None
    first, *others = (rows.column("prompt") for rows in policies.values())
    if any(prompts != first for prompts in others):
        text = (
            "The policies were sampled on different prompts, or in another order, so their samples cannot stand side "
            "by side."
        )
        return Section("Samples side by side", [Text(text, is_caution=True)])

    def read(numbers: Sequence[int]) -> list[list[Any]]:
        taken = {name: rows.take(numbers) for name, rows in policies.items()}
        prompts = [plain_text(row["prompt"]) for row in next(iter(taken.values()))]
        sides = [
            [
                label_completions(row, rewards=_rewards_of(contents, name, number))
                for number, row in zip(numbers, rows, strict=True)
            ]
            for name, rows in taken.items()
        ]
        return [[prompt, *cells] for prompt, *cells in zip(prompts, *sides, strict=True)]

    columns = [Column("prompt"), *(Column(name, "texts", "option") for name in policies)]
    text = (
        "Completions of two policies for the same prompts. Each is one draw, so a difference between two completions "
        "says little about the policies. Numbers are rewards."
    )
    return Section("Samples side by side", [Text(text), RowTable("samples", columns, len(first), read)])


def _rewards_of(contents: RunContents, policy: str, number: int) -> dict[str, list[float]]:
    return {name: values[number] for name, values in contents.rewards.get(policy, {}).items()}


def build_length_section(contents: RunContents) -> Section | None:
    """
    Builds the section about rewards against length.

    Args:
        contents ([`RunContents`]):
            What the folder holds.

    Returns:
        [`Section`] or `None`: `None` if no completion has a reward.
    """
    series: dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]] = {}
    for data in contents.rounds:
        sides = _read_side_rewards(data.pairs)
        if sides:
            suffix = f", round {data.number}" if len(contents.rounds) > 1 else ""
            series[f"reward of r on the pairs D̂{suffix}"] = sides
    for policy, rewards in contents.rewards.items():
        completions = contents.policies[policy].column("completions")
        lengths = [len(plain_text(text)) for texts in completions for text in texts]
        for name, values in rewards.items():
            flat = [value for row in values for value in row]
            series.setdefault(f"{name} on held-out prompts", {})[policy] = (lengths, flat)
    for name, values in _read_logged_rewards(contents).items():
        series[f"{name}, logged in training"] = {"completions": values}
    if not series:
        return None
    rows = [
        [title, name, len(lengths), rank_correlation(rewards, lengths)]
        for title, lines in series.items()
        for name, (lengths, rewards) in lines.items()
    ]
    figure = Figure(
        [plot_lengths(title, lines) for title, lines in series.items()],
        "The reward of each completion against its length, at most 2000 points in a plot, drawn at random.",
        "A correlation does not say why: longer completions may be better, or the reward model may like length.",
    )
    columns = ("reward", "completions of", "number", "Spearman's correlation with length")
    return Section("Rewards against length", [figure, Table(columns, rows)])


def _read_side_rewards(pairs: Rows | None) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
    if pairs is None or "chosen_reward" not in pairs.names:
        return {}
    sides = {}
    for side in ("chosen", "rejected"):
        rewards = pairs.column(f"{side}_reward")
        known = [
            (text, reward) for text, reward in zip(pairs.column(side), rewards, strict=True) if reward is not None
        ]
        if known:
            sides[side] = [len(plain_text(text)) for text, _ in known], [reward for _, reward in known]
    return sides


def _read_logged_rewards(contents: RunContents) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
    rows = contents.completions
    if rows is None or "completion" not in rows.names:
        return {}
    lengths = [len(plain_text(text)) for text in rows.column("completion")]
    found = {}
    for name in list_logged_rewards(contents):
        known = [
            (length, value) for length, value in zip(lengths, rows.column(name), strict=True) if value is not None
        ]
        if known:
            found[name] = [length for length, _ in known], [value for _, value in known]
    return found


def list_logged_rewards(contents: RunContents) -> list[str]:
    """
    Lists the reward functions whose rewards a trainer logged with its completions.

    Args:
        contents ([`RunContents`]):
            What the folder holds.

    Returns:
        `list[str]`: Names of columns of numbers. They have a mean in the log of the trainer. Without a log of rewards,
        they are all columns of numbers other than step and advantage. A reward function may have skipped any row, or
        all.

    Raises:
        ValueError: If a reward is not a number.
    """
    rows, log = contents.completions, contents.logs.get("trainer")
    if rows is None:
        return []
    logged = {name for name in rows.names if log is not None and f"rewards/{name}/mean" in log.keys()}
    names = sorted(logged or rows.names - {"step", "advantage"})
    known = {name: [value for value in rows.column(name) if value is not None] for name in names}
    numeric = [name for name in names if all(isinstance(value, int | float) for value in known[name])]
    if not logged:
        return [name for name in numeric if known[name]]
    for name in logged.difference(numeric):
        raise rows.describe_damage(f"the column `{name}` of rewards has other values than numbers")
    return numeric


def _convert_step(step: Any) -> int | float | None:
    """Converts a step. Some versions of TRL write it as text."""
    if isinstance(step, str) and re.fullmatch("[0-9]{1,15}", step):
        return int(step)
    return step if isinstance(step, int | float) else None


def build_completion_section(contents: RunContents) -> Section | None:
    """
    Builds the table of the completions that a trainer logged.

    Args:
        contents ([`RunContents`]):
            What the folder holds.

    Returns:
        [`Section`] or `None`: `None` if there are none.
    """
    rows = contents.completions
    if rows is None or "completion" not in rows.names:
        return None
    rewards = list_logged_rewards(contents)
    columns = [Column("step", "number"), Column("prompt"), Column("completion")]
    columns += [Column(name, "number") for name in rewards]

    def read(numbers: Sequence[int]) -> list[list[Any]]:
        return [
            [
                _convert_step(row.get("step")),
                plain_text(row.get("prompt")),
                plain_text(row["completion"]),
                *(row.get(name) for name in rewards),
            ]
            for row in rows.take(numbers)
        ]

    text = "Completions that the trainer logged (`log_completions`), with the reward of each reward function."
    return Section("Completions in training", [Text(text), RowTable("completions", columns, len(rows), read)])
