"""Refines a reward model while a policy trains against it: when, and in which of the trainer's events."""

import math
import time
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.logging import get_logger
from datasets import Dataset
from peft import PeftConfig
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState

from trl_rlp.data.anchors.comparison import AnchorComparison
from trl_rlp.data.anchors.semantic_anchors import SemanticAnchors
from trl_rlp.data.groups.equivalence import Equivalence
from trl_rlp.data.preferences.pairing import NoPairsError
from trl_rlp.data.validation import require_columns, require_preferences
from trl_rlp.evaluation.reward_metrics import reward_margins
from trl_rlp.rewards.refinable_reward import RefinableReward
from trl_rlp.storage.device_memory import release_at_end
from trl_rlp.storage.shard_folder import require_shared_temporary_folder
from trl_rlp.trainer.callbacks.refinement_checks import (
    PolicyConfig,
    check_policy_run,
    require_different_names,
    require_equal_shapes,
    require_known_prompts,
    require_refinement_config,
    require_schedule,
    require_start,
    require_synthetic_pairs,
    resolve_comparison,
)
from trl_rlp.trainer.callbacks.refinement_state import find_checkpoint, restore_refinement, save_refinement
from trl_rlp.trainer.callbacks.reward_refinement import BaseModel, RewardRefinement, build_start_model
from trl_rlp.trainer.callbacks.run_checks import require_scores
from trl_rlp.trainer.nested_training import keep_run_state, quiet_datasets
from trl_rlp.trainer.ppo.ppo_config import PPOConfig
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig
from trl_rlp.trainer.tracking import log_preferences


logger = get_logger(__name__)

MAX_FAILURES = 3
"""Number of refinements that may fail in a row."""


class RewardRefinementCallback(TrainerCallback, ExportableState):
    """
    Refines a reward model every k rollouts while a policy trains against it, in GRPO, RLOO and PPO.

    Not part of the paper. The paper refines the reward model once, between two trainings of the policy. A refinement
    takes what the reward function recorded since the last one (a window):

    1. It makes pairs from the recorded completions: against `anchors`, or with published SPG's groups. With `uml`, the
       completions are the views.
    2. It trains a reward model with [`RLPRewardTrainer`] on the human pairs, `synthetic_dataset`, and the windows.
    3. It keeps the old model if the new one has NaN or infinite rewards, or if its accuracy on held-out human pairs
       fell by more than .1 and by more than chance explains (one-sided, 1 %).
    4. It scales the new rewards to the mean and the standard deviation of the old ones on fixed samples of the
       initial policy.
    5. It replaces the weights of the reward function in place. The next rollout is scored by the new model.

    A policy's run in which all refinements are refused is the same as a run without the callback, step for step.

    Views (`uml`) and SPG's groups need the same number n >= 2 of completions for every prompt. Recorded prompts may
    have different numbers. n is the number that keeps the most completions. A prompt with fewer is left out, and one
    with more keeps its last n. Pairs against anchors use all completions.

    Args:
        reward ([`RefinableReward`]):
            The reward function. Pass it to the trainer in `reward_funcs` too.
        preference_dataset ([`~datasets.Dataset`]):
            Human preferences D, which every refinement trains on.
        args ([`RLPRewardConfig`]):
            Configuration of the reward model's training. `method` is `spg`, `uml` or `uml+spg`. Precision and device
            are those of the policy's run. Nothing is saved or reported.
        eval_preference_dataset ([`~datasets.Dataset`]):
            Human preferences for the comparison. No reward model may have been trained on them, also not the first
            one: it would look better than each refinement, and all of them might be refused. `hold_out` splits D
            before the first reward model is trained.
        base_model (`str` or `Path` or `Callable`, *optional*):
            Each refinement starts from it: a folder or Hub name of a model, which gets a new score head, or a function
            that returns a new reward model at each call. By default, it starts from a copy of the current reward
            model, in fp32 (a warm start).
        anchors ([`SemanticAnchors`], *optional*):
            Anchors of the initial policy. Pairs are then made against them. By default, published SPG groups the
            recorded completions.
        equivalence ([`Equivalence`], *optional*):
            Decides which completions mean the same. Required with `anchors`, by SPG's groups, and by views of one
            group.
        comparison ([`AnchorComparison`], *optional*):
            The attribute `comparison` of a [`SemanticAnchorReward`], instead of `anchors`. Then no text is asked about
            twice.
        synthetic_dataset ([`~datasets.Dataset`], *optional*):
            Synthetic preferences of before the run. Every refinement trains on them.
        reference_samples ([`~datasets.Dataset`], *optional*):
            Fixed samples of the initial policy with `prompt`, `completions` and `finished`. Defaults to the first
            rollout.
        every (`int`, *optional*, defaults to `8`):
            Number of rollouts between two refinements, at least 1.
        drift_threshold (`float`, *optional*):
            A refinement comes earlier if the mean reward of a rollout differs from that of the first rollout after the
            last refinement by more than this many standard deviations of the rewards of that rollout.
        num_windows (`int`, *optional*):
            Number of the last windows to train on. Defaults to all.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Configuration of an adapter for the reward model's training. It is merged afterwards.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the draws of pairs, at least 0.

    Attributes:
        num_accepted (`int`): Number of refinements of this run that replaced the reward model.
        num_skipped (`int`): Number of refinements of this run that did not take place.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is missing, is not used or is out of range. Before training: if the trainer or its
            configuration does not fit.
        RuntimeError: During training, if the pairs of three refinements in a row could not be made.

    Example:

    ```python
    reward = RefinableReward(reward_model, reward_tokenizer, [tokenizer.eos_token_id])
    refinement = RewardRefinementCallback(
        reward,
        preferences,
        RLPRewardConfig("refined", method="spg"),
        eval_preference_dataset=heldout_preferences,
        anchors=anchors,
        equivalence=NLIEquivalence(),
    )
    trainer = GRPOTrainer(policy, reward, grpo_config, prompts, callbacks=[refinement])
    ```
    """

    def __init__(
        self,
        reward: RefinableReward,
        preference_dataset: Dataset,
        args: RLPRewardConfig,
        *,
        eval_preference_dataset: Dataset,
        base_model: BaseModel | None = None,
        anchors: SemanticAnchors | None = None,
        equivalence: Equivalence | None = None,
        comparison: AnchorComparison | None = None,
        synthetic_dataset: Dataset | None = None,
        reference_samples: Dataset | None = None,
        every: int = 8,
        drift_threshold: float | None = None,
        num_windows: int | None = None,
        peft_config: PeftConfig | None = None,
        seed: int = 42,
    ):
        require_refinement_config(reward, args)
        require_schedule(every, drift_threshold, num_windows, seed)
        require_start(base_model, peft_config)
        comparison = resolve_comparison(anchors, equivalence, comparison, args)
        if synthetic_dataset is not None:
            synthetic_dataset = require_synthetic_pairs(synthetic_dataset, args)
        if reference_samples is not None:
            columns = ["prompt", "completions", "finished"]
            reference_samples = require_columns(reference_samples, columns, "reference_samples")
        self.reward, self.args, self.comparison = reward, args, comparison
        self.every, self.drift_threshold = every, drift_threshold
        self._given_reference = reference_samples
        self._refinement = RewardRefinement(
            reward,
            require_preferences(preference_dataset, "preference_dataset"),
            require_preferences(eval_preference_dataset, "eval_preference_dataset"),
            args,
            base_model=base_model,
            comparison=comparison,
            equivalence=equivalence,
            synthetic_dataset=synthetic_dataset,
            num_windows=num_windows,
            peft_config=peft_config,
            seed=seed,
        )
        self._run: tuple[PolicyConfig, TrainerState] | None = None
        self._begin()

    def _begin(self) -> None:
        """Sets everything to its value at the start of a run."""
        self.num_accepted = self.num_skipped = 0
        self._num_failures = self._num_attempts = 0
        self._rollouts_since = 0
        self._baseline: tuple[float, float] | None = None
        self._reference = self._given_reference
        self._refinement.pair_windows, self._refinement.sample_windows = [], []

    # Events of the trainer

    def on_init_end(self, args: PolicyConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Checks the trainer's configuration, and starts to record what the policy samples."""
        check_policy_run(args, self.args, self.reward, self.comparison)
        self.reward.follow(kwargs["model"])

    def on_train_begin(self, args: PolicyConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Checks everything that a refinement needs. A resumed run restores what the checkpoint kept."""
        check_policy_run(args, self.args, self.reward, self.comparison)
        self.reward.follow(kwargs["model"])
        if self.comparison is not None:
            vocabulary_size = kwargs["model"].get_input_embeddings().weight.shape[0]
            prompts, tokenizer = kwargs["train_dataloader"].dataset, kwargs["processing_class"]
            require_known_prompts(prompts, self.comparison, tokenizer, vocabulary_size)
        if self.comparison is None or self.args.views_share_group:  # refinements call `cluster`
            require_shared_temporary_folder()
        self._check_models()
        self._begin()
        if state.global_step > 0:
            self._restore(args, state)
        else:
            require_different_names(state.stateful_callbacks[type(self).__name__])
            self._forget_records()
        self._num_seen = self._num_first = self.reward.num_rollouts
        self._first_step = state.global_step
        self._run, self._saved_step = (args, state), None
        self._announce(args, state)

    def _check_models(self) -> None:
        """Finds a start model that does not fit, and held-out pairs that cannot be scored."""
        refinement = self._refinement
        if refinement.base_model is not None:
            with keep_run_state(), release_at_end():
                model = build_start_model(refinement.base_model, self.reward, self.args)
                require_equal_shapes(model, self.reward.plain_model)
        options = self.reward.processing_class, refinement.heldout_pairs, self.reward.max_length
        reward_margins(self.reward.model, *options)

    def _forget_records(self) -> None:
        """Forgets what an earlier run in this program has left."""
        self.reward.collect()
        self.reward.buffer.clear()
        self.reward.pending_metrics = {}

    def _announce(self, args: PolicyConfig, state: TrainerState) -> None:
        num_rollouts = self._count_rollouts(args, state)
        number = max(0, self._rollouts_since + num_rollouts - 1) // self.every
        if number == 0:
            logger.warning(
                f"`every` is {self.every}, but this run has {num_rollouts} rollouts and no refinement after the last "
                "one, so there are 0 refinements by this schedule. Lower `every`, or train longer."
            )
        else:
            logger.info(f"Refinements of the reward model by this schedule: {number} in {num_rollouts} rollouts.")
        kept = self.reward.buffer.size // args.generation_batch_size
        if kept < self.every:
            logger.warning(
                f"`buffer_size`={self.reward.buffer.size} of the `RefinableReward` holds {kept} rollouts, but a "
                f"refinement comes every {self.every}. The oldest rollouts are dropped. Raise it to "
                f"{self.every * args.generation_batch_size}."
            )

    def on_step_end(self, args: PolicyConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Collects what all processes recorded. Refines the reward model if it is time for it."""
        self.reward.collect()
        require_scores(self.reward, self._num_first, state.global_step - self._first_step, args)
        num_new, self._num_seen = self.reward.num_rollouts - self._num_seen, self.reward.num_rollouts
        self._rollouts_since += num_new
        if self._reference is None and len(rows := self.reward.buffer.rows(last=1)):
            self._reference = rows
        is_due = self._has_drifted(num_new) or self._rollouts_since >= self.every
        is_rollout_end = not isinstance(args, PPOConfig) or state.global_step % args.steps_per_rollout == 0
        if is_due and is_rollout_end and self._has_next_rollout(args, state):
            self._refine()

    def on_train_end(self, args: PolicyConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Forgets the run."""
        self._run = None

    # Schedule

    def _has_drifted(self, num_new: int) -> bool:
        """Compares the mean reward of the last rollout with that of the first one since the last refinement."""
        if self.drift_threshold is None:
            return False
        rewards = [*chain.from_iterable(self.reward.buffer.rows(last=1)["rewards"])]
        rewards = [reward for reward in rewards if math.isfinite(reward)]  # NaN became infinity
        if not rewards:
            return False
        if self._baseline is None and num_new:
            self._baseline = float(np.mean(rewards)), float(np.std(rewards))
        if self._baseline is None:
            return False
        mean, standard_deviation = self._baseline
        return abs(float(np.mean(rewards)) - mean) > self.drift_threshold * standard_deviation

    def _count_rollouts(self, args: PolicyConfig, state: TrainerState) -> int:
        """Counts the rollouts of this call of `train()`, as GRPO, RLOO and PPO start them."""
        num_batches = (state.max_steps - self._first_step) * args.gradient_accumulation_steps
        return math.ceil(num_batches / (args.steps_per_generation * args.num_iterations))

    def _has_next_rollout(self, args: PolicyConfig, state: TrainerState) -> bool:
        is_last = self.reward.num_rollouts - self._num_first >= self._count_rollouts(args, state)
        return not is_last and state.global_step < state.max_steps

    # A refinement

    def _refine(self) -> None:
        start = time.perf_counter()
        self._rollouts_since, self._baseline = 0, None
        self._num_attempts += 1
        with keep_run_state(), quiet_datasets():
            metrics = self._run_refinement()
        metrics |= {"count": self.num_accepted, "skipped": self.num_skipped, "seconds": time.perf_counter() - start}
        self.reward.report({f"refinement/{name}": float(value) for name, value in metrics.items()})

    def _run_refinement(self) -> dict[str, float]:
        """Makes new pairs, trains, compares both models, and replaces the weights. Returns the metrics."""
        refinement = self._refinement
        try:
            num_pairs, samples = refinement.add_window(self._num_attempts)
        except NoPairsError as error:
            self._num_failures = 0
            return self._skip(str(error))
        except Exception as error:
            self._num_failures += 1
            if self._num_failures == MAX_FAILURES:
                raise RuntimeError(
                    f"{MAX_FAILURES} refinements in a row failed to compare the recorded completions, the last one "
                    f"with {type(error).__name__}: {error}. Repair the equivalence, and resume from a checkpoint."
                ) from error
            return self._skip(f"{type(error).__name__}: {error}")
        self._num_failures = 0
        if refinement.new_pairs is not None:
            log_preferences(refinement.new_pairs, self.reward.processing_class, *self._run)
        outcome = refinement.replace_unless_worse(refinement.train(samples), self._reference)
        self.reward.buffer.clear()
        if outcome.problem is None:
            self.num_accepted += 1
        else:
            logger.warning(
                f"A refined reward model was refused: {outcome.problem}. The run continues with the old one."
            )
        metrics = {"accepted": float(outcome.problem is None), **outcome.metrics}
        if self.args.uses_synthetic_pairs:
            metrics |= {"new_pairs": num_pairs, "pairs": refinement.num_pairs}
        return metrics

    def _skip(self, reason: str) -> dict[str, float]:
        self.num_skipped += 1
        logger.warning(
            f"A refinement of the reward model was skipped. The next one gets its completions. Reason: {reason}"
        )
        return {}

    # Checkpoints

    def state(self) -> dict:
        """
        Returns the state for `trainer_state.json`. If a checkpoint is being written, it first writes the reward model
        and everything that was recorded into it.

        transformers also calls this before training, when there is nothing to write.

        Returns:
            `dict`: The folder of the checkpoint, and the name of the reward.
        """
        if self._run is None or self._run[0].save_only_model:
            return {"folder": None, "reward": self.reward.__name__}
        args, state = self._run
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if folder.is_dir() and self._saved_step != state.global_step:
            self._saved_step = state.global_step
            save_refinement(folder, self.reward, *self._pack())
        return {"folder": str(folder), "reward": self.reward.__name__}

    def _pack(self) -> tuple[list[Dataset], dict[str, Any]]:
        """Returns what a checkpoint keeps: datasets, and plain values."""
        refinement = self._refinement
        is_own = self._reference is not None and self._given_reference is None
        datasets = [*([self._reference] if is_own else []), *refinement.pair_windows, *refinement.sample_windows]
        values = {
            "num_references": int(is_own),
            "num_pair_windows": len(refinement.pair_windows),
            "num_accepted": self.num_accepted,
            "num_skipped": self.num_skipped,
            "num_failures": self._num_failures,
            "num_attempts": self._num_attempts,
            "rollouts_since": self._rollouts_since,
            "baseline": self._baseline,
        }
        return datasets, values

    def _restore(self, args: PolicyConfig, state: TrainerState) -> None:
        saved = state.stateful_callbacks.get(type(self).__name__)
        # With several callbacks, transformers appends their states at each checkpoint. The last one is of this one.
        saved = saved[-1] if isinstance(saved, list) else saved
        if saved is None or saved["folder"] is None:
            raise ValueError(
                "`resume_from_checkpoint` is a checkpoint of a run without `RewardRefinementCallback`, or of one with "
                "`save_only_model`. To start from its weights, pass the folder as `model`."
            )
        datasets, values = restore_refinement(find_checkpoint(args, state, saved["folder"]), self.reward)
        num_references, num_windows = values["num_references"], values["num_pair_windows"]
        if num_references:
            self._reference = datasets[0]
        self._refinement.pair_windows = datasets[num_references : num_references + num_windows]
        self._refinement.sample_windows = datasets[num_references + num_windows :]
        self.num_accepted, self.num_skipped = values["num_accepted"], values["num_skipped"]
        self._num_failures, self._num_attempts = values["num_failures"], values["num_attempts"]
        self._rollouts_since, self._baseline = values["rollouts_since"], values["baseline"]
