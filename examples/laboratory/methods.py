"""All methods that the laboratory compares, as arguments of the package's functions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any


@dataclass(frozen=True)
class Method:
    """
    A refinement of the reward model.

    Args:
        table (`str`):
            Table of the report that contains the method.
        reward (`dict`, *optional*):
            Fields of [`RLPRewardConfig`]. Empty for longer training on human pairs alone.
        preferences (`dict`, *optional*):
            Arguments of [`synthesize_preferences`] without the samples. `None` for no D̂.
        noise (`bool`, *optional*, defaults to `False`):
            Whether the equivalence makes errors.
        head (`str`, *optional*, defaults to `"log_ratio"`):
            Head of the reward model, one of `HEADS`.
    """

    table: str
    reward: dict[str, Any] = field(default_factory=dict)
    preferences: dict[str, Any] | None = None
    noise: bool = False
    head: str = "log_ratio"


def _build_uml(table: str, head: str = "log_ratio", **reward: Any) -> Method:
    return Method(table, {"method": "uml", **reward}, head=head)


def _build_spg(
    table: str, generator: str = "spg", noise: bool = False, head: str = "log_ratio", **options: Any
) -> Method:
    return Method(table, {"method": "spg"}, {"method": generator, **options}, noise, head)


COSINE = {"representation_recipe": "cosine", "mi_estimator": "nce"}
METHODS: dict[str, Method] = {
    "uml": _build_uml("main"),
    "spg": _build_spg("main"),
    "uml+spg": Method("main", {"method": "uml+spg"}, {"method": "spg"}),
    "mvi": _build_uml("losses", representation_loss="mvi"),
    "infomax": _build_uml("losses", representation_loss="infomax"),
    "cl": _build_uml("losses", representation_loss="cl"),
    "select_all": _build_spg("generators", generator="select_all"),
    "reward": _build_spg("generators", generator="reward"),
    "rlaif": _build_spg("generators", generator="rlaif"),
    "human pairs only": Method("controls"),
    "spg, random y_w": _build_spg("controls", chosen="random"),
    "spg, 15 % noise": _build_spg("controls", noise=True),
    "uml, cosine": _build_uml("controls", **COSINE),
    "uml, cosine, views of a group": _build_uml("controls", views_from="group", **COSINE),
    "uml, last token": _build_uml("last token", head="last_token"),
    "uml, cosine, last token": _build_uml("last token", head="last_token", **COSINE),
    "spg, last token": _build_spg("last token", head="last_token"),
}
"""Methods by their name in the tables. `uml` is `mib` of Table 4, and `spg` is `spg` of Table 5."""

BEST_OF_N = {
    "best-of-n": {"reward": "r", "within_majority": False},
    "best-of-n, r̂": {"reward": "sft", "within_majority": False},
    "best-of-n, majority": {"reward": "r", "within_majority": True},
    "best-of-n, majority, r̂": {"reward": "sft", "within_majority": True},
    "majority vote": {"reward": None, "within_majority": True},
}
"""
Kinds of best-of-n: the reward model (r, the first r̂ of our methods, or none), and whether only the majority can win.
"""

HEADS = {"log_ratio": "ppo", "last_token": "ppo, last token"}
"""Heads of reward models, and the name of plain PPO against a reward model with that head."""


BETAS = (0.05, 0.1, 0.2, 0.4)
"""β values of our main methods. The controls of ours run at β = .1, a quarter of the default."""


FINER = (0.15, 0.3)
"""β values that the part of ours adds to the sweep, so that PPO and SPG are not judged on a coarse grid."""


@dataclass(frozen=True)
class LoopMethod:
    """
    A method of ours: what a policy is trained on, and how. Everything starts from samples of π_SFT.

    Args:
        table (`str`):
            Table of the report that contains the method.
        base (`str`, *optional*):
            The method that differs from this one in one thing.
        kl_coefs (`tuple[float, ...]`, *optional*):
            β values to run. Empty for a method without β.
        trainer (`str`, *optional*, defaults to `"ppo"`):
            How the policy is trained, one of `TRAINERS`.
        reward (`str`, *optional*, defaults to `"sft"`):
            Reward model at the start: `"sft"` (r̂ of SPG on samples of π_SFT), `"spg"` (published SPG's, on samples of
            π), or `"r"`.
        num_generations (`int`, *optional*, defaults to `1`):
            Completions of each prompt in a rollout.
        anchor_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the anchor reward. The reward model has weight 1.
        length_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the penalty on completions that are longer than the members of their anchor.
        form_weight (`float`, *optional*, defaults to `0.0`):
            Weight of a reward for completions that are an answer, whatever they say.
        is_refined (`bool`, *optional*, defaults to `False`):
            Whether the reward model is refined in the loop.
        refine_every (`int`, *optional*, defaults to `8`):
            Number of rollouts between two refinements.
        chosen (`str`, *optional*, defaults to `"reward"`):
            How y_w of a refinement is picked: `"reward"` or `"random"`.
        uses_anchors (`bool`, *optional*, defaults to `True`):
            Whether refinements make pairs against the anchors. If not, they group what the policy samples.
        human_share (`float`, *optional*, defaults to `1.0`):
            Share of D that a refinement trains on, in [0, 1].
        noise (`float`, *optional*, defaults to `0.0`):
            Share of wrong verdicts of the equivalence, for anchors, pairs and rewards, in [0, 1].
        wrong_anchors (`float`, *optional*):
            Share of the anchors that are wrong, in [0, 1]. `None` leaves them as they are.
        picks (`str`, *optional*, defaults to `"majority"`):
            What a policy is taught: the best completion within the `"majority"` or of `"all"`, or a `"random"` one
            of the majority.
        copies (`int`, *optional*):
            How often a taught policy's prompts are sampled, instead of `taught_copies` of the settings.
        rounds (`int`, *optional*, defaults to `1`):
            Number of rounds of published SPG. Only for `trainer="rounds"`.
    """

    table: str
    base: str | None = None
    kl_coefs: tuple[float, ...] = BETAS
    trainer: str = "ppo"
    reward: str = "sft"
    num_generations: int = 1
    anchor_weight: float = 0.0
    length_weight: float = 0.0
    form_weight: float = 0.0
    is_refined: bool = False
    refine_every: int = 8
    chosen: str = "reward"
    uses_anchors: bool = True
    human_share: float = 1.0
    noise: float = 0.0
    wrong_anchors: float | None = None
    picks: str = "majority"
    copies: int | None = None
    rounds: int = 1


CONTROL = {"table": "controls of ours", "kl_coefs": (0.1,)}
TAUGHT_CONTROL = {"table": "controls of ours", "kl_coefs": (), "trainer": "sft"}
NOISE = (0.15, 0.3)
ANCHOR_REWARD = {"anchor_weight": 3.0}
REFINED = {"is_refined": True}
GRPO = {"trainer": "grpo", "num_generations": 8}
ANCHORED = {**ANCHOR_REWARD, **REFINED}
EIGHT = {"num_generations": 8}
BASES = {"anchor_reward": ANCHOR_REWARD, "refined_in_loop": REFINED, "anchored": ANCHORED}

LOOP_METHODS: dict[str, LoopMethod] = {
    "anchor_reward": LoopMethod("ours", base="first r̂", **ANCHOR_REWARD),
    "refined_in_loop": LoopMethod("ours", base="first r̂", **REFINED),
    "anchored": LoopMethod("ours", **ANCHORED),
    "anchored, length": LoopMethod("ours", base="anchored", **ANCHORED, length_weight=0.3),
    "majority_sft": LoopMethod("ours", kl_coefs=(), trainer="sft"),
    "majority_dpo": LoopMethod("ours", kl_coefs=(0.1, 0.4), trainer="dpo"),
    "grpo": LoopMethod("by GRPO", **GRPO, reward="r"),
    "spg, grpo": LoopMethod("by GRPO", base="grpo", **GRPO, reward="spg"),
    "anchor_reward, grpo": LoopMethod("ours", base="anchor_reward", **GRPO, **ANCHOR_REWARD),
    "anchored, grpo": LoopMethod("ours", base="anchored", **GRPO, **ANCHORED),
    "first r̂": LoopMethod("controls of ours"),
    "first r̂, form": LoopMethod(base="first r̂", **CONTROL, form_weight=3.0),
    "anchor_reward, r": LoopMethod(base="anchor_reward", **CONTROL, **ANCHOR_REWARD, reward="r"),
    "refined_in_loop, 8 completions": LoopMethod(base="refined_in_loop", **CONTROL, **REFINED, **EIGHT),
    "anchored, 8 completions": LoopMethod(base="anchored", **CONTROL, **ANCHORED, **EIGHT),
    "majority_sft, r": LoopMethod(base="majority_sft", **TAUGHT_CONTROL, reward="r"),
    "majority_sft, 2 copies": LoopMethod(base="majority_sft", **TAUGHT_CONTROL, copies=2),
    "best_sft": LoopMethod(base="majority_sft", **TAUGHT_CONTROL, picks="all"),
    "random_sft": LoopMethod(base="majority_sft", **TAUGHT_CONTROL, picks="random"),
    "anchor_reward, c 1": LoopMethod(base="anchor_reward", **CONTROL, anchor_weight=1.0),
    "anchored, c 1": LoopMethod(base="anchored", **CONTROL, **REFINED, anchor_weight=1.0),
    "anchored, random y_w": LoopMethod(base="anchored", **CONTROL, **ANCHORED, chosen="random"),
    "anchored, fewer human pairs": LoopMethod(base="anchored", **CONTROL, **ANCHORED, human_share=0.2),
    "groups of the current policy": LoopMethod(
        base="refined_in_loop, 8 completions", **CONTROL, **REFINED, **EIGHT, uses_anchors=False
    ),
    **{
        f"{name}, {noise:.0%} noise": LoopMethod(base=name, **CONTROL, **fields, noise=noise)
        for name, fields in BASES.items()
        for noise in NOISE
    },
    **{
        f"majority_sft, {noise:.0%} noise": LoopMethod(base="majority_sft", **TAUGHT_CONTROL, noise=noise)
        for noise in NOISE
    },
    **{
        f"{name}, {share:.0%} wrong anchors": LoopMethod(base=name, **CONTROL, **fields, wrong_anchors=share)
        for name, fields in BASES.items()
        for share in (0.12, 0.25)
    },
    **{
        f"{name}, k {k}": LoopMethod(base=name, **CONTROL, **BASES[name], refine_every=k)
        for name in ("refined_in_loop", "anchored")
        for k in (4, 16)
    },
    **{
        f"spg, {rounds} rounds": LoopMethod("controls of ours", trainer="rounds", kl_coefs=(0.1, 0.4), rounds=rounds)
        for rounds in (2, 3)
    },
}
"""Our methods by their name in the tables. `refined_in_loop` is r̂ refined in the loop, without the anchor reward."""

PARTS = ("paper", "ours")
"""Parts of the laboratory: the paper's methods, and ours beside published SPG."""


def list_loop_results(name: str) -> list[str]:
    """Lists the names of the results of one of our methods, one for each β."""
    return [f"{name}, β {beta:g}" for beta in LOOP_METHODS[name].kl_coefs] or [name]


def split_result(result: str) -> tuple[str, float | None]:
    """Splits the name of a result of ours into method and β. The β of a method without β is `None`."""
    name, separator, beta = result.rpartition(", β ")
    return (name, float(beta)) if separator else (result, None)


def list_sweep_results(sweep: Sequence[float]) -> list[str]:
    """Lists the names of the entries of a sweep over β, in increasing order."""
    return [f"sweep {beta}" for beta in sorted(sweep)]


def list_results(sweep: Sequence[float], part: str | None = None) -> list[str]:
    """Lists the names of the results of a seed, or of one part of them, in the order in which they are computed."""
    parts = {
        "paper": ["sft", "best-of-n", *HEADS.values(), *METHODS, *list_sweep_results(sweep)],
        "ours": [
            "sft",
            *BEST_OF_N,
            *list_sweep_results([*sweep, *FINER]),
            *chain.from_iterable(map(list_loop_results, LOOP_METHODS)),
        ],
    }
    return list(dict.fromkeys(chain(*parts.values()) if part is None else parts[part]))
