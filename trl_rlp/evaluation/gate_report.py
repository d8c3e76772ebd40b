"""The gate: checks that a refined reward model is at least as good as the reward model that it replaces."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.evaluation.reward_metrics import correctness, pair_metrics, reward_margins, standard_error
from trl_rlp.storage.artifacts import load_reward_model


logger = logging.getLogger(__name__)

RewardModel = tuple[PreTrainedModel, PreTrainedTokenizerBase] | str | Path
"""A reward model and its tokenizer, or the folder or Hub name of both."""
ON_REGRESSION = ("warn", "raise")
ACCURACY_TOLERANCE = 0.02
IN_LOOP_TOLERANCE = 0.1
"""Largest fall of accuracy that a refinement inside a run may cause. It also learns from other labels than D's."""

CHANCE_QUANTILE = 2.326
"""99 % quantile of the standard normal distribution, for a test in one direction."""


class RewardModelRegression(RuntimeError):
    """Raised by [`gate`] with `on_regression="raise"`: the refined reward model is worse than the tolerances allow."""


@dataclass
class GateReport:
    """
    Result of [`gate`].

    Args:
        passed (`bool`):
            Whether the refined reward model is within the tolerances on each of the human pairs and policy pairs.
        problems (`list[str]`):
            One sentence per regression.
        comparisons (`dict`):
            `comparisons[set]["before"]` and `comparisons[set]["after"]` are the results of [`pair_metrics`].
            `comparisons[set]["difference"]` holds `accuracy` (after - before) and its paired `standard_error`, which
            is `None` for a single pair.
    """

    passed: bool
    problems: list[str]
    comparisons: dict[str, dict[str, dict[str, float]]]

    def as_dict(self) -> dict:
        """Returns the report as plain values that JSON can store."""
        return asdict(self)


def compare_on_sets(
    before: RewardModel,
    after: RewardModel,
    sets: dict[str, Dataset],
    max_length: int | None = None,
    model_options: dict[str, Any] | None = None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """
    Compares two reward models on sets of labeled pairs, pair by pair.

    One model scores all sets, then the other. A model that is given by its name is in memory only while it scores.

    Args:
        before (`tuple[PreTrainedModel, PreTrainedTokenizerBase]` or `str` or `Path`):
            Reward model and its tokenizer, or their folder or Hub name (r_φ in the paper).
        after (`tuple[PreTrainedModel, PreTrainedTokenizerBase]` or `str` or `Path`):
            Refined reward model and its tokenizer, or their folder or Hub name (r̂_φ in the paper).
        sets (`dict[str, datasets.Dataset]`):
            Labeled pairs in TRL's preference format, by name.
        max_length (`int`, *optional*):
            Maximum number of tokens per row, as in [`score`].
        model_options (`dict`, *optional*):
            Further arguments of [`load_reward_model`] for a model that is given by its name.

    Returns:
        `dict`: The `comparisons` of a [`GateReport`].
    """
    scored_before, scored_after = (
        _score_sets(model, sets, max_length, model_options or {}) for model in (before, after)
    )
    return {name: _compare_margins(*scored_before[name], scored_after[name][0]) for name in sets}


def _score_sets(
    reward_model: RewardModel, sets: dict[str, Dataset], max_length: int | None, model_options: dict[str, Any]
) -> dict[str, tuple[list[float], list[int]]]:
    """Returns the margins and the differences in length of every set. A model that it loads is released at the end."""
    loaded = load_reward_model(reward_model, **model_options) if isinstance(reward_model, str | Path) else reward_model
    return {name: reward_margins(*loaded, pairs, max_length) for name, pairs in sets.items()}


def _compare_margins(
    margins_before: list[float], lengths: list[int], margins_after: list[float]
) -> dict[str, dict[str, Any]]:
    differences = correctness(margins_after) - correctness(margins_before)  # (pairs,)
    return {
        "before": pair_metrics(margins_before, lengths),
        "after": pair_metrics(margins_after, lengths),
        "difference": {
            "accuracy": float(np.mean(differences)),
            "standard_error": standard_error(differences),
        },
    }


def _find_regressions(
    name: str, comparison: dict, accuracy_tolerance: float, calibration_tolerance: float
) -> list[str]:
    before, after, difference = comparison["before"], comparison["after"], comparison["difference"]
    problems = []
    if difference["accuracy"] < -accuracy_tolerance:
        error = difference["standard_error"]
        error_text = "" if error is None else f"paired standard error {error:.3f}, "
        problems.append(
            f"{name} pairs: accuracy fell from {before['accuracy']:.3f} to {after['accuracy']:.3f} ({error_text}"
            f"{before['pairs']} {'pair' if before['pairs'] == 1 else 'pairs'}), more than the tolerance of "
            f"{accuracy_tolerance}"
        )
    if after["calibration_error"] - before["calibration_error"] > calibration_tolerance:
        problems.append(
            f"{name} pairs: calibration error rose from {before['calibration_error']:.3f} to "
            f"{after['calibration_error']:.3f}, more than the tolerance of {calibration_tolerance}"
        )
    return problems


def fell_beyond_chance(comparison: dict[str, dict[str, Any]]) -> bool:
    """
    Checks whether the accuracy of a refined reward model fell by more than .1, and by more than chance explains.

    z = Σ d / √(Σ d²), where d is the change of a pair: -1 if it was right and is wrong now. It is McNemar's test.

    It is the gate of refinements inside a run, and refuses broken models only. There, a refusal leaves the policy with
    a reward model that it may exploit, and accuracy on D can fall because a refinement also fits other labels.
    Calibration does not matter, because the rewards are scaled anyway. Each model is compared with the one that it
    replaces, so small falls of several refinements can add up.

    Args:
        comparison (`dict[str, dict]`):
            The comparison on one set of pairs, see [`GateReport`].

    Returns:
        `bool`: Whether the accuracy fell by more than .1 and z < -2.326, a test in one direction at 1 %.
    """
    pairs, difference = comparison["before"]["pairs"], comparison["difference"]
    fall, error = -difference["accuracy"], difference["standard_error"] or 0.0
    squares = (pairs - 1) * pairs * error**2 + pairs * fall**2  # Σ d²
    return fall > IN_LOOP_TOLERANCE and fall * pairs > CHANCE_QUANTILE * squares**0.5


def gate(
    before: RewardModel,
    after: RewardModel,
    human_pairs: Dataset,
    policy_pairs: Dataset | None = None,
    synthetic_pairs: Dataset | None = None,
    *,
    accuracy_tolerance: float = ACCURACY_TOLERANCE,
    calibration_tolerance: float = 0.05,
    on_regression: str = "warn",
    max_length: int | None = None,
    model_options: dict[str, Any] | None = None,
) -> GateReport:
    """
    Compares a refined reward model with the one that it replaces, on pairs that neither of them labeled.

    Held-out human pairs and policy pairs decide whether the refined model passes. Policy pairs have labels from known
    answers or from a judge. The synthetic preferences are only reported, because the refined model was trained on
    them. Agreement with them shows how well it fits them, but not whether it is correct.

    Args:
        before (`tuple[PreTrainedModel, PreTrainedTokenizerBase]` or `str` or `Path`):
            Reward model and its tokenizer, or their folder or Hub name (r_φ in the paper).
        after (`tuple[PreTrainedModel, PreTrainedTokenizerBase]` or `str` or `Path`):
            Refined reward model and its tokenizer, or their folder or Hub name (r̂_φ in the paper). Of two names, only
            one model is in memory at a time.
        human_pairs ([`~datasets.Dataset`]):
            Held-out human preferences in TRL's preference format. Neither model was trained on them.
        policy_pairs ([`~datasets.Dataset`], *optional*):
            Pairs of policy samples with independent labels, see [`answer_pairs`] and [`judged_pairs`].
        synthetic_pairs ([`~datasets.Dataset`], *optional*):
            Synthetic preferences (D̂ in the paper). They are reported, but a regression on them is not a failure.
        accuracy_tolerance (`float`, *optional*, defaults to `0.02`):
            Largest accepted fall of accuracy, in [0, 1]. The paper has no gate, so this value is ours.
        calibration_tolerance (`float`, *optional*, defaults to `0.05`):
            Largest accepted rise of the expected calibration error, in [0, 1]. This value is ours.
        on_regression (`str`, *optional*, defaults to `"warn"`):
            `"warn"` logs a warning on a regression, and `"raise"` raises [`RewardModelRegression`].
        max_length (`int`, *optional*):
            Maximum number of tokens per row, as in [`score`].
        model_options (`dict`, *optional*):
            Further arguments of [`load_reward_model`] for a model that is given by its name.

    Returns:
        [`GateReport`]: The comparison on each set of pairs.

    Raises:
        ValueError: If `on_regression` is unknown, a tolerance is out of range, a dataset is empty, or a column is
            missing.
        RewardModelRegression: On a regression, with `on_regression="raise"`.
    """
    if on_regression not in ON_REGRESSION:
        raise ValueError(f"`on_regression` must be one of {ON_REGRESSION}, got {on_regression!r}.")
    for name, value in (("accuracy_tolerance", accuracy_tolerance), ("calibration_tolerance", calibration_tolerance)):
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` must be in [0, 1], got {value}.")
    sets = {"human": human_pairs, "policy": policy_pairs, "synthetic": synthetic_pairs}
    given = {name: pairs for name, pairs in sets.items() if pairs is not None}
    comparisons = compare_on_sets(before, after, given, max_length, model_options)
    problems = [
        problem
        for name in ("human", "policy")
        if name in comparisons
        for problem in _find_regressions(name, comparisons[name], accuracy_tolerance, calibration_tolerance)
    ]
    report = GateReport(passed=not problems, problems=problems, comparisons=comparisons)
    if problems:
        message = (
            f"The refined reward model is worse than the one it replaces: {'; '.join(problems)}. Keep the old one."
        )
        if on_regression == "raise":
            raise RewardModelRegression(message)
        logger.warning(message)
    return report
