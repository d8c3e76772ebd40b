"""The checks of a refinement inside a run. They come before the run, because a refinement comes hours later."""

import os
from collections.abc import Callable
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from accelerate.utils import str_to_bool
from datasets import Dataset
from peft import PeftConfig
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig, RLOOConfig

from trl_rlp.data.anchors.comparison import AnchorComparison
from trl_rlp.data.anchors.semantic_anchors import SemanticAnchors
from trl_rlp.data.groups.equivalence import Equivalence, require_equivalence
from trl_rlp.data.token_prompts import decode_prompts
from trl_rlp.data.validation import require_columns, require_preferences
from trl_rlp.rewards.refinable_reward import RefinableReward
from trl_rlp.trainer.callbacks.run_checks import require_modes
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


PolicyConfig = GRPOConfig | RLOOConfig
"""Configuration of a policy's trainer. That of PPO is a `GRPOConfig`."""

_PROMPTS_AT_ONCE = 1000

_SCHEDULE: dict[str, tuple[type, Callable[[Any], bool], str]] = {
    "every": (Integral, lambda value: value >= 1, "at least 1 rollout"),
    "drift_threshold": (
        Real,
        lambda value: value > 0,
        "above 0 standard deviations, or None for no refinement because of drift",
    ),
    "num_windows": (Integral, lambda value: value >= 1, "at least 1, or None for all"),
    "seed": (Integral, lambda value: value >= 0, "at least 0"),
}
"""For each number of the schedule: its type, its range, and the range in words."""


def require_refinement_config(reward: Any, args: Any) -> None:
    """
    Checks the types of the reward function and of the configuration, and that the configuration refines.

    Args:
        reward:
            What the user passed as the reward function.
        args:
            What the user passed as the configuration of the reward model's training.

    Raises:
        TypeError: If one of them is something else.
        ValueError: If `method` is `"none"`.
    """
    if not isinstance(reward, RefinableReward):
        raise TypeError(
            f"`reward` must be a `RefinableReward`, got `{type(reward).__name__}`. Create one from the reward model, "
            "and pass it to the trainer in `reward_funcs` too."
        )
    if not isinstance(args, RLPRewardConfig):
        raise TypeError(
            f"`args` must be an `RLPRewardConfig`, got `{type(args).__name__}`. It configures the training of the "
            "reward model."
        )
    if args.method == "none":
        raise ValueError(
            "`args.method` is 'none', which learns nothing from the policy's completions. Set it to 'spg', 'uml' or "
            "'uml+spg'."
        )


def resolve_comparison(
    anchors: SemanticAnchors | None,
    equivalence: Equivalence | None,
    comparison: AnchorComparison | None,
    args: RLPRewardConfig,
) -> AnchorComparison | None:
    """
    Returns the comparison with anchors, and checks that anchors and equivalence are there if the method needs them.

    Args:
        anchors ([`SemanticAnchors`], *optional*):
            Anchors.
        equivalence ([`Equivalence`], *optional*):
            Compares completions with the anchors, or groups them.
        comparison ([`AnchorComparison`], *optional*):
            A ready comparison, instead of `anchors`.
        args ([`RLPRewardConfig`]):
            Configuration of the reward model's training.

    Returns:
        [`AnchorComparison`] or `None`: The comparison. `None` without anchors.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is missing, or one is not used.
    """
    if equivalence is not None:
        require_equivalence(equivalence)
    if not isinstance(comparison, AnchorComparison | None):
        raise TypeError(
            f"`comparison` must be an `AnchorComparison`, got `{type(comparison).__name__}`. Pass the attribute "
            "`comparison` of the `SemanticAnchorReward`."
        )
    if anchors is not None and comparison is not None:
        raise ValueError(
            "`anchors` and `comparison` are both given, but a comparison has its own anchors. Remove one."
        )
    if not args.uses_synthetic_pairs:
        _require_no_anchors(anchors, comparison, args)
    has_anchors = anchors is not None or comparison is not None
    needs_equivalence = args.views_share_group or (args.uses_synthetic_pairs and comparison is None)
    if equivalence is None and needs_equivalence:
        purpose = "compares completions with `anchors`" if has_anchors else "groups completions by meaning"
        raise ValueError(
            f"`equivalence` is None, but `args.method`={args.method!r} {purpose}. Pass for example `NLIEquivalence()`."
        )
    if equivalence is not None and not needs_equivalence:
        raise ValueError(
            f"`equivalence` is not used with `args.method`={args.method!r}"
            f"{' and `comparison`, which has its own' if comparison is not None else ''}. Remove it."
        )
    if has_anchors and args.redraw_rejected:
        raise ValueError(
            "`args.redraw_rejected` is True, but pairs against anchors keep one rejected completion. Set it to False."
        )
    return AnchorComparison(anchors, equivalence) if anchors is not None else comparison


def _require_no_anchors(anchors: Any, comparison: Any, args: RLPRewardConfig) -> None:
    for name, value in (("anchors", anchors), ("comparison", comparison)):
        if value is not None:
            raise ValueError(
                f"`{name}` is not used with `args.method`={args.method!r}, which makes no pairs. Remove it, or set "
                "`args.method` to 'spg' or 'uml+spg'."
            )


def require_schedule(every: int, drift_threshold: float | None, num_windows: int | None, seed: int) -> None:
    """
    Checks the numbers of the schedule.

    Args:
        every, drift_threshold, num_windows, seed:
            As in [`RewardRefinementCallback`].

    Raises:
        TypeError: If one is not a number, or not an integer where it must be.
        ValueError: If one is out of range.
    """
    values = {"every": every, "seed": seed}
    optional = {"drift_threshold": drift_threshold, "num_windows": num_windows}
    for name, value in {**values, **{name: value for name, value in optional.items() if value is not None}}.items():
        kind, is_in_range, expected = _SCHEDULE[name]
        if isinstance(value, bool) or not isinstance(value, kind):
            raise TypeError(f"`{name}` must be {'an integer' if kind is Integral else 'a number'}, got {value!r}.")
        if not is_in_range(value):
            raise ValueError(f"`{name}` must be {expected}, got {value}.")


def require_start(base_model: Any, peft_config: Any) -> None:
    """
    Checks the types of what a refinement starts from.

    Args:
        base_model, peft_config:
            As in [`RewardRefinementCallback`].

    Raises:
        TypeError: If one has the wrong type.
    """
    if isinstance(base_model, nn.Module) or not (base_model is None or isinstance(base_model, str | Path | Callable)):
        raise TypeError(
            "`base_model` must be a folder, a Hub name, or a function that returns a new model at each call, got "
            f"`{type(base_model).__name__}`. Pass the folder that the model was loaded from."
        )
    if not isinstance(peft_config, PeftConfig | None):
        raise TypeError(
            f"`peft_config` must be a `PeftConfig`, got `{type(peft_config).__name__}`. Pass for example "
            "`LoraConfig(task_type='SEQ_CLS')`."
        )


def require_synthetic_pairs(dataset: Dataset, args: RLPRewardConfig) -> Dataset:
    """
    Checks the synthetic preferences of before the run, as text or as token ids.

    Args:
        dataset ([`~datasets.Dataset`]):
            What the user passed as `synthetic_dataset`.
        args ([`RLPRewardConfig`]):
            Configuration of the reward model's training.

    Returns:
        `datasets.Dataset`: The preferences.

    Raises:
        TypeError: If it is not a dataset.
        ValueError: If it is not used, is empty, or lacks columns.
    """
    if not args.uses_synthetic_pairs:
        raise ValueError(f"`synthetic_dataset` is not used with `args.method`={args.method!r}. Remove it.")
    dataset = require_columns(dataset, [], "synthetic_dataset")
    if not {"chosen_ids", "rejected_ids"} <= set(dataset.column_names):
        dataset = require_preferences(dataset, "synthetic_dataset")
    return dataset


def check_policy_run(
    run: PolicyConfig, args: RLPRewardConfig, reward: RefinableReward, comparison: AnchorComparison | None
) -> None:
    """
    Checks that a reward model can be refined inside a policy's run.

    Args:
        run (`GRPOConfig` or `RLOOConfig`):
            Configuration of the policy's run.
        args ([`RLPRewardConfig`]):
            Configuration of the reward model's training.
        reward ([`RefinableReward`]):
            The reward function.
        comparison ([`AnchorComparison`], *optional*):
            Compares completions with anchors.

    Raises:
        ValueError: If the trainer has no reward functions, a prompt has too few completions, the buffer is too small,
            or the two configurations do not fit together.
    """
    if not hasattr(run, "num_generations"):
        raise ValueError(
            f"The trainer's `args` are a `{type(run).__name__}` without `num_generations`, so it has no reward "
            "functions. Use `RewardRefinementCallback` in GRPOTrainer, RLOOTrainer or PPOTrainer."
        )
    if run.restore_callback_states_from_checkpoint:
        raise ValueError(
            "`restore_callback_states_from_checkpoint` is True, but `RewardRefinementCallback` restores itself. Set "
            "it to False."
        )
    require_modes(run)
    needs_two = args.uses_views or comparison is None
    if needs_two and run.num_generations < 2:
        purpose = "draws two views of a prompt" if args.uses_views else "without anchors groups completions"
        raise ValueError(
            f"`num_generations` is {run.num_generations}, but `args.method`={args.method!r} {purpose}. Set it to at "
            "least 2."
        )
    if reward.buffer.size < run.generation_batch_size:
        raise ValueError(
            f"`buffer_size` of the `RefinableReward` is {reward.buffer.size}, but one rollout has "
            f"{run.generation_batch_size} completions. Raise it."
        )
    _check_one_state(run, args)


def _check_one_state(run: PolicyConfig, args: RLPRewardConfig) -> None:
    """accelerate has one state for the process, so both trainings have one device and one precision."""
    if args.mixed_precision != run.mixed_precision:
        raise ValueError(
            f"`args` trains the reward model with mixed precision '{args.mixed_precision}', but the policy's run has "
            f"'{run.mixed_precision}'. Pass `bf16={run.bf16}, fp16={run.fp16}` to the `RLPRewardConfig`, or "
            f"`bf16={args.bf16}, fp16={args.fp16}` to the `{type(run).__name__}`."
        )
    if args.device != run.device:
        raise ValueError(
            f"`args` trains the reward model on '{args.device}', but the policy's run is on '{run.device}'. Pass "
            f"`use_cpu={run.use_cpu}` to the `RLPRewardConfig`."
        )
    name = find_unsupported_sharding(run)
    if name is not None:
        raise ValueError(
            f"The policy's run uses {name}, under which no reward model can be refined. Launch the run with DDP or "
            "FSDP2, or remove `RewardRefinementCallback`."
        )


def find_unsupported_sharding(run: PolicyConfig) -> str | None:
    """
    Finds a way to shard the policy under which no second model can be trained inside its run.

    It reads the configuration and what the launcher has set, because accelerate decides only when the trainer exists.

    Args:
        run (`GRPOConfig` or `RLOOConfig`):
            Configuration of the policy's run.

    Returns:
        `str` or `None`: `"DeepSpeed"`, `"Megatron-LM"` or `"FSDP1"`. `None` if a reward model can be refined.
    """
    if run.deepspeed_plugin is not None:
        return "DeepSpeed"
    if str_to_bool(os.environ.get("ACCELERATE_USE_MEGATRON_LM", "false")):
        return "Megatron-LM"
    version = None
    if run.fsdp:
        version = run.fsdp_plugin_args["fsdp_version"]
    elif str_to_bool(os.environ.get("ACCELERATE_USE_FSDP", "false")):
        version = int(os.environ.get("FSDP_VERSION", "1"))
    return "FSDP1" if version == 1 else None


def require_known_prompts(
    dataset: Any,
    comparison: AnchorComparison,
    processing_class: PreTrainedTokenizerBase | None,
    vocabulary_size: int,
) -> None:
    """
    Checks that a policy is trained on at least one prompt of the anchors.

    Args:
        dataset:
            Prompts of the policy's trainer. Only a [`~datasets.Dataset`] is checked.
        comparison ([`AnchorComparison`]):
            Compares completions with anchors.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The policy's tokenizer, which decodes prompts of token ids.
        vocabulary_size (`int`):
            Number of embedding rows of the policy.

    Raises:
        ValueError: If the anchors know none of the prompts.
    """
    if not isinstance(dataset, Dataset) or not {"prompt", "input_ids"} & set(dataset.column_names):
        return
    for start in range(0, len(dataset), _PROMPTS_AT_ONCE):
        part = dataset.select(range(start, min(start + _PROMPTS_AT_ONCE, len(dataset))))
        prompts = decode_prompts(part, processing_class, vocabulary_size=vocabulary_size)["prompt"]
        if any(map(comparison.anchors.knows, prompts)):
            return
    raise ValueError(
        f"None of the {len(dataset)} prompts of `train_dataset` has a row in `anchors`, which has "
        f"{comparison.anchors.num_prompts} other prompts. Make the anchors from samples for the prompts of this run."
    )


def require_different_names(states: dict[str, Any] | list[dict[str, Any]]) -> None:
    """
    Checks that the rewards of several callbacks in one run have different names, because a checkpoint has a folder for
    each name.

    Args:
        states (`dict` or `list[dict]`):
            What [`RewardRefinementCallback.state`] of the only callback returns, or of each one.

    Raises:
        ValueError: If two rewards have one name.
    """
    names = [state["reward"] for state in states] if isinstance(states, list) else []
    if len({name.replace("/", "_") for name in names}) < len(names):
        raise ValueError(
            f"The `RefinableReward`s of {len(names)} callbacks have the names {names}, but a checkpoint keeps one for "
            "each name. Set `name` of each to another one."
        )


def require_equal_shapes(model: PreTrainedModel, reward_model: PreTrainedModel) -> None:
    """
    Checks that the weights of a start model fit into the reward model.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The start model, without adapters.
        reward_model ([`~transformers.PreTrainedModel`]):
            The model of the reward function.

    Raises:
        ValueError: If a name or a shape differs, or both models share weights.
    """
    shapes, expected = (
        {name: tuple(tensor.shape) for name, tensor in each.state_dict().items()} for each in (model, reward_model)
    )
    differing = sorted(name for name in {*shapes, *expected} if shapes.get(name) != expected.get(name))
    if differing:
        name = differing[0]
        raise ValueError(
            f"The weights of `base_model` do not fit the reward model: {name!r} has the shape {shapes.get(name)} "
            f"instead of {expected.get(name)}. Pass the model that the reward model was trained from."
        )
    used = {id(parameter) for parameter in reward_model.parameters()}
    if any(id(parameter) in used for parameter in model.parameters()):
        raise ValueError(
            "`base_model` returns the model of `reward`, or one that shares weights with it. Return a new model at "
            "each call, or pass None to start from a copy of the current reward model."
        )
