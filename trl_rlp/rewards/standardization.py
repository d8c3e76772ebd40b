"""Standardization of rewards on fixed samples of the initial policy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.columns import flatten_samples
from trl_rlp.data.sampling.engines import sample_completions
from trl_rlp.data.scoring import score
from trl_rlp.rewards.reward_function import RewardFunction


NUM_PROMPTS = 256


def select_fixed_rows(dataset: Dataset) -> Dataset:
    """
    Selects the rows whose samples decide the scale of a reward. More samples cost time and hardly change the scale.

    Args:
        dataset ([`~datasets.Dataset`]):
            Prompts, or samples with one row per prompt.

    Returns:
        [`~datasets.Dataset`]: The first 256 rows.
    """
    return dataset.select(range(min(len(dataset), NUM_PROMPTS)))


def standardize(
    functions: Sequence[RewardFunction],
    policy: PreTrainedModel | PeftModel,
    processing_class: PreTrainedTokenizerBase,
    prompt_dataset: Dataset,
    sampling: dict[str, Any],
) -> None:
    """
    Scales the rewards of reward models to mean 0 and standard deviation 1 on fixed samples of a policy.

    r_φ and r̂_φ have different scales, so the same β does not mean the same strength of the KL penalty. Rewards that
    are standardized on the same samples are comparable. This is off by default, because the paper does not mention it.

    Args:
        functions (`Sequence[RewardFunction]`):
            Reward functions. Their `mean` and `standard_deviation` are set. The previous values are ignored.
        policy ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Initial policy (π_SFT in the paper).
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of `policy`.
        prompt_dataset ([`~datasets.Dataset`]):
            Prompts with a column `prompt` (U in the paper). The first 256 are used.
        sampling (`dict`):
            Further arguments of [`sample_completions`]. The same seed gives the same samples.

    Raises:
        ValueError: If all rewards of a model are equal.
    """
    prompts = select_fixed_rows(prompt_dataset).select_columns(["prompt"])
    samples = sample_completions(prompts, policy, processing_class, **sampling)
    texts = flatten_samples(samples)
    for function in functions:
        rewards = score(
            function.model,
            function.processing_class,
            *texts,
            max_length=function.max_length,
            template_options=[function.chat_template_kwargs] * len(texts[0]),
            share_batches=True,
        )
        function.set_scale(float(np.mean(rewards)), float(np.std(rewards)))
