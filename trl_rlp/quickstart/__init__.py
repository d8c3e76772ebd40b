"""
The quickstart: Algorithm 1 on a small real model, without GPU, account or Hub (`trl-rlp quickstart`).

Examples can use its parts: questions with known answers, simulated human preferences and the weights of SmolLM2-135M.
"""

from trl_rlp.quickstart.model_outcome import compute_accuracies
from trl_rlp.quickstart.preparation import train_sft
from trl_rlp.quickstart.question_outcome import label_accuracy
from trl_rlp.quickstart.questions import (
    Question,
    demonstration_dataset,
    load_questions,
    prompt_dataset,
    split_questions,
)
from trl_rlp.quickstart.quickstart_config import QuickstartConfig
from trl_rlp.quickstart.quickstart_run import quickstart
from trl_rlp.quickstart.simulation import simulate_preferences
from trl_rlp.quickstart.smollm2 import load_smollm2


__all__ = [
    "Question",
    "QuickstartConfig",
    "compute_accuracies",
    "demonstration_dataset",
    "label_accuracy",
    "load_questions",
    "load_smollm2",
    "prompt_dataset",
    "quickstart",
    "simulate_preferences",
    "split_questions",
    "train_sft",
]
