"""The methods of the experiment with policies on a real model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RealMethod:
    """
    A method that trains a policy against rewards, once for each β.

    Args:
        reward (`str`):
            First reward function: `r`, `refined` (r̂ from samples of π_SFT), `spg` (r̂ from samples of π) or
            `known_answers`.
        trainer (`str`, *optional*, defaults to `"ppo"`):
            `ppo` or `grpo`.
        has_anchors (`bool`, *optional*, defaults to `False`):
            Whether the anchor reward is added.
        is_refined (`bool`, *optional*, defaults to `False`):
            Whether the reward model is refined in the loop, on pairs against anchors.
    """

    reward: str
    trainer: str = "ppo"
    has_anchors: bool = False
    is_refined: bool = False


METHODS = {
    "ppo": RealMethod("r"),
    "grpo": RealMethod("r", trainer="grpo"),
    "spg": RealMethod("spg"),
    "anchor_reward": RealMethod("refined", has_anchors=True),
    "refined_in_loop": RealMethod("refined", is_refined=True),
    "anchored": RealMethod("refined", has_anchors=True, is_refined=True),
    "known_answers": RealMethod("known_answers"),
}
"""Methods with a β. `spg` samples the policy of `ppo` with the same β. `known_answers` is the ceiling."""

PICK_METHODS = {
    "majority_sft": ("sft", "r"),
    "majority_dpo": ("dpo", "r"),
}
"""Methods that train on the best completion within the majority: the trainer, and the reward model that picks."""


def name_result(name: str, kl_coef: float | None = None) -> str:
    """Returns the name of a result and of its stage: that of its method, with β if the method has one."""
    return name if kl_coef is None else f"{name} {kl_coef:g}"


def list_results(names: list[str], kl_coefs: list[float] | tuple[float, ...]) -> list[tuple[str, float | None]]:
    """Lists the results of methods as pairs of name and β. `ppo` comes before `spg`, which needs its samples."""
    ordered = [name for name in METHODS if name in names or (name == "ppo" and "spg" in names)]
    with_kl_coef = [(name, kl_coef) for kl_coef in kl_coefs for name in ordered]
    return [*((name, None) for name in PICK_METHODS if name in names), *with_kl_coef]
