"""Is the refined reward model at least as good as the one that it replaces?"""

import logging
from dataclasses import asdict, dataclass

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.evaluation.reward_metrics import correctness, pair_metrics, reward_margins, standard_error


logger = logging.getLogger(__name__)

RewardModel = tuple[PreTrainedModel, PreTrainedTokenizerBase]
ON_REGRESSION = ("warn", "raise")


class RewardModelRegression(RuntimeError):
    """Raised by [`gate`] when refusal was asked for and the refined model is worse than the tolerance allows."""


@dataclass
class GateReport:
    """
    What [`gate`] found.

    Args:
        passed (`bool`):
            Whether no gating set got worse by more than its tolerance.
        problems (`list[str]`):
            One sentence a regression.
        figures (`dict`):
            `figures[set]["before" | "after"]`: [`pair_metrics`];
            `figures[set]["difference"]`: `accuracy` (after - before) and its paired `standard_error`, `None` for one
            pair.
    """

    passed: bool
    problems: list[str]
    figures: dict[str, dict[str, dict[str, float]]]

    def as_dict(self) -> dict:
        """Gives the report as plain values, ready for JSON."""
        return asdict(self)


def compare_on_pairs(
    before: RewardModel, after: RewardModel, pairs: Dataset, max_length: int | None = None
) -> dict[str, dict[str, float | None]]:
    """
    Compares two reward models on labeled pairs, pair by pair.

    Args:
        before (`tuple[PreTrainedModel, PreTrainedTokenizerBase]`):
            r_φ and its tokenizer.
        after (`tuple[PreTrainedModel, PreTrainedTokenizerBase]`):
            r̂_φ and its tokenizer.
        pairs (`datasets.Dataset`):
            TRL's preference format.
        max_length (`int`, *optional*):
            As in [`score`].

    Returns:
        `dict`: one set of [`GateReport`]'s figures.
    """
    margins_before, lengths = reward_margins(*before, pairs, max_length)
    margins_after, _ = reward_margins(*after, pairs, max_length)
    differences = correctness(margins_after) - correctness(margins_before)  # (pairs,)
    return {
        "before": pair_metrics(margins_before, lengths),
        "after": pair_metrics(margins_after, lengths),
        "difference": {
            "accuracy": float(np.mean(differences)),
            "standard_error": standard_error(differences),
        },
    }


def _regressions(name: str, figures: dict, accuracy_tolerance: float, calibration_tolerance: float) -> list[str]:
    before, after, difference = figures["before"], figures["after"], figures["difference"]
    problems = []
    if difference["accuracy"] < -accuracy_tolerance:
        error = difference["standard_error"]
        spread = "" if error is None else f"paired standard error {error:.3f}, "
        problems.append(
            f"{name} pairs: accuracy fell from {before['accuracy']:.3f} to {after['accuracy']:.3f} ({spread}"
            f"{before['pairs']} pairs), more than the tolerance of {accuracy_tolerance}"
        )
    if after["calibration_error"] - before["calibration_error"] > calibration_tolerance:
        problems.append(
            f"{name} pairs: calibration error rose from {before['calibration_error']:.3f} to "
            f"{after['calibration_error']:.3f}, more than the tolerance of {calibration_tolerance}"
        )
    return problems


def gate(
    before: RewardModel,
    after: RewardModel,
    human_pairs: Dataset,
    policy_pairs: Dataset | None = None,
    synthetic_pairs: Dataset | None = None,
    *,
    accuracy_tolerance: float = 0.02,
    calibration_tolerance: float = 0.05,
    on_regression: str = "warn",
    max_length: int | None = None,
) -> GateReport:
    """
    Compares a refined reward model with the one that it replaces, on pairs whose labels neither of them made.

    Held-out human pairs and policy pairs (labeled by known answers or a judge) gate. Agreement of the refined model
    with the synthetic preferences it was trained on is measured and never gates: it says how well it fitted, not
    whether it is right.

    Args:
        before (`tuple[PreTrainedModel, PreTrainedTokenizerBase]`):
            r_φ and its tokenizer.
        after (`tuple[PreTrainedModel, PreTrainedTokenizerBase]`):
            r̂_φ and its tokenizer.
        human_pairs (`datasets.Dataset`):
            Human preferences that neither model was trained on, in TRL's preference format.
        policy_pairs (`datasets.Dataset`, *optional*):
            Pairs of policy outputs with labels from elsewhere, see [`policy_pairs`].
        synthetic_pairs (`datasets.Dataset`, *optional*):
            D̂. Reported, never gating.
        accuracy_tolerance (`float`, *optional*, defaults to `0.02`):
            Fall of accuracy that is let pass, in [0, 1]. The paper has no gate; this value is ours.
        calibration_tolerance (`float`, *optional*, defaults to `0.05`):
            Rise of the expected calibration error that is let pass, in [0, 1]. Ours.
        on_regression (`str`, *optional*, defaults to `"warn"`):
            `"warn"` logs a warning, `"raise"` refuses.
        max_length (`int`, *optional*):
            As in [`score`].

    Returns:
        [`GateReport`].

    Raises:
        ValueError: if `on_regression` or a tolerance is out of range, or a data set is empty or lacks its columns.
        RewardModelRegression: on a regression, with `on_regression="raise"`.
    """
    if on_regression not in ON_REGRESSION:
        raise ValueError(f"`on_regression` must be one of {ON_REGRESSION}, got {on_regression!r}.")
    for name, value in (("accuracy_tolerance", accuracy_tolerance), ("calibration_tolerance", calibration_tolerance)):
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` must be in [0, 1], got {value}.")
    sets = {"human": human_pairs, "policy": policy_pairs, "synthetic": synthetic_pairs}
    given = {name: pairs for name, pairs in sets.items() if pairs is not None}
    figures = {name: compare_on_pairs(before, after, pairs, max_length) for name, pairs in given.items()}
    problems = [
        problem
        for name in ("human", "policy")
        if name in figures
        for problem in _regressions(name, figures[name], accuracy_tolerance, calibration_tolerance)
    ]
    report = GateReport(passed=not problems, problems=problems, figures=figures)
    if problems:
        message = (
            f"The refined reward model is worse than the one it replaces: {'; '.join(problems)}. Keep the old one."
        )
        if on_regression == "raise":
            raise RewardModelRegression(message)
        logger.warning(message)
    return report
