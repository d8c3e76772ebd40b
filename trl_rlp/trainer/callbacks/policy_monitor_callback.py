"""A callback that watches a policy in training for signs of reward hacking, and can stop the run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.logging import get_logger
from datasets import Dataset
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import is_trackio_available
from transformers.trainer_callback import ExportableState

from trl_rlp.data.anchors import AnchorComparison, prompt_key
from trl_rlp.data.judges import Judge
from trl_rlp.data.judges.judge import judge_pairs
from trl_rlp.data.score_inputs import find_score_layers
from trl_rlp.data.turns import final_text
from trl_rlp.data.validation import require_columns, require_preferences
from trl_rlp.evaluation.outliers import MIN_TEXTS, MahalanobisOutliers, represent, represent_pairs
from trl_rlp.rewards.refinable_reward import RefinableReward
from trl_rlp.rewards.rollout_buffer import LISTS
from trl_rlp.storage.processes import run_on_main, share_work
from trl_rlp.trainer.callbacks.monitor_signals import (
    LimitWatch,
    correlate,
    describe_alert,
    read_log,
    resolve_limits,
    spread_evenly,
)
from trl_rlp.trainer.callbacks.run_checks import require_modes, require_scores
from trl_rlp.trainer.nested_training import keep_run_state


logger = get_logger(__name__)

MAX_HUMAN_TEXTS = 1000
"""Number of human completions that define outliers. They are represented again after each refinement."""

MAX_POLICY_TEXTS = 256
"""Number of completions of a rollout that are represented."""


class PolicyMonitorCallback(TrainerCallback, ExportableState):
    """
    Watches a policy in training for signs that it exploits its reward. This is ours and not the paper's.

    It works with TRL's GRPO and RLOO trainers and with PPO, with and without [`RewardRefinementCallback`]. It measures
    each rollout, compares each signal with its limit, and warns after two measurements in a row outside a limit. It
    restores the random state and changes no reward, so without `stop` the run is the same as without it.

    Without `reward` it reads the trainer's log: KL divergence, length and share of finished completions. The log also
    has the share that means the anchor if there is a [`SemanticAnchorReward`], and the disagreement of old and new
    reward model if there is a [`RewardRefinementCallback`]. All other signals need the completions that `reward`
    records.

    Alerts go to the log, and to trackio if `report_to` has it. With `reward`, each signal is logged as
    `monitor/<signal>` and the number of alerts so far as `monitor/alerts`, one rollout later.

    Args:
        reward ([`RefinableReward`], *optional*):
            Reward function of the trainer. Its record is read and not changed.
        comparison ([`AnchorComparison`], *optional*):
            Compares completions with anchors. Not needed if the log has the share of a [`SemanticAnchorReward`]. With
            the `comparison` of such a reward, nothing is asked twice.
        is_malformed (`Callable`, *optional*):
            `is_malformed(prompt, completion)` returns whether a completion is malformed. It must always return the
            same for the same texts. An error in it ends the run.
        human_pairs ([`~datasets.Dataset`], *optional*):
            Labeled pairs. Completions that the reward model represents unlike these are outliers, see
            [`MahalanobisOutliers`]. At most 1,000 texts of them and 256 completions of a rollout are represented, and
            each costs as much as scoring it.
        judge (`Callable`, *optional*):
            Held-out judge, see [`Judge`]. The reward model must not be derived from it.
        references ([`~datasets.Dataset`], *optional*):
            Completions that the judge compares with: columns `prompt` and `completion`, as text or messages.
        judge_every (`int`, *optional*, defaults to `8`):
            Number of rollouts between two calls of the judge. It compares one completion of each prompt that has a
            reference.
        limits (`dict[str, float]`, *optional*):
            Limits that replace the defaults of [`SIGNALS`]. `None` removes a default.
        stop (`bool`, *optional*, defaults to `False`):
            Whether an alert ends the run. The last checkpoint that was saved while no limit was crossed is then kept
            by `save_total_limit`, as `state.best_model_checkpoint`, unless `metric_for_best_model` is set.

    Attributes:
        history (`list[dict[str, float]]`):
            Every measurement of this process: `step`, and signals by name.
        num_alerts (`int`):
            Number of alerts so far.

    Raises:
        TypeError, ValueError: If a signal lacks what it needs, or a limit is not valid. During training: if the
            trainer does not use `reward`.

    Example:

    ```python
    reward = RefinableReward(reward_model, reward_tokenizer, [tokenizer.eos_token_id])
    monitor = PolicyMonitorCallback(reward, human_pairs=preferences, limits={"kl": 20.0}, stop=True)
    trainer = GRPOTrainer(policy, reward, args, train_dataset=prompts, callbacks=[monitor])
    ```
    """

    def __init__(
        self,
        reward: RefinableReward | None = None,
        *,
        comparison: AnchorComparison | None = None,
        is_malformed: Callable[[Any, str], bool] | None = None,
        human_pairs: Dataset | None = None,
        judge: Judge | None = None,
        references: Dataset | None = None,
        judge_every: int = 8,
        limits: dict[str, float | None] | None = None,
        stop: bool = False,
    ):
        needs_reward = {"comparison": comparison, "is_malformed": is_malformed, "human_pairs": human_pairs}
        _require_sources(reward, needs_reward | {"judge": judge}, references, judge_every)
        self.reward, self.comparison, self.is_malformed = reward, comparison, is_malformed
        self.human_pairs = None if human_pairs is None else _require_human_pairs(human_pairs, reward)
        self.judge, self.judge_every = judge, judge_every
        self._references = {} if references is None else _index_references(references)
        self.stop = stop
        self._watch = LimitWatch(resolve_limits(limits))
        self._outliers: MahalanobisOutliers | None = None
        self._num_seen = 0
        self._is_one_of_many = False
        if reward is not None:
            reward.subscribe(self._forget_outliers)
        self._reset()

    def _reset(self) -> None:
        self.num_alerts = self._num_rollouts = self._num_steps = 0
        self.history: list[dict[str, float]] = []
        self._length: float | None = None
        self._first_length: float | None = None
        self._healthy_checkpoint: str | None = None
        self._num_first: int | None = None
        self._watch.crossings = {}

    def state(self) -> dict[str, dict[str, Any]]:
        """
        Returns what a checkpoint keeps. A resumed run continues with it.

        Returns:
            `dict`: Plain values, in the form that [`~transformers.trainer_callback.ExportableState`] has.
        """
        attributes = {
            "num_alerts": self.num_alerts,
            "_num_rollouts": self._num_rollouts,
            "_first_length": self._first_length,
            "_healthy_checkpoint": self._healthy_checkpoint,
            "crossings": dict(self._watch.crossings),
        }
        return {"args": self._settings, "attributes": attributes}

    @property
    def _settings(self) -> dict[str, Any]:
        """What tells several monitors of one run apart."""
        return {"limits": self._watch.limits, "stop": self.stop, "judge_every": self.judge_every}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Starts a run, or continues one from the state in its checkpoint."""
        if args.restore_callback_states_from_checkpoint:
            raise ValueError(
                "`restore_callback_states_from_checkpoint` replaces this callback by an empty one. Set it to False. "
                "The monitor restores its own state."
            )
        if self.reward is not None:
            require_modes(args)
        self._reset()
        saved = self._find_own(state.stateful_callbacks)
        if state.global_step > 0 and saved is not None:
            attributes = dict(saved["attributes"])
            self._watch.crossings = attributes.pop("crossings")
            vars(self).update(attributes)
            if self._healthy_checkpoint is not None and not Path(self._healthy_checkpoint).is_dir():
                self._healthy_checkpoint = None
            # A checkpoint is written before `on_save`, so it does not know that it is healthy itself.
            self.on_save(args, state, control)
        self._outliers = None
        if self.reward is not None:
            self.reward.follow(model)

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Notes whether the trainer has several monitors. Only then, transformers keeps a list of states."""
        self._is_one_of_many = isinstance(state.stateful_callbacks.get(type(self).__name__), list)

    def _find_own(self, states: dict[str, Any]) -> dict[str, Any] | None:
        """
        Finds the last state of this monitor, and adds one if there is none. transformers needs it at the next
        checkpoint, at which it appends the states of several monitors to a list.
        """
        name = type(self).__name__
        saved = states.get(name)
        if saved is None:
            states[name] = [self.state()] if self._is_one_of_many else self.state()
            return None
        if isinstance(saved, dict) and not self._is_one_of_many:
            return saved
        entries = saved if isinstance(saved, list) else [saved]
        own = next((entry for entry in reversed(entries) if entry["args"] == self._settings), None)
        states[name] = entries if own is not None else [*entries, self.state()]
        return own

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Notes how many rollouts are already measured. A new one is sampled within the step."""
        if self.reward is not None:
            self._num_seen = self.reward.num_rollouts
            self._num_first = self._num_seen if self._num_first is None else self._num_first

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measures a new rollout. A refinement comes later, at the end of the step, and may clear the record."""
        if self.reward is None:
            return
        self._num_steps += 1
        require_scores(self.reward, self._num_first, self._num_steps, args)
        if self.reward.num_rollouts == self._num_seen:
            return
        num_new, self._num_seen = self.reward.num_rollouts - self._num_seen, self.reward.num_rollouts
        self.reward.collect()
        columns = _flatten(self.reward.buffer.rows(last=num_new))
        if columns:
            # A judge or another function of the user may draw random numbers.
            with keep_run_state():
                values = self._measure(columns, num_new)
            # The step is not counted yet.
            self._check(values, state.global_step + 1, args, state, control)
        self._num_rollouts += num_new

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Reads the signals that the trainer logs. The last log comes before the trainer deletes old checkpoints."""
        if "train_runtime" in (logs or {}) and self._protects(args) and not self.num_alerts:
            state.best_model_checkpoint = None  # a run without an alert keeps its last checkpoint
        values = read_log(logs or {}, self._length)
        if "length" in values:
            self._length = values.pop("length")
            self._first_length = self._first_length or self._length
            values["length_ratio"] = self._length / self._first_length if self._first_length else 1.0
        if self.comparison is not None:
            values.pop("same_as_anchor", None)
        if values:
            self._check(values, state.global_step, args, state, control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Notes a checkpoint that was saved while no limit was crossed. PPO may have delayed it."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if not self._watch.crossings and not self.num_alerts and folder.is_dir():
            self._healthy_checkpoint = str(folder)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Warns if nothing was measured."""
        if not self.history:
            logger.warning(
                "The policy monitor measured nothing, because the trainer logged none of its signals. Use it in "
                "GRPOTrainer, RLOOTrainer or PPOTrainer."
            )

    # The signals of a rollout. All processes have the same columns and get the same values

    def _measure(self, columns: dict[str, list], num_new: int) -> dict[str, float]:
        lengths = [len(text) for text in columns["completion"]]
        values = {"reward_length_correlation": correlate(columns["reward"], lengths)}
        if self.is_malformed is not None:
            pairs = [*zip(columns["prompt"], columns["completion"], strict=True)]
            verdicts = share_work(pairs, lambda own: [bool(self.is_malformed(*pair)) for pair in own])
            values["malformed"] = float(np.mean(verdicts))
        if self.comparison is not None:
            values["same_as_anchor"] = self._ask("same_as_anchor", lambda: self._compare(columns))
        if self.human_pairs is not None:
            values["outliers"] = self._count_outliers(columns)
        if self.judge is not None and -self._num_rollouts % self.judge_every < num_new:
            values["judge_win_rate"] = self._ask("judge_win_rate", lambda: self._judge(columns))
        return {name: value for name, value in values.items() if value is not None}

    def _ask(self, name: str, work: Callable[[], float | None]) -> float | None:
        """The main process asks, because an equivalence or a judge may be a server. A failure is no reason to stop."""
        try:
            return run_on_main(work)
        except Exception as error:
            logger.warning(
                f"The signal `{name}` could not be measured in this rollout: {type(error).__name__}: {error}"
            )
            return None

    def _compare(self, columns: dict[str, list]) -> float | None:
        verdicts = [verdict for verdict in self.comparison.compare(columns) if verdict is not None]
        return float(np.mean(verdicts)) if verdicts else None

    def _judge(self, columns: dict[str, list]) -> float | None:
        firsts: dict[str, tuple[Any, str, str]] = {}
        for prompt, completion in zip(columns["prompt"], columns["completion"], strict=True):
            key = prompt_key(prompt)
            if key in self._references:
                firsts.setdefault(key, (prompt, completion, self._references[key]))
        if not firsts:
            return None
        wins = judge_pairs(self.judge, *(list(part) for part in zip(*firsts.values(), strict=True)))
        wins = [win for win in wins if win is not None]
        return float(np.mean(wins)) if wins else None

    def _forget_outliers(self, shift: float) -> None:
        """A refined reward model represents texts differently."""
        self._outliers = None

    def _count_outliers(self, columns: dict[str, list]) -> float:
        reward = self.reward
        options = {"max_length": reward.max_length}
        if self._outliers is None:
            states = represent_pairs(
                reward.model, reward.processing_class, self.human_pairs, max_texts=MAX_HUMAN_TEXTS, **options
            )
            self._outliers = MahalanobisOutliers(states)
        rows = spread_evenly(len(columns["prompt"]), MAX_POLICY_TEXTS)
        texts = ([columns[name][row] for row in rows] for name in ("prompt", "completion", "finished"))
        template_options = [reward.chat_template_kwargs] * len(rows)
        states = represent(reward.model, reward.processing_class, *texts, template_options=template_options, **options)
        # Rounding may differ between machines, and all processes must decide alike.
        return run_on_main(lambda: float(self._outliers.is_outlier(states).mean()))

    # Limits and alerts

    def _check(
        self,
        values: dict[str, float],
        step: int,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
    ) -> None:
        self.history.append({"step": step} | values)
        alerts = self._watch.update(values)
        self.num_alerts += len(alerts)
        if self._protects(args):
            is_crossed = bool(self._watch.crossings or self.num_alerts)
            state.best_model_checkpoint = self._healthy_checkpoint if is_crossed else None
        for name in alerts:
            text = describe_alert(name, values[name], self._watch.limits[name], step)
            self._alert(name, text + self._describe_stop(state) if self.stop else text, args, state)
        if alerts and self.stop:
            control.should_training_stop = True
        if self.reward is not None:
            metrics = {f"monitor/{name}": float(value) for name, value in values.items()}
            self.reward.report(metrics | {"monitor/alerts": float(self.num_alerts)})

    def _protects(self, args: TrainingArguments) -> bool:
        return self.stop and args.metric_for_best_model is None

    def _describe_stop(self, state: TrainerState) -> str:
        best = state.best_model_checkpoint
        return " The run stops. " + (
            "There is no checkpoint from before." if best is None else f"Best checkpoint: {best}"
        )

    def _alert(self, name: str, text: str, args: TrainingArguments, state: TrainerState) -> None:
        logger.warning(text)
        if state.is_world_process_zero and "trackio" in (args.report_to or []) and is_trackio_available():
            import trackio

            try:
                trackio.alert(title=f"Policy monitor: {name}", text=text)
            except Exception as error:
                logger.warning(f"`trackio.alert` failed: {type(error).__name__}: {error}")


def _require_sources(
    reward: RefinableReward | None, needs_reward: dict[str, Any], references: Dataset | None, judge_every: int
) -> None:
    if reward is not None and not isinstance(reward, RefinableReward):
        raise TypeError(
            f"`reward` must be a `RefinableReward`, got `{type(reward).__name__}`. Pass the one in the trainer's "
            "`reward_funcs`."
        )
    for name, value in needs_reward.items():
        if reward is None and value is not None:
            raise ValueError(
                f"`{name}` needs the completions of each rollout. Pass the trainer's `RefinableReward` as `reward`."
            )
    if (needs_reward["judge"] is None) != (references is None):
        raise ValueError("`judge` and `references` belong together. Pass both or none.")
    if judge_every < 1:
        raise ValueError(f"`judge_every` must be at least 1 rollout, got {judge_every}.")


def _require_human_pairs(human_pairs: Dataset, reward: RefinableReward) -> Dataset:
    human_pairs = require_preferences(human_pairs, "human_pairs")
    if 2 * len(human_pairs) < MIN_TEXTS:
        raise ValueError(
            f"`human_pairs` has {len(human_pairs)} pairs, but outliers need at least {MIN_TEXTS // 2}. Pass more."
        )
    find_score_layers(reward.model)
    return human_pairs


def _index_references(references: Dataset) -> dict[str, str]:
    references = require_columns(references, ["prompt", "completion"], "references")
    return {prompt_key(row["prompt"]): final_text(row["completion"]) for row in references}


def _flatten(rows: Dataset) -> dict[str, list]:
    """Returns one value per completion for each column. Empty if there are no completions."""
    lists = {column: name for name, column in LISTS.items()}
    columns: dict[str, list] = {}
    for row in rows:
        for name, value in row.items():
            values = value if name in lists else [value] * len(row["completions"])
            columns.setdefault(lists[name] if name in lists else name, []).extend(values)
    return columns
