"""Quality of the models of a quickstart run: policies on held-out questions, and reward models on labeled pairs."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from trl_rlp.evaluation.gate_report import RewardModel, compare_on_sets
from trl_rlp.evaluation.policy_pairs import is_correct
from trl_rlp.evaluation.policy_report import describe_policies
from trl_rlp.evaluation.reward_metrics import standard_error


NUM_KL_QUESTIONS = 24
COMPARISONS = (("policy", "sft"), ("retrained_policy", "sft"), ("retrained_policy", "policy"))


def wilson_interval(share: float, size: int, z: float = 1.96) -> tuple[float, float]:
    r"""
    Computes Wilson's confidence interval of a share.

    $$\frac{p + z^2 / 2n \pm z \sqrt{p(1-p)/n + z^2/4n^2}}{1 + z^2/n}$$

    Args:
        share (`float`):
            p, in [0, 1].
        size (`int`):
            n, the number of independent trials.
        z (`float`, *optional*, defaults to `1.96`):
            Number of standard deviations. 1.96 gives a level of 95%.

    Returns:
        `tuple[float, float]`: Lower and upper end, in [0, 1].

    Reference:
        Wilson 1927, "Probable inference, the law of succession, and statistical inference", Journal of the American
        Statistical Association 22.
    """
    center = share + z * z / (2 * size)
    half_width = z * math.sqrt(share * (1 - share) / size + z * z / (4 * size * size))
    return (center - half_width) / (1 + z * z / size), (center + half_width) / (1 + z * z / size)


def compute_accuracies(samples: Dataset, answers: Sequence[Sequence[str]]) -> np.ndarray:
    """
    Computes the share of correct completions for each question. An unfinished completion is never correct.

    Args:
        samples ([`~datasets.Dataset`]):
            Columns `completions` and `finished`.
        answers (`Sequence[Sequence[str]]`):
            Accepted answers of each row.

    Returns:
        `numpy.ndarray` of shape `(questions,)`: Shares in [0, 1].
    """
    return np.array(
        [
            np.mean([done and is_correct(text, accepted) for text, done in zip(texts, finished, strict=True)])
            for texts, finished, accepted in zip(samples["completions"], samples["finished"], answers, strict=True)
        ]
    )  # (questions,)


def _compare_shares(after: np.ndarray, before: np.ndarray) -> dict[str, float | None]:
    differences = after - before  # (questions,)
    return {"difference": float(np.mean(differences)), "standard_error": standard_error(differences)}


def measure_policies(
    folder: Path, policies: dict[str, str | Path], questions: Dataset, sampling: dict[str, Any]
) -> dict[str, Any]:
    """
    Measures every policy on the same held-out questions.

    Args:
        folder (`Path`):
            Folder for the samples. Each policy gets a subfolder with its name.
        policies (`dict[str, str]`):
            Folders of `sft`, `policy` and `retrained_policy`. `sft` is the reference of the KL divergence.
        questions ([`~datasets.Dataset`]):
            Columns `prompt` and `answers`.
        sampling (`dict`):
            Further arguments of [`sample_completions`].

    Returns:
        `dict`: The results:
        - `policies`: For each policy, `accuracy` (mean over questions), its `interval`, `finished`, and `kl` (nats per
          completion, on the first 24 questions). The interval is Wilson's at 95%. Its trials are the questions,
          because completions of one question are not independent.
        - `comparisons`: For each pair of policies, the paired `difference` of accuracy and its `standard_error` over
          questions.
        - `questions` and `completions_per_question`: Counts.
    """
    metrics, samples = describe_policies(
        folder, policies, questions, sampling, reference="sft", num_kl_prompts=NUM_KL_QUESTIONS
    )
    answers = list(questions["answers"])
    shares = {name: compute_accuracies(samples[name], answers) for name in policies}
    accuracies = {name: float(np.mean(shares[name])) for name in policies}
    return {
        "policies": {
            name: {
                "accuracy": accuracies[name],
                "interval": wilson_interval(accuracies[name], len(questions)),
                "finished": metrics[name]["finished"],
                "kl": metrics[name]["kl"],
            }
            for name in policies
        },
        "comparisons": {
            f"{after} - {before}": _compare_shares(shares[after], shares[before]) for after, before in COMPARISONS
        },
        "questions": len(questions),
        "completions_per_question": sampling["num_generations"],
    }


def compare_rewards(before: RewardModel, after: RewardModel, sets: dict[str, Dataset]) -> dict[str, Any]:
    """
    Compares two reward models on sets of labeled pairs.

    Args:
        before (`tuple[PreTrainedModel, PreTrainedTokenizerBase]` or `str` or `Path`):
            Reward model and its tokenizer, or their folder or Hub name (r in the paper).
        after (`tuple[PreTrainedModel, PreTrainedTokenizerBase]` or `str` or `Path`):
            Refined reward model and its tokenizer, or their folder or Hub name (r̂ in the paper).
        sets (`dict[str, datasets.Dataset]`):
            Preferences by name. Empty sets are skipped.

    Returns:
        `dict`: For each set, `before` and `after` (results of [`pair_metrics`]) and `difference` (paired difference of
        the accuracy, where a tie counts one half).
    """
    return compare_on_sets(before, after, {name: pairs for name, pairs in sets.items() if len(pairs)})
