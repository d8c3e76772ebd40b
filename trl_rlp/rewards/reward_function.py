"""A reward model as a reward function of TRL's RLOO and GRPO trainers, scored exactly as it was trained."""

import itertools
import math
from collections.abc import Collection, Iterable
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.row_scores import score_rows
from trl_rlp.data.scoring import batch_scoring_ids, cut_prompts
from trl_rlp.data.token_prompts import TokenPrompt


def nan_to_infinity(rewards: Iterable[float | None]) -> list[float | None]:
    """
    Gives rewards in which what is not a number can be seen: TRL takes NaN for `None`, no opinion, and leaves it out.

    Args:
        rewards (`Iterable[float]`):
            One a completion, `None` where a function has no opinion.

    Returns:
        `list[float]`.
    """
    return [math.inf if reward is not None and math.isnan(reward) else reward for reward in rewards]


class RewardFunction:
    """
    Scores completions with a reward model through the one scoring function.

    TRL's trainers accept a reward model directly, but then score text from which EOS was stripped, while TRL's
    `RewardTrainer` trained on text that ends in EOS. This callable puts EOS back where the policy produced one, and
    leaves it off where a completion was cut at its length limit.

    Args:
        model (`PreTrainedModel`):
            Reward model, `num_labels=1`. Kept frozen, in evaluation mode, on the device it is on.
        processing_class (`PreTrainedTokenizerBase`):
            Its tokenizer; it may differ from the policy's.
        eos_token_ids (`Collection[int]`):
            The policy's end-of-sequence ids: a completion that ends in one is finished.
        mean (`float`, *optional*, defaults to `0.0`), deviation (`float`, *optional*, defaults to `1.0`):
            The reward becomes (r - mean) / deviation, see
            [`standardize`].
        max_length (`int`, *optional*):
            As in [`score`].
        name (`str`, *optional*, defaults to `"reward_model"`):
            Name in the trainer's logs.
        reads_policy_tokens (`bool`, *optional*, defaults to `False`):
            Whether its tokenizer is the policy's: prompts that are token ids, [`TokenPrompt`], are then scored as
            they are, with the completion's ids behind them. Otherwise they are read as text.
        require_finite (`bool`, *optional*, defaults to `True`):
            Whether a reward that is NaN or infinite is an error; else it is given as infinite.

    Raises:
        ValueError: if the deviation is not positive.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processing_class: PreTrainedTokenizerBase,
        eos_token_ids: Collection[int],
        mean: float = 0.0,
        deviation: float = 1.0,
        max_length: int | None = None,
        name: str = "reward_model",
        reads_policy_tokens: bool = False,
        require_finite: bool = True,
    ):
        self.model = model.eval().requires_grad_(False)
        self.processing_class = processing_class
        self.eos_token_ids = frozenset(eos_token_ids)
        self.max_length = max_length
        self.set_scale(mean, deviation)
        self.reads_policy_tokens, self.require_finite = reads_policy_tokens, require_finite
        self.__name__ = name

    def set_scale(self, mean: float, deviation: float) -> None:
        """
        Sets what the rewards are brought to one scale by.

        Args:
            mean (`float`):
                Is taken from each.
            deviation (`float`):
                Divides each, above 0.

        Raises:
            ValueError: if the deviation is not positive.
        """
        if not deviation > 0:
            raise ValueError(
                f"`deviation` must be positive, got {deviation}. Rewards that are all equal cannot be standardized."
            )
        self.mean, self.deviation = mean, deviation

    def __call__(
        self, prompts: list, completions: list, completion_ids: list[list[int]], **kwargs: Any
    ) -> list[float]:
        """
        Gives one reward a completion.

        Args:
            prompts (`list`):
                Text or messages.
            completions (`list`):
                Text, or lists with one assistant message.
            completion_ids (`list[list[int]]`):
                The policy's token ids, without padding; the last one tells whether the completion finished.
            kwargs:
                Further columns and hooks that TRL hands to reward functions; not used.

        Returns:
            `list[float]`.
        """
        if self.reads_policy_tokens and isinstance(prompts[0], TokenPrompt):
            rows = [[*prompt.ids, *ids] for prompt, ids in zip(prompts, completion_ids, strict=True)]
            if self.max_length is not None:
                rows, _ = cut_prompts(rows, self.processing_class, self.max_length)
        else:
            texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
            finished = [bool(ids) and ids[-1] in self.eos_token_ids for ids in completion_ids]
            rows = batch_scoring_ids(self.processing_class, prompts, texts, finished, self.max_length)
        # What the embedding lacks, as a pad token that was added to the policy alone, is left out.
        size = self.model.get_input_embeddings().weight.shape[0]
        rows = [[token for token in ids if token < size] for ids in rows]
        if self.model.config.get_text_config().pad_token_id is None:
            batches = [[row] for row in rows]  # scripts load such models, which can read one row at a time
        else:
            batches = [rows]
        scored = (score_rows(self.model, batch, require_finite=self.require_finite) for batch in batches)
        rewards = itertools.chain.from_iterable(scored)
        return nan_to_infinity((reward - self.mean) / self.deviation for reward in rewards)
