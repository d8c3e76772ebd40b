"""A reward model as a reward function that records what it scores, and whose weights can be replaced."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from trl_rlp.data.row_scores import require_reward_model
from trl_rlp.data.turns import final_text, is_plain_completion
from trl_rlp.rewards.reward_function import RewardFunction
from trl_rlp.rewards.rollout_buffer import LISTS, RolloutBuffer
from trl_rlp.storage.precision import is_quantized
from trl_rlp.storage.processes import process_state, share_work


logger = logging.get_logger(__name__)

DEFAULT_BUFFER_SIZE = 16384
"""Maximum number of recorded completions that are kept, if the user sets no other."""


class RefinableReward(RewardFunction):
    """
    A [`RewardFunction`] whose reward model can be refined while the policy trains. This is ours and not the paper's.

    It records the completions that it scores, so that a refinement can make pairs from them. Without [`follow`] it
    records nothing and equals [`RewardFunction`]. [`RewardRefinementCallback`] does the rest.

    Recorded are the text, the finished flag and the reward of each completion, with its prompt and all columns of
    texts in the trainer's dataset, because an equivalence may read one of them. Completions of evaluation are not
    recorded, and neither are completions with tool calls, several messages, or thoughts under a key of their own.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Reward model, `num_labels=1`, on the device where it scores. A refinement changes its weights in place, so
            pass a copy if the old model is needed.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of `model`.
        eos_token_ids (`Collection[int]`):
            The policy's end-of-sequence ids.
        buffer_size (`int`, *optional*, defaults to `16384`):
            Maximum number of completions that are kept, of all processes together. The oldest rollouts are dropped
            first.
        options:
            Further arguments of [`RewardFunction`].

    Attributes:
        buffer ([`RolloutBuffer`]):
            The collected completions, the same on every process.
        num_rollouts (`int`):
            Number of recorded rollouts so far, the same on every process.
        pending_metrics (`dict[str, float]`):
            Metrics that [`report`] got and that are not yet logged.

    Raises:
        TypeError: If `model` is not a sequence classifier of transformers, or has adapters of peft.
        ValueError: If `model` is quantized, `num_labels` is not 1, or `buffer_size` is below 1.

    Example:

    ```python
    reward = RefinableReward(reward_model, reward_tokenizer, [tokenizer.eos_token_id])
    trainer = GRPOTrainer(model=policy, reward_funcs=reward, args=args, train_dataset=prompts)
    ```
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processing_class: PreTrainedTokenizerBase,
        eos_token_ids: Collection[int],
        *,
        buffer_size: int = DEFAULT_BUFFER_SIZE,
        **options: Any,
    ):
        super().__init__(model, processing_class, eos_token_ids, **options)
        _require_refinable(model)
        self.buffer = RolloutBuffer(buffer_size)
        self.num_rollouts = 0
        self.pending_metrics: dict[str, float] = {}
        self._policy: nn.Module | None = None
        self._listeners: list[Callable[[float], None]] = []
        self._records: list[list[dict[str, Any]]] = []

    @property
    def plain_model(self) -> PreTrainedModel:
        """The model without the wrapper of `torch.compile`. It shares its weights with the wrapper."""
        return extract_model_from_parallel(self.model, keep_torch_compile=False)

    def follow(self, policy: nn.Module) -> None:
        """
        Records from now on what is scored while a policy is in training mode. TRL evaluates in evaluation mode.

        Args:
            policy (`torch.nn.Module`):
                The policy of the trainer.
        """
        # A wrapper is not told when the trainer puts the model itself into evaluation mode.
        self._policy = extract_model_from_parallel(policy, keep_torch_compile=False)

    def subscribe(self, listener: Callable[[float], None]) -> None:
        """
        Adds a function that is called after each change of the reward.

        Args:
            listener (`Callable`):
                Called as `listener(shift)`, see [`replace_weights`].
        """
        self._listeners.append(listener)

    def __call__(
        self, prompts: list, completions: list, completion_ids: list[list[int]], **kwargs: Any
    ) -> list[float]:
        """
        Computes one reward per completion, and records the completions if a policy is followed and trains.

        Args:
            prompts (`list`):
                Text, messages, or token ids, as for [`RewardFunction`].
            completions (`list`):
                Text, or lists of messages.
            completion_ids (`list[list[int]]`):
                The policy's token ids, without padding.
            kwargs:
                Further columns and hooks that TRL passes to reward functions.

        Returns:
            `list[float]`: Rewards, standardized with `mean` and `standard_deviation`.
        """
        rewards = super().__call__(prompts, completions, completion_ids, **kwargs)
        if self._policy is not None and self._policy.training:
            finished = self._find_finished(completion_ids)
            self._record(prompts, completions, finished, rewards, kwargs)
            self._log_pending_metrics(kwargs.get("log_metric"))
        return rewards

    def _record(
        self, prompts: list, completions: list, finished: list[bool], rewards: list[float], kwargs: dict[str, Any]
    ) -> None:
        texts = {name: values for name, values in kwargs.items() if _is_text_column(name, values, len(prompts))}
        rows = []
        for position, completion in enumerate(completions):
            if not is_plain_completion(completion):
                continue
            prompt = prompts[position]
            row = {name: column[position] for name, column in texts.items()}
            row["prompt"] = str(prompt) if isinstance(prompt, str) else prompt  # without the ids of a `TokenPrompt`
            row["completion"] = final_text(completion)
            row["finished"], row["reward"] = finished[position], rewards[position]
            rows.append(row)
        if len(rows) < len(completions):
            logger.warning_once(
                f"{len(completions) - len(rows)} of {len(completions)} completions have tool calls, thoughts or "
                "several messages. They are scored, but not recorded for refinements."
            )
        self._records.append(rows)
        self.num_rollouts += 1

    def _log_pending_metrics(self, log_metric: Callable[[str, float], None] | None) -> None:
        if log_metric is not None:
            for name, value in self.pending_metrics.items():
                log_metric(name, value)
            self.pending_metrics = {}

    def collect(self) -> None:
        """
        Moves the new records of all processes into the buffer. Every process must call it, and all get the same.

        A rollout has the completions of the processes in the order of the processes, as TRL distributes them. The
        group of a prompt may come from several processes.
        """
        if not self._records:
            return
        records, self._records = self._records, []
        shares = share_work(range(process_state().num_processes), lambda own: [records for _ in own])
        for rollout in zip(*shares, strict=True):
            self.buffer.add([row for rows in rollout for row in rows])

    def report(self, metrics: dict[str, float]) -> None:
        """
        Keeps metrics until the next rollout of training, which logs them. That rollout is the first with a new reward.

        Args:
            metrics (`dict[str, float]`):
                Metrics by name, the same on every process. A later value replaces an earlier one.
        """
        self.pending_metrics |= metrics

    def replace_weights(
        self,
        state_dict: Mapping[str, torch.Tensor],
        mean: float,
        standard_deviation: float,
        shift: float,
    ) -> None:
        """
        Replaces the weights of the reward model in place, and calls the functions of [`subscribe`].

        Devices and dtypes stay. If one thing does not fit, nothing changes.

        Args:
            state_dict (`Mapping[str, torch.Tensor]`):
                The new weights, with the names and shapes of `model.state_dict()`, on any device.
            mean (`float`):
                The new mean, see [`RewardFunction`].
            standard_deviation (`float`):
                The new standard deviation, above 0.
            shift (`float`):
                Mean new reward minus mean old reward on the last rollout, both standardized.

        Raises:
            ValueError: If a name or a shape differs, or `standard_deviation` is not positive.
        """
        weights = self.plain_model.state_dict()
        _require_same_weights(weights, state_dict)
        self.set_scale(mean, standard_deviation)
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(state_dict[name])
        for listener in self._listeners:
            listener(shift)


def _require_refinable(model: PreTrainedModel) -> None:
    """Checks that the weights of a model are plain, so that a refined model's weights can replace them."""
    require_reward_model(model)
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise TypeError(
            "`model` has adapters of peft, but a refinement replaces plain weights. Pass `model.merge_and_unload()`."
        )
    if is_quantized(model):
        raise ValueError(
            "`model` is quantized, but a refinement replaces plain weights. Load it without a quantization config, "
            "for example with `dtype='bfloat16'`."
        )


def _require_same_weights(own: Mapping[str, torch.Tensor], new: Mapping[str, torch.Tensor]) -> None:
    for name in [*own, *(name for name in new if name not in own)]:
        shapes = [tuple(weights[name].shape) if name in weights else None for weights in (own, new)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"`state_dict` does not fit the reward model: {name!r} has the shape {shapes[0]} in the model and "
                f"{shapes[1]} in `state_dict` (None means missing). Pass the weights of a plain model of the same "
                "architecture, with adapters merged."
            )


def _is_text_column(name: str, values: Any, size: int) -> bool:
    if name in LISTS or name in LISTS.values() or not isinstance(values, list) or len(values) != size:
        return False
    return all(isinstance(value, str | None) for value in values)
