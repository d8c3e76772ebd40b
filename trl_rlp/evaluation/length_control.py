"""The length-controlled win rate: the win rate of a policy if its outputs were as long as the reference's."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from transformers.utils import logging

from trl_rlp.storage.data_files import read_rows
from trl_rlp.storage.paths import expand_path


logger = logging.get_logger(__name__)

STRENGTHS = np.logspace(-4, 4, 10)
"""Values of C to try in the fit with anchors. C is the inverse weight of the penalty. Cross-validation selects one."""

RIDGE = 100.0
"""C of the fit without anchors."""

MIN_PROBABILITY = 1e-9
FOLDS = 5
SEED = 123
ANCHOR_WEIGHT = 0.1


@dataclass(frozen=True)
class Anchors:
    """
    Preferences between a verbose and a concise version of AlpacaEval's baseline. They show the effect of length alone.

    Args:
        preferences (`numpy.ndarray` of shape `(anchors,)`):
            Preferences in [0, 1].
        length_terms (`numpy.ndarray` of shape `(anchors,)`):
            tanh of the standardized differences in length, in (-1, 1).
        difficulties (`numpy.ndarray` of shape `(anchors,)`):
            Difficulty of the instruction of each anchor.
        by_instruction (`numpy.ndarray` of shape `(instructions,)`):
            Difficulties of the instructions of the evaluation set, in its order.
    """

    preferences: np.ndarray
    length_terms: np.ndarray
    difficulties: np.ndarray
    by_instruction: np.ndarray


def load_anchors(path: str | Path) -> Anchors:
    """
    Loads the anchors that AlpacaEval's published win rates use.

    The file is `df_gamed.csv` of the dataset `tatsu-lab/alpaca_eval` on the Hub. Its license (CC BY-NC 4.0) differs
    from the license of this package, so the package does not include it.

    Args:
        path (`str` or `Path`):
            The file.

    Returns:
        [`Anchors`]: The anchors.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If a column is missing, or the file is not a table of numbers.
    """
    try:
        rows = read_rows(Path(expand_path(path)))
    except OSError as error:
        raise type(error)(f"{path} cannot be read ({error.strerror}). Pass `df_gamed.csv` of AlpacaEval.") from None
    columns = ("preference", "index", "std_delta_len", "instruction_difficulty")
    missing = [name for name in columns if not rows or name not in rows[0]]
    if missing:
        raise ValueError(f"{path} lacks the columns {missing}. Pass `df_gamed.csv` of AlpacaEval.")
    try:
        preferences, index, lengths, difficulties = (np.array([float(row[name]) for row in rows]) for name in columns)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path} has cells that are no numbers ({error}). Pass `df_gamed.csv` of AlpacaEval."
        ) from error
    first_rows = np.unique(index, return_index=True)[1]  # (instructions,)
    return Anchors(preferences, np.tanh(lengths), difficulties, difficulties[first_rows])


def length_controlled_win_rate(
    preferences: Sequence[float | None],
    lengths: Sequence[int],
    reference_lengths: Sequence[int],
    *,
    anchors: Anchors | None = None,
    level: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    r"""
    Computes the win rate that a logistic model of the preferences predicts at equal length.

    $$p_i = \sigma(\theta + \phi \tanh(\Delta_i / s_\Delta) + \psi \gamma_i),\qquad
    \text{LC} = \frac{1}{N} \sum_i \sigma(\theta + \psi \gamma_i)$$

    Δ is the reference's length minus the policy's length, s is the standard deviation of Δ, and γ is the difficulty of
    an instruction.

    Without anchors there are no difficulties, and the model has no term ψγ. The fit maximizes the likelihood with a
    ridge penalty of 1/100. The penalty keeps the terms finite if one side always wins. If all differences in length
    are equal, the effect of length is unknown. Then φ is 0 and the result is the win rate.

    With `anchors`, on AlpacaEval's own annotations, the result is AlpacaEval's length-controlled win rate. The fit
    minimizes ‖(θ, φ, ψ)‖₁ + C · log loss, and five-fold cross-validation selects C. Recent versions of scikit-learn
    order the folds differently, so results may differ slightly. docs/results.md lists the differences.

    Args:
        preferences (`Sequence[float]`):
            One preference per prompt, in [0, 1]. 1 means that the policy's output wins. `None` means no preference,
            and the fit ignores that prompt.
        lengths (`Sequence[int]`):
            Lengths of the policy's outputs, in characters.
        reference_lengths (`Sequence[int]`):
            Lengths of the reference's outputs, in characters.
        anchors ([`Anchors`], *optional*):
            Anchors for AlpacaEval's 805 instructions, in its order.
        level (`float`, *optional*, defaults to `0.95`):
            Level of the interval, in (0, 1).
        resamples (`int`, *optional*, defaults to `200`):
            Number of resamples of the prompts for the interval. The model is fitted again on each resample, with the
            same C.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resampling.

    Returns:
        `dict`: `length_controlled_win_rate` in [0, 1], its bootstrap `interval` over prompts, `length_effect` (φ:
        below 0 if longer outputs win), and `prompts`, the number of prompts in the fit.

    Raises:
        ValueError: If the lists differ in length, a length is not a number >= 0, fewer than five prompts have a
            preference, a preference is outside [0, 1], `level` is out of range, or there are more prompts than
            difficulties.

    Reference:
        Length-Controlled AlpacaEval, [Dubois et al. 2024](https://arxiv.org/abs/2404.04475). The details follow
        [`glm_winrate.py` of
        AlpacaEval](https://github.com/tatsu-lab/alpaca_eval/blob/cd543a1/src/alpaca_eval/metrics/glm_winrate.py).
    """
    values = _check_inputs(preferences, lengths, reference_lengths, anchors)
    if not 0 < level < 1:
        raise ValueError(f"`level` must be in (0, 1), got {level}.")
    features = _build_features(np.subtract(reference_lengths, lengths).astype(float), anchors)  # (prompts, terms)
    anchor_rows = _build_anchor_rows(anchors)

    known = np.flatnonzero(~np.isnan(values))
    strength = None
    if anchors is not None:
        strength = _select_strength(*_stack_rows(anchor_rows, features[known], values[known]))

    def fit_prompts(rows: np.ndarray) -> np.ndarray:
        return _fit(*_stack_rows(anchor_rows, features[rows], values[rows]), strength, np.random.RandomState(SEED))

    def predict_at_equal_length(terms: np.ndarray) -> float:
        return float((1 / (1 + np.exp(-(features[:, 1:] @ terms[1:])))).mean())

    terms = fit_prompts(known)
    interval = scipy.stats.bootstrap(
        (known,),
        lambda rows: predict_at_equal_length(fit_prompts(rows)),
        vectorized=False,
        n_resamples=resamples,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return {
        "length_controlled_win_rate": predict_at_equal_length(terms),
        "interval": (float(interval.low), float(interval.high)),
        "length_effect": float(terms[0]),
        "prompts": len(known),
    }


def _check_inputs(
    preferences: Sequence[float | None],
    lengths: Sequence[int],
    reference_lengths: Sequence[int],
    anchors: Anchors | None,
) -> np.ndarray:
    """Checks the inputs. Returns the preferences with NaN for a missing one, of shape `(prompts,)`."""
    if not len(preferences) == len(lengths) == len(reference_lengths):
        raise ValueError(
            f"`preferences`, `lengths` and `reference_lengths` have {len(preferences)}, {len(lengths)} and "
            f"{len(reference_lengths)} entries. Pass one of each per prompt."
        )
    for name, sizes in (("lengths", lengths), ("reference_lengths", reference_lengths)):
        for row, size in enumerate(sizes):
            if size is None or not 0 <= size < np.inf:
                raise ValueError(f"`{name}` row {row} is {size}, but a length is a number of characters.")
    values = np.array([np.nan if value is None else value for value in preferences], dtype=float)
    if (~np.isnan(values)).sum() < FOLDS:
        raise ValueError(f"`preferences` has {(~np.isnan(values)).sum()} values, but the fit needs at least {FOLDS}.")
    if ((values < 0) | (values > 1)).any():
        row = int(((values < 0) | (values > 1)).argmax())
        raise ValueError(f"`preferences` row {row} is {values[row]}, but a preference is in [0, 1].")
    if anchors is not None:
        _check_instructions(len(values), anchors)
    return values


def require_anchored(prompts: int, anchors: Anchors) -> None:
    """
    Checks that there are not more prompts than anchored instructions.

    Args:
        prompts (`int`):
            Number of prompts.
        anchors ([`Anchors`]):
            AlpacaEval's anchors.

    Raises:
        ValueError: If there are more.
    """
    instructions = len(anchors.by_instruction)
    if prompts > instructions:
        raise ValueError(
            f"There are {prompts} prompts, but `anchors` has {instructions} instructions. Use `anchors` only with "
            "AlpacaEval's data."
        )


def _check_instructions(prompts: int, anchors: Anchors) -> None:
    require_anchored(prompts, anchors)
    instructions = len(anchors.by_instruction)
    if prompts < instructions:
        logger.warning(
            f"There are {prompts} prompts for the {instructions} instructions of `anchors`. Difficulties are matched "
            "by position, so all prompts after the first missing one get the difficulty of another instruction. The "
            "published values have the same error. For a part of the set, do not pass `anchors`."
        )


def _build_features(differences: np.ndarray, anchors: Anchors | None) -> np.ndarray:
    """Builds the features `(prompts, terms)`: length, difficulty (only with anchors), and the policy's constant."""
    standard_deviation = differences.std(ddof=1)
    length = np.tanh(differences / standard_deviation) if standard_deviation > 0 else np.zeros_like(differences)
    difficulty = [] if anchors is None else [anchors.by_instruction[: len(differences)]]
    return np.stack([length, *difficulty, np.ones_like(length)], axis=1)


WeightedRows = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Features, preferences and weights."""


def _build_anchor_rows(anchors: Anchors | None) -> WeightedRows | None:
    if anchors is None:
        return None
    terms = [anchors.length_terms, anchors.difficulties, np.zeros_like(anchors.length_terms)]
    return np.stack(terms, axis=1), anchors.preferences, np.full(len(anchors.preferences), ANCHOR_WEIGHT)


def _stack_rows(anchor_rows: WeightedRows | None, features: np.ndarray, preferences: np.ndarray) -> WeightedRows:
    """Puts the anchors before the rows of the policy."""
    rows = features, preferences, np.ones(len(preferences))
    return rows if anchor_rows is None else tuple(np.concatenate(pair) for pair in zip(anchor_rows, rows, strict=True))


def _fit(
    features: np.ndarray,
    preferences: np.ndarray,
    weights: np.ndarray,
    strength: float | None,
    state: np.random.RandomState,
) -> np.ndarray:
    """Fits the terms. Each row counts once as a win and once as a loss, weighted with its preference."""
    if strength is None:
        model = LogisticRegression(C=RIDGE, fit_intercept=False)
    else:
        model = LogisticRegression(
            C=strength, l1_ratio=1.0, solver="liblinear", fit_intercept=False, random_state=state
        )
    # scikit-learn drops a label whose weights are all zero, and then it would take the other label for it.
    shares = preferences.clip(MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    shares = np.concatenate([shares * weights, (1 - shares) * weights])
    labels = np.repeat([1, 0], len(preferences))
    with warnings.catch_warnings():
        # With a weak penalty the solver may stop early. This also happened for the published values.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(np.concatenate([features, features]), labels, sample_weight=shares).coef_[0]


def _select_strength(features: np.ndarray, preferences: np.ndarray, weights: np.ndarray) -> float:
    likelihoods = np.zeros((FOLDS, len(STRENGTHS)))
    folds = GroupKFold(FOLDS).split(features, groups=np.arange(len(features)))
    for fold, (train, test) in enumerate(folds):
        state = np.random.RandomState(SEED)  # one state for all strengths, as in scikit-learn's own cross-validation
        for column, strength in enumerate(STRENGTHS):
            terms = _fit(features[train], preferences[train], weights[train], strength, state)
            predicted = np.clip(1 / (1 + np.exp(-(features[test] @ terms))), 1e-15, 1 - 1e-15)
            log_likelihoods = preferences[test] * np.log(predicted) + (1 - preferences[test]) * np.log(1 - predicted)
            likelihoods[fold, column] = (weights[test] * log_likelihoods).mean()
    return float(STRENGTHS[likelihoods.mean(axis=0).argmax()])
