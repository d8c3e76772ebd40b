"""All metrics of one evaluation: from annotations, a saved reward model and saved samples to `metrics.json`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from trl_rlp.data.validation import require_preferences, require_sample_answers, require_samples
from trl_rlp.evaluation.alpaca_eval import Rows
from trl_rlp.evaluation.annotation_report import describe_win_rates
from trl_rlp.evaluation.length_control import Anchors
from trl_rlp.evaluation.policy_metrics import describe_outputs, kl_to_reference, require_same_ids
from trl_rlp.evaluation.reward_bench import reward_bench_pairs
from trl_rlp.evaluation.reward_report import describe_reward_model
from trl_rlp.storage.artifacts import load_policy, load_reward_model
from trl_rlp.storage.json_files import replace_nan, write_json
from trl_rlp.storage.loading import load_rows
from trl_rlp.storage.paths import expand_path


METRICS_FILE = "metrics.json"


def collect_metrics(
    *,
    annotations: Sequence[Rows] = (),
    judge_counts: dict[str, int] | None = None,
    anchors: Anchors | None = None,
    reward_model: str | Path | None = None,
    preferences: str | Path | None = None,
    samples: str | Path | None = None,
    policy: str | Path | None = None,
    reference_policy: str | Path | None = None,
    max_length: int | None = None,
    model_options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """
    Computes the metrics of everything that is passed.

    Args:
        annotations (`Sequence[list[dict]]`, *optional*):
            Annotations of one or two policies.
        judge_counts (`dict[str, int]`, *optional*):
            Counts of the judge's answers, from [`judge_outputs`].
        anchors ([`Anchors`], *optional*):
            AlpacaEval's anchors, for `annotations`.
        reward_model (`str` or `Path`, *optional*):
            Folder or Hub name of a reward model. Required with `preferences`.
        preferences (`str` or `Path`, *optional*):
            Labeled pairs for the reward model, as in [`describe_saved_reward_model`].
        samples (`str` or `Path`, *optional*):
            Policy samples, as in [`describe_saved_samples`].
        policy (`str` or `Path`, *optional*):
            Folder or Hub name of the policy of `samples`, for the KL divergence.
        reference_policy (`str` or `Path`, *optional*):
            Folder or Hub name of the reference policy. Required with `policy`.
        max_length (`int`, *optional*):
            Maximum number of tokens per row for the reward model, as in [`score`].
        model_options (`dict`, *optional*):
            Further arguments of [`load_policy`] and [`load_reward_model`].

    Returns:
        `dict`: The result of [`describe_win_rates`], `judge` (`judge_counts`), `reward_model` (the result of
        [`describe_saved_reward_model`]) and `policy` (the result of [`describe_saved_samples`]), as far as passed.
    """
    metrics: dict[str, Any] = describe_win_rates(annotations, anchors)
    if judge_counts is not None:
        metrics["judge"] = judge_counts
    if preferences is not None:
        metrics["reward_model"] = describe_saved_reward_model(
            reward_model, preferences, max_length=max_length, model_options=model_options
        )
    if samples is not None:
        metrics["policy"] = describe_saved_samples(samples, policy, reference_policy, model_options=model_options)
    return metrics


def write_metrics(folder: str | Path, metrics: dict[str, Any]) -> Path:
    """
    Writes the metrics of an evaluation to `metrics.json`. NaN and infinity become null.

    Args:
        folder (`str` or `Path`):
            Folder of the file. It is created if it does not exist.
        metrics (`dict`):
            From [`collect_metrics`].

    Returns:
        `Path`: The file.
    """
    folder = Path(expand_path(folder))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / METRICS_FILE, replace_nan(metrics))
    return folder / METRICS_FILE


def load_pairs(preferences: str | Path, *, chat: bool = False) -> Dataset:
    """
    Loads labeled pairs and checks them.

    Args:
        preferences (`str` or `Path`):
            Labeled pairs, as in [`describe_saved_reward_model`].
        chat (`bool`, *optional*, defaults to `False`):
            Whether to convert texts in RewardBench's format to messages, as in [`reward_bench_pairs`].

    Returns:
        `datasets.Dataset`: TRL's preference format, and `subset` if the pairs have it.

    Raises:
        OSError, TypeError, ValueError: If the pairs cannot be loaded, or are no labeled pairs.
    """
    pairs = load_rows(preferences)
    if {"subset", "question", "input"} & set(pairs.column_names):
        return reward_bench_pairs(pairs, chat=chat)
    return require_preferences(pairs)


def load_samples(samples: str | Path) -> Dataset:
    """
    Loads policy samples and checks them.

    Args:
        samples (`str` or `Path`):
            Policy samples, as in [`describe_saved_samples`].

    Returns:
        `datasets.Dataset`: The samples.

    Raises:
        OSError, TypeError, ValueError: If the samples cannot be loaded, are no policy samples, or have an answer that
            is neither text nor a list of texts.
    """
    rows = require_samples(load_rows(samples), "samples")
    if "answers" in rows.column_names:
        require_sample_answers(rows["answers"][:], rows)
    return rows


def describe_saved_reward_model(
    reward_model: str | Path,
    preferences: str | Path,
    *,
    max_length: int | None = None,
    model_options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """
    Loads a reward model and labeled pairs, and computes all metrics.

    Args:
        reward_model (`str` or `Path`):
            Folder or Hub name of the reward model.
        preferences (`str` or `Path`):
            Labeled pairs, as a name for [`load_rows`]: TRL's preference format, or RewardBench's format with a column
            `subset`, `question` or `input`.
        max_length (`int`, *optional*):
            Maximum number of tokens per row, as in [`score`].
        model_options (`dict`, *optional*):
            Further arguments of [`load_reward_model`].

    Returns:
        `dict`: The result of [`describe_reward_model`].

    Raises:
        OSError, TypeError, ValueError: If the model or the pairs cannot be loaded, or for the same reasons as
            [`describe_reward_model`].
    """
    model, processing_class = load_reward_model(reward_model, **(model_options or {}))
    pairs = load_pairs(preferences, chat=processing_class.chat_template is not None)
    return describe_reward_model(model, processing_class, pairs, max_length=max_length)


def describe_saved_samples(
    samples: str | Path,
    policy: str | Path | None = None,
    reference_policy: str | Path | None = None,
    *,
    model_options: dict[str, Any] | None = None,
) -> dict[str, float]:
    """
    Loads policy samples and computes their metrics.

    Args:
        samples (`str` or `Path`):
            Policy samples, as a name for [`load_rows`]. With a column `answers`, the metrics include the accuracy.
        policy (`str` or `Path`, *optional*):
            Folder or Hub name of the policy of the samples. Without it, the KL divergence is not computed.
        reference_policy (`str` or `Path`, *optional*):
            Folder or Hub name of the reference policy. Required with `policy`.
        model_options (`dict`, *optional*):
            Further arguments of [`load_policy`].

    Returns:
        `dict[str, float]`: The result of [`describe_outputs`], and with `policy` also `kl` in nats per completion.

    Raises:
        OSError, TypeError, ValueError: If the samples or a policy cannot be loaded, or for the same reasons as
            [`describe_outputs`], [`require_same_ids`] and [`kl_to_reference`].
    """
    rows = load_samples(samples)
    metrics = describe_outputs(rows, rows["answers"][:] if "answers" in rows.column_names else None)
    if policy is not None:
        model, processing_class = load_policy(policy, **(model_options or {}))
        reference, reference_processing_class = load_policy(reference_policy, **(model_options or {}))
        require_same_ids(processing_class, reference_processing_class)
        metrics["kl"] = kl_to_reference(model, reference, processing_class, rows)
    return metrics
