"""Semantic anchors as a reward function: whether a completion means what the first policy's majority meant."""

from collections.abc import Callable
from typing import Any

from transformers.utils import logging

from trl_rlp.data.anchors.comparison import AnchorComparison
from trl_rlp.data.anchors.semantic_anchors import SemanticAnchors, prompt_key
from trl_rlp.data.groups.equivalence import Equivalence, require_equivalence
from trl_rlp.data.groups.instruction import list_instruction_columns, require_instruction_column
from trl_rlp.data.turns import final_text
from trl_rlp.storage.processes import process_state, share_work


logger = logging.get_logger(__name__)

_MAX_FAILURES = 3
"""Number of failures of the equivalence in a row that end a run."""


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
        - `semantic_anchor/failures`: Number of calls so far in which the equivalence failed. Not logged without one.

    Args:
        anchors ([`SemanticAnchors`]):
            The anchors, made from samples of the trainer's prompts.
        equivalence ([`Equivalence`]):
            Decides whether two completions mean the same. It should be the one that made the anchors.
        subtract_confidence (`bool`, *optional*, defaults to `False`):
            Whether to subtract the anchor's confidence from each reward. The mean reward of the sampled policy is then
            about 0 for every prompt, so that prompts are on one scale. GRPO and RLOO compare the completions of a
            prompt, so there it changes nothing.
        name (`str`, *optional*, defaults to `"semantic_anchor"`):
            Name in the trainer's logs, and before the slash of the metrics.

    Attributes:
        comparison ([`AnchorComparison`]):
            The comparison with its cache. A refinement may share it.

    Raises:
        TypeError: If `anchors` are not anchors, or `equivalence` is not an equivalence.
        ValueError: In the first rollout, if the anchors know none of its prompts.
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
        if not isinstance(anchors, SemanticAnchors):
            raise TypeError(
                f"`anchors` must be `SemanticAnchors`, got `{type(anchors).__name__}`. Make them with "
                "`SemanticAnchors.from_samples`, or load them with `SemanticAnchors.load`."
            )
        require_equivalence(equivalence)
        self.anchors, self.equivalence = anchors, equivalence
        self.comparison = AnchorComparison(anchors, equivalence)
        self.subtract_confidence = subtract_confidence
        self.num_failures = 0
        self.__name__ = name
        self._failures_in_a_row = 0
        self._is_first_call = True
        self._has_warned = False

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
        self._check_prompts(prompts)
        verdicts = self._compare(columns)
        self._log(verdicts, kwargs.get("log_metric"))
        anchors = map(self.anchors.find, prompts)
        return [
            None if anchor is None or verdict is None else verdict - self.subtract_confidence * anchor.confidence
            for anchor, verdict in zip(anchors, verdicts, strict=True)
        ]

    def _check_prompts(self, prompts: list) -> None:
        """Refuses anchors of other prompts in the first call, and warns once if some prompts are unknown."""
        distinct = {prompt_key(prompt): prompt for prompt in prompts}
        unknown = [prompt for prompt in distinct.values() if not self.anchors.knows(prompt)]
        if self._is_first_call:
            # Decided by all processes together, because one of them may have a single prompt.
            know_none = share_work(
                range(process_state().num_processes), lambda own: [len(unknown) == len(distinct) for _ in own]
            )
            if all(know_none):
                raise ValueError(
                    f"`anchors` know none of the prompts of the first rollout, for example {str(unknown[0])[:80]!r}. "
                    "Make them from samples of the trainer's prompts."
                )
        self._is_first_call = False
        if unknown and not self._has_warned:
            self._has_warned = True
            logger.warning(
                f"`anchors` know {len(distinct) - len(unknown)} of the {len(distinct)} prompts of a rollout. The "
                f"others get no reward from `{self.__name__}`. Make anchors from samples of all prompts."
            )

    def _compare(self, columns: dict[str, list]) -> list[bool | None]:
        try:
            verdicts = self.comparison.compare(columns)
        except Exception as error:
            self.num_failures += 1
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

    def _log(self, verdicts: list[bool | None], log_metric: Callable[[str, float], None] | None) -> None:
        """Logs one value per completion, so that TRL's mean over the processes is the share of all completions."""
        if log_metric is None:
            return
        for verdict in verdicts:
            log_metric(f"{self.__name__}/anchored_share", float(verdict is not None))
            if verdict is not None:
                log_metric(f"{self.__name__}/same_share", float(verdict))
        if self.num_failures:
            log_metric(f"{self.__name__}/failures", float(self.num_failures))
