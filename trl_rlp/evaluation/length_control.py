"""A win rate at equal length: what a policy's would be if its outputs were as long as the reference's."""

import csv
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


logger = logging.get_logger(__name__)

STRENGTHS = np.logspace(-4, 4, 10)
"""C of the fit, the inverse of the penalty's weight: cross-validation chooses one."""

RIDGE = 100.0
"""C of the fit without anchors."""

CERTAIN = 1e-9
FOLDS = 5
SEED = 123
ANCHOR_WEIGHT = 0.1


@dataclass(frozen=True)
class Anchors:
    """
    AlpacaEval's judgements of its baseline told to be verbose and to be concise: they show what length alone does.

    Args:
        preferences (`numpy.ndarray` of shape `(anchors,)`):
            In [0, 1].
        length_terms (`numpy.ndarray` of shape `(anchors,)`):
            tanh of the standardized differences in length, in (-1, 1).
        difficulties (`numpy.ndarray` of shape `(anchors,)`):
            Of the instruction of each anchor.
        by_instruction (`numpy.ndarray` of shape `(instructions,)`):
            Difficulties of the evaluation set's instructions, in its order.
    """

    preferences: np.ndarray
    length_terms: np.ndarray
    difficulties: np.ndarray
    by_instruction: np.ndarray


def load_anchors(path: str | Path) -> Anchors:
    """
    Reads the anchors that AlpacaEval's published values were fitted with.

    The file is `df_gamed.csv` of the data set `tatsu-lab/alpaca_eval` on the Hub; its licence (CC BY-NC 4.0) is not
    this package's, so it is not part of it.

    Args:
        path (`str` or `Path`):
            The file.

    Returns:
        [`Anchors`].

    Raises:
        ValueError: if it is another file.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise type(error)(f"{path} cannot be read ({error.strerror}). Pass `df_gamed.csv` of AlpacaEval.") from None
    columns = ("preference", "index", "std_delta_len", "instruction_difficulty")
    missing = [name for name in columns if not rows or name not in rows[0]]
    if missing:
        raise ValueError(f"{path} lacks the columns {missing}. Pass `df_gamed.csv` of AlpacaEval.")
    preferences, index, lengths, difficulties = (np.array([float(row[name]) for row in rows]) for name in columns)
    order = np.unique(index, return_index=True)[1]
    return Anchors(preferences, np.tanh(lengths), difficulties, difficulties[order])


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
    Gives the win rate that a logistic model of the preferences predicts at equal length.

    $$p_i = \sigma(\theta + \phi \tanh(\Delta_i / s_\Delta) + \psi \gamma_i),\qquad
    \text{LC} = \frac{1}{N} \sum_i \sigma(\theta + \psi \gamma_i)$$

    Δ is the reference's length minus the policy's, s its deviation, γ the difficulty of an instruction. Without
    anchors there are no difficulties, ψγ is left out, and the fit is that of the highest likelihood with a ridge of
    1/100, which keeps terms finite where one side always wins. Where all differences in length are equal nothing can
    be told of length, φ is 0, and the result is the win rate.

    On AlpacaEval's own annotations, with `anchors`, this is its length-controlled win rate: the fit minimizes
    ‖(θ, φ, ψ)‖₁ + C · log loss, C chosen by five-fold cross-validation, whose folds today's scikit-learn deals out in
    another order (docs/results.md says how near it comes).

    Args:
        preferences (`Sequence[float]`):
            One a prompt, in [0, 1]: 1 where the policy's output wins. `None` where there is none; such a prompt does
            not enter the fit.
        lengths (`Sequence[int]`):
            Of the policy's outputs, in characters.
        reference_lengths (`Sequence[int]`):
            Of the reference's outputs.
        anchors ([`Anchors`], *optional*):
            For AlpacaEval's 805 instructions, in its order.
        level (`float`, *optional*, defaults to `0.95`):
            Of the interval, in (0, 1).
        resamples (`int`, *optional*, defaults to `200`):
            Resamples of the prompts that the interval is taken from, each fitted anew with the same C.
        seed (`int`, *optional*, defaults to `0`):
            Decides the resamples.

    Returns:
        `dict`: `length_controlled_win_rate` in [0, 1]; its bootstrap `interval` over prompts; `length_effect`, φ:
        below 0 where longer outputs win; `prompts` that entered the fit.

    Raises:
        ValueError: if the lists differ in length, a length is no number from 0 on, fewer than five prompts have a
            preference, one is outside [0, 1], or there are more prompts than difficulties.

    Reference:
        Dubois et al. 2024, Length-Controlled AlpacaEval, https://arxiv.org/abs/2404.04475; the details are those of
        https://github.com/tatsu-lab/alpaca_eval/blob/cd543a1/src/alpaca_eval/metrics/glm_winrate.py.
    """
    values = _checked(preferences, lengths, reference_lengths, anchors)
    if not 0 < level < 1:
        raise ValueError(f"`level` must be in (0, 1), got {level}.")
    own = _features(np.subtract(reference_lengths, lengths).astype(float), anchors)  # (prompts, terms)
    fixed = _anchor_rows(anchors)

    known = np.flatnonzero(~np.isnan(values))
    strength = None if anchors is None else _chosen_strength(*_stacked(fixed, own[known], values[known]))

    def fitted(rows: np.ndarray) -> np.ndarray:
        return _fit(*_stacked(fixed, own[rows], values[rows]), strength, np.random.RandomState(SEED))

    def at_equal_length(terms: np.ndarray) -> float:
        return float((1 / (1 + np.exp(-(own[:, 1:] @ terms[1:])))).mean())

    terms = fitted(known)
    interval = scipy.stats.bootstrap(
        (known,),
        lambda rows: at_equal_length(fitted(rows)),
        vectorized=False,
        n_resamples=resamples,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return {
        "length_controlled_win_rate": at_equal_length(terms),
        "interval": (float(interval.low), float(interval.high)),
        "length_effect": float(terms[0]),
        "prompts": len(known),
    }


def _checked(
    preferences: Sequence[float | None],
    lengths: Sequence[int],
    reference_lengths: Sequence[int],
    anchors: Anchors | None,
) -> np.ndarray:
    if not len(preferences) == len(lengths) == len(reference_lengths):
        raise ValueError(
            f"`preferences`, `lengths` and `reference_lengths` have {len(preferences)}, {len(lengths)} and "
            f"{len(reference_lengths)} entries. Give one of each a prompt."
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
    if anchors is not None and len(values) > len(anchors.by_instruction):
        raise ValueError(
            f"There are {len(values)} prompts, but `anchors` knows {len(anchors.by_instruction)} instructions. Leave "
            "`anchors` out for other data than AlpacaEval's."
        )
    if anchors is not None and len(values) < len(anchors.by_instruction):
        logger.warning(
            f"{len(values)} of the {len(anchors.by_instruction)} instructions that `anchors` knows are there, and "
            "difficulties go by position: from the first missing one on they are those of other instructions, as in "
            "the published values. For a part of the set leave `anchors` out."
        )
    return values


def _features(differences: np.ndarray, anchors: Anchors | None) -> np.ndarray:
    """Length, difficulty if there are anchors, and the policy itself: `(prompts, terms)`."""
    spread = differences.std(ddof=1)
    length = np.tanh(differences / spread) if spread > 0 else np.zeros_like(differences)
    difficulty = [] if anchors is None else [anchors.by_instruction[: len(differences)]]
    return np.stack([length, *difficulty, np.ones_like(length)], axis=1)


Rows = tuple[np.ndarray, np.ndarray, np.ndarray]  # features, preferences, weights


def _anchor_rows(anchors: Anchors | None) -> Rows | None:
    if anchors is None:
        return None
    terms = [anchors.length_terms, anchors.difficulties, np.zeros_like(anchors.length_terms)]
    return np.stack(terms, axis=1), anchors.preferences, np.full(len(anchors.preferences), ANCHOR_WEIGHT)


def _stacked(fixed: Rows | None, features: np.ndarray, preferences: np.ndarray) -> Rows:
    """Anchors first, then the policy's own rows."""
    own = features, preferences, np.ones(len(preferences))
    return own if fixed is None else tuple(np.concatenate(both) for both in zip(fixed, own, strict=True))


def _fit(
    features: np.ndarray,
    preferences: np.ndarray,
    weights: np.ndarray,
    strength: float | None,
    state: np.random.RandomState,
) -> np.ndarray:
    """Each row counts as a win and as a loss, weighted by how much of each it is."""
    if strength is None:
        model = LogisticRegression(C=RIDGE, fit_intercept=False)
    else:
        model = LogisticRegression(
            C=strength, l1_ratio=1.0, solver="liblinear", fit_intercept=False, random_state=state
        )
    # A label without any weight would be dropped, and the other one be taken for it.
    shares = preferences.clip(CERTAIN, 1 - CERTAIN)
    shares = np.concatenate([shares * weights, (1 - shares) * weights])
    labels = np.repeat([1, 0], len(preferences))
    with warnings.catch_warnings():
        # Under a weak penalty the solver may stop early, as it did for the published values.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(np.concatenate([features, features]), labels, sample_weight=shares).coef_[0]


def _chosen_strength(features: np.ndarray, preferences: np.ndarray, weights: np.ndarray) -> float:
    likelihoods = np.zeros((FOLDS, len(STRENGTHS)))
    folds = GroupKFold(FOLDS).split(features, groups=np.arange(len(features)))
    for fold, (train, held) in enumerate(folds):
        state = np.random.RandomState(SEED)  # one for the whole path, as scikit-learn's own cross-validation has it
        for place, strength in enumerate(STRENGTHS):
            terms = _fit(features[train], preferences[train], weights[train], strength, state)
            chance = np.clip(1 / (1 + np.exp(-(features[held] @ terms))), 1e-15, 1 - 1e-15)
            gains = preferences[held] * np.log(chance) + (1 - preferences[held]) * np.log(1 - chance)
            likelihoods[fold, place] = (weights[held] * gains).mean()
    return float(STRENGTHS[likelihoods.mean(axis=0).argmax()])
