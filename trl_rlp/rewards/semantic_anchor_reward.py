"""Semantic anchors as a reward function: whether a completion means what the initial policy's majority meant."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerState
from transformers.utils import logging

from trl_rlp.data.anchors.comparison import AnchorComparison
from trl_rlp.data.anchors.semantic_anchors import Anchor, SemanticAnchors, prompt_key
from trl_rlp.data.groups.equivalence import Equivalence
from trl_rlp.data.groups.instruction import list_instruction_columns, require_instruction_column
from trl_rlp.data.turns import final_text


logger = logging.get_logger(__name__)

_MAX_FAILURES = 3
"""Number of failures of the equivalence in a row that end a run."""

_ENOUGH_PROMPTS = 128
"""Number of distinct prompts of a process after which anchors that know none of them are an error."""


class SemanticAnchorReward:
    """
    Rewards completions that mean the same as the anchor of their prompt. This is ours and not the paper's.

    The reward is 1 if the completion means what the anchor means, and 0 if not. Prompts without an anchor have no
    reward from this function (`None`). It works with [`~trl.GRPOTrainer`], [`~trl.RLOOTrainer`] and [`PPOTrainer`],
    usually next to a reward model. `reward_weights` of the trainer's configuration sets its weight. PPO needs a reward
    for every completion, so there another function must reward the prompts without an anchor.

    The equivalence gets one call for a rollout, with the texts that are new for their prompt. Completions of chat
    prompts are compared by the content of their last message. Thoughts under a key of their own, tool calls and
    outputs of tools are not compared. If a prompt ends with an assistant message, only the continuation is compared,
    as the samples hold it.

    If the equivalence fails, the completions of this call have no reward from this function, and the failure is
    logged. The third failure in a row ends the run.

    Logged metrics:
        - `semantic_anchor/same_share`: Among completions with an anchor, the share that means the same, in [0, 1].
        - `semantic_anchor/anchored_share`: The share of completions with an anchor, in [0, 1].
        - `semantic_anchor/failed_share`: The share of calls in which the equivalence failed, in [0, 1].

    Args:
        anchors ([`SemanticAnchors`]):
            The anchors, made from samples of the trainer's prompts.
        equivalence ([`Equivalence`]):
            Decides whether two completions mean the same. It should be the one that made the anchors.
        subtract_confidence (`bool`, *optional*, defaults to `False`):
            Whether to subtract the anchor's confidence from each reward. The mean reward of the sampled policy is then
            about 0 for every prompt, so that prompts are on one scale. Merged anchors have the pooled confidence.
            GRPO and RLOO compare the completions of a prompt, so there it changes nothing.
        name (`str`, *optional*, defaults to `"semantic_anchor"`):
            Name in the trainer's logs, and before the slash of the metrics.

    Attributes:
        comparison ([`AnchorComparison`]):
            The comparison with its cache. A refinement may share it.

    Raises:
        TypeError: If `anchors` are not anchors, or `equivalence` is not an equivalence.
        ValueError: If the anchors know none of the first 128 distinct prompts of this process.
        RuntimeError: After three failures of the equivalence in a row.

    Example:

    ```python
    anchors = SemanticAnchors.from_samples(sample_completions(prompts, policy, tokenizer), ExactMatch())
    reward = SemanticAnchorReward(anchors, ExactMatch())
    args = GRPOConfig("grpo", reward_weights=[1.0, 3.0])
    trainer = GRPOTrainer(model=policy, reward_funcs=[reward_model, reward], args=args, train_dataset=prompts)
    ```
    """

    def __init__(
        self,
        anchors: SemanticAnchors,
        equivalence: Equivalence,
        *,
        subtract_confidence: bool = False,
        name: str = "semantic_anchor",
    ):
        self.comparison = AnchorComparison(anchors, equivalence)
        self.anchors, self.equivalence = anchors, equivalence
        self.subtract_confidence = subtract_confidence
        self.__name__ = name
        self._failures_in_a_row = 0
        self._has_warned = self._knows_a_prompt = False
        self._unknown_prompts: set[str] = set()
        self._last_call: tuple[int | None, set[str]] = (None, set())

    def __call__(self, prompts: list, completions: list, **kwargs: Any) -> list[float | None]:
        """
        Computes one reward per completion.

        Args:
            prompts (`list`):
                Text or messages.
            completions (`list`):
                Text, or lists of messages.
            kwargs:
                Further columns and hooks that TRL passes to reward functions. The equivalence may read a column.

        Returns:
            `list[float | None]`: Rewards. `None` for prompts without an anchor.
        """
        columns = {"prompt": prompts, "completion": [final_text(completion) for completion in completions]}
        require_instruction_column({**kwargs, **columns}, self.equivalence, "train_dataset")
        columns |= {name: kwargs[name] for name in list_instruction_columns(self.equivalence)}
        self._check_prompts(prompts, kwargs.get("trainer_state"))
        verdicts = self._compare(columns)
        anchors = [self.anchors.find(prompt) for prompt in prompts]
        self._log(anchors, verdicts, kwargs.get("log_metric"))
        return [
            None if anchor is None or verdict is None else verdict - self.subtract_confidence * anchor.confidence
            for anchor, verdict in zip(anchors, verdicts, strict=True)
        ]

    def _check_prompts(self, prompts: list, trainer_state: TrainerState | None) -> None:
        """Warns once if some prompts are unknown, and refuses anchors of other prompts."""
        keys = {prompt_key(prompt): prompt for prompt in prompts}
        unknown = {key for key, prompt in keys.items() if not self.anchors.knows(prompt)}
        if unknown and not self._has_warned:
            self._has_warned = True
            logger.warning(
                f"`anchors` know {len(keys) - len(unknown)} of the {len(keys)} prompts of a rollout. The others get "
                f"no reward from `{self.__name__}`. Make anchors from samples of all prompts."
            )
        self._knows_a_prompt = self._knows_a_prompt or len(unknown) < len(keys)
        if not self._knows_a_prompt:
            self._count_unknown(unknown, None if trainer_state is None else trainer_state.global_step)

    def _count_unknown(self, keys: set[str], step: int | None) -> None:
        """
        Counts the prompts of a call in which all are unknown. Anchors may be of a part of the prompts, so a few are no
        error. Each process decides alone.

        Of the calls at one optimizer step only the last one counts, because evaluation precedes the rollout, and its
        prompts need no anchors.
        """
        last_step, last_keys = self._last_call
        self._last_call = step, keys
        if step is not None and step == last_step:
            return
        self._unknown_prompts |= last_keys
        if len(self._unknown_prompts) >= _ENOUGH_PROMPTS:
            raise ValueError(
                f"`anchors` know none of the first {len(self._unknown_prompts)} prompts, for example "
                f"{min(last_keys)[:80]!r}. Make them from samples of the trainer's prompts."
            )

    def _compare(self, columns: dict[str, list]) -> list[bool | None]:
        try:
            verdicts = self.comparison.compare(columns)
        except Exception as error:
            self._failures_in_a_row += 1
            if self._failures_in_a_row >= _MAX_FAILURES:
                raise RuntimeError(
                    f"The equivalence of `{self.__name__}` failed {_MAX_FAILURES} times in a row. Repair it, and "
                    f"resume the training from its last checkpoint. ({type(error).__name__}: {error})"
                ) from error
            logger.warning(
                f"The equivalence of `{self.__name__}` failed, so the completions of this rollout get no reward from "
                f"it. ({type(error).__name__}: {error})"
            )
            return [None] * len(columns["prompt"])
        self._failures_in_a_row = 0
        return verdicts

    def _log(
        self,
        anchors: list[Anchor | None],
        verdicts: list[bool | None],
        log_metric: Callable[[str, float], None] | None,
    ) -> None:
        """Logs one value per completion, so that TRL's mean over the processes is the share of all completions."""
        if log_metric is None:
            return
        log_metric(f"{self.__name__}/failed_share", float(self._failures_in_a_row > 0))
        for anchor, verdict in zip(anchors, verdicts, strict=True):
            log_metric(f"{self.__name__}/anchored_share", float(anchor is not None))
            if verdict is not None:
                log_metric(f"{self.__name__}/same_share", float(verdict))
