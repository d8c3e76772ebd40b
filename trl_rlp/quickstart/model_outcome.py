"""How good the models of a quickstart run are: policies on held-out questions, reward models on labeled pairs."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from trl_rlp.data.sampling.in_process import sample_completions
from trl_rlp.evaluation.gate import RewardModel, compare_on_pairs
from trl_rlp.evaluation.policy_metrics import describe_outputs, kl_to_reference
from trl_rlp.evaluation.policy_pairs import is_correct
from trl_rlp.evaluation.reward_metrics import standard_error
from trl_rlp.storage.artifacts import load_policy, save_data


NUM_KL_QUESTIONS = 24


def wilson_interval(share: float, size: int, z: float = 1.96) -> tuple[float, float]:
    r"""
    Gives a confidence interval of a share.

    $$\frac{p + z^2 / 2n \pm z \sqrt{p(1-p)/n + z^2/4n^2}}{1 + z^2/n}$$

    Args:
        share (`float`):
            p, in [0, 1].
        size (`int`):
            n, independent trials.
        z (`float`, *optional*, defaults to `1.96`):
            Standard deviations; 1.96 is 95 %.

    Returns:
        `tuple[float, float]` within [0, 1].

    Reference:
        Wilson 1927, Journal of the American Statistical Association 22.
    """
    centre = share + z * z / (2 * size)
    spread = z * math.sqrt(share * (1 - share) / size + z * z / (4 * size * size))
    return (centre - spread) / (1 + z * z / size), (centre + spread) / (1 + z * z / size)


def shares_right(samples: Dataset, answers: Sequence[Sequence[str]]) -> np.ndarray:
    """
    Gives the share of right outputs of each question; an output without an end is never right.

    Args:
        samples (`datasets.Dataset`):
            `completions` and `finished`.
        answers (`Sequence[Sequence[str]]`):
            Accepted answers, one entry a row.

    Returns:
        `numpy.ndarray` of shape `(questions,)`, in [0, 1].
    """
    return np.array(
        [
            np.mean([done and is_correct(text, accepted) for text, done in zip(texts, finished, strict=True)])
            for texts, finished, accepted in zip(samples["completions"], samples["finished"], answers, strict=True)
        ]
    )  # (questions,)


def _paired(after: np.ndarray, before: np.ndarray) -> dict[str, float | None]:
    differences = after - before  # (questions,) or (pairs,)
    return {"difference": float(np.mean(differences)), "standard_error": standard_error(differences)}


def evaluate_policies(
    folder: Path, policies: dict[str, str | Path], questions: Dataset, sampling: dict[str, Any]
) -> dict[str, Any]:
    """
    Has every policy answer the same held-out questions.

    Args:
        folder (`Path`):
            Where the outputs go, one folder a policy.
        policies (`dict`):
            `sft`, `policy`, `retrained_policy` to folders; the KL is measured to the first.
        questions (`datasets.Dataset`):
            `prompt` and `answers`.
        sampling (`dict`):
            Further arguments of [`sample_completions`].

    Returns:
        `dict`: `policies`, by name: `accuracy` (mean over questions), its `interval` (Wilson, 95 %, with the questions
        as trials, as outputs of one question are not independent), `finished`, `kl` in nats an output (on the first 24
        questions); `comparisons`: paired `difference` of accuracy and `standard_error` over questions; `questions`,
        `outputs_per_question`.
    """
    answers = list(questions["answers"])
    reference, _ = load_policy(policies["sft"])
    figures, shares = {}, {}
    for name, path in policies.items():
        policy, processing_class = load_policy(path)
        samples = sample_completions(
            questions.select_columns(["prompt"]),
            policy,
            processing_class,
            output_dir=str(folder / name / "shards"),
            **sampling,
        )
        save_data(samples, folder / name)
        shares[name] = shares_right(samples, answers)
        accuracy = float(np.mean(shares[name]))
        few = samples.select(range(min(NUM_KL_QUESTIONS, len(samples))))
        figures[name] = {
            "accuracy": accuracy,
            "interval": wilson_interval(accuracy, len(samples)),
            "finished": describe_outputs(samples)["finished"],
            "kl": 0.0 if name == "sft" else kl_to_reference(policy, reference, processing_class, few),
        }
    pairs = (("policy", "sft"), ("retrained_policy", "sft"), ("retrained_policy", "policy"))
    return {
        "policies": figures,
        "comparisons": {f"{after} - {before}": _paired(shares[after], shares[before]) for after, before in pairs},
        "questions": len(questions),
        "outputs_per_question": sampling["num_generations"],
    }


def compare_rewards(before: RewardModel, after: RewardModel, sets: dict[str, Dataset]) -> dict[str, Any]:
    """
    Measures two reward models on labeled pairs.

    Args:
        before (`tuple[PreTrainedModel, PreTrainedTokenizerBase]`), after (likewise):
            r and r̂ with their tokenizers.
        sets (`dict[str, datasets.Dataset]`):
            Preferences by name; empty ones are left out.

    Returns:
        `dict`: by name, `before` and `after` ([`pair_metrics`]) and `difference`
        (paired, of the accuracy; ties count one half).
    """
    return {name: compare_on_pairs(before, after, pairs) for name, pairs in sets.items() if len(pairs)}
