"""A reward model as a reward function for PPO, RLOO and GRPO trainers. It scores completions as in its training."""

import itertools
import math
from collections.abc import Collection, Iterable
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.row_scores import score_rows
from trl_rlp.data.scoring import batch_scoring_ids, cut_prompts
from trl_rlp.data.token_prompts import TokenPrompt
from trl_rlp.data.turns import join_turns


def replace_nan_with_infinity(rewards: Iterable[float | None]) -> list[float | None]:
    """
    Replaces NaN with infinity.

    TRL treats NaN like `None`, which means "no reward from this function", and ignores it. Infinity stays visible.

    Args:
        rewards (`Iterable[float]`):
            One reward per completion. `None` if a function has no reward for it.

    Returns:
        `list[float]`: The rewards. `None` does not change.
    """
    return [math.inf if reward is not None and math.isnan(reward) else reward for reward in rewards]


class RewardFunction:
    """
    Scores completions with a reward model. It uses the same token ids and the same scoring as [`score`].

    TRL's trainers also accept a reward model directly. But they then score text without EOS, while TRL's
    `RewardTrainer` trained the model on text that ends with EOS. This function adds EOS to completions that the policy
    finished with EOS. Completions that stopped at the maximum length get no EOS.

    Completions of chat prompts are scored as TRL does: the chat template renders all messages, with thoughts and tool
    calls.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Reward model, `num_labels=1`. It is not changed, and it stays on its device. It scores in evaluation mode.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of `model`. It may differ from the policy's tokenizer.
        eos_token_ids (`Collection[int]`):
            The policy's end-of-sequence ids. A completion that ends with one of them is finished.
        mean (`float`, *optional*, defaults to `0.0`):
            Mean of the rewards. The function returns (r - mean) / standard_deviation. See [`standardize`].
        standard_deviation (`float`, *optional*, defaults to `1.0`):
            Standard deviation of the rewards, above 0.
        max_length (`int`, *optional*):
            Maximum number of tokens per row, as in [`score`].
        name (`str`, *optional*, defaults to `"reward_model"`):
            Name in the trainer's logs.
        reads_policy_tokens (`bool`, *optional*, defaults to `False`):
            Whether the tokenizer has the same token ids as the policy's tokenizer. If so, the function scores prompts
            of token ids ([`TokenPrompt`]) directly, followed by the ids of the completion. Otherwise it scores text.
        require_finite (`bool`, *optional*, defaults to `True`):
            Whether a NaN or infinite reward is an error. If not, NaN becomes infinity.
        chat_template_kwargs (`dict`, *optional*):
            Further arguments of the chat template: those of the policy's trainer.

    Raises:
        TypeError: If `model` is not a model, `processing_class` is not a tokenizer, or `eos_token_ids` is not a list.
        ValueError: If `standard_deviation` is not positive.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processing_class: PreTrainedTokenizerBase,
        eos_token_ids: Collection[int],
        mean: float = 0.0,
        standard_deviation: float = 1.0,
        max_length: int | None = None,
        name: str = "reward_model",
        reads_policy_tokens: bool = False,
        require_finite: bool = True,
        chat_template_kwargs: dict[str, Any] | None = None,
    ):
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"`model` must be a reward model, got `{type(model).__name__}`. Load it and its tokenizer with "
                "`load_reward_model`."
            )
        if not callable(processing_class):
            raise TypeError(
                f"`processing_class` must be the tokenizer of `model`, got `{type(processing_class).__name__}`. Load "
                "both with `load_reward_model`."
            )
        if not isinstance(eos_token_ids, Collection) or isinstance(eos_token_ids, str):
            raise TypeError(
                f"`eos_token_ids` must be a list of token ids, got {eos_token_ids!r}. Pass for example "
                "`[tokenizer.eos_token_id]` with the policy's tokenizer."
            )
        self.model = model
        self.processing_class = processing_class
        self.eos_token_ids = frozenset(eos_token_ids)
        self.max_length = max_length
        self.set_scale(mean, standard_deviation)
        self.reads_policy_tokens, self.require_finite = reads_policy_tokens, require_finite
        self.chat_template_kwargs = chat_template_kwargs or {}
        self.__name__ = name

    def set_scale(self, mean: float, standard_deviation: float) -> None:
        """
        Sets the mean and the standard deviation that standardize the rewards.

        Args:
            mean (`float`):
                Subtracted from each reward.
            standard_deviation (`float`):
                Standard deviation, above 0. Each difference is divided by it.

        Raises:
            ValueError: If `standard_deviation` is not positive.
        """
        if not standard_deviation > 0:
            raise ValueError(
                f"`standard_deviation` must be positive, got {standard_deviation}. Equal rewards cannot be "
                "standardized."
            )
        self.mean, self.standard_deviation = mean, standard_deviation

    def __call__(
        self, prompts: list, completions: list, completion_ids: list[list[int]], **kwargs: Any
    ) -> list[float]:
        """
        Computes one reward per completion.

        Args:
            prompts (`list`):
                Text, messages, or token ids ([`TokenPrompt`]).
            completions (`list`):
                Text, or lists of messages: the assistant's, and with tools also their outputs.
            completion_ids (`list[list[int]]`):
                The policy's token ids, without padding. The last id shows whether the completion is finished.
            kwargs:
                Further columns and hooks that TRL passes to reward functions. They are ignored.

        Returns:
            `list[float]`: Rewards, standardized with `mean` and `standard_deviation`.
        """
        if self.reads_policy_tokens and isinstance(prompts[0], TokenPrompt):
            rows = [[*prompt.ids, *ids] for prompt, ids in zip(prompts, completion_ids, strict=True)]
            rows = cut_prompts(rows, self.processing_class, self.max_length)
        else:
            rows = self._tokenize(prompts, completions, completion_ids)
        # Tokens outside the model's vocabulary are removed, for example a pad token that only the policy has.
        vocabulary_size = self.model.get_input_embeddings().weight.shape[0]
        rows = [[token for token in ids if token < vocabulary_size] for ids in rows]
        if self.model.config.get_text_config().pad_token_id is None:
            batches = [[row] for row in rows]  # without a pad token, the model can read only one row at a time
        else:
            batches = [rows]
        scored = (score_rows(self.model, batch, require_finite=self.require_finite) for batch in batches)
        rewards = itertools.chain.from_iterable(scored)
        return replace_nan_with_infinity((reward - self.mean) / self.standard_deviation for reward in rewards)

    def _find_finished(self, completion_ids: list[list[int]]) -> list[bool]:
        return [bool(ids) and ids[-1] in self.eos_token_ids for ids in completion_ids]

    def _tokenize(self, prompts: list, completions: list, completion_ids: list[list[int]]) -> list[list[int]]:
        finished = self._find_finished(completion_ids)
        if isinstance(prompts[0], str):
            return batch_scoring_ids(self.processing_class, prompts, completions, finished, self.max_length)
        chats = [join_turns(*turns) for turns in zip(prompts, completions, strict=True)]
        options = [self.chat_template_kwargs] * len(chats)
        empty = [[] for _ in chats]
        return batch_scoring_ids(self.processing_class, empty, chats, finished, self.max_length, options)
