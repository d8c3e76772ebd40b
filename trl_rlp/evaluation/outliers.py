"""Outliers in a reward model's representation: texts that it represents unlike the human data."""

import numpy as np
from datasets import Dataset
from sklearn.covariance import ledoit_wolf_shrinkage
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.batching import eval_mode, pad_right, require_context, split_by_token_budget
from trl_rlp.data.columns import list_finished
from trl_rlp.data.row_scores import require_reward_model
from trl_rlp.data.score_inputs import capture_score_inputs, find_score_layers, select_scored_states
from trl_rlp.data.scoring import batch_scoring_ids
from trl_rlp.data.template_options import list_template_options
from trl_rlp.data.turns import Messages
from trl_rlp.data.validation import require_preferences
from trl_rlp.storage.processes import share_work


MIN_TEXTS = 100
"""Smallest number of texts. Half of them give the limit. With fewer, more than 3 % of normal texts are outliers."""


class MahalanobisOutliers:
    r"""
    Tells which representations are far from those of a set of normal texts. The idea is InfoRM's.

    $$d(h)^2 = (h - \mu)^\top \Sigma^{-1} (h - \mu)$$

    μ and Σ are the mean and the covariance of one half of the normal texts. Σ is shrunk by Ledoit and Wolf's method,
    so it has an inverse for any number of texts. A text is an outlier if its distance is above the 99th percentile of
    the other half. So about 1 % of normal texts are outliers. The expected share is (0.01 m + 0.99) / (m + 1) if that
    half has m texts: 2.9 % for 50 and 1.2 % for 500.

    InfoRM measures the distance from the responses of the SFT policy, in the latent space of a reward model with an
    information bottleneck. This class accepts any representation. It needs no assumption of a normal distribution,
    because the limit comes from texts that the covariance has not seen.

    Args:
        states (`np.ndarray` of shape `(texts, hidden)`):
            Representations of the normal texts, at least [`MIN_TEXTS`]. The first half of the rows gives μ and Σ, the
            second half the limit.
        percentile (`float`, *optional*, defaults to `99.0`):
            Percentile of the second half that is the limit, in (0, 100].

    Attributes:
        limit (`float`):
            Distance above which a text is an outlier.

    Raises:
        ValueError: If there are too few texts, a number is not finite, or all representations are equal.

    Reference:
        [Miao et al. 2024](https://arxiv.org/abs/2402.09345) and [Miao et al. 2025](https://arxiv.org/abs/2510.13694),
        where the share of outliers is the Mahalanobis Outlier Probability.

    Example:

    ```python
    outliers = MahalanobisOutliers(represent_pairs(reward_model, tokenizer, preferences))
    share = outliers.is_outlier(represent(reward_model, tokenizer, prompts, completions)).mean()
    ```
    """

    def __init__(self, states: np.ndarray, percentile: float = 99.0):
        states = np.asarray(states, dtype=np.float64)
        if len(states) < MIN_TEXTS:
            raise ValueError(f"`states` has {len(states)} texts, but outliers need at least {MIN_TEXTS}. Pass more.")
        if not np.isfinite(states).all():
            raise ValueError("`states` has NaN or infinite numbers. Check the weights and the dtype of the model.")
        first, second = states[: len(states) // 2], states[len(states) // 2 :]
        self._mean = first.mean(axis=0)
        centered = first - self._mean  # (texts / 2, hidden)
        if not centered.any():
            raise ValueError("All representations in `states` are equal, so no distance is defined. Check the model.")
        shrinkage = float(ledoit_wolf_shrinkage(centered, assume_centered=True))
        # The eigenvectors of the covariance with an eigenvalue above 0 are the right singular vectors. Their number is
        # at most the number of texts, so a covariance of `hidden` x `hidden` is never built.
        _, singular, self._directions = np.linalg.svd(centered, full_matrices=False)
        eigenvalues = singular**2 / len(first)
        self._isotropic = shrinkage * eigenvalues.sum() / states.shape[1]
        self._variances = (1 - shrinkage) * eigenvalues + self._isotropic
        self.limit = float(np.percentile(self.distances(second), percentile))

    def distances(self, states: np.ndarray) -> np.ndarray:
        """
        Computes Mahalanobis distances.

        Args:
            states (`np.ndarray` of shape `(texts, hidden)`):
                Representations.

        Returns:
            `np.ndarray` of shape `(texts,)`: The distances, at least 0. A representation that is not finite is
            infinitely far.
        """
        centered = np.asarray(states, dtype=np.float64) - self._mean  # (texts, hidden)
        is_finite = np.isfinite(centered).all(axis=1)
        centered = np.where(is_finite[:, None], centered, 0)
        projected = centered @ self._directions.T  # (texts, directions)
        squares = _divide(projected**2, self._variances).sum(axis=1)
        if self._directions.shape[0] < centered.shape[1]:
            rest = (centered**2).sum(axis=1) - (projected**2).sum(axis=1)
            squares += _divide(np.maximum(rest, 0), self._isotropic)
        return np.where(is_finite, np.sqrt(squares), np.inf)

    def is_outlier(self, states: np.ndarray) -> np.ndarray:
        """
        Tells which texts are outliers.

        Args:
            states (`np.ndarray` of shape `(texts, hidden)`):
                Representations.

        Returns:
            `np.ndarray` of `bool`, of shape `(texts,)`.
        """
        return self.distances(states) > self.limit


def _divide(squares: np.ndarray, variances: np.ndarray | float) -> np.ndarray:
    """Divides squares by variances. A direction without variance gives 0."""
    return np.divide(squares, variances, out=np.zeros_like(squares), where=np.asarray(variances) > 0)


def represent(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    prompts: list[str | Messages],
    completions: list[str | Messages],
    finished: list[bool] | None = None,
    *,
    max_length: int | None = None,
    tokens_per_batch: int = 8192,
    template_options: list[dict] | None = None,
) -> np.ndarray:
    """
    Computes the representation of each completion: the input of the reward model's score head at the scored token.

    It costs as much as [`score`]. The processes of `accelerate launch` share the batches, so each of them must call
    the function with the same texts.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Reward model, `num_labels=1`, with a linear score head.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of `model`.
        prompts (`list`):
            Prompts, all text or all messages.
        completions (`list`):
            One completion per prompt.
        finished (`list[bool]`, *optional*):
            Whether each completion ended with EOS. Defaults to `True` for all.
        max_length (`int`, *optional*):
            Maximum number of tokens per row, as in [`score`].
        tokens_per_batch (`int`, *optional*, defaults to `8192`):
            Maximum number of tokens per batch, padding included.
        template_options (`list[dict]`, *optional*):
            Further arguments of `apply_chat_template` for each row.

    Returns:
        `np.ndarray` of shape `(texts, hidden)`: The representations, in fp32.

    Raises:
        TypeError, ValueError: If the model is not a reward model, has no linear score head, or a row is too long.
    """
    require_reward_model(model)
    layers = find_score_layers(model)
    rows = batch_scoring_ids(processing_class, prompts, completions, finished, max_length, template_options)
    require_context(model, [len(ids) for ids in rows])
    pad_token_id = model.config.get_text_config().pad_token_id
    if pad_token_id is None:  # the model reads one row at a time, and no token of it is padding
        pad_token_id, tokens_per_batch = -1, 1
    batches = split_by_token_budget([len(ids) for ids in rows], tokens_per_batch)

    def represent_batches(own: list[list[int]]) -> list[np.ndarray]:
        states = []
        with eval_mode(model):
            for batch in own:
                input_ids, mask = pad_right([rows[row] for row in batch], pad_token_id, model.device)
                with capture_score_inputs(layers) as captured:
                    model(input_ids=input_ids, attention_mask=mask, use_cache=False)
                states.append(select_scored_states(captured[-1], input_ids, pad_token_id))
        return [state.float().cpu().numpy() for state in states]

    parts = share_work(batches, represent_batches)
    states = np.empty((len(rows), parts[0].shape[1]), dtype=np.float32)
    for batch, part in zip(batches, parts, strict=True):
        states[batch] = part
    return states


def represent_pairs(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    preferences: Dataset,
    *,
    max_length: int | None = None,
    max_texts: int = 1000,
) -> np.ndarray:
    """
    Computes the representations of both sides of labeled pairs.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Reward model, as in [`represent`].
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of `model`.
        preferences ([`~datasets.Dataset`]):
            TRL's preference format, as text or messages, with an explicit or implicit prompt. The columns
            `chosen_finished` and `rejected_finished` are optional. Without them, or with `None`, completions count as
            finished.
        max_length (`int`, *optional*):
            Maximum number of tokens per row, as in [`score`].
        max_texts (`int`, *optional*, defaults to `1000`):
            Maximum number of texts. The pairs are spread evenly over the dataset.

    Returns:
        `np.ndarray` of shape `(texts, hidden)`: Both sides of every second pair, then both sides of the other pairs.

    Raises:
        TypeError, ValueError: If `preferences` are not labeled pairs, or for the same reasons as [`represent`].
    """
    preferences = require_preferences(preferences, "preferences")
    count = min(len(preferences), max(1, max_texts // 2))
    order = [*range(0, count, 2), *range(1, count, 2)]
    pairs = preferences.select([row * len(preferences) // count for row in order])
    columns, sides = pairs.column_names, ("chosen", "rejected")
    texts = [row[side] for row in pairs for side in sides]
    default = "" if isinstance(texts[0], str) else []
    finished = zip(*(list_finished(pairs, side) for side in sides), strict=True)
    return represent(
        model,
        processing_class,
        [prompt for prompt in (pairs["prompt"] if "prompt" in columns else [default] * count) for _ in sides],
        texts,
        [flag for flags in finished for flag in flags],
        max_length=max_length,
        template_options=[options for options in list_template_options(pairs) or [{}] * count for _ in sides],
    )
