"""
Trains a tiny untied Llama with PPO and with UML, saves a checkpoint and resumes from it. gpu_check.py launches it.

Each part prints one line `RESULT {...}` with its losses, the number of layers that FSDP2 sharded, and the line that
failed, if one did.
"""

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from gpu_measurement import IS_CUDA, build_llama
from ppo_step import make_tokenizer
from reward_step import make_texts
from torch.distributed.fsdp import FSDPModule
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from trl_rlp import PPOConfig, PPOTrainer, RLPRewardConfig, RLPRewardTrainer
from trl_rlp.storage.processes import leave_process_group


SETTINGS = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "max_steps": 4,
    "save_steps": 2,
    "save_strategy": "steps",
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": not IS_CUDA,
    "bf16": IS_CUDA,
    "dataloader_pin_memory": False,
}


def make_reward_trainer(folder: Path) -> RLPRewardTrainer:
    model = build_llama(LlamaForSequenceClassification, "tiny", torch.float32)
    texts = make_texts(32, 16, seed=0)
    return RLPRewardTrainer(
        model,
        RLPRewardConfig(str(folder), method="uml", view_prompts_per_device=2, **SETTINGS),
        train_dataset=Dataset.from_list([{"prompt": p, "chosen": a, "rejected": b} for p, a, b in texts]),
        policy_samples=Dataset.from_list(
            [{"prompt": p, "completions": [a, b], "finished": [True, True]} for p, a, b in texts]
        ),
        processing_class=make_tokenizer(model.config.vocab_size),
    )


def make_ppo_trainer(folder: Path) -> PPOTrainer:
    policy = build_llama(LlamaForCausalLM, "tiny", torch.float32)
    settings = {**SETTINGS, "response_length": 8, "num_ppo_epochs": 1, "num_sample_generations": 0}
    return PPOTrainer(
        PPOConfig(str(folder), **settings),
        make_tokenizer(policy.config.vocab_size),
        policy,
        reward_model=build_llama(LlamaForSequenceClassification, "tiny", torch.float32),
        train_dataset=Dataset.from_dict({"prompt": [prompt for prompt, _, _ in make_texts(32, 16, seed=1)]}),
    )


def get_losses(trainer: RLPRewardTrainer | PPOTrainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def count_sharded(trainer: RLPRewardTrainer | PPOTrainer) -> int:
    models = [trainer.model, trainer.value_model] if isinstance(trainer, PPOTrainer) else [trainer.model]
    return sum(isinstance(module, FSDPModule) for model in models for module in model.modules())


def run_part(make_trainer: Any, folder: Path) -> dict[str, Any]:
    """Trains, saves and resumes. The result has all that was reached before an error."""
    result: dict[str, Any] = {}
    try:
        trainer = make_trainer(folder)
        result["distributed_type"] = str(trainer.accelerator.distributed_type)
        trainer.train()
        result |= {"losses": get_losses(trainer), "sharded_modules": count_sharded(trainer)}
        trainer.save_model(str(folder / "model"))
        result["saved_files"] = sorted(path.name for path in (folder / "model").glob("*.safetensors"))
        resumed = make_trainer(folder)
        resumed.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
        pairs = zip(get_losses(trainer), get_losses(resumed), strict=True)
        result["resumed_deviation"] = max(abs(mine - theirs) for mine, theirs in pairs)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f"{Path(frame.filename).name}:{frame.lineno} {frame.line}" for frame in frames[-6:]]
        result |= {"error": f"{type(error).__name__}: {error}"[:500], "lines": lines}
    return result


def main() -> None:
    folder = Path(sys.argv[1])
    for name, make_trainer in {"ppo": make_ppo_trainer, "uml": make_reward_trainer}.items():
        print("RESULT", json.dumps({name: run_part(make_trainer, folder / name)}), flush=True)
    leave_process_group()


if __name__ == "__main__":
    main()
