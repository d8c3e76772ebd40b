"""Training: π_SFT with TRL's `SFTTrainer`, reward models with `RLPRewardTrainer`, policies with `RLPPPOTrainer`."""

from typing import Any

import torch
from bench import MAX_NEW_TOKENS, SFT, Bench
from datasets import Dataset
from information import estimate_heldout_information
from models import make_policy, make_reward_model
from task import write_demonstrations
from transformers import PreTrainedModel, TrainerCallback
from trl import SFTConfig, SFTTrainer

from trl_rlp import (
    RefinableReward,
    RLPPPOConfig,
    RLPPPOTrainer,
    RLPRewardConfig,
    RLPRewardTrainer,
    SemanticAnchorReward,
)
from trl_rlp.trainer.reward.representation_log import TERMS


CURVE = {"kl": "objective/kl", "proxy": "objective/scores", "gold": "rewards/gold_reward/mean"}
"""Metrics that are kept of each rollout, with their names in the trainer's log."""

LOOP_METRICS = ("refinement/", "semantic_anchor/")
"""Beginnings of further metrics that are kept of each rollout, except times, which differ between equal runs."""


def _build_common_args(bench: Bench, name: str) -> dict[str, Any]:
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
            **_build_common_args(bench, "sft"),
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
        **_build_common_args(bench, "reward"),
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


def _build_policy_args(bench: Bench, kl_coef: float, reward_weights: list[float]) -> RLPPPOConfig:
    settings = bench.settings
    return RLPPPOConfig.from_preset(
        "alpacafarm",
        per_device_train_batch_size=settings.rollout_size // 2,
        gradient_accumulation_steps=2,
        num_mini_batches=2,
        num_ppo_epochs=2,
        total_episodes=settings.rollouts * settings.rollout_size,
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
        **_build_common_args(bench, "policy"),
    )


def train_policy(
    bench: Bench,
    reward_model: PreTrainedModel | RefinableReward,
    kl_coef: float,
    anchor_reward: SemanticAnchorReward | None = None,
    anchor_weight: float = 0.0,
    callbacks: list[TrainerCallback] | None = None,
) -> tuple[PreTrainedModel, list[dict[str, float]]]:
    """
    Trains a policy with PPO from π_SFT.

    Returns:
        The policy, and the metrics of each rollout: KL, proxy reward and gold reward. With anchors or refinements also
        their metrics.
    """
    is_refinable = isinstance(reward_model, RefinableReward)
    anchor_funcs, anchor_weights = ([], []) if anchor_reward is None else ([anchor_reward], [anchor_weight])
    args = _build_policy_args(bench, kl_coef, [1.0, *anchor_weights, 0.0])

    def gold_reward(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        return [bench.compute_gold(*pair) for pair in zip(prompts, completions, strict=True)]

    trainer = RLPPPOTrainer(
        args,
        bench.tokenizer,
        bench.load_sft(),
        None,
        None if is_refinable else reward_model,
        train_dataset=Dataset.from_dict({"prompt": bench.unlabeled}),
        reward_funcs=[
            *([reward_model] if is_refinable else []),
            *anchor_funcs,
            gold_reward,  # weight 0: only logged
        ],
        callbacks=callbacks,
    )
    trainer.train()
    rows = [row for row in trainer.state.log_history if CURVE["kl"] in row]
    return trainer.model.eval(), [select_curve_metrics(row) for row in rows]


def select_curve_metrics(row: dict[str, float]) -> dict[str, float]:
    """Selects the metrics of a rollout that are kept. Those of anchors and refinements keep their names."""
    kept = {short: row[name] for short, name in CURVE.items()}
    loop = [name for name in row if name.startswith(LOOP_METRICS) and not name.endswith("seconds")]
    return kept | {name: row[name] for name in loop}
