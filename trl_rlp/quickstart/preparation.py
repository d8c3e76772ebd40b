"""The steps before Algorithm 1: π_SFT from demonstrations, and D from a simulated annotator."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from trl_rlp.data.sampling.engines import sample_completions
from trl_rlp.evaluation.policy_metrics import describe_outputs
from trl_rlp.quickstart.simulation import simulate_preferences
from trl_rlp.storage.artifacts import load_policy, save_data, save_trained_model
from trl_rlp.storage.run_folder import CHECKPOINTS, SHARDS
from trl_rlp.trainer.checkpoints import TRAINER_STATE
from trl_rlp.trainer.precision import supported_precision


def train_sft(
    folder: Path, base_model: str | Path, demonstrations: Dataset, args: dict[str, Any], lora: dict[str, Any]
) -> dict[str, float]:
    """
    Fine-tunes a model on demonstrations (step 0) and saves it as a plain causal LM, with the state of the trainer.

    Args:
        folder (`Path`):
            Folder for the trained model.
        base_model (`str` or `Path`):
            Folder or Hub name of the model to start from.
        demonstrations ([`~datasets.Dataset`]):
            Prompts and completions, in TRL's prompt-completion format.
        args (`dict`):
            Fields of `trl.SFTConfig`, without `output_dir`.
        lora (`dict`):
            Fields of `peft.LoraConfig`.

    Returns:
        `dict[str, float]`: `train_loss`, in nats per token.
    """
    model, processing_class = load_policy(base_model, dtype="auto")  # for training, not for inference
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**supported_precision(args), output_dir=str(folder / CHECKPOINTS)),
        train_dataset=demonstrations,
        processing_class=processing_class,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **lora),
    )
    output = trainer.train()
    save_trained_model(trainer, folder)
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(str(folder / TRAINER_STATE))
    return {"train_loss": output.training_loss}


def collect_preferences(
    folder: Path, sft_model: str | Path, questions: dict[str, Dataset], sampling: dict[str, Any], seed: int
) -> dict[str, dict[str, float]]:
    """
    Collects human preferences (step 1 of Algorithm 1). π_SFT is sampled, and a simulated annotator compares right with
    wrong completions.

    Args:
        folder (`Path`):
            Folder for the pairs. Each part gets a subfolder in TRL's preference format, with `is_flipped`.
        sft_model (`str` or `Path`):
            Folder or Hub name of π_SFT.
        questions (`dict[str, datasets.Dataset]`):
            Questions of each part, by name of the part, with the columns `prompt` and `answers`.
        sampling (`dict`):
            Further arguments of [`sample_completions`].
        seed (`int`):
            Seed for choosing the pairs and the flipped labels.

    Returns:
        `dict`: For each part, the metrics of [`describe_outputs`], `pairs` and `flipped`.
    """
    model, processing_class = load_policy(sft_model)
    metrics = {}
    for number, (part, rows) in enumerate(questions.items()):
        samples = sample_completions(
            rows.select_columns(["prompt"]),
            model,
            processing_class,
            output_dir=str(folder / part / SHARDS),
            **sampling,
        )
        pairs = simulate_preferences(samples, rows["answers"], seed=seed + number)
        save_data(pairs, folder / part)
        metrics[part] = {
            **describe_outputs(samples, rows["answers"]),
            "pairs": len(pairs),
            "flipped": sum(pairs["is_flipped"]),
        }
    return metrics
