"""One seed of the laboratory: a world, π_SFT, D, r, π, P, and each method's r̂ and π̂, with what they came to."""

import json
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from bench import Bench
from datasets import Dataset
from methods import HEADS, METHODS, Method
from settings import Settings
from task import SameValue
from training import train_policy, train_reward_model, train_sft
from transformers import PreTrainedModel

from trl_rlp import cluster, synthesize_preferences
from trl_rlp.losses.log_probs import token_log_probs


class SeedRun:
    """
    Runs every method for one seed; what is finished stands in `results.json` and is not run again.

    Args:
        folder (`Path`):
            Where results go.
        seed (`int`):
            Decides the world, the weights and every draw.
        settings ([`Settings`]):
            All else.
    """

    def __init__(self, folder: Path, seed: int, settings: Settings):
        self.bench = Bench(folder, seed, settings)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "results.json"
        self.results: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def run(self) -> None:
        """Steps 0 to 4 of Algorithm 1 once, then every method's refinement and its step 5."""
        self._keep("sft", lambda: {"policy": self._policy_figures(self.sft)})
        self._keep("best-of-n", lambda: {"policy": self.bench.best_of_n(self.sft, self.reward_models["log_ratio"])})
        for head, name in HEADS.items():
            self._keep(name, lambda head=head: self._described(head, self.reward_models[head], *self.policies[head]))
        for name, method in METHODS.items():
            self._keep(name, lambda method=method: self._retrained(method))
        self._sweep()

    # What several methods share is made when the first of them asks for it.

    @cached_property
    def sft(self) -> PreTrainedModel:
        """π_SFT."""
        return train_sft(self.bench)

    @cached_property
    def human(self) -> Dataset:
        """D."""
        return self.bench.human_pairs(self.sft)

    @cached_property
    def reward_models(self) -> dict[str, PreTrainedModel]:
        """r, by its head."""
        return {head: train_reward_model(self.bench, self.human, head)[0] for head in HEADS}

    @cached_property
    def policies(self) -> dict[str, tuple[PreTrainedModel, list[dict[str, float]]]]:
        """π against each of them, and what its training logged."""
        return {head: self._policy(model) for head, model in self.reward_models.items()}

    @cached_property
    def policy_samples(self) -> dict[str, Dataset]:
        """P of each of them."""
        n, prompts = self.bench.settings.num_generations, self.bench.unlabeled
        return {
            head: self.bench.sample(policy, prompts, n, 1.0, stream=5) for head, (policy, _) in self.policies.items()
        }

    @cached_property
    def labeled(self) -> dict[str, dict[str, Dataset]]:
        """Pairs of outputs of π_SFT, and of π against the r of each head, that the gold reward labels."""
        human = self.bench.labeled_pairs(self._evaluation_samples(self.sft, stream=3))
        policies = {head: self._evaluation_samples(policy, stream=6) for head, (policy, _) in self.policies.items()}
        return {
            head: {"human": human, "policy": self.bench.labeled_pairs(samples)} for head, samples in policies.items()
        }

    @cached_property
    def heldout_views(self) -> dict[str, Dataset]:
        """Outputs of each π to prompts that are not in U."""
        return {head: self._evaluation_samples(policy, stream=10) for head, (policy, _) in self.policies.items()}

    def _evaluation_samples(self, policy: PreTrainedModel, stream: int) -> Dataset:
        return self.bench.sample(policy, self.bench.evaluation_prompts, 4, 1.0, stream=stream)

    def _keep(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        if name not in self.results:
            self.results[name] = work()
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(self.results, indent=1))
            os.replace(partial, self.path)

    def _policy(
        self, reward_model: PreTrainedModel, kl_coef: float | None = None
    ) -> tuple[PreTrainedModel, list[dict[str, float]]]:
        torch.manual_seed(self.bench.seed)
        return train_policy(self.bench, reward_model, self.bench.settings.kl_coef if kl_coef is None else kl_coef)

    def _policy_figures(self, policy: PreTrainedModel, head: str = "log_ratio") -> dict[str, float]:
        """The proxy is the r of the head, whatever π learnt from."""
        return self.bench.policy_figures(policy, self.sft, self.reward_models[head])

    def _described(
        self, head: str, reward_model: PreTrainedModel, policy: PreTrainedModel, curve: list[dict[str, float]]
    ) -> dict[str, Any]:
        reward_figures = self.bench.reward_figures(reward_model, self.labeled[head])
        return {"policy": self._policy_figures(policy, head), "reward_model": reward_figures, "curve": curve}

    def _retrained(self, method: Method) -> dict[str, Any]:
        reward_model, figures = self._refined(method)
        return {**self._described(method.head, reward_model, *self._policy(reward_model)), **figures}

    def _refined(self, method: Method) -> tuple[PreTrainedModel, dict[str, Any]]:
        """Step 4: r̂, and figures of D̂ and of the loss."""
        samples = self.policy_samples[method.head]
        equivalence = SameValue(self.bench.settings.noise if method.noise else 0.0)
        refinement: dict[str, Any] = {}
        figures: dict[str, Any] = {}
        if method.preferences is not None:
            synthetic, rejections = synthesize_preferences(
                samples,
                equivalence=equivalence,
                reward_model=self.reward_models[method.head],
                reward_processing_class=self.bench.tokenizer,
                judge=self._likelihood_judge,
                seed=self.bench.seed,
                **method.preferences,
            )
            refinement["synthetic_dataset"] = synthetic
            figures["synthetic"] = {**self.bench.label_accuracy(synthetic), "rejections": rejections}
        if "uml" in method.reward.get("method", ""):
            in_groups = method.reward.get("views_from") == "group"
            views = cluster(samples, equivalence, complete_groups=True) if in_groups else samples
            refinement |= {"policy_samples": views, "heldout_views": self.heldout_views[method.head]}
        epochs = None if method.reward else self._epochs_of_spg()
        model, figures["loss"] = train_reward_model(
            self.bench, self.human, method.head, method.reward, epochs, **refinement
        )
        return model, figures

    def _epochs_of_spg(self) -> float:
        """As many steps on human pairs alone as SPG takes on human and synthetic ones."""
        synthetic = self.results["spg"]["synthetic"]["pairs"]
        return self.bench.settings.reward_epochs * (len(self.human) + synthetic) / len(self.human)

    def _likelihood_judge(self, prompts: list[str], firsts: list[str], seconds: list[str]) -> list[float]:
        """RLAIF's stand-in: so small a model cannot be asked, but says which output it finds likelier, per token."""
        likelihoods = [
            [self._likelihood(prompt, output) for prompt, output in zip(prompts, outputs, strict=True)]
            for outputs in (firsts, seconds)
        ]
        return [(first > second) + 0.5 * (first == second) for first, second in zip(*likelihoods, strict=True)]

    @torch.no_grad()
    def _likelihood(self, prompt: str, output: str) -> float:
        tokenizer = self.bench.tokenizer
        start = len(tokenizer(prompt)["input_ids"])
        ids = torch.tensor([tokenizer(prompt + output + tokenizer.eos_token)["input_ids"]])
        log_probs, _ = token_log_probs(self.sft(ids).logits[:, :-1], ids[:, 1:])  # (1, length - 1)
        return log_probs[0, start - 1 :].mean().item()

    def _sweep(self) -> None:
        """Gold and proxy against KL for several β, with r and with the r̂ of SPG; at the usual one both are there."""
        usual = {name: self.results[name] for name in ("ppo", "spg")}
        self._keep(f"sweep {self.bench.settings.kl_coef}", lambda: usual)
        missing = [beta for beta in self.bench.settings.sweep if f"sweep {beta}" not in self.results]
        if not missing:
            return
        against: dict[str, Dataset | PreTrainedModel] = {
            "ppo": self.reward_models["log_ratio"],
            "spg": self._refined(METHODS["spg"])[0],
        }
        for beta in missing:
            self._keep(
                f"sweep {beta}",
                lambda beta=beta: {
                    name: self._described("log_ratio", model, *self._policy(model, beta))
                    for name, model in against.items()
                },
            )
