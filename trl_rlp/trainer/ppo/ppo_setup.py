"""Small things that a PPO run needs of its models before it starts."""

import copy

from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import DataCollator, DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from trl_rlp.data.token_prompts import require_token_ids
from trl_rlp.trainer.ppo.rlp_ppo_config import RLPPPOConfig
from trl_rlp.trainer.score_head import add_score_head


logger = logging.get_logger(__name__)


def max_prompt_length(model: PreTrainedModel | PeftModel, args: RLPPPOConfig) -> int | None:
    """
    Gives the tokens that a prompt may have beside a completion.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy.
        args ([`RLPPPOConfig`]):
            `max_completion_length` is read.

    Returns:
        `int`, or `None` for a model without a limit.
    """
    config = model.config.get_text_config()
    if not hasattr(config, "max_position_embeddings"):
        return None
    return config.max_position_embeddings - args.max_completion_length


def require_datasets(
    datasets: dict[str, Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None],
    model: PreTrainedModel | PeftModel,
    processing_class: PreTrainedTokenizerBase,
    args: RLPPPOConfig,
) -> None:
    """
    Checks the prompts of a run; those of a stream, and text, are checked when they are read.

    Args:
        datasets (`dict`):
            Data sets by the name of their argument; one argument may hold several by name.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy.
        processing_class (`PreTrainedTokenizerBase`):
            Its tokenizer.
        args ([`RLPPPOConfig`]):
            Settings of the run.

    Raises:
        ValueError: if a stream is empty, a column is missing, or token ids do not fit the policy.
    """
    several = {name: sets for name, sets in datasets.items() if isinstance(sets, dict)}
    nested = {f"{name}[{key!r}]": dataset for name, sets in several.items() for key, dataset in sets.items()}
    for name, dataset in {**datasets, **nested}.items():
        if isinstance(dataset, IterableDataset) and next(iter(dataset.take(1)), None) is None:
            raise ValueError(f"`{name}` is an empty stream. Pass at least one row.")
        if not isinstance(dataset, Dataset):
            continue
        if "prompt" in dataset.column_names:
            continue
        if "input_ids" not in dataset.column_names:
            raise ValueError(
                f"`{name}` lacks a column `prompt` (text or messages) or `input_ids`, it has {dataset.column_names}. "
                "Rename or add one."
            )
        size = model.get_input_embeddings().weight.shape[0]
        require_token_ids(dataset, name, processing_class.pad_token_id, size, max_prompt_length(model, args))


def disable_dropout(model: nn.Module) -> None:
    """
    Sets all dropout probabilities of a model to 0, those that layers of transformers hold as numbers too.

    Args:
        model (`nn.Module`):
            Changed in place.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def prepare_value_model(
    value_model: PreTrainedModel, peft_config: PeftConfig | None, args: RLPPPOConfig
) -> PreTrainedModel | PeftModel:
    """
    Sets a value model up for training as TRL's trainers set up the policy.

    Args:
        value_model ([`~transformers.PreTrainedModel`]):
            Changed in place.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Trains an adapter; the score head is trained with it.
        args ([`RLPPPOConfig`]):
            `gradient_checkpointing` and `disable_dropout` are read.

    Returns:
        [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`].
    """
    value_model.train()  # models come in evaluation mode, in which checkpointing does nothing
    if args.gradient_checkpointing and value_model.supports_gradient_checkpointing:
        value_model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs or {"use_reentrant": False})
    if peft_config is not None:
        if args.gradient_checkpointing:
            value_model.enable_input_require_grads()
        value_model = get_peft_model(value_model, add_score_head(peft_config))
    if args.disable_dropout:
        disable_dropout(value_model)  # the adapter's too
    return value_model


def prepare_reference(ref_model: PreTrainedModel, args: RLPPPOConfig, accelerator: Accelerator) -> nn.Module:
    """
    Gives the reference policy, frozen and on its device.

    Args:
        ref_model ([`~transformers.PreTrainedModel`]):
            The policy as it starts, or what the user passed.
        args ([`RLPPPOConfig`]):
            `cast_lm_head_to_fp32` is read, which TRL follows for the policy.
        accelerator (`accelerate.Accelerator`):
            The trainer's.

    Returns:
        `nn.Module`: the model, wrapped where the processes shard models.
    """
    disable_dropout(ref_model)
    if args.cast_lm_head_to_fp32:
        # A copy, as the embedding that it may be tied to keeps its precision.
        head = copy.deepcopy(ref_model.get_output_embeddings()).float()
        head.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
        ref_model.set_output_embeddings(head)
    return accelerator.prepare_model(ref_model.eval().requires_grad_(False), evaluation_mode=True)


def warn_of_collator(data_collator: DataCollator | None) -> None:
    """
    Says that a collator is not used, unless it only pads, which is done where prompts are sampled.

    Args:
        data_collator (`DataCollator`, *optional*):
            What the user passed.
    """
    if data_collator is not None and not isinstance(data_collator, DataCollatorWithPadding):
        logger.warning(
            f"`data_collator` (`{type(data_collator).__name__}`) is not used: rows reach the trainer as they are and "
            "are padded where they are sampled. Do what it does with `Dataset.map` beforehand."
        )
