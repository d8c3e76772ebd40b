"""One refinement of a reward model inside a run: new pairs, training, gate, scale, and the swap of the weights."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from peft import PeftConfig, PeftModel
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PrinterCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from trl_rlp.data.anchors.comparison import AnchorComparison
from trl_rlp.data.argument_names import rename_arguments
from trl_rlp.data.columns import flatten_samples
from trl_rlp.data.groups.clustering import cluster
from trl_rlp.data.groups.instruction import list_instruction_columns
from trl_rlp.data.preferences.anchor_pairs import pair_with_anchors
from trl_rlp.data.preferences.pairing import NoPairsError
from trl_rlp.data.preferences.preferences import synthesize_preferences, tokenize_preferences
from trl_rlp.data.row_scores import score_rows
from trl_rlp.data.scoring import batch_scoring_ids
from trl_rlp.evaluation.gate_report import compare_on_sets, fell_beyond_chance
from trl_rlp.rewards.refinable_reward import RefinableReward
from trl_rlp.storage.device_memory import release_at_end
from trl_rlp.storage.whole_weights import whole_weights
from trl_rlp.trainer.callbacks.recorded_samples import have_views, select_equal_counts
from trl_rlp.trainer.nested_training import quiet_loading
from trl_rlp.trainer.reward.initial_model import init_reward_model
from trl_rlp.trainer.reward.refinement_data import FIELD_NAMES, HUMAN_COLUMNS, PAIR_COLUMNS, select_columns
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig
from trl_rlp.trainer.reward.rlp_reward_trainer import RLPRewardTrainer


BaseModel = str | Path | Callable[[], PreTrainedModel]
"""What a refinement starts from: a folder, a Hub name, or a function that returns a model."""

ID_TYPES = {
    "chosen_ids": List(Value("int64")),
    "rejected_ids": List(Value("int64")),
    "candidate_ids": List(List(Value("int64"))),
}
"""Types of the columns of token ids."""

QUIET = {
    "save_strategy": SaveStrategy.NO,
    "eval_strategy": IntervalStrategy.NO,
    "eval_on_start": False,
    "report_to": [],
    "disable_tqdm": True,
    "load_best_model_at_end": False,
    "push_to_hub": False,
    "enable_jit_checkpoint": False,
    "model_init_kwargs": None,
}
"""Fields of the reward model's training inside a run. It saves and reports nothing by itself."""


class Scale(NamedTuple):
    """The mean and the standard deviation that a reward function subtracts and divides by."""

    mean: float
    standard_deviation: float


class Outcome(NamedTuple):
    """
    What became of a refinement.

    Args:
        problem (`str` or `None`):
            Why the new reward model was refused. `None` if it replaced the old one.
        metrics (`dict[str, float]`):
            Metrics of the comparison of both models.
    """

    problem: str | None
    metrics: dict[str, float]


def rescale(old: np.ndarray, new: np.ndarray) -> Scale:
    """
    Computes the scale that gives new rewards the mean and the standard deviation of the old ones.

    sd' = sd(new) / sd(old), mean' = mean(new) - mean(old) sd'

    Args:
        old (`numpy.ndarray` of shape `(completions,)`):
            Rewards as the old reward function returns them.
        new (`numpy.ndarray` of shape `(completions,)`):
            Raw rewards of the new model for the same completions. They are not all equal, and neither are the old.

    Returns:
        [`Scale`]: (new - mean') / sd' has the mean and the standard deviation of `old`.
    """
    standard_deviation = float(np.std(new) / np.std(old))
    return Scale(float(np.mean(new) - np.mean(old) * standard_deviation), standard_deviation)


def disagreement(old: np.ndarray, new: np.ndarray) -> float:
    """
    Computes the share of pairs of completions that two reward models order differently. Ties count as agreement.

    Args:
        old (`numpy.ndarray` of shape `(completions,)`):
            Rewards of one model.
        new (`numpy.ndarray` of shape `(completions,)`):
            Rewards of the other model for the same completions.

    Returns:
        `float`: In [0, 1]. It is 0 for one completion.
    """
    size = len(old)
    differ = sum(int(((old[i] - old[:i]) * (new[i] - new[:i]) < 0).sum()) for i in range(size))
    return differ / max(1, size * (size - 1) // 2)


def build_start_model(base_model: BaseModel | None, reward: RefinableReward, args: RLPRewardConfig) -> PreTrainedModel:
    """
    Builds the model that a refinement trains.

    Args:
        base_model (`str` or `Path` or `Callable`, *optional*):
            Folder or Hub name of a model that gets a new score head, or a function that returns a reward model. `None`
            is a warm start: a copy of the current reward model, in fp32.
        reward ([`RefinableReward`]):
            The reward function.
        args ([`RLPRewardConfig`]):
            Configuration of the training.

    Returns:
        [`~transformers.PreTrainedModel`]: The model. All of its weights are trainable, except what the function froze.

    Raises:
        TypeError: If the function returns something else than a model.
    """
    with whole_weights():
        if base_model is None:
            model = copy.deepcopy(reward.plain_model).float().requires_grad_(True)
        elif callable(base_model):
            model = base_model()
            if not isinstance(model, PreTrainedModel):
                raise TypeError(
                    f"`base_model` must return a reward model, got `{type(model).__name__}`. Load one at each call, "
                    "or pass its folder or Hub name as text."
                )
        else:
            options = {"trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {})}
            model, _ = init_reward_model(base_model, args.seed, options)
    model.config.get_text_config().pad_token_id = reward.model.config.get_text_config().pad_token_id
    return model


class _RefinementTrainer(RLPRewardTrainer):
    """Keeps the tokenized human pairs, so the next refinement need not tokenize them again."""

    human_pairs: Dataset

    def _prepare_dataset(self, dataset: Dataset, *arguments: Any) -> Dataset:
        self.human_pairs = super()._prepare_dataset(dataset, *arguments)
        return self.human_pairs


class RewardRefinement:
    """
    The refinements of one reward model. It keeps the pairs and samples of all windows.

    A window is what the reward function recorded between two refinements. All processes call the methods together.

    Args:
        reward ([`RefinableReward`]):
            The reward function.
        human_pairs ([`~datasets.Dataset`]):
            Human preferences D to train on.
        heldout_pairs ([`~datasets.Dataset`]):
            Human preferences for the gate.
        args ([`RLPRewardConfig`]):
            Configuration of the training.
        base_model, peft_config, num_windows, seed:
            As in [`RewardRefinementCallback`].
        comparison ([`AnchorComparison`], *optional*):
            Compares completions with anchors. `None` for groups of the recorded completions.
        equivalence ([`Equivalence`], *optional*):
            Groups completions, for pairs without anchors and for views of one group.
        synthetic_dataset ([`~datasets.Dataset`], *optional*):
            Synthetic preferences of before the run.

    Attributes:
        pair_windows (`list[datasets.Dataset]`): Token ids of the pairs of each window.
        new_pairs (`datasets.Dataset` or `None`): The pairs of the last window with their texts and audit columns.
        sample_windows (`list[datasets.Dataset]`): Completions of each window, for views.
    """

    def __init__(
        self,
        reward: RefinableReward,
        human_pairs: Dataset,
        heldout_pairs: Dataset,
        args: RLPRewardConfig,
        *,
        base_model: BaseModel | None,
        comparison: AnchorComparison | None,
        equivalence: Any | None,
        synthetic_dataset: Dataset | None,
        num_windows: int | None,
        peft_config: PeftConfig | None,
        seed: int,
    ):
        self.reward, self.args = reward, args
        self.human_pairs, self.heldout_pairs = human_pairs, heldout_pairs
        self.base_model, self.peft_config = base_model, peft_config
        self.comparison, self.equivalence = comparison, equivalence
        self.num_windows, self.seed = num_windows, seed
        self.synthetic_pairs = [] if synthetic_dataset is None else [self._tokenize(synthetic_dataset)]
        self.pair_windows: list[Dataset] = []
        self.new_pairs: Dataset | None = None
        self.sample_windows: list[Dataset] = []
        self._known: tuple[Dataset, np.ndarray] | None = None
        reward.subscribe(self._forget_known)

    def _forget_known(self, shift: float) -> None:
        """Forgets the fixed samples and their raw rewards of the current model, because this model has changed."""
        self._known = None

    def _tokenize(self, pairs: Dataset) -> Dataset:
        if not {"chosen_ids", "rejected_ids"} <= set(pairs.column_names):
            pairs = tokenize_preferences(pairs, self.reward.processing_class, self.args.max_length)
        pairs = select_columns(pairs, PAIR_COLUMNS)
        # Ids that a user has tokenized may have 32 bits. The pairs of all windows are concatenated.
        return pairs.cast(Features({name: ID_TYPES.get(name, kind) for name, kind in pairs.features.items()}))

    # Data: the new window, and everything to train on

    @property
    def num_pairs(self) -> int:
        """Number of synthetic pairs that a refinement trains on."""
        return sum(map(len, [*self.synthetic_pairs, *self.pair_windows]))

    def add_window(self, number: int) -> tuple[int, Dataset | None]:
        """
        Makes the pairs of the recorded completions, and forgets windows that are too old.

        Args:
            number (`int`):
                Number of the window, from 0. It decides random draws.

        Returns:
            `tuple[int, datasets.Dataset | None]`: Number of new pairs, and samples for views, if the method trains on
            them.

        Raises:
            NoPairsError: If the completions give no pair, or fewer than two prompts have two views.
            Exception: What the equivalence raises. In both cases, the windows stay as they are.
        """
        if not len(self.reward.buffer):
            raise NoPairsError("No completion was recorded.")
        window = self.reward.buffer.rows()
        pairs, samples, sample_windows = [], None, []
        if self.args.uses_synthetic_pairs:
            pairs = [self._make_pairs(window, self.seed + number)]
        if self.args.uses_views:
            sample_windows = self._keep([*self.sample_windows, window])
            samples = self._group_samples(sample_windows)
        self.sample_windows = sample_windows
        self.pair_windows = self._keep([*self.pair_windows, *pairs])
        return sum(map(len, pairs)), samples

    def _keep(self, windows: list[Dataset]) -> list[Dataset]:
        return windows if self.num_windows is None else windows[-self.num_windows :]

    def _make_pairs(self, window: Dataset, seed: int) -> Dataset:
        """Returns token ids of the pairs of a window."""
        chooses = self.args.chosen == "reward"
        options: dict[str, Any] = {
            "reward_model": self.reward.model if chooses else None,
            "reward_processing_class": self.reward.processing_class if chooses else None,
            "chosen": self.args.chosen,
            "max_length": self.reward.max_length,
            "seed": seed,
        }
        if self.comparison is not None:
            pairs, _ = pair_with_anchors(window, self.comparison, **options)
        else:
            pairs = self._pair_by_groups(window, options)
        self.new_pairs = pairs
        pairs = self._tokenize(pairs)
        if not len(pairs):
            raise NoPairsError(f"All pairs are equal on both sides after truncation to {self.args.max_length} tokens.")
        return pairs

    def _pair_by_groups(self, window: Dataset, options: dict[str, Any]) -> Dataset:
        """Makes the pairs of published SPG."""
        threshold = self.args.confidence_threshold
        samples = select_equal_counts([window], list_instruction_columns(self.equivalence))
        groups = cluster(samples, self.equivalence, threshold=threshold)
        options |= {"threshold": threshold, "keep_candidates": self.args.redraw_rejected}
        with rename_arguments(FIELD_NAMES):
            pairs, _ = synthesize_preferences(groups, "spg", **options)
        return pairs

    def _group_samples(self, windows: list[Dataset]) -> Dataset:
        """Returns samples of all windows for views."""
        samples = select_equal_counts(windows, list_instruction_columns(self.equivalence))
        if self.args.views_share_group:
            threshold = self.args.confidence_threshold
            samples = cluster(samples, self.equivalence, threshold=threshold, complete_groups=True)
        if not have_views(samples, self.args.views_share_group):
            raise NoPairsError("Fewer than two prompts have two different completions for views.")
        return samples

    def gather_pairs(self) -> Dataset | None:
        """
        Returns the synthetic pairs to train on.

        Returns:
            `datasets.Dataset` or `None`: Token ids of the pairs of before the run, then of all windows. `None` if
            there is none.
        """
        pairs = [*self.synthetic_pairs, *self.pair_windows]
        return (
            concatenate_datasets([select_columns(part, _shared_columns(pairs)) for part in pairs]) if pairs else None
        )

    # Model: training, comparison with the current one, and the swap

    @release_at_end()
    def train(self, samples: Dataset | None) -> dict[str, torch.Tensor]:
        """
        Trains a new reward model on the human pairs and all windows.

        Args:
            samples ([`~datasets.Dataset`], *optional*):
                Samples for views.

        Returns:
            `dict[str, torch.Tensor]`: Its plain weights on the CPU, in the dtypes of the current model. The model is
            released.
        """
        args = copy.copy(self.args)
        for name, value in QUIET.items():
            setattr(args, name, value)
        with quiet_loading():  # the check before the run has reported the same
            start = build_start_model(self.base_model, self.reward, self.args)
        trainer = _RefinementTrainer(
            start,
            args,
            train_dataset=self.human_pairs,
            processing_class=copy.deepcopy(self.reward.processing_class),
            peft_config=copy.deepcopy(self.peft_config),
            policy_samples=samples,
            synthetic_dataset=self.gather_pairs() if self.args.uses_synthetic_pairs else None,
        )
        self.human_pairs = select_columns(trainer.human_pairs, HUMAN_COLUMNS)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        if isinstance(model, PeftModel):
            model = model.merge_and_unload()
        dtypes = {name: tensor.dtype for name, tensor in self.reward.plain_model.state_dict().items()}
        return {
            name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).to("cpu", dtypes[name], copy=True)
            for name, tensor in model.state_dict().items()
        }

    @release_at_end()
    def replace_unless_worse(self, weights: Mapping[str, torch.Tensor], reference: Dataset) -> Outcome:
        """
        Compares new weights with the current ones, and replaces the current ones unless the new ones are worse.

        Args:
            weights (`Mapping[str, torch.Tensor]`):
                Result of [`train`].
            reference ([`~datasets.Dataset`]):
                Fixed samples of the initial policy. They decide the scale.

        Returns:
            [`Outcome`]: Whether the new weights are in use.
        """
        candidate = copy.deepcopy(self.reward.plain_model)
        candidate.load_state_dict(weights)
        if not torch.stack([weight.isfinite().all() for weight in candidate.parameters()]).all():
            return Outcome("its weights are NaN or infinite", {})
        known = self._known[1] if self._known is not None and self._known[0] is reference else None
        raw, new = self._compare(candidate, reference, known)
        self._known = reference, raw
        last_rollout = self.reward.buffer.rows(last=1)
        if not len(last_rollout):  # all of its completions had tool calls
            last_rollout = self.reward.buffer.rows()
        raw_last, new_last = self._compare(candidate, last_rollout)
        old, old_last = ((each - self.reward.mean) / self.reward.standard_deviation for each in (raw, raw_last))
        if not (np.isfinite(new).all() and np.isfinite(new_last).all()):
            return Outcome("its rewards are NaN or infinite", {})
        if not (np.isfinite(old).all() and np.isfinite(old_last).all()):
            return Outcome("the rewards of the old model are NaN or infinite, so they have no scale", {})
        metrics = {"disagreement": disagreement(old_last, new_last)}
        if np.ptp(new) == 0 or np.ptp(old) == 0:
            return Outcome("the rewards of all fixed samples are equal", metrics)
        before, after = ((model, self.reward.processing_class) for model in (self.reward.model, candidate))
        sets = {"human": self.heldout_pairs}
        try:
            comparison = compare_on_sets(before, after, sets, self.reward.max_length)["human"]
        except ValueError as error:
            return Outcome(f"its rewards of held-out pairs cannot be compared ({error})", metrics)
        metrics["heldout_accuracy_before"] = comparison["before"]["accuracy"]
        metrics["heldout_accuracy_after"] = comparison["after"]["accuracy"]
        if fell_beyond_chance(comparison):
            accuracies = " to ".join(f"{comparison[name]['accuracy']:.3f}" for name in ("before", "after"))
            return Outcome(
                f"its accuracy on held-out pairs fell from {accuracies}, more than chance explains", metrics
            )
        scale = rescale(old, new)
        shift = float(np.mean((new_last - scale.mean) / scale.standard_deviation) - np.mean(old_last))
        self.reward.replace_weights(weights, *scale, shift)
        self._known = reference, new
        return Outcome(None, {**metrics, "shift": shift})

    def _compare(
        self, candidate: PreTrainedModel, samples: Dataset, known: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the raw rewards of the current model, unless they are known, and of the new one."""
        texts = flatten_samples(samples)
        options = [self.reward.chat_template_kwargs] * len(texts[0])
        rows = batch_scoring_ids(self.reward.processing_class, *texts, self.reward.max_length, options)
        models = [candidate] if known is not None else [self.reward.model, candidate]
        scores = [np.array(score_rows(model, rows, require_finite=False, share_batches=True)) for model in models]
        return known if known is not None else scores[0], scores[-1]


def _shared_columns(pairs: list[Dataset]) -> list[str]:
    return [name for name in PAIR_COLUMNS if all(name in part.column_names for part in pairs)]
