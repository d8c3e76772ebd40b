"""All stages of one seed of the experiment with policies on a real model. Each stage records the commit."""

import functools
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from provenance import describe_machine, read_commit
from real_methods import METHODS, PICK_METHODS, RealMethod, list_results, name_result
from real_model import build_reward_lora, split_for_seed
from real_rewards import (
    KnownAnswers,
    RecordedAnchorReward,
    compute_mean_reward,
    load_scaled_reward,
    mark_known_answers,
    summarize_verdicts,
)
from real_settings import RealSettings
from real_stages import evaluate_labels, sample_questions
from real_training import PolicyTraining
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp import (
    ExactMatch,
    RefinableReward,
    RewardRefinementCallback,
    RLPRewardConfig,
    SemanticAnchorReward,
    SemanticAnchors,
    load_data,
    load_policy,
    load_reward_model,
    sample_completions,
    save_data,
    synthesize_preferences,
)
from trl_rlp.data.preferences import hold_out
from trl_rlp.data.preferences.pairing import NoPairsError
from trl_rlp.evaluation import best_outputs, kl_to_reference
from trl_rlp.evaluation.policy_metrics import describe_outputs
from trl_rlp.quickstart import Question, compute_accuracies, demonstration_dataset, prompt_dataset, train_sft
from trl_rlp.quickstart.preparation import collect_preferences
from trl_rlp.quickstart.quickstart_config import DEMONSTRATIONS, MAX_NEW_TOKENS, REWARD, lora
from trl_rlp.stages.reward_model import train_reward_model
from trl_rlp.storage.run_folder import RunFolder


CURVE = ("objective/kl", "kl", "rewards/mark_known_answers/mean", "rewards/reward_model/mean", "refinement/")
"""Beginnings of the metrics that are kept of each rollout."""

HELDOUT_SHARE = 0.05
"""Share of D that no reward model is trained on. A refinement in the loop is compared on it with the model before."""


class RealRun:
    """
    The stages of one seed.

    Args:
        folder (`Path`):
            Folder of the seed. A second run resumes after the last finished stage.
        seed (`int`):
            Seed of the split of the questions, of every training and of all samples.
        settings ([`RealSettings`]):
            Settings.
        base_model (`Path`):
            Folder of the model that π_SFT is trained from.
        questions (`list[Question]`):
            All questions.
    """

    def __init__(self, folder: Path, seed: int, settings: RealSettings, base_model: Path, questions: list[Question]):
        self.run = RunFolder(folder, {"seed": seed, "settings": asdict(settings)})
        self.seed, self.settings, self.base_model = seed, settings, base_model
        # before any work, because the files may change while it lasts
        self.provenance = {"commit": read_commit(), "machine": describe_machine()}
        parts = split_for_seed(questions, settings.sizes, seed)
        self.demonstrations = demonstration_dataset(parts.pop("demonstrations"))
        self.questions = {name: prompt_dataset(part) for name, part in parts.items()}

    def run_methods(self, names: list[str], kl_coefs: list[float]) -> None:
        """Runs the selected methods at the selected β, and what they need."""
        self._prepare()
        for name, kl_coef in list_results(names, kl_coefs):
            if name in PICK_METHODS:
                self._stage(name, self._train_on_picks, trainer=PICK_METHODS[name][0], picker=PICK_METHODS[name][1])
            else:
                self._stage(name_result(name, kl_coef), self._train_with_rewards, method_name=name, kl_coef=kl_coef)

    def _stage(self, name: str, work: Callable[..., dict[str, Any]], **arguments: Any) -> Path:
        """Runs a stage whose metrics get the fields `commit` and `machine`."""

        @functools.wraps(work)
        def record_provenance(folder: Path, **arguments: Any) -> dict[str, Any]:
            return {**work(folder, **arguments), **self.provenance}

        return self.run.stage(name, record_provenance, **arguments)

    # Steps 0 to 2 of Algorithm 1, and what all methods share.

    def _prepare(self) -> None:
        settings, seed = self.settings, self.seed
        sampling = {"num_generations": settings.num_generations, "max_new_tokens": MAX_NEW_TOKENS, "seed": seed}
        self.sft = self._stage(
            "sft",
            train_sft,
            base_model=self.base_model,
            demonstrations=self.demonstrations,
            args={**DEMONSTRATIONS, "num_train_epochs": 2, "seed": seed},
            lora=lora(self.base_model, 1 / 2),
        )
        pairs = self._stage(
            "preferences",
            collect_preferences,
            sft_model=self.sft,
            questions={"train": self.questions["preferences"]},
            sampling=sampling,
            seed=seed,
        )
        human = load_data(pairs / "train").remove_columns("is_flipped")
        self.human, self.heldout_human = hold_out(human, HELDOUT_SHARE, seed)
        self.reward_models = {"r": self._stage("r", self._train_reward_model)}
        unlabeled = self.questions["unlabeled"]
        candidates = {"num_generations": settings.best_of, "seed": seed + 2000}
        samples = {
            name: self._stage(
                name, sample_questions, policy=self.sft, questions=questions, sampling={**sampling, **fields}
            )
            for name, questions, fields in (
                ("samples", unlabeled, {}),
                ("reference samples", unlabeled, {"num_generations": 2, "seed": seed + 1000}),
                ("trained candidates", unlabeled, candidates),
                ("heldout candidates", self.questions["heldout"], candidates),
            )
        }
        self.samples, self.reference_samples = (load_data(samples[name]) for name in ("samples", "reference samples"))
        self.candidates = {part: load_data(samples[f"{part} candidates"]) for part in ("trained", "heldout")}
        refined = self._stage("refined", self._refine_before_training)
        self.reward_models["refined"] = refined
        self.synthetic = load_data(refined / "pairs")
        self._stage("pi_sft", self._evaluate_sft)
        self.picks = self._stage("picks", self._select_picks)

    def _train_reward_model(self, folder: Path, **refinement: Any) -> dict[str, Any]:
        method = "spg" if refinement else "none"
        return train_reward_model(
            folder,
            base_model=self.sft,
            preference_dataset=self.human,
            args=self._build_reward_args(method),
            peft_config=build_reward_lora(self.base_model),
            **refinement,
        )

    def _build_reward_args(self, method: str) -> dict[str, Any]:
        return {**REWARD, "num_train_epochs": self.settings.reward_epochs, "seed": self.seed, "method": method}

    def _refine_before_training(self, folder: Path) -> dict[str, Any]:
        """Trains r̂ on D and on synthetic preferences from samples of π_SFT. The methods in the loop start from it."""
        synthetic, rejections = self._synthesize(self.samples)
        save_data(synthetic, folder / "pairs")
        metrics = self._train_reward_model(folder, synthetic_dataset=synthetic)
        return {**metrics, "synthetic": {**evaluate_labels(synthetic, self.samples), "rejections": rejections}}

    def _synthesize(self, samples: Dataset, method: str = "spg", picker: str = "r") -> tuple[Dataset, dict[str, int]]:
        model, processing_class = load_reward_model(self.reward_models[picker])
        return synthesize_preferences(
            samples.remove_columns("answers"),
            method,
            equivalence=ExactMatch(),
            reward_model=model,
            reward_processing_class=processing_class,
            seed=self.seed,
        )

    # Majority, then reward.

    def _select_picks(self, folder: Path) -> dict[str, Any]:
        """Selects the best completion by each reward model, among all completions and within the majority."""
        metrics: dict[str, Any] = {}
        for picker, path in self.reward_models.items():
            model, processing_class = load_reward_model(path)
            for part, samples in self.candidates.items():
                rows = samples.remove_columns("answers")
                plain = best_outputs(rows, model, processing_class)
                within = best_outputs(rows, model, processing_class, within="majority", equivalence=ExactMatch())
                metrics[f"{part}, {picker}"] = {
                    "single": float(np.mean(compute_accuracies(samples, samples["answers"][:]))),
                    "best": compute_share(plain, samples),
                    "best_finished": float(np.mean(plain["finished"])),
                    "majority": compute_share(within, samples),
                }
                if part == "trained":
                    picks = select_majorities(within)
                    save_data(picks.remove_columns("finished"), folder / picker / "sft")
                    metrics[f"picks, {picker}"] = {"picks": len(picks), "right": compute_share(picks, samples)}
            pairs, rejections = self._synthesize(self.candidates["trained"], "majority_best", picker)
            save_data(pairs.select_columns(["prompt", "chosen", "rejected"]), folder / picker / "dpo")
            labels = evaluate_labels(pairs, self.candidates["trained"])
            metrics[f"pairs, {picker}"] = {**labels, "rejections": rejections}
        return metrics

    def _train_on_picks(self, folder: Path, trainer: str, picker: str) -> dict[str, Any]:
        rows = load_data(self.picks / picker / trainer)
        return self._evaluate(folder, *self._build_training(folder).train_on_picks(trainer, rows))

    # Policies against rewards.

    def _build_training(self, folder: Path) -> PolicyTraining:
        return PolicyTraining(self.sft, self.settings, self.seed, folder / "trainer")

    def _train_with_rewards(self, folder: Path, method_name: str, kl_coef: float) -> dict[str, Any]:
        method, metrics = METHODS[method_name], {}
        if method.reward == "known_answers":
            reward: Any = KnownAnswers(self.reference_samples)
        else:
            path = self.reward_models.get(method.reward)
            if path is None:
                path, metrics = self._refine_with_policy_samples(folder / "reward_model", kl_coef)
            reward = load_scaled_reward(path, self.sft, self.reference_samples)
        rewards, weights, callbacks, record = self._build_rewards(folder, method, reward)
        policy, processing_class, log = self._build_training(folder).train_with_rewards(
            method.trainer, rewards, weights, kl_coef, self.questions["unlabeled"], callbacks
        )
        metrics |= self._evaluate(folder, policy, processing_class)
        metrics["curve"] = [row for row in map(select_curve_metrics, log) if row]
        if record is not None:
            metrics["verdicts"] = summarize_verdicts(record.rollouts, self.settings.window)
        if method_name == "ppo":
            samples = self._sample(
                policy, processing_class, self.questions["unlabeled"], self.settings.num_generations
            )
            save_data(samples, folder / "samples")
        shutil.rmtree(folder / "reward_model", ignore_errors=True)  # of SPG, half a gigabyte
        return metrics

    def _refine_with_policy_samples(self, folder: Path, kl_coef: float) -> tuple[Path, dict[str, Any]]:
        """Published SPG: trains r̂ on D and on synthetic preferences from samples of π. It is r if there are none."""
        samples = load_data(self.run.path / name_result("ppo", kl_coef) / "samples")
        try:
            synthetic, rejections = self._synthesize(samples)
        except NoPairsError:
            return self.reward_models["r"], {"synthetic": {"pairs": 0}}
        self._train_reward_model(folder, synthetic_dataset=synthetic)
        return folder, {"synthetic": {**evaluate_labels(synthetic, samples), "rejections": rejections}}

    def _build_rewards(
        self, folder: Path, method: RealMethod, reward: Any
    ) -> tuple[list[Any], list[float], list[RewardRefinementCallback], RecordedAnchorReward | None]:
        """Builds reward functions, their weights, callbacks, and the record of the anchors' verdicts."""
        if not (method.has_anchors or method.is_refined):
            return [reward, mark_known_answers], [1.0, 0.0], [], None
        anchors = SemanticAnchors.from_samples(self.samples.remove_columns("answers"), ExactMatch())
        anchor_reward = SemanticAnchorReward(anchors, ExactMatch(), subtract_confidence=True)
        record = RecordedAnchorReward(anchor_reward)
        callbacks = [self._build_refinement(folder, reward, anchor_reward)] if method.is_refined else []
        anchor_weight = self.settings.anchor_weight if method.has_anchors else 0.0
        return [reward, record, mark_known_answers], [1.0, anchor_weight, 0.0], callbacks, record

    def _build_refinement(
        self, folder: Path, reward: RefinableReward, anchor_reward: SemanticAnchorReward
    ) -> RewardRefinementCallback:
        """Builds the callback. It compares on a part of D, because held-out questions are for evaluation only."""
        args = RLPRewardConfig(str(folder / "refinement"), bf16=False, use_cpu=True, **self._build_reward_args("spg"))
        return RewardRefinementCallback(
            reward,
            self.human,
            args,
            eval_preference_dataset=self.heldout_human,
            base_model=self.sft,
            comparison=anchor_reward.comparison,
            synthetic_dataset=self.synthetic,
            reference_samples=self.reference_samples.remove_columns("answers"),
            every=self.settings.refine_every,
            peft_config=build_reward_lora(self.base_model),
            seed=self.seed,
        )

    # Evaluation, with answers that no reward saw.

    @cached_property
    def proxy(self) -> RefinableReward:
        """r, scaled on fixed samples of π_SFT. It scores every policy."""
        return load_scaled_reward(self.reward_models["r"], self.sft, self.reference_samples)

    def _evaluate_sft(self, folder: Path) -> dict[str, Any]:
        return self._evaluate(folder, *load_policy(self.sft))

    def _evaluate(
        self, folder: Path, policy: PreTrainedModel, processing_class: PreTrainedTokenizerBase
    ) -> dict[str, Any]:
        """Evaluates a policy on the questions that it was trained on, and on held-out ones. KL is at T = 1."""
        metrics: dict[str, Any] = {}
        for part, name in (("trained", "unlabeled"), ("heldout", "heldout")):
            samples = self._sample(
                policy, processing_class, self.questions[name], self.settings.evaluation_generations, 0.7, 3000
            )
            save_data(samples, folder / part)
            metrics[part] = {
                **describe_outputs(samples),
                "right": float(np.mean(compute_accuracies(samples, samples["answers"][:]))),
                "proxy": compute_mean_reward(self.proxy, samples),
            }
        questions = self.questions["unlabeled"].select(range(self.settings.kl_questions))
        samples = self._sample(policy, processing_class, questions, self.settings.evaluation_generations, stream=4000)
        metrics["kl"] = kl_to_reference(policy, load_policy(self.sft)[0], processing_class, samples)
        return metrics

    def _sample(
        self,
        policy: PreTrainedModel,
        processing_class: PreTrainedTokenizerBase,
        questions: Dataset,
        num_generations: int,
        temperature: float = 1.0,
        stream: int = 0,
    ) -> Dataset:
        samples = sample_completions(
            questions.select_columns(["prompt"]),
            policy,
            processing_class,
            num_generations=num_generations,
            max_new_tokens=MAX_NEW_TOKENS,
            temperature=temperature,
            seed=self.seed + stream,
        )
        return samples.add_column("answers", questions["answers"][:])


def select_curve_metrics(row: dict[str, float]) -> dict[str, float]:
    """Selects the metrics of a rollout that are kept, without times."""
    return {name: value for name, value in row.items() if name.startswith(CURVE) and not name.endswith("seconds")}


def select_majorities(outputs: Dataset) -> Dataset:
    """Selects the finished picks of prompts with a clear majority."""
    kept = [row for row, has in enumerate(outputs["has_majority"]) if has and outputs["finished"][row]]
    return outputs.select(kept).select_columns(["prompt", "completion", "finished"])


def compute_share(outputs: Dataset, samples: Dataset) -> float:
    """Computes the share of correct completions, one per prompt. An unfinished one is never correct."""
    answers = dict(zip(samples["prompt"], samples["answers"], strict=True))
    marks = mark_known_answers(outputs["completion"][:], [answers[prompt] for prompt in outputs["prompt"]])
    return float(np.mean(np.multiply(marks, outputs["finished"][:])))
