"""What a run adds to the model cards of its models: how pairs were made, the gate and the evaluation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trl_rlp.data.groups.equivalence import Equivalence
from trl_rlp.storage.artifacts import load_data
from trl_rlp.trainer.model_card import add_to_model_card
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


SYNTHESIS_TEXT = (
    "{number} completions of a policy for each prompt were grouped with `{equivalence}`. A prompt can have a pair if "
    "its largest group has at least the share `confidence_threshold` (γ in the paper). {chosen} The other values are "
    "numbers of prompts: those with a pair (`accepted`), and those without one by reason."
)
CHOSEN_TEXTS = {
    "reward": "Its member with the highest reward of the reward model before refinement is the chosen completion.",
    "random": "A random member of it is the chosen completion.",
}
GATE_TEXT = (
    "The gate compares this reward model (`after`) with the one that it replaces (`before`): on held-out human pairs, "
    "on pairs of policy samples if their answers are known, and on the synthetic preferences that it was trained on."
)
EVALUATION_TEXT = "Completions of held-out prompts, and their mean rewards by each reward model of the run."


def describe_synthesis(
    folder: Path, config: RLPRewardConfig, samples: Path, equivalence: Equivalence | None, metrics: Mapping[str, Any]
) -> None:
    """
    Adds to the card of a refined reward model how the last synthetic preferences were made.

    Args:
        folder (`Path`):
            Folder of the reward model.
        config ([`RLPRewardConfig`]):
            Its configuration.
        samples (`Path`):
            Folder of the policy samples.
        equivalence ([`Equivalence`], *optional*):
            What compared the meanings.
        metrics (`Mapping`):
            Metrics of the stage that made the pairs.
    """
    text = SYNTHESIS_TEXT.format(
        number=len(load_data(samples)[0]["completions"]),
        equivalence=type(equivalence).__name__,
        chosen=CHOSEN_TEXTS[config.chosen],
    )
    metrics = {"confidence_threshold": config.confidence_threshold, **metrics}
    add_to_model_card(folder, "Synthetic preferences", text, metrics)


def describe_gate(folder: Path, report: Mapping[str, Any]) -> None:
    """
    Adds the report of the gate to the card of a refined reward model.

    Args:
        folder (`Path`):
            Folder of the reward model.
        report (`Mapping`):
            Metrics of the gate's stage.
    """
    add_to_model_card(folder, "Gate", GATE_TEXT, {"passed": report["passed"], **report["comparisons"]})


def describe_evaluation(policies: Mapping[str, Path | str], metrics: Mapping[str, Any]) -> None:
    """
    Adds the evaluation to the cards of the policies of a run. π_SFT is the user's, and its card stays as it is.

    Args:
        policies (`Mapping[str, Path | str]`):
            Folders of the policies by name. π_SFT has the name `sft`.
        metrics (`Mapping`):
            Metrics of the evaluation's stage, by the same names.
    """
    for name, path in policies.items():
        if name != "sft":
            add_to_model_card(Path(path), "Evaluation", EVALUATION_TEXT, metrics[name])
