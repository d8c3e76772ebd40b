"""The stages of a run: what each does, their order, and those that a finished run has."""

import math
from typing import Any

from trl_rlp.storage.run_folder import round_name


STAGES = {
    "sft": "π_SFT by fine-tuning on demonstrations",
    "preferences": "simulated human preferences D",
    "initial_policy": "π_SFT, the policy that the trainer was given",
    "anchor_samples": "samples of π_SFT for anchors",
    "anchors": "anchors: clear majorities of π_SFT",
    "reward_model": "step 2: reward model r on D",
    "policy": "step 3: policy π against r",
    "policy_samples": "step 4: samples P of the policy",
    "groups": "step 4: groups of equal meaning",
    "synthetic_preferences": "step 4: synthetic preferences D̂",
    "refined_reward_model": "step 4: refined reward model r̂",
    "gate": "step 4: gate, r̂ against r",
    "retrained_policy": "step 5: policy π̂ against r̂",
    "evaluation": "evaluation of the policies",
    "outcome": "evaluation of policies and reward models",
}
"""What each stage does, in the order of the stages. Further rounds add a number to the name."""

PARTIAL = ".partial"
"""End of the name of an unfinished stage's folder."""


def split_round_name(name: str) -> tuple[str, int]:
    """
    Splits the name of a stage into that of the first round, and the number of the round.

    Args:
        name (`str`):
            Name of the stage or of its unfinished folder.

    Returns:
        `tuple[str, int]`: For example `("gate", 2)` for `"gate_2"`, and `("gate", 1)` for `"gate"`.
    """
    base, _, number = name.removesuffix(PARTIAL).rpartition("_")
    return (base, int(number)) if number.isdecimal() else (name.removesuffix(PARTIAL), 1)


def get_stage_order(name: str) -> tuple[float, int, str]:
    """
    Returns the key that sorts stages by round, and then by their order in a round. The evaluation comes last.

    Args:
        name (`str`):
            Name of the stage or of its unfinished folder.

    Returns:
        `tuple[float, int, str]`: Round, place in the round, and name.
    """
    stage, number = split_round_name(name)
    names = list(STAGES)
    place = names.index(stage) if stage in names else len(names)
    return (math.inf if stage in ("evaluation", "outcome") else number), place, name


def list_expected_stages(settings: dict[str, Any]) -> list[str]:
    """
    Lists the main stages of a finished run of Algorithm 1.

    Args:
        settings (`dict`):
            Settings of the run, from its manifest.

    Returns:
        `list[str]`: Names of stages, with those around Algorithm 1 for the quickstart. Empty for the settings of
        something else.
    """
    if "question_seed" in settings:  # the quickstart, which starts Algorithm 1 after its own first stages
        algorithm = {"sft_model": "sft", "rounds": 1, "method": settings.get("method", "")}
        return ["sft", "preferences", *list_expected_stages(algorithm), "outcome"]
    is_trainer = "args.rlp_method" in settings
    if not is_trainer and not {"sft_model", "rounds", "method"} <= settings.keys():
        return []
    method = settings["args.rlp_method"] if is_trainer else settings["method"]
    rounds = settings.get("args.rlp_rounds", 1) if is_trainer else settings["rounds"]
    stages = ["reward_model"]
    if is_trainer or settings.get("sample_from") != "sft":
        stages.append("policy")
    for number in range(1, rounds + 1):
        names = ["policy_samples", *(["groups", "synthetic_preferences"] if "spg" in method else [])]
        names += ["refined_reward_model", "gate"]
        if not is_trainer or number < rounds:
            names.append("retrained_policy")
        stages += [round_name(name, number) for name in names]
    if settings.get("eval_prompt_dataset"):
        stages.append("evaluation")
    return stages
