"""One seed of the laboratory: its world, π_SFT, D, r, π and P, then r̂ and π̂ of each method with their metrics."""

import json
import os
from collections.abc import Callable, Collection
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from bench import Bench
from datasets import Dataset
from loop import SPG, LoopStart, train_policy_in_loop
from methods import HEADS, LOOP_METHODS, METHODS, LoopMethod, Method
from settings import Settings
from task import SameValue
from training import train_policy, train_reward_model, train_sft
from transformers import PreTrainedModel

from trl_rlp import cluster, synthesize_preferences
from trl_rlp.losses.log_probs import token_log_probs


class SeedRun:
    """
    Runs every method for one seed. Finished methods are saved in `results.json` and are not run again.

    Args:
        folder (`Path`):
            Folder for the results.
        seed (`int`):
            Seed of the world, the weights and every draw.
        settings ([`Settings`]):
            All other settings.
    """

    def __init__(self, folder: Path, seed: int, settings: Settings):
        self.bench = Bench(folder, seed, settings)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "results.json"
        self.results: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def run(self, selected: Collection[str]) -> None:
        """
        Runs the selected methods and what they need.

        Args:
            selected (`Collection[str]`):
                Names of results, see `list_results`.
        """
        for name in selected:
            self._get_result(name)

    @cached_property
    def _works(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """The function that computes each result."""
        return {
            "sft": lambda: {"policy": self._evaluate_policy(self.sft)},
            "best-of-n": lambda: {"policy": self.bench.evaluate_best_of_n(self.sft, self.reward_models["log_ratio"])},
            **{name: partial(self._evaluate_head, head) for head, name in HEADS.items()},
            **{name: partial(self._run_method, method) for name, method in METHODS.items()},
            **{name: partial(self._run_loop_method, method) for name, method in LOOP_METHODS.items()},
            **{f"sweep {beta}": partial(self._run_sweep, beta) for beta in self.bench.settings.sweep},
        }

    def _get_result(self, name: str) -> dict[str, Any]:
        """Returns a result. Computes and saves it if it is not there yet."""
        if name not in self.results:
            result = self._works[name]()
            self.results[name] = result
            unfinished = self.path.with_suffix(".partial")
            unfinished.write_text(json.dumps(self.results, indent=1))
            os.replace(unfinished, self.path)
        return self.results[name]

    # Several methods share the following models and data. They are made on first use.

    @cached_property
    def sft(self) -> PreTrainedModel:
        """π_SFT."""
        return train_sft(self.bench)

    @cached_property
    def human(self) -> Dataset:
        """D."""
        return self.bench.build_human_pairs(self.sft)

    @cached_property
    def reward_models(self) -> dict[str, PreTrainedModel]:
        """r for each head."""
        return {head: train_reward_model(self.bench, self.human, head)[0] for head in HEADS}

    @cached_property
    def policies(self) -> dict[str, tuple[PreTrainedModel, list[dict[str, float]]]]:
        """π for each head, and the metrics of its rollouts."""
        return {head: self._train_policy(model) for head, model in self.reward_models.items()}

    @cached_property
    def policy_samples(self) -> dict[str, Dataset]:
        """P for each head."""
        n, prompts = self.bench.settings.num_generations, self.bench.unlabeled
        return {
            head: self.bench.sample(policy, prompts, n, 1.0, stream=5) for head, (policy, _) in self.policies.items()
        }

    @cached_property
    def labeled_pairs(self) -> dict[str, dict[str, Dataset]]:
        """Pairs labeled by the gold reward, for each head: completions of π_SFT (`human`) and of π (`policy`)."""
        human = self.bench.build_labeled_pairs(self._sample_evaluation_prompts(self.sft, stream=3))
        samples = {
            head: self._sample_evaluation_prompts(policy, stream=6) for head, (policy, _) in self.policies.items()
        }
        return {
            head: {"human": human, "policy": self.bench.build_labeled_pairs(rows)} for head, rows in samples.items()
        }

    @cached_property
    def heldout_views(self) -> dict[str, Dataset]:
        """Completions of π for each head, for prompts that are not in U."""
        return {
            head: self._sample_evaluation_prompts(policy, stream=10) for head, (policy, _) in self.policies.items()
        }

    def _sample_evaluation_prompts(self, policy: PreTrainedModel, stream: int) -> Dataset:
        return self.bench.sample(policy, self.bench.evaluation_prompts, 4, 1.0, stream=stream)

    def _train_policy(
        self, reward_model: PreTrainedModel, kl_coef: float | None = None
    ) -> tuple[PreTrainedModel, list[dict[str, float]]]:
        torch.manual_seed(self.bench.seed)
        return train_policy(self.bench, reward_model, self.bench.settings.kl_coef if kl_coef is None else kl_coef)

    def _evaluate_policy(self, policy: PreTrainedModel, head: str = "log_ratio") -> dict[str, float]:
        """Evaluates a policy. The proxy reward is r of the given head, also if another reward model trained it."""
        return self.bench.evaluate_policy(policy, self.sft, self.reward_models[head])

    def _evaluate(
        self, head: str, reward_model: PreTrainedModel, policy: PreTrainedModel, curve: list[dict[str, float]]
    ) -> dict[str, Any]:
        reward_metrics = self.bench.evaluate_reward_model(reward_model, self.labeled_pairs[head])
        return {"policy": self._evaluate_policy(policy, head), "reward_model": reward_metrics, "curve": curve}

    def _evaluate_head(self, head: str) -> dict[str, Any]:
        return self._evaluate(head, self.reward_models[head], *self.policies[head])

    def _run_method(self, method: Method) -> dict[str, Any]:
        reward_model, metrics = self._refine(method)
        return {**self._evaluate(method.head, reward_model, *self._train_policy(reward_model)), **metrics}

    def _refine(self, method: Method) -> tuple[PreTrainedModel, dict[str, Any]]:
        """Runs step 4. Returns r̂ and the metrics of D̂ and of the loss."""
        samples = self.policy_samples[method.head]
        equivalence = SameValue(self.bench.settings.noise if method.noise else 0.0)
        refinement: dict[str, Any] = {}
        metrics: dict[str, Any] = {}
        if method.preferences is not None:
            synthetic, rejections = synthesize_preferences(
                samples,
                equivalence=equivalence,
                reward_model=self.reward_models[method.head],
                reward_processing_class=self.bench.tokenizer,
                judge=self._judge_by_likelihood,
                seed=self.bench.seed,
                **method.preferences,
            )
            refinement["synthetic_dataset"] = synthetic
            metrics["synthetic"] = {**self.bench.evaluate_labels(synthetic), "rejections": rejections}
        if "uml" in method.reward.get("method", ""):
            uses_groups = method.reward.get("views_from") == "group"
            views = cluster(samples, equivalence, complete_groups=True) if uses_groups else samples
            refinement |= {"policy_samples": views, "heldout_views": self.heldout_views[method.head]}
        epochs = None if method.reward else self._match_spg_epochs()
        model, metrics["loss"] = train_reward_model(
            self.bench, self.human, method.head, method.reward, epochs, **refinement
        )
        return model, metrics

    def _match_spg_epochs(self) -> float:
        """Computes the epochs on human pairs that take as many steps as SPG on human and synthetic pairs."""
        synthetic = self._get_result("spg")["synthetic"]["pairs"]
        return self.bench.settings.reward_epochs * (len(self.human) + synthetic) / len(self.human)

    def _judge_by_likelihood(self, prompts: list[str], firsts: list[str], seconds: list[str]) -> list[float]:
        """
        Prefers the completion with the higher mean log-likelihood per token under π_SFT.

        It replaces the judge of RLAIF, because a model this small cannot answer a question about two completions.
        """
        likelihoods = [
            [self._compute_likelihood(*pair) for pair in zip(prompts, completions, strict=True)]
            for completions in (firsts, seconds)
        ]
        return [(first > second) + 0.5 * (first == second) for first, second in zip(*likelihoods, strict=True)]

    @torch.no_grad()
    def _compute_likelihood(self, prompt: str, completion: str) -> float:
        tokenizer = self.bench.tokenizer
        start = len(tokenizer(prompt)["input_ids"])
        ids = torch.tensor([tokenizer(prompt + completion + tokenizer.eos_token)["input_ids"]])
        log_probs, _ = token_log_probs(self.sft(ids).logits[:, :-1], ids[:, 1:])  # (1, length - 1)
        return log_probs[0, start - 1 :].mean().item()

    @cached_property
    def spg_reward_model(self) -> PreTrainedModel:
        """The r̂ of SPG."""
        return self._refine(METHODS["spg"])[0]

    def _run_sweep(self, beta: float) -> dict[str, Any]:
        """Trains policies for one β, with r and with the r̂ of SPG. The runs at the default β are reused."""
        if beta == self.bench.settings.kl_coef:
            return {name: self._get_result(name) for name in ("ppo", "spg")}
        reward_models = {"ppo": self.reward_models["log_ratio"], "spg": self.spg_reward_model}
        return {
            name: self._evaluate("log_ratio", model, *self._train_policy(model, beta))
            for name, model in reward_models.items()
        }

    @cached_property
    def loop_start(self) -> tuple[LoopStart, dict[str, Any]]:
        """What the methods in the loop start from, and the metrics of D̂ and of the loss."""
        bench = self.bench
        samples = bench.sample(self.sft, bench.unlabeled, bench.settings.num_generations, 1.0, stream=1)
        synthetic, rejections = synthesize_preferences(
            samples,
            method="spg",
            equivalence=SameValue(),
            reward_model=self.reward_models["log_ratio"],
            reward_processing_class=bench.tokenizer,
            seed=bench.seed,
        )
        model, loss = train_reward_model(bench, self.human, "log_ratio", SPG, synthetic_dataset=synthetic)
        metrics = {"synthetic": {**bench.evaluate_labels(synthetic), "rejections": rejections}, "loss": loss}
        heldout = bench.build_heldout_pairs(self.sft)
        reference_samples = bench.sample(self.sft, bench.unlabeled, 2, 1.0, stream=4)
        return LoopStart(samples, synthetic, model, self.human, heldout, reference_samples), metrics

    def _run_loop_method(self, method: LoopMethod) -> dict[str, Any]:
        start, metrics = self.loop_start
        policy, curve, reward_model = train_policy_in_loop(self.bench, method, start)
        return {**self._evaluate("log_ratio", reward_model, policy, curve), **metrics}
