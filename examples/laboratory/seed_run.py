"""One seed of the laboratory: its world, π_SFT, D, r, π and P, then r̂ and π̂ of each method with their metrics."""

from collections.abc import Callable, Collection
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from bench import Bench
from datasets import Dataset, concatenate_datasets
from loop import train_policy_in_loop
from loop_start import SPG, LoopStart, build_start
from methods import BEST_OF_N, FINER, HEADS, LOOP_METHODS, METHODS, Method, list_loop_results, split_result
from provenance import describe_machine, read_commit
from settings import Settings
from task import SameValue
from taught import TEACHERS, teach_policy
from training import train_policy, train_reward_model, train_sft
from transformers import PreTrainedModel

from trl_rlp import cluster, synthesize_preferences
from trl_rlp.data.preferences.pairing import NoPairsError
from trl_rlp.losses.log_probs import token_log_probs
from trl_rlp.storage.json_files import read_json, write_json


Value = TypeVar("Value")


class ByHead(dict[str, Value]):
    """
    Values for each head of the reward models. Each is made when it is first read.

    Args:
        make (`Callable`):
            Makes the value of a head.
    """

    def __init__(self, make: Callable[[str], Value]):
        super().__init__()
        self._make = make

    def __missing__(self, head: str) -> Value:
        self[head] = value = self._make(head)
        return value


class Round(NamedTuple):
    """A round of Algorithm 1: r̂, all D̂ so far, and the policy with the metrics of its rollouts."""

    reward_model: PreTrainedModel
    synthetic: Dataset
    policy: PreTrainedModel
    curve: list[dict[str, float]]


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
        self.path, self.commit = folder / "results.json", read_commit()
        self.machine = describe_machine()
        self.results = self._read_results()
        self._starts: dict[tuple[float, float | None], tuple[LoopStart, dict[str, Any]]] = {}
        self._rounds: dict[float, list[Round]] = {}

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
            **{name: partial(self._evaluate_best_of_n, **kind) for name, kind in BEST_OF_N.items()},
            **{name: partial(self._evaluate_head, head) for head, name in HEADS.items()},
            **{name: partial(self._run_method, method) for name, method in METHODS.items()},
            **{
                result: partial(self._run_loop_method, result)
                for name in LOOP_METHODS
                for result in list_loop_results(name)
            },
            **{f"sweep {beta}": partial(self._run_sweep, beta) for beta in (*self.bench.settings.sweep, *FINER)},
        }

    def _get_result(self, name: str) -> dict[str, Any]:
        """Returns a result. Computes and saves it if it is not there yet."""
        if name not in self.results:
            result = {**self._works[name](), "commit": self.commit, "machine": self.machine}
            self.results = {**self._read_results(), name: result}  # another command may have added some
            write_json(self.path, self.results)
        return self.results[name]

    def _read_results(self) -> dict[str, Any]:
        return read_json(self.path) if self.path.exists() else {}

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
    def reward_models(self) -> ByHead[PreTrainedModel]:
        """r for each head."""
        return ByHead(lambda head: train_reward_model(self.bench, self.human, head)[0])

    @cached_property
    def policies(self) -> ByHead[tuple[PreTrainedModel, list[dict[str, float]]]]:
        """π for each head, and the metrics of its rollouts."""
        return ByHead(lambda head: self._train_policy(self.reward_models[head]))

    @cached_property
    def policy_samples(self) -> ByHead[Dataset]:
        """P for each head."""
        n, prompts = self.bench.settings.num_generations, self.bench.unlabeled
        return ByHead(lambda head: self.bench.sample(self.policies[head][0], prompts, n, 1.0, stream=5))

    @cached_property
    def labeled_pairs(self) -> ByHead[dict[str, Dataset]]:
        """Pairs labeled by the gold reward, for each head: completions of π_SFT (`human`) and of π (`policy`)."""
        return ByHead(
            lambda head: {
                name: self.bench.build_labeled_pairs(self._sample_evaluation_prompts(policy, stream))
                for name, policy, stream in (("human", self.sft, 3), ("policy", self.policies[head][0], 6))
            }
        )

    @cached_property
    def heldout_views(self) -> ByHead[Dataset]:
        """Completions of π for each head, for prompts that are not in U."""
        return ByHead(lambda head: self._sample_evaluation_prompts(self.policies[head][0], stream=10))

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
        reward_model, _, metrics = self._refine(method)
        return {**self._evaluate(method.head, reward_model, *self._train_policy(reward_model)), **metrics}

    def _refine(self, method: Method) -> tuple[PreTrainedModel, Dataset | None, dict[str, Any]]:
        """Runs step 4. Returns r̂, D̂ if the method has it, and the metrics of D̂ and of the loss."""
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
        return model, refinement.get("synthetic_dataset"), metrics

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
    def spg(self) -> tuple[PreTrainedModel, Dataset]:
        """The r̂ of SPG, and its D̂."""
        reward_model, synthetic, _ = self._refine(METHODS["spg"])
        return reward_model, synthetic

    def _run_sweep(self, beta: float) -> dict[str, Any]:
        """Trains policies for one β, with r and with the r̂ of SPG. The runs at the default β are reused."""
        if beta == self.bench.settings.kl_coef:
            return {name: self._get_result(name) for name in ("ppo", "spg")}
        reward_models = {"ppo": self.reward_models["log_ratio"], "spg": self.spg[0]}
        return {
            name: self._evaluate("log_ratio", model, *self._train_policy(model, beta))
            for name, model in reward_models.items()
        }

    def _evaluate_best_of_n(self, reward: str | None, within_majority: bool) -> dict[str, Any]:
        start, _ = self._get_start(0.0, None)
        reward_model = None if reward is None else self._get_first_reward_model(reward, start)
        return {"policy": self.bench.evaluate_best_of_n(self.sft, reward_model, within_majority)}

    def _get_start(self, noise: float, wrong_anchors: float | None) -> tuple[LoopStart, dict[str, Any]]:
        """What our methods start from. Those with the same equivalence and anchors share it."""
        key = noise, wrong_anchors
        if key not in self._starts:
            reward_model = self.reward_models["log_ratio"]
            self._starts[key] = build_start(self.bench, self.sft, reward_model, self.human, *key)
        return self._starts[key]

    def _run_loop_method(self, result: str) -> dict[str, Any]:
        name, beta = split_result(result)
        method = LOOP_METHODS[name]
        start, metrics = self._get_start(method.noise, method.wrong_anchors)
        reward_model = self._get_first_reward_model(method.reward, start)
        if method.trainer in TEACHERS:
            policy, taught = teach_policy(self.bench, method, self.sft, reward_model, beta)
            return {"policy": self._evaluate_policy(policy), **taught}
        if beta is None:
            raise ValueError(f"{result!r} has no β, but its policy is trained with one.")
        if method.trainer == "rounds":
            return self._run_rounds(method.rounds, beta)
        policy, curve, last_reward_model = train_policy_in_loop(self.bench, method, start, reward_model, beta)
        return {**self._evaluate("log_ratio", last_reward_model, policy, curve), **metrics}

    def _get_first_reward_model(self, reward: str, start: LoopStart) -> PreTrainedModel:
        if reward == "spg":
            return self.spg[0]
        return start.reward_model if reward == "sft" else self.reward_models["log_ratio"]

    def _run_rounds(self, rounds: int, beta: float) -> dict[str, Any]:
        """
        Runs steps 4 and 5 of Algorithm 1 again, each time on samples of the last policy.

        The first round is that of the sweep. Each further r̂ is trained on D and on D̂ of all rounds.
        """
        chain = self._rounds.setdefault(beta, [])
        while len(chain) < rounds:
            reward_model, synthetic = self._refine_again(chain[-1]) if chain else self.spg
            chain.append(Round(reward_model, synthetic, *self._train_policy(reward_model, beta)))
        reached = chain[rounds - 1]
        return self._evaluate("log_ratio", reached.reward_model, reached.policy, reached.curve)

    def _refine_again(self, last: Round) -> tuple[PreTrainedModel, Dataset]:
        """Runs step 4 on samples of a retrained policy. Returns r̂ and all D̂. Without new pairs, r̂ stays the same."""
        bench = self.bench
        samples = bench.sample(last.policy, bench.unlabeled, bench.settings.num_generations, 1.0, stream=5)
        try:
            new, _ = synthesize_preferences(
                samples,
                method="spg",
                equivalence=SameValue(),
                reward_model=last.reward_model,
                reward_processing_class=bench.tokenizer,
                seed=bench.seed,
            )
        except NoPairsError:  # The policy is so far gone that no prompt has a majority.
            return last.reward_model, last.synthetic
        synthetic = concatenate_datasets([last.synthetic, new])
        return train_reward_model(bench, self.human, "log_ratio", SPG, synthetic_dataset=synthetic)[0], synthetic
