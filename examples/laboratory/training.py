"""π_SFT by TRL's trainer, every reward model by `RLPRewardTrainer`, every policy by `RLPPPOTrainer`."""

from typing import Any

import torch
from bench import MAX_NEW_TOKENS, SFT, Bench
from datasets import Dataset
from information import heldout_information
from models import make_policy, make_reward_model
from task import demonstrations
from transformers import PreTrainedModel
from trl import SFTConfig, SFTTrainer

from trl_rlp import RLPPPOConfig, RLPPPOTrainer, RLPRewardConfig, RLPRewardTrainer
from trl_rlp.trainer.reward.representation_log import TERMS


CURVE = {"kl": "objective/kl", "proxy": "objective/scores", "gold": "rewards/gold_reward/mean"}
"""What is kept of each rollout, and the name that the trainer logs it under."""


def _common(bench: Bench, name: str) -> dict[str, Any]:
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
    """Gives π_SFT, trained from scratch if it is not there."""
    folder, settings = bench.folder / SFT, bench.settings
    if not (folder / "config.json").exists():
        policy = make_policy(bench.tokenizer, bench.seed)
        args = SFTConfig(
            num_train_epochs=settings.sft_epochs,
            learning_rate=settings.sft_learning_rate,
            lr_scheduler_type="cosine",
            per_device_train_batch_size=64,
            max_length=64,
            **_common(bench, "sft"),
        )
        data = demonstrations(bench.world, settings.demonstrations, bench.seed)
        SFTTrainer(model=policy, args=args, train_dataset=data, processing_class=bench.tokenizer).train()
        policy.save_pretrained(folder)
    return bench.initial_policy()


def train_reward_model(
    bench: Bench,
    human: Dataset,
    head: str,
    fields: dict[str, Any] | None = None,
    epochs: float | None = None,
    heldout_views: Dataset | None = None,
    **refinement: Any,
) -> tuple[PreTrainedModel, dict[str, float]]:
    """Gives r, or with `fields` and `refinement` r̂, and the last terms of its loss, with views also held-out ones."""
    settings = bench.settings
    torch.manual_seed(bench.seed)
    model = make_reward_model(bench.initial_policy(), head, bench.folder / SFT)
    args = RLPRewardConfig(
        num_train_epochs=settings.reward_epochs if epochs is None else epochs,
        learning_rate=settings.reward_learning_rate,
        per_device_train_batch_size=32,
        max_length=64,
        logging_steps=10,
        **(fields or {"method": "none"}),
        **_common(bench, "reward"),
    )
    trainer = RLPRewardTrainer(
        model=model, args=args, train_dataset=human, processing_class=bench.tokenizer, **refinement
    )
    trainer.train()
    terms: dict[str, float] = {}
    for row in trainer.state.log_history:
        terms |= {name: value for name, value in row.items() if name in TERMS}
    if heldout_views is not None:
        terms["mi_heldout"] = heldout_information(trainer, heldout_views)
    return model, terms


def train_policy(
    bench: Bench, reward_model: PreTrainedModel, kl_coef: float
) -> tuple[PreTrainedModel, list[dict[str, float]]]:
    """Gives the policy that PPO makes of π_SFT, and KL, proxy and gold of each rollout."""
    settings = bench.settings
    args = RLPPPOConfig.from_preset(
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
        reward_weights=[1.0, 0.0],
        standardize_rewards=True,
        value_model_init="policy",
        local_rollout_forward_batch_size=settings.rollout_size,
        num_sample_generations=0,
        logging_steps=1,
        **_common(bench, "policy"),
    )

    def gold_reward(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        return [bench.gold(prompt, output) for prompt, output in zip(prompts, completions, strict=True)]

    trainer = RLPPPOTrainer(
        args,
        bench.tokenizer,
        bench.initial_policy(),
        None,
        reward_model,
        train_dataset=Dataset.from_dict({"prompt": bench.unlabeled}),
        reward_funcs=[gold_reward],  # with weight 0: only logged
    )
    trainer.train()
    rows = [row for row in trainer.state.log_history if CURVE["kl"] in row]
    return trainer.model.eval(), [{short: row[name] for short, name in CURVE.items()} for row in rows]
