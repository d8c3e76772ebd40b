"""Training: π_SFT with TRL's `SFTTrainer`, reward models with `RLPRewardTrainer`, policies with `RLPPPOTrainer`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from bench import MAX_NEW_TOKENS, SFT, Bench
from datasets import Dataset
from information import estimate_heldout_information
from models import make_policy, make_reward_model
from task import write_demonstrations
from transformers import PreTrainedModel, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from trl_rlp import RLPPPOConfig, RLPPPOTrainer, RLPRewardConfig, RLPRewardTrainer
from trl_rlp.rewards.standardization import standardize
from trl_rlp.trainer.reward.representation_log import TERMS


CURVE = {"kl": "objective/kl", "proxy": "objective/scores", "gold": "rewards/gold_reward/mean"}
"""Metrics that are kept of each rollout, with their names in the trainer's log."""

GRPO_CURVE = {"kl": "kl", "proxy": "rewards/reward_model/mean", "gold": "rewards/gold_reward/mean"}
"""The same metrics in the log of GRPO. Its KL is the mean per token."""

NUM_MINI_BATCHES = NUM_EPOCHS = 2
"""Passes over a rollout, and steps in each pass."""

LOOP_METRICS = ("refinement/", "semantic_anchor/")
"""Beginnings of further metrics that are kept of each rollout, except times, which differ between equal runs."""


def build_common_args(bench: Bench, name: str) -> dict[str, Any]:
    """Builds the arguments that all trainers share. Nothing is saved or reported."""
    return {
        "output_dir": str(bench.folder / "trainers" / name),
        "seed": bench.seed,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def train_sft(bench: Bench) -> PreTrainedModel:
    """Returns π_SFT. Trains it from scratch if its folder does not exist yet."""
    folder, settings = bench.folder / SFT, bench.settings
    if not (folder / "config.json").exists():
        policy = make_policy(bench.tokenizer, bench.seed)
        args = SFTConfig(
            num_train_epochs=settings.sft_epochs,
            learning_rate=settings.sft_learning_rate,
            lr_scheduler_type="cosine",
            per_device_train_batch_size=64,
            max_length=64,
            **build_common_args(bench, "sft"),
        )
        data = write_demonstrations(bench.world, settings.demonstrations, bench.seed)
        SFTTrainer(model=policy, args=args, train_dataset=data, processing_class=bench.tokenizer).train()
        policy.save_pretrained(folder)
    return bench.load_sft()


def build_reward_args(bench: Bench, fields: dict[str, Any], epochs: float | None = None) -> RLPRewardConfig:
    """Builds the configuration of a reward model's training. `fields` has at least its `method`."""
    settings = bench.settings
    return RLPRewardConfig(
        num_train_epochs=settings.reward_epochs if epochs is None else epochs,
        learning_rate=settings.reward_learning_rate,
        per_device_train_batch_size=32,
        max_length=64,
        logging_steps=10,
        **fields,
        **build_common_args(bench, "reward"),
    )


def train_reward_model(
    bench: Bench,
    human: Dataset,
    head: str,
    fields: dict[str, Any] | None = None,
    epochs: float | None = None,
    heldout_views: Dataset | None = None,
    **refinement: Any,
) -> tuple[PreTrainedModel, dict[str, float]]:
    """
    Trains r, or r̂ if `fields` and `refinement` are given.

    Returns:
        The reward model and the last logged terms of its loss. With `heldout_views` they include `mi_heldout`.
    """
    torch.manual_seed(bench.seed)
    model = make_reward_model(bench.load_sft(), head, bench.folder / SFT)
    args = build_reward_args(bench, fields or {"method": "none"}, epochs)
    trainer = RLPRewardTrainer(
        model=model, args=args, train_dataset=human, processing_class=bench.tokenizer, **refinement
    )
    trainer.train()
    terms: dict[str, float] = {}
    for row in trainer.state.log_history:
        terms |= {name: value for name, value in row.items() if name in TERMS}
    if heldout_views is not None:
        terms["mi_heldout"] = estimate_heldout_information(trainer, heldout_views)
    return model, terms


def _build_policy_args(
    bench: Bench, kl_coef: float, reward_weights: list[float], num_generations: int
) -> RLPPPOConfig:
    settings = bench.settings
    return RLPPPOConfig.from_preset(
        "alpacafarm",
        per_device_train_batch_size=settings.rollout_size // 2,
        gradient_accumulation_steps=2,
        num_mini_batches=NUM_MINI_BATCHES,
        num_ppo_epochs=NUM_EPOCHS,
        total_episodes=settings.rollouts * settings.rollout_size,
        num_generations=num_generations,
        response_length=MAX_NEW_TOKENS,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        warmup_steps=0,
        kl_coef=kl_coef,
        reward_weights=reward_weights,
        standardize_rewards=True,
        value_model_init="policy",
        local_rollout_forward_batch_size=settings.rollout_size,
        num_sample_generations=0,
        logging_steps=1,
        **build_common_args(bench, "policy"),
    )


def train_policy(
    bench: Bench, reward_model: PreTrainedModel, kl_coef: float
) -> tuple[PreTrainedModel, list[dict[str, float]]]:
    """Trains a policy with PPO from π_SFT against a fixed reward model. Returns the same as [`train_by_ppo`]."""
    return train_by_ppo(bench, [], kl_coef, [], reward_model=reward_model)


def train_by_ppo(
    bench: Bench,
    functions: Sequence[tuple[Callable[..., Any], float]],
    kl_coef: float,
    callbacks: list[TrainerCallback],
    num_generations: int = 1,
    reward_model: PreTrainedModel | None = None,
) -> tuple[PreTrainedModel, list[dict[str, float]]]:
    """
    Trains a policy with PPO from π_SFT.

    Args:
        bench ([`Bench`]):
            Bench of the seed.
        functions (`Sequence[tuple[Callable, float]]`):
            Reward functions with their weights.
        kl_coef (`float`):
            β.
        callbacks (`list[TrainerCallback]`):
            Callbacks of the trainer.
        num_generations (`int`, *optional*, defaults to `1`):
            Completions of each prompt in a rollout.
        reward_model ([`~transformers.PreTrainedModel`], *optional*):
            Reward model with weight 1, before the functions.

    Returns:
        The policy, and the metrics of each rollout: KL, proxy reward and gold reward. With anchors or refinements also
        their metrics.
    """
    weights = [weight for _, weight in functions]
    trainer = RLPPPOTrainer(
        _build_policy_args(bench, kl_coef, [*([] if reward_model is None else [1.0]), *weights, 0.0], num_generations),
        bench.tokenizer,
        bench.load_sft(),
        None,
        reward_model,
        train_dataset=Dataset.from_dict({"prompt": bench.unlabeled}),
        reward_funcs=[*(function for function, _ in functions), build_gold_reward(bench)],
        callbacks=callbacks or None,
    )
    trainer.train()
    rows = [row for row in trainer.state.log_history if CURVE["kl"] in row]
    return trainer.model.eval(), [select_curve_metrics(row, CURVE) for row in rows]


def train_by_grpo(
    bench: Bench,
    functions: Sequence[tuple[Callable[..., Any], float]],
    kl_coef: float,
    callbacks: list[TrainerCallback],
    num_generations: int,
) -> tuple[PreTrainedModel, list[dict[str, float]]]:
    """
    Trains a policy with TRL's `GRPOTrainer` from π_SFT, on as many completions and with as many steps as PPO.

    Advantages are not divided by their standard deviation, so β and the weights mean the same as in PPO. The first
    function is a [`RefinableReward`], which is standardized on samples of π_SFT.

    Args:
        bench, functions, kl_coef, callbacks, num_generations:
            As in [`train_by_ppo`].

    Returns:
        The same as [`train_by_ppo`].
    """
    settings, prompts = bench.settings, Dataset.from_dict({"prompt": bench.unlabeled})
    sampling = {"num_generations": 2, "max_new_tokens": MAX_NEW_TOKENS, "seed": bench.seed}
    standardize([functions[0][0]], bench.load_sft(), bench.tokenizer, prompts, sampling)
    steps_per_rollout = NUM_MINI_BATCHES * NUM_EPOCHS
    args = GRPOConfig(
        per_device_train_batch_size=settings.rollout_size // NUM_MINI_BATCHES,
        steps_per_generation=NUM_MINI_BATCHES,
        num_iterations=NUM_EPOCHS,
        num_generations=num_generations,
        max_steps=settings.rollouts * steps_per_rollout,
        max_completion_length=MAX_NEW_TOKENS,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        beta=kl_coef,
        scale_rewards="none",
        reward_weights=[*(weight for _, weight in functions), 0.0],
        logging_steps=steps_per_rollout,
        **build_common_args(bench, "policy"),
    )
    trainer = GRPOTrainer(
        model=str(bench.folder / SFT),
        reward_funcs=[*(function for function, _ in functions), build_gold_reward(bench)],
        args=args,
        train_dataset=prompts,
        processing_class=bench.tokenizer,
        callbacks=callbacks or None,
    )
    trainer.train()
    rows = [row for row in trainer.state.log_history if GRPO_CURVE["kl"] in row]
    return trainer.model.eval(), [select_curve_metrics(row, GRPO_CURVE) for row in rows]


TRAINERS = {"ppo": train_by_ppo, "grpo": train_by_grpo}
"""Trainers of the policies that have reward functions."""


def build_gold_reward(bench: Bench) -> Callable[..., list[float]]:
    """Builds the gold reward as a reward function. Its weight is 0, so it is only logged."""

    def gold_reward(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        return [bench.compute_gold(*pair) for pair in zip(prompts, completions, strict=True)]

    return gold_reward


def select_curve_metrics(row: dict[str, float], curve: dict[str, str]) -> dict[str, float]:
    """Selects the metrics of a rollout that are kept. Those of anchors and refinements keep their names."""
    kept = {short: row[name] for short, name in curve.items()}
    loop = [name for name in row if name.startswith(LOOP_METRICS) and not name.endswith("seconds")]
    return kept | {name: row[name] for name in loop}
