"""The sections about what `trl-rlp evaluate` measured: win rates, a reward model on labeled pairs, policy samples."""

from collections.abc import Mapping, Sequence
from typing import Any

from trl_rlp.evaluation.alpaca_eval import get_preferences
from trl_rlp.report.elements import Column, Element, RowTable, Section, Table, Text
from trl_rlp.report.rows import Rows
from trl_rlp.report.visible_text import plain_text


WIN_RATES = {"win_rate": "outputs", "other_win_rate": "other_outputs"}
"""Keys of `metrics.json` with win rates, and the argument that has the judged outputs."""

PAIR_METRICS = {
    "pairs": "pairs",
    "accuracy": "accuracy: share of pairs with a higher reward for the chosen side",
    "length_accuracy": "accuracy of length: always the longer side",
    "calibration_error": "calibration error (lower is better)",
    "brier_score": "Brier score (lower is better, ¼ for guesses)",
    "log_loss": "log loss (lower is better)",
    "margin": "mean margin",
    "length_correlation": "Spearman's correlation of reward and length",
    "margin_length_correlation": "Spearman's correlation of margin and difference in length",
}
"""Metrics of a reward model, and what the table calls them."""

SAMPLE_METRICS = {
    "outputs": "completions",
    "characters": "mean length, characters",
    "finished": "share of finished completions",
    "accuracy": "accuracy by known answers",
    "accuracy_standard_error": "standard error of the accuracy",
    "kl": "KL to the reference policy, nats per completion",
}
"""Metrics of policy samples, and what the table calls them."""


def build_evaluation_sections(metrics: Mapping[str, Any], annotations: Mapping[str, Rows]) -> dict[str, Section]:
    """
    Builds the sections about the results of `trl-rlp evaluate`.

    Args:
        metrics (`Mapping`):
            The contents of `metrics.json`.
        annotations (`Mapping[str, Rows]`):
            Annotations of the judge, by the argument that has the judged outputs.

    Returns:
        `dict[str, Section]`: Sections by name. Parts that were not evaluated are left out.
    """
    sections = {}
    if any(key in metrics for key in WIN_RATES):
        sections["win_rates"] = _build_win_rate_section(metrics)
    if "reward_model" in metrics:
        sections["labeled_pairs"] = _build_pair_section(metrics["reward_model"])
    if "policy" in metrics:
        table = Table(("metric", "value"), _list_metrics(metrics["policy"], SAMPLE_METRICS))
        sections["policy_samples"] = Section("Policy samples", [table])
    for name, rows in annotations.items():
        sections[f"judged_{name}"] = _build_annotation_section(name, rows)
    return sections


def _build_win_rate_section(metrics: Mapping[str, Any]) -> Section:
    columns = ("outputs", "prompts", "win rate", "95 % interval", "discrete", "wins", "draws", "losses")
    rows = []
    for key, name in WIN_RATES.items():
        if key in metrics:
            result = metrics[key]
            discrete = result.get("alpaca_eval", {}).get("discrete_win_rate")
            at_equal_length = (result.get("length_controlled") or {}).get("length_controlled_win_rate")
            rows.append(
                [
                    name,
                    result.get("prompts"),
                    result.get("win_rate"),
                    _format_interval(result.get("interval")),
                    None if discrete is None else discrete / 100,
                    *(result.get(count) for count in ("wins", "draws", "losses")),
                    at_equal_length,
                    result.get("missing"),
                ]
            )
    elements: list[Element] = [Table((*columns, "at equal length", "pairs without a preference"), rows)]
    if "comparison" in metrics:
        elements.append(Text(_describe_comparison(metrics["comparison"])))
    if "judge" in metrics:
        counts = metrics["judge"]
        elements.append(
            Text(
                f"Of {counts['asked']:,} answers of the judge, {counts['unreadable']:,} name neither A nor B "
                f"({counts['cut']:,} were cut). {counts['refused']:,} pairs were left out."
            )
        )
    limits = (
        "A win rate is the mean preference for these outputs against the reference's. The interval covers only the "
        "choice of prompts, not the choice of seeds or judges. With a reward model as judge, read the discrete win "
        "rate, because probabilities depend on the scale of the reward."
    )
    return Section("Win rates", [*elements, Text(limits)])


def _describe_comparison(comparison: Mapping[str, Any]) -> str:
    interval = _format_interval(comparison["interval"])
    text = f"Difference in win rate, outputs minus other_outputs, paired by prompt: {comparison['difference']:+.3f}"
    return f"{text}{'' if interval is None else f' {interval}'} on {comparison['prompts']:,} prompts."


def _build_pair_section(metrics: Mapping[str, Any]) -> Section:
    elements: list[Element] = [Table(("metric", "value"), _list_metrics(metrics, PAIR_METRICS))]
    interval = _format_interval(metrics.get("accuracy_interval"))
    if interval is not None:
        elements.append(Text(f"The 95 % interval of the accuracy over prompts is {interval}."))
    for key, name, summary in (
        ("sections", "section of RewardBench", None),
        ("subsets", "subset", "Accuracy by subset"),
    ):
        if key in metrics:
            elements.append(Table((name, "accuracy"), [[*part] for part in metrics[key].items()], summary))
    limits = "Accuracy on these pairs does not show how a policy will use the reward."
    return Section("Reward model on labeled pairs", [*elements, Text(limits)])


def _list_metrics(metrics: Mapping[str, Any], names: Mapping[str, str]) -> list[list[Any]]:
    return [[name, metrics[key]] for key, name in names.items() if key in metrics]


def _format_interval(interval: Sequence[float] | None) -> str | None:
    return None if interval is None else f"[{interval[0]:.3f}, {interval[1]:.3f}]"


def _build_annotation_section(name: str, rows: Rows) -> Section:
    columns = [
        Column("prompt"),
        Column("result", "choice"),
        Column("preference", "number"),
        Column(name.replace("_", " ")),
        Column("reference"),
    ]

    def read(numbers: Sequence[int]) -> list[list[Any]]:
        taken = rows.take(numbers)
        return [
            [
                plain_text(row["instruction"]),
                _name_result(preference),
                preference,
                plain_text(row["output_2"]),
                plain_text(row["output_1"]),
            ]
            for row, preference in zip(taken, get_preferences(taken), strict=True)
        ]

    judge = rows.take([0])[0].get("annotator", "a judge")
    text = f"The preference of {judge} for an output: 1 is a win against the reference, ½ a draw, 0 a loss."
    table = RowTable(f"judged-{name}", columns, len(rows), read)
    return Section(f"Judged pairs: {name}", [Text(text), table])


def _name_result(preference: float | None) -> str:
    if preference is None:
        return "no preference"
    if preference == 0.5:
        return "draw"
    return "win" if preference > 0.5 else "loss"
