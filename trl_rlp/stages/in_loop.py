"""Additions to step 5 of Algorithm 1: the anchor reward, and refinements of the reward model during the training."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, concatenate_datasets
from peft import LoraConfig
from transformers import Trainer

from trl_rlp.data.anchors.comparison import AnchorComparison
from trl_rlp.data.anchors.semantic_anchors import SemanticAnchors
from trl_rlp.data.groups.equivalence import Equivalence
from trl_rlp.rewards.refinable_reward import DEFAULT_BUFFER_SIZE, RefinableReward
from trl_rlp.rewards.reward_function import RewardFunction
from trl_rlp.rewards.semantic_anchor_reward import SemanticAnchorReward
from trl_rlp.rewards.standardization import select_fixed_rows
from trl_rlp.storage.artifacts import load_data, save_model
from trl_rlp.trainer.callbacks.reward_refinement_callback import RewardRefinementCallback
from trl_rlp.trainer.model_card import (
    ModelDescription,
    count_rows,
    find_hub_datasets,
    has_messages,
    save_refined_model_card,
)
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig
from trl_rlp.trainer.reward.rlp_reward_trainer import SUMMARIES, SUMMARY, RLPRewardTrainer, list_card_settings


LAST_REWARD_MODEL = "last_reward_model"
"""Subfolder of a policy's folder, for the reward model after its last refinement in the loop."""


def find_last_reward_model(policy: Path, reward_model: Path) -> Path:
    """
    Returns the reward model that a policy was trained against last.

    Args:
        policy (`Path`):
            Folder of the policy's stage.
        reward_model (`Path`):
            Folder of the reward model at the start of the training.

    Returns:
        `Path`: Folder of the reward model after its last refinement in the loop, or `reward_model` without the loop.
    """
    refined = policy / LAST_REWARD_MODEL
    return refined if refined.is_dir() else reward_model


@dataclass(frozen=True)
class InLoop:
    """
    What step 5 adds to the policy's training. This is ours and not the paper's.

    Args:
        anchor_weight (`float`):
            Weight of the anchor reward, at least 0 (c).
        refine_every (`int`, *optional*):
            Number of rollouts after which the reward model is refined. `None` does not refine it.
        anchors (`Path`, *optional*):
            Folder of [`make_anchors`].
        samples (`Path`):
            Folder of the samples of π_SFT. On those of the first 256 prompts, a refined reward model keeps the mean
            and the standard deviation of the rewards.
        equivalence ([`Equivalence`], *optional*):
            Decides whether a completion means what the anchor means.
        base_model (`str` or `Path`):
            Folder or Hub name of the model that every refinement starts from, with a new score head.
        config ([`RLPRewardConfig`]):
            Configuration of the refinements, with their `method`.
        preference_dataset ([`~datasets.Dataset`]):
            Human preferences D, without the held-out part.
        heldout_preferences ([`~datasets.Dataset`]):
            Human preferences that decide whether a refined reward model is kept.
        synthetic (`Sequence[Path]`, *optional*):
            Folders of [`make_synthetic_preferences`]. Every refinement trains on them too.
        peft_config (`LoraConfig`, *optional*):
            Configuration of an adapter to train. It is merged into the reward model.
        seed (`int`, *optional*, defaults to `42`):
            Seed of the pairs.
    """

    anchor_weight: float
    refine_every: int | None
    anchors: Path | None
    samples: Path
    equivalence: Equivalence | None
    base_model: str | Path
    config: RLPRewardConfig
    preference_dataset: Dataset
    heldout_preferences: Dataset
    synthetic: Sequence[Path] = ()
    peft_config: LoraConfig | None = None
    seed: int = 42

    def extend_rewards(
        self, reward: RewardFunction, rollout_size: int, folder: Path
    ) -> tuple[list[Callable[..., list]], list[RewardRefinementCallback]]:
        """
        Builds the reward functions and the callbacks of a policy's trainer.

        Args:
            reward ([`RewardFunction`]):
                The reward model r̂_φ as a reward function.
            rollout_size (`int`):
                Number of completions of a rollout, of all processes together (`generation_batch_size`).
            folder (`Path`):
                Folder of the checkpoints. The refinements work in a subfolder.

        Returns:
            `tuple[list[Callable], list[TrainerCallback]]`: The reward functions, the reward model first and the anchor
            reward last, and the callback that refines the reward model, if there is one.
        """
        anchor_reward = None
        if self.anchors is not None and self.equivalence is not None:
            anchor_reward = SemanticAnchorReward(SemanticAnchors.load(self.anchors), self.equivalence)
        functions: list[Callable[..., list]] = [reward]
        callbacks: list[RewardRefinementCallback] = []
        if self.refine_every is not None:
            # The buffer holds all rollouts between two refinements.
            size = max(DEFAULT_BUFFER_SIZE, self.refine_every * rollout_size)
            refinable = make_refinable(reward, size)
            comparison = None if anchor_reward is None else anchor_reward.comparison
            functions = [refinable]
            callbacks = [self._build_callback(refinable, self.refine_every, comparison, folder / "refinement")]
        if anchor_reward is not None and self.anchor_weight:
            functions.append(anchor_reward)
        return functions, callbacks

    def extend_weights(self, reward_weights: Sequence[float]) -> list[float]:
        """
        Adds the weight of the anchor reward to those of the other reward functions.

        Args:
            reward_weights (`Sequence[float]`):
                Weights of the reward functions without the anchor reward.

        Returns:
            `list[float]`: The weights.
        """
        return [*reward_weights, self.anchor_weight] if self.anchor_weight else list(reward_weights)

    def save_reward_model(self, folder: Path, trainer: Trainer, callback: RewardRefinementCallback) -> None:
        """
        Saves the reward model after its last refinement in the subfolder [`LAST_REWARD_MODEL`], with a model card.

        Args:
            folder (`Path`):
                Folder of the policy, with its model card.
            trainer (`transformers.Trainer`):
                The trainer of the policy, after `train()`.
            callback ([`RewardRefinementCallback`]):
                The callback that refined the reward model.
        """
        reward, folder = callback.reward, folder / LAST_REWARD_MODEL
        save_model(folder, reward.model, reward.processing_class)
        data = [f"Human preferences: {count_rows(self.preference_dataset)} pairs, without those above `max_length`"]
        if self.config.uses_synthetic_pairs:
            data.append("Synthetic preferences: pairs of policy samples, also of those from the policy's training")
        if self.config.uses_views:
            data.append("Views: two completions of a prompt from the policy's training (UML)")
        save_refined_model_card(
            folder,
            trainer,
            self.config,
            description=ModelDescription(
                self._summarize(callback.num_accepted),
                data,
                list_card_settings(self.config),
                find_hub_datasets(self.preference_dataset),
                has_messages(self.preference_dataset),
            ),
            base_model=str(self.base_model),
            tags=RLPRewardTrainer._tag_names,
        )

    def _summarize(self, num_accepted: int) -> str:
        return (
            f"{SUMMARY}{SUMMARIES[self.config.method]} While a policy was trained against it, it was refined every "
            f"{self.refine_every} rollouts. Refinement in the loop is an addition of trl_rlp and not the paper's. "
            f"Number of refinements that replaced the reward model: {num_accepted}. The metrics are those of the last "
            "refinement, also if it was refused."
        )

    def _build_callback(
        self, reward: RefinableReward, every: int, comparison: AnchorComparison | None, output_dir: Path
    ) -> RewardRefinementCallback:
        # A new configuration would reset accelerate's state, which the policy's trainer may use already.
        args = copy.copy(self.config)
        args.output_dir = str(output_dir)
        synthetic = [load_data(folder) for folder in self.synthetic]
        return RewardRefinementCallback(
            reward,
            self.preference_dataset,
            args,
            base_model=self.base_model,
            comparison=comparison if self.config.uses_synthetic_pairs else None,
            equivalence=self.equivalence if self.config.views_share_group else None,
            synthetic_dataset=concatenate_datasets(synthetic) if synthetic else None,
            reference_samples=select_fixed_rows(load_data(self.samples)),
            eval_preference_dataset=self.heldout_preferences,
            every=every,
            peft_config=self.peft_config,
            seed=self.seed,
        )


def make_refinable(function: RewardFunction, buffer_size: int) -> RefinableReward:
    """
    Converts a reward function of a reward model to one whose reward model can be refined.

    Args:
        function ([`RewardFunction`]):
            The reward function.
        buffer_size (`int`):
            Maximum number of completions that it keeps.

    Returns:
        [`RefinableReward`]: The same rewards from the same model.
    """
    return RefinableReward(
        function.model,
        function.processing_class,
        function.eos_token_ids,
        buffer_size=buffer_size,
        mean=function.mean,
        standard_deviation=function.standard_deviation,
        max_length=function.max_length,
        name=function.__name__,
        reads_policy_tokens=function.reads_policy_tokens,
        require_finite=function.require_finite,
        chat_template_kwargs=function.chat_template_kwargs,
    )
