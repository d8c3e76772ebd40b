"""Rewards brought to one scale on fixed outputs of the initial policy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.sampling.in_process import sample_completions
from trl_rlp.data.scoring import score
from trl_rlp.rewards.reward_function import RewardFunction


NUM_PROMPTS = 256


def standardize(
    functions: Sequence[RewardFunction],
    policy: PreTrainedModel | PeftModel,
    processing_class: PreTrainedTokenizerBase,
    prompt_dataset: Dataset,
    sampling: dict[str, Any],
) -> None:
    """
    Gives reward models mean 0 and deviation 1 on fixed outputs of a policy.

    r_φ and r̂_φ differ in scale, so an equal β is not an equal KL pressure; standardized on the same outputs they are
    comparable. Off by default: the paper says nothing of it.

    Args:
        functions (`Sequence[RewardFunction]`):
            Their `mean` and `deviation` are set; what they were is not read.
        policy ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            π_SFT.
        processing_class (`PreTrainedTokenizerBase`):
            Its tokenizer.
        prompt_dataset (`datasets.Dataset`):
            U, a column `prompt`; the first 256 are used.
        sampling (`dict`):
            Further arguments of [`sample_completions`]; the same seed gives the same outputs.

    Raises:
        ValueError: if all rewards of a model are equal.
    """
    prompts = prompt_dataset.select(range(min(len(prompt_dataset), NUM_PROMPTS))).select_columns(["prompt"])
    samples = sample_completions(prompts, policy, processing_class, **sampling)
    size = len(samples[0]["completions"])
    rows = (
        [prompt for prompt in samples["prompt"] for _ in range(size)],
        [completion for row in samples["completions"] for completion in row],
        [flag for row in samples["finished"] for flag in row],
    )
    for function in functions:
        rewards = score(function.model, function.processing_class, *rows, max_length=function.max_length)
        function.set_scale(float(np.mean(rewards)), float(np.std(rewards)))
