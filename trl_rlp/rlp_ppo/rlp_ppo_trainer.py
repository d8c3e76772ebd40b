"""PPO in the place of the trainer that TRL removed, with RLP as an option."""

import copy
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    DataCollator,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from transformers.trainer_utils import TrainOutput

from trl_rlp.rewards.reward_sources import RewardSource, build_reward_functions
from trl_rlp.rlp_ppo.rlp_run import RLPInputs, RLPRun
from trl_rlp.stages.refinement_stage import Refinement
from trl_rlp.storage.artifacts import load_reward_model
from trl_rlp.trainer.checkpoints import CHECKPOINTS, resolve_checkpoint, train_to_end
from trl_rlp.trainer.citation import PAPER
from trl_rlp.trainer.ppo.ppo_inputs import prepare_policy
from trl_rlp.trainer.ppo.ppo_trainer import PPOTrainer
from trl_rlp.trainer.ppo.rlp_ppo_config import RLPPPOConfig


class RLPPPOTrainer(PPOTrainer):
    r"""
    Trainer for Proximal Policy Optimization on today's TRL, in the place of the PPOTrainer that TRL removed in 1.13.

    $$\max_\pi E[r(x, y) - \beta KL(\pi \| \pi_{ref})]$$

    It takes the former trainer's arguments, in its order. Completions are generated and scored as in
    [`~trl.GRPOTrainer`], so text and chat prompts, reward functions, vLLM and continuous batching work as there; the
    critic, the advantages of each token and the losses are PPO's.

    With `args.rlp_method` `train()` runs Algorithm 1 of RLP: it trains the policy, samples it, refines the reward
    model on the samples, and trains the policy again, from its start, against the refined one.

    What it saves is the policy, a plain causal LM. A checkpoint holds the value model too, and all that a stopped run
    needs to go on as if it had not been stopped.

    Args:
        args ([`RLPPPOConfig`]):
            Configuration.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The policy's tokenizer. If `None`, the one that was saved with it.
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy.
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            Reference of the KL divergence. If `None`, a copy of the policy as it starts, or a PEFT policy without its
            adapters.
        reward_model ([`~transformers.PreTrainedModel`], *optional*):
            Sequence classifier with `num_labels=1`. It reads the policy's tokens unless `reward_processing_class` says
            otherwise.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            A column `prompt` (text or messages), or `input_ids`, which reach the policy unchanged.
        value_model ([`~transformers.PreTrainedModel`], *optional*):
            Sequence classifier with `num_labels=1` over the policy's tokens. If `None`, made as
            `args.value_model_init` says.
        data_collator ([`~transformers.DataCollator`], *optional*):
            Not used: prompts are padded where they are sampled. The former trainer's default is accepted in silence,
            another one with a warning.
        eval_dataset (*optional*):
            Prompts for `evaluate()` and `generate_completions()`.
        optimizers (`tuple`, *optional*):
            Optimizer and scheduler of the policy.
        callbacks (`list[TrainerCallback]`, *optional*):
            Further callbacks.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Trains the policy as an adapter.
        reward_funcs (`list`, *optional*):
            Reward models (or their folders or Hub names) and functions, beside or instead of `reward_model`;
            `args.reward_weights` weighs all, `reward_model` first.
        reward_processing_class (`PreTrainedTokenizerBase` or `list`, *optional*):
            Tokenizer of the first reward model, or one for each source of rewards, `None` for functions.
        value_peft_config ([`~peft.PeftConfig`], *optional*):
            Trains the value model as an adapter, with its score head.
        preference_dataset ([`~datasets.Dataset`], *optional*):
            For `args.rlp_method`: the human preferences that `reward_model` was trained on, in TRL's format.
        equivalence (*optional*):
            For `args.rlp_method`: which outputs mean the same, see `trl_rlp.data.groups`.

    Attributes:
        refinement ([`Refinement`] or `None`): after `train()` with
            `args.rlp_method`, the folders of samples, synthetic preferences and refined reward model.

    Raises:
        ValueError: if models, data or settings do not fit each other.
        RuntimeError: in training, if three steps in a row are not finite; the message names the last good checkpoint.

    Reference:
        [Schulman et al. 2017](https://arxiv.org/abs/1707.06347); for language models [Ziegler et al.
        2019](https://arxiv.org/abs/1909.08593).
    """

    _tag_names = ["trl", "ppo", "rlp"]
    _name = "RLP-PPO"
    _paper = PAPER
    _rlp: RLPRun | None = None
    refinement: Refinement | None = None

    def __init__(
        self,
        args: RLPPPOConfig,
        processing_class: PreTrainedTokenizerBase | None,
        model: str | PreTrainedModel | PeftModel,
        ref_model: PreTrainedModel | None = None,
        reward_model: PreTrainedModel | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        value_model: PreTrainedModel | None = None,
        data_collator: DataCollator | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        callbacks: list[TrainerCallback] | None = None,
        peft_config: PeftConfig | None = None,
        *,
        reward_funcs: RewardSource | list[RewardSource] | None = None,
        reward_processing_class: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase | None] | None = None,
        value_peft_config: PeftConfig | None = None,
        preference_dataset: Dataset | None = None,
        equivalence: Any | None = None,
    ):
        model, processing_class = prepare_policy(model, processing_class, args)
        inputs = RLPInputs(preference_dataset, equivalence)
        inputs.require_fit(args, model, reward_model, train_dataset, optimizers)
        # PEFT writes the name of the base model into a config, so the user's is left alone.
        peft_config, value_peft_config = copy.deepcopy((peft_config, value_peft_config))
        arguments = {
            "ref_model": ref_model,
            "reward_model": reward_model,
            "train_dataset": train_dataset,
            "data_collator": data_collator,
            "eval_dataset": eval_dataset,
            "callbacks": callbacks,
            "peft_config": peft_config,
            "reward_funcs": reward_funcs,
            "reward_processing_class": reward_processing_class,
            "value_peft_config": value_peft_config,
        }
        if args.rlp_method != "none":
            deciding = {**arguments, "value_model": value_model}
            self._rlp = RLPRun(args, inputs, model, processing_class, train_dataset, deciding)
            self._first = {"args": args, **arguments, "value_model": copy.deepcopy(value_model)}
            self._dtype = model.dtype
        super().__init__(args, processing_class, model, value_model=value_model, optimizers=optimizers, **arguments)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any | None = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """
        Trains policy and critic; with `args.rlp_method`, against a reward model refined on a first policy's samples.

        What comes before the last step of Algorithm 1 is kept in `output_dir`/rlp and is not done again.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                Folder of a checkpoint, or `True` for the last one in `args.output_dir`.
            trial (*optional*):
                Passed on.
            ignore_keys_for_eval (`list[str]`, *optional*):
                Passed on.

        Returns:
            `TrainOutput`: optimizer steps, mean loss and metrics of the last step of Algorithm 1.

        Raises:
            RuntimeError: if three steps in a row are not finite.
            ValueError: if there is no checkpoint, it was not written by this trainer, or the folder holds another run.
        """
        checkpoint = resolve_checkpoint(resume_from_checkpoint, self.args.output_dir)
        if self._rlp is not None and self.refinement is None:
            function = self.reward_funcs[0]
            self.refinement = self._rlp.refine(self._train_first, function.model, function.processing_class)
            self._take_reward_model(self.refinement.reward_model)
            self._first = None  # what it holds is not needed again
        return super().train(checkpoint, trial, ignore_keys_for_eval)

    def _train_first(self, folder: Path) -> dict[str, float]:
        """Step 3 of Algorithm 1: a policy from the same start, against the reward model as it is."""
        args = copy.copy(self._first["args"])
        args.output_dir, args.push_to_hub = str(folder / CHECKPOINTS), False
        policy = AutoModelForCausalLM.from_pretrained(self._rlp.initial_policy, dtype=self._dtype)
        configs = {name: copy.deepcopy(self._first[name]) for name in ("peft_config", "value_peft_config")}
        trainer = PPOTrainer(
            processing_class=self.processing_class, model=policy, **{**self._first, **configs, "args": args}
        )
        return train_to_end(trainer, folder)

    def _take_reward_model(self, folder: Path) -> None:
        """What step 5 changes: the reward model, and a critic that starts from it where none was passed."""
        self.reward_model, processing_class = load_reward_model(folder)
        policy = self.processing_class, self._vocabulary_size, self._ends, self.args.device
        (self.reward_funcs[0],) = build_reward_functions(self.reward_model, [], processing_class, *policy)
        self._is_standardized = False
        self.remove_callback(self._ppo)
        # As before the first critic, whose adapter may draw numbers.
        set_seed(self.args.seed, device_specific=True)
        self._add_critic()
