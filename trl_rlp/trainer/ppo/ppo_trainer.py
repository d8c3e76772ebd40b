"""PPO on today's TRL: GRPO's rollouts, with a critic, advantages of each token and PPO's own losses."""

import copy
import time
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import DataCollator, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import TrainOutput

from trl_rlp.data.token_prompts import decode_prompts
from trl_rlp.rewards.reward_function import RewardFunction
from trl_rlp.rewards.reward_sources import RewardSource, as_list, build_reward_functions
from trl_rlp.rewards.standardization import standardize
from trl_rlp.trainer.checkpoints import completed_steps, resolve_checkpoint
from trl_rlp.trainer.ppo.critic import Critic, init_value_model
from trl_rlp.trainer.ppo.ppo_callback import PPOCallback
from trl_rlp.trainer.ppo.ppo_inputs import (
    choose_adapter,
    ensure_embedded_pad_token,
    prepare_policy,
    require_models,
    rollouts_to_steps,
    stop_token_ids,
)
from trl_rlp.trainer.ppo.ppo_losses import LOSS_TERMS, ppo_loss
from trl_rlp.trainer.ppo.ppo_models import PPOModels, Tokens
from trl_rlp.trainer.ppo.ppo_setup import (
    max_prompt_length,
    prepare_reference,
    prepare_value_model,
    require_datasets,
    warn_of_collator,
)
from trl_rlp.trainer.ppo.rlp_ppo_config import RLPPPOConfig
from trl_rlp.trainer.ppo.rollout_log import ROLLOUT_TERMS, add_ratio_variance
from trl_rlp.trainer.ppo.rollout_sampler import data_seed, repeat_stream
from trl_rlp.trainer.ppo.rollout_scheduler import RolloutScheduler
from trl_rlp.trainer.ppo.rollout_trainer import RolloutTrainer
from trl_rlp.trainer.ppo.sample_generations import SampleGenerations
from trl_rlp.trainer.term_log import TermLog


class PPOTrainer(RolloutTrainer):
    """
    PPO without RLP: all of [`RLPPPOTrainer`], whose docstring explains the arguments,
    but the refinement of the reward model.
    """

    _is_standardized = False

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
    ):
        reward_funcs = as_list(reward_funcs)
        model, processing_class = prepare_policy(model, processing_class, args)
        require_models(model, ref_model, reward_model, value_model, reward_funcs, processing_class)
        require_datasets({"train_dataset": train_dataset, "eval_dataset": eval_dataset}, model, processing_class, args)
        choose_adapter(model, ref_model, peft_config, args)
        warn_of_collator(data_collator)
        if ref_model is None and peft_config is None and not isinstance(model, PeftModel):
            # GRPO binds the policy's forward to the policy, and a copy made later would run the policy.
            ref_model = copy.deepcopy(model)
        self.reward_model = reward_model
        self._note_tokens(model, processing_class, args)
        policy = processing_class, self._vocabulary_size, self._ends, args.device
        functions = build_reward_functions(reward_model, reward_funcs, reward_processing_class, *policy)
        super().__init__(
            model=model,
            reward_funcs=functions,
            args=rollouts_to_steps(args, train_dataset),
            train_dataset=repeat_stream(train_dataset, data_seed(args) if args.shuffle_dataset else None),
            eval_dataset=eval_dataset,
            processing_class=ensure_embedded_pad_token(processing_class, self._vocabulary_size),
            callbacks=callbacks,
            optimizers=optimizers,
            peft_config=peft_config,
        )
        self._generate_to_stop_tokens()
        self.ref_model = None if ref_model is None else prepare_reference(ref_model, args, self.accelerator)
        self._given_value_model, self._value_peft_config = value_model, value_peft_config
        self._add_critic()
        self._terms = {mode: TermLog((*ROLLOUT_TERMS, *LOSS_TERMS)) for mode in ("train", "eval")}
        self.add_callback(SampleGenerations(self))

    def _note_tokens(
        self, model: PreTrainedModel | PeftModel, processing_class: PreTrainedTokenizerBase, args: RLPPPOConfig
    ) -> None:
        self._stop_token_ids = stop_token_ids(args, model, processing_class)
        # Where nothing ends a completion, one that holds EOS still counts as finished.
        self._ends = self._stop_token_ids or [processing_class.eos_token_id]
        # The user's, which may lie outside the embedding; what rows are padded with may be another.
        pad_token_id = processing_class.pad_token_id
        self._pad_token_id = processing_class.eos_token_id if pad_token_id is None else pad_token_id
        self._vocabulary_size = model.get_input_embeddings().weight.shape[0]
        self._longest_prompt = max_prompt_length(model, args)

    def _generate_to_stop_tokens(self) -> None:
        self.eos_token_ids = self._stop_token_ids
        if not self.use_vllm:
            self.generation_config.eos_token_id = self._stop_token_ids or None
            self.generation_kwargs["eos_token_id"] = self._stop_token_ids or None

    def _add_critic(self) -> None:
        """Makes value model and optimizer anew, and lets them step beside the policy."""
        value_model = self._given_value_model
        if value_model is None:
            value_model = init_value_model(self.args.value_model_init, self.model, self._readable_reward_model())
        value_model = prepare_value_model(value_model, self._value_peft_config, self.args)
        optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(self.args)
        critic = Critic(value_model).to(self.args.device)
        decayed = self.get_decay_parameter_names(critic)
        self._ppo = PPOCallback(critic, self.args, self.accelerator, optimizer_class, kwargs, decayed)
        self.add_callback(self._ppo)
        self._models = PPOModels(self.model, self.ref_model, self._ppo.critic, self.args, self.accelerator)

    def _readable_reward_model(self) -> PreTrainedModel | None:
        """The first source of rewards, if it is a model that knows the policy's tokens."""
        first = self.reward_funcs[0]
        return first.model if isinstance(first, RewardFunction) and first.reads_policy_tokens else None

    def _standardize_rewards(self) -> None:
        """On the policy as it starts: a resumed run loads its weights after this, so it finds the same scale."""
        standardize(
            [function for function in self.reward_funcs if isinstance(function, RewardFunction)],
            self.model,
            self.processing_class,
            decode_prompts(self.train_dataset, self.processing_class),
            {
                "num_generations": 2,
                "temperature": self.args.temperature,
                "max_new_tokens": self.args.max_completion_length,
                "seed": self.args.seed,
            },
        )

    @property
    def policy_model(self) -> PreTrainedModel | PeftModel:
        """The policy, under the former trainer's name."""
        return self.model

    @property
    def value_model(self) -> PreTrainedModel | PeftModel:
        """The value model, a sequence classifier."""
        return self._ppo.value_model

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> RolloutScheduler:
        """
        Makes a schedule that moves once a rollout.

        Args:
            num_training_steps (`int`):
                Optimizer steps of the run.
            optimizer (`torch.optim.Optimizer`, *optional*):
                The policy's, if the trainer has none yet.

        Returns:
            [`RolloutScheduler`].
        """
        if not isinstance(self.lr_scheduler, RolloutScheduler):
            scheduler = super().create_scheduler(num_training_steps // self.args.steps_per_rollout, optimizer)
            self.lr_scheduler = RolloutScheduler(scheduler, self.args.steps_per_rollout)
        return self.lr_scheduler

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """
        Gives PPO's loss of a micro-batch, of policy and critic together; in evaluation minus the objective.

        Args:
            model (`nn.Module`):
                The policy as the trainer wrapped it.
            inputs (`dict[str, torch.Tensor]`):
                A micro-batch of a rollout.
            return_outputs (`bool`, *optional*, defaults to `False`):
                Must be `False`.
            num_items_in_batch (*optional*):
                Not used: the rollout knows how many tokens a step has.

        Returns:
            `torch.Tensor`: a scalar.

        Raises:
            ValueError: if `return_outputs` is set.
        """
        if return_outputs:
            raise ValueError("`return_outputs` must be False: PPO's loss is of a policy and a critic.")
        if not self.model.training:
            return inputs["loss"]
        tokens = Tokens.of(inputs)
        log_probs, entropies = self._models.log_probs(model, tokens)
        loss, terms = ppo_loss(inputs, log_probs, entropies, self._models.values(tokens), self.args)
        if self._ppo.see_loss(loss):
            self._terms["train"].add(terms)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """
        Logs what GRPO logs of completions and rewards, and PPO's metrics under the former trainer's names.

        Args:
            logs (`dict[str, float]`):
                Metrics by name.
            start_time (`float`, *optional*):
                Start of training.
        """
        mode, prefix = ("train", "") if self.model.training else ("eval", "eval_")
        metrics = add_ratio_variance(self._terms[mode].sums(self.accelerator))
        if mode == "train" and (metrics or "loss" in logs):
            state = self._ppo.ppo_state
            metrics |= {
                "lr": logs.get("learning_rate", self.lr_scheduler.get_last_lr()[0]),
                "episode": state.rollouts * self.args.batch_size,
                "eps": (state.rollouts - self._first_rollout) * self.args.batch_size / (time.time() - self._start),
                "kl_coef": state.kl_coef,
                "skipped_steps": state.skipped_steps,
            }
        logs.update({f"{prefix}{name}": value for name, value in metrics.items()})
        super().log(logs, start_time)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any | None = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """
        Trains policy and critic.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                Folder of a checkpoint, or `True` for the last one in `args.output_dir`.
            trial (*optional*):
                Passed on.
            ignore_keys_for_eval (`list[str]`, *optional*):
                Passed on.

        Returns:
            `TrainOutput`: optimizer steps, mean loss and metrics.

        Raises:
            RuntimeError: if three steps in a row are not finite.
            ValueError: if there is no checkpoint, or it was not written by this trainer.
        """
        checkpoint = resolve_checkpoint(resume_from_checkpoint, self.args.output_dir)
        self._ppo.begin(checkpoint)
        if self.args.standardize_rewards and not self._is_standardized:
            self._standardize_rewards()
            self._is_standardized = True
        self._rollout = None
        self._start, self._first_rollout = time.time(), self._ppo.ppo_state.rollouts
        # The last to be asked, so that nobody saves within a rollout.
        self.remove_callback(self._ppo)
        self.add_callback(self._ppo)
        prompts = self.train_dataset
        is_at_end = checkpoint is not None and completed_steps(checkpoint) >= self.args.max_steps
        if is_at_end and isinstance(prompts, IterableDataset):
            self.train_dataset = prompts.take(0)  # TRL's loop would begin another pass over a stream and take a step
        try:
            return super().train(checkpoint, trial, ignore_keys_for_eval)
        finally:
            self.train_dataset = prompts
