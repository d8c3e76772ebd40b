"""Proximal Policy Optimization on current TRL: GRPO's generation, with a critic, token advantages and PPO's losses."""

import copy
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from accelerate import DistributedType
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import nn
from torch.utils.data import Sampler
from transformers import DataCollator, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_jit_checkpoint import JITCheckpointCallback
from transformers.trainer_utils import TrainOutput
from trl import GRPOTrainer

from trl_rlp.data.sampling.shared_prefill import default_generation_config
from trl_rlp.data.special_tokens import tokenize_texts
from trl_rlp.data.token_prompts import TokenPrompt, add_prompts, decode_prompts, require_length
from trl_rlp.data.turns import continue_final_message_ids, drop_missing_keys, drop_prefill, ends_with_assistant
from trl_rlp.rewards.refinable_reward import RefinableReward
from trl_rlp.rewards.reward_function import RewardFunction
from trl_rlp.rewards.reward_sources import RewardSource, build_reward_functions, list_reward_sources
from trl_rlp.rewards.standardization import standardize
from trl_rlp.storage.precision import dtype_option
from trl_rlp.trainer.checkpoints import no_extra_step, resolve_checkpoint
from trl_rlp.trainer.hub_options import hub_options
from trl_rlp.trainer.model_card import ModelCardMixin, ModelDescription, describe_policy
from trl_rlp.trainer.ppo.advantages import build_experience
from trl_rlp.trainer.ppo.critic_optimizer import CriticOptimizer
from trl_rlp.trainer.ppo.experience import Experience, MicroBatch, Rollout
from trl_rlp.trainer.ppo.finite_guard import FiniteGuard
from trl_rlp.trainer.ppo.ppo_checkpoints import PPOState, RolloutCheckpoints
from trl_rlp.trainer.ppo.ppo_checks import Prompts, require_backend, require_config, require_fit, warn_of_collator
from trl_rlp.trainer.ppo.ppo_config import PPOConfig
from trl_rlp.trainer.ppo.ppo_log import ROLLOUT_METRICS, add_ratio_variance, rollout_metrics
from trl_rlp.trainer.ppo.ppo_losses import LOSS_METRICS, ppo_loss
from trl_rlp.trainer.ppo.ppo_setup import (
    ensure_embedded_pad_token,
    init_value_model,
    max_prompt_length,
    prepare_policy,
    prepare_value_model,
    resolve_stop_tokens,
    without_dropout,
)
from trl_rlp.trainer.ppo.prompt_order import RolloutSampler, get_data_seed, repeat_stream
from trl_rlp.trainer.ppo.rollout_steps import RolloutScheduler, rollouts_to_steps
from trl_rlp.trainer.ppo.sample_generations import SampleGenerations, print_table
from trl_rlp.trainer.ppo.sharding import on_device, prepare_reference
from trl_rlp.trainer.ppo.token_models import Critic, TokenModels, join_tokens
from trl_rlp.trainer.saved_args import redact_saved_args
from trl_rlp.trainer.term_log import TermLog
from trl_rlp.trainer.tracking import log_table, start_trackio_run


CARD_SETTINGS = (
    "rlp_method",
    "kl_coef",
    "kl_estimator",
    "reward_weights",
    "missing_eos_penalty",
    "num_ppo_epochs",
    "num_mini_batches",
    "num_generations",
    "temperature",
    "response_length",
    "total_episodes",
)
"""Fields of PPOConfig and RLPPPOConfig that a model card lists, if they are set."""


class PPOTrainer(ModelCardMixin, GRPOTrainer):
    r"""
    Trainer for Proximal Policy Optimization (PPO). It replaces the PPOTrainer that TRL removed in 1.13.

    $$\max_\pi E[r(x, y) - \beta KL(\pi \| \pi_{ref})]$$

    It takes the arguments of TRL 1.12's trainer, in the same order. Completions are generated and scored as in
    [`~trl.GRPOTrainer`], so text and chat prompts, reward functions, vLLM and continuous batching work as there. The
    critic, the advantages of each token and the losses are PPO's.

    It saves the policy, a plain causal LM. A checkpoint also has the value model and everything that a stopped run
    needs to resume with the same results.

    Args:
        args ([`PPOConfig`]):
            Configuration.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the policy. If `None`, it is loaded from the policy's folder.
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Policy.
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            Reference policy of the KL divergence. If `None`, it is a copy of the initial policy, or a PEFT policy
            without its adapters.
        reward_model ([`~transformers.PreTrainedModel`], *optional*):
            Sequence classifier with `num_labels=1`. It reads the policy's tokens unless `reward_processing_class` is
            given.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Prompts: a column `prompt` (text or messages), or `input_ids`, which the policy reads unchanged.
        value_model ([`~transformers.PreTrainedModel`], *optional*):
            Sequence classifier with `num_labels=1` over the policy's tokens. If `None`, `args.value_model_init`
            decides how it is created.
        data_collator ([`~transformers.DataCollator`], *optional*):
            Not used. Prompts are padded when they are sampled. A collator that does more than padding causes a
            warning.
        eval_dataset (*optional*):
            Prompts for `evaluate()` and `generate_completions()`.
        optimizers (`tuple`, *optional*):
            Optimizer and scheduler of the policy.
        callbacks (`list[TrainerCallback]`, *optional*):
            Further callbacks.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Configuration of an adapter. If set, only the adapter of the policy is trained.
        reward_funcs (`list`, *optional*):
            Reward models (or their folders or Hub names) and reward functions, in addition to `reward_model` or
            instead of it. `args.reward_weights` has a weight for each, `reward_model` first.
        reward_processing_class ([`~transformers.PreTrainedTokenizerBase`] or `list`, *optional*):
            Tokenizer of the first reward model, or one for each reward model and function, `None` for functions.
        value_peft_config ([`~peft.PeftConfig`], *optional*):
            Configuration of an adapter. If set, only the adapter and the score head of the value model are trained.

    Raises:
        ValueError: If models, datasets or settings do not fit together.
        RuntimeError: During training, if three steps in a row are not finite. The message names the last good
            checkpoint.

    Reference:
        [Schulman et al. 2017](https://arxiv.org/abs/1707.06347). For language models: [Ziegler et al.
        2019](https://arxiv.org/abs/1909.08593).

    Example:

    ```python
    trainer = PPOTrainer(
        args=PPOConfig("ppo", total_episodes=10_000),
        processing_class=tokenizer,
        model=policy,
        reward_model=reward_model,
        train_dataset=prompts,
    )
    trainer.train()
    ```
    """

    _tag_names = ["trl", "ppo"]
    _name = "PPO"
    _paper = {
        "title": "Proximal Policy Optimization Algorithms",
        "id": "1707.06347",
        "citation": "@article{schulman2017proximal, title={Proximal Policy Optimization Algorithms}, "
        "author={Schulman, John and Wolski, Filip and Dhariwal, Prafulla and Radford, Alec and Klimov, Oleg}, "
        "journal={arXiv preprint arXiv:1707.06347}, year={2017}}",
    }

    _config_class = PPOConfig
    _rollout: Rollout | None = None
    _scores: torch.Tensor | None = None
    _printed_rows: list[dict[str, Any]] | None = None
    _are_rewards_standardized = False

    def __init__(
        self,
        args: PPOConfig,
        processing_class: PreTrainedTokenizerBase | None,
        model: str | PreTrainedModel | PeftModel,
        ref_model: PreTrainedModel | None = None,
        reward_model: PreTrainedModel | None = None,
        train_dataset: Prompts | None = None,
        value_model: PreTrainedModel | None = None,
        data_collator: DataCollator | None = None,
        eval_dataset: Prompts | dict[str, Prompts] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        callbacks: list[TrainerCallback] | None = None,
        peft_config: PeftConfig | None = None,
        *,
        reward_funcs: RewardSource | list[RewardSource] | None = None,
        reward_processing_class: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase | None] | None = None,
        value_peft_config: PeftConfig | None = None,
    ):
        require_config(args, self._config_class, type(self).__name__)
        reward_funcs = list_reward_sources(reward_funcs)
        model, processing_class = prepare_policy(model, processing_class, args)
        require_fit(
            args,
            model,
            processing_class,
            ref_model=ref_model,
            reward_model=reward_model,
            value_model=value_model,
            reward_funcs=reward_funcs,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            peft_config=peft_config,
            value_peft_config=value_peft_config,
        )
        warn_of_collator(data_collator)
        if args.model_adapter_name is not None:
            model.set_adapter(args.model_adapter_name)
        needs_copy = ref_model is None and peft_config is None and not isinstance(model, PeftModel)
        if needs_copy:
            # The copy comes before GRPO's constructor, which binds the model's forward to the model.
            ref_model = copy.deepcopy(model)
        self.reward_model = reward_model
        self._resolve_tokens(model, processing_class, args)
        loop_args = rollouts_to_steps(args, train_dataset)
        loop_args.disable_dropout = False  # `train` disables it, and TRL's constructor would do so for ever
        super().__init__(
            model=model,
            reward_funcs=self._build_reward_functions(
                reward_model, reward_funcs, reward_processing_class, processing_class, args
            ),
            args=loop_args,
            train_dataset=repeat_stream(train_dataset, get_data_seed(args) if args.shuffle_dataset else None),
            eval_dataset=eval_dataset,
            processing_class=ensure_embedded_pad_token(processing_class, self._vocabulary_size),
            callbacks=callbacks,
            optimizers=optimizers,
            peft_config=peft_config,
        )
        self.args.disable_dropout = args.disable_dropout
        require_backend(self.accelerator, self.args)
        self._set_stop_tokens()
        self.ref_model = None if ref_model is None else prepare_reference(ref_model, self.accelerator, needs_copy)
        self._value_peft_config = value_peft_config
        # Prepared only once, because PEFT would add a second adapter to the same model.
        self._given_value_model = (
            None if value_model is None else prepare_value_model(value_model, value_peft_config, self.args)
        )
        self._add_critic()
        self._term_logs = {mode: TermLog((*ROLLOUT_METRICS, *LOSS_METRICS)) for mode in ("train", "eval")}
        self.add_callback(SampleGenerations(self))

    def _resolve_tokens(
        self, model: PreTrainedModel | PeftModel, processing_class: PreTrainedTokenizerBase, args: PPOConfig
    ) -> None:
        """Stores the user's tokenizer, and its tokens that stop, finish and pad a completion."""
        self._given_processing_class = processing_class  # the trainer's own one may have another pad token
        self._stop_token_ids = resolve_stop_tokens(args, model, processing_class)
        # Without a stop token, a completion that contains EOS still counts as finished.
        self._finish_token_ids = self._stop_token_ids or [processing_class.eos_token_id]
        pad_token_id = processing_class.pad_token_id
        self._pad_token_id = processing_class.eos_token_id if pad_token_id is None else pad_token_id
        self._vocabulary_size = model.get_input_embeddings().weight.shape[0]
        self._max_prompt_length = max_prompt_length(model, args)

    def _build_reward_functions(
        self,
        reward_model: PreTrainedModel | None,
        reward_funcs: list[RewardSource],
        reward_processing_class: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase | None] | None,
        processing_class: PreTrainedTokenizerBase,
        args: PPOConfig,
    ) -> list[Callable[..., list[float]]]:
        return build_reward_functions(
            reward_model,
            reward_funcs,
            reward_processing_class,
            processing_class=processing_class,
            vocabulary_size=self._vocabulary_size,
            eos_token_ids=self._finish_token_ids,
            device=args.device,
            chat_template_kwargs=args.chat_template_kwargs,
            model_options={**hub_options(args), **dtype_option(args.inference_dtype)},
        )

    def _set_stop_tokens(self) -> None:
        """Makes generation end at our stop tokens instead of TRL's."""
        self.eos_token_ids = self._stop_token_ids
        if not self.use_vllm:
            self.generation_config.eos_token_id = self._stop_token_ids or None
            self.generation_kwargs["eos_token_id"] = self._stop_token_ids or None

    def _add_critic(self) -> None:
        """Creates the critic with its optimizer, the guard and the checkpoints. Replaces any earlier ones."""
        value_model = self._given_value_model
        if value_model is None:
            reward_model, adapter = self._policy_token_reward_model(), self._value_peft_config
            value_model = init_value_model(self.args.value_model_init, self.model, reward_model, adapter is not None)
            value_model = prepare_value_model(value_model, adapter, self.args)
        critic = Critic(value_model)
        self.ppo_state = PPOState(kl_coef=self.args.kl_coef, steps_per_rollout=self.args.steps_per_rollout)
        self._guard = FiniteGuard(self.ppo_state, self.accelerator, self.args.output_dir)
        self._critic_optimizer = CriticOptimizer(
            critic,
            self.args,
            self.accelerator,
            self.ppo_state,
            self._guard,
            *self.get_optimizer_cls_and_kwargs(self.args),
            decay_parameters=self.get_decay_parameter_names(critic),
        )
        critic, optimizer = self._critic_optimizer.critic, self._critic_optimizer.optimizer
        self._checkpoints = RolloutCheckpoints(self.ppo_state, critic, optimizer, self.accelerator)
        for callback in (CriticOptimizer, RolloutCheckpoints):
            self.remove_callback(callback)
        for callback in (self._critic_optimizer, self._checkpoints):
            self.add_callback(callback)
        self._models = TokenModels(self.model, self.ref_model, critic, self.args, self.accelerator)
        self._follow_refinements(range(len(self.reward_funcs)))

    def _follow_refinements(self, rows: Iterable[int]) -> None:
        """Tells the state of this critic when a refinement moves one of these rewards."""
        state = self.ppo_state
        for row in rows:
            function = self.reward_funcs[row]
            if isinstance(function, RefinableReward):
                function.subscribe(lambda shift, row=row: state.shift_values(self.reward_weights[row].item() * shift))

    def _policy_token_reward_model(self) -> PreTrainedModel | None:
        """Returns the model of the first reward function, if it reads the policy's tokens."""
        first = self.reward_funcs[0]
        return first.model if isinstance(first, RewardFunction) and first.reads_policy_tokens else None

    @property
    def policy_model(self) -> PreTrainedModel | PeftModel:
        """The policy, under TRL 1.12's name."""
        return self.model

    @property
    def value_model(self) -> PreTrainedModel | PeftModel:
        """The value model, a sequence classifier."""
        return self.accelerator.unwrap_model(self._critic_optimizer.critic).model

    # Training

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
                Folder of a checkpoint, or `True` for the last checkpoint in `args.output_dir`.
            trial (*optional*):
                Passed to [`~transformers.Trainer.train`].
            ignore_keys_for_eval (`list[str]`, *optional*):
                Passed to [`~transformers.Trainer.train`].

        Returns:
            `TrainOutput`: Number of steps, mean loss and metrics.

        Raises:
            RuntimeError: If three steps in a row are not finite.
            ValueError: If there is no checkpoint, or it was not written by this trainer.
        """
        checkpoint = resolve_checkpoint(resume_from_checkpoint, self.args.output_dir)
        self._checkpoints.begin(checkpoint)
        if self.args.standardize_rewards and not self._are_rewards_standardized:
            self._standardize_rewards()
        self.value_model.train()  # loaded models are in evaluation mode, where gradient checkpointing has no effect
        self._rollout = None
        self._start_time, self._first_rollout = time.time(), self.ppo_state.rollouts
        # These must be the last callbacks. A later one could change gradients that the guard has checked, or request a
        # checkpoint within a rollout.
        for callback in (self._critic_optimizer, self._checkpoints):
            self.remove_callback(callback)
            self.add_callback(callback)
        self._checkpoints.jit_callback = self.pop_callback(JITCheckpointCallback) or self._checkpoints.jit_callback
        models = (self.model, self.value_model) if self.args.disable_dropout else ()
        with no_extra_step(self, checkpoint), without_dropout(*models):
            return super().train(checkpoint, trial, ignore_keys_for_eval)

    def _standardize_rewards(self) -> None:
        """Uses the initial policy. A resumed run loads its weights later, so it gets the same scale."""
        functions = [function for function in self.reward_funcs if isinstance(function, RewardFunction)]
        prompt_dataset = decode_prompts(
            self.train_dataset, self.processing_class, vocabulary_size=self._vocabulary_size
        )
        sampling = {
            "num_generations": 2,
            "temperature": self.args.temperature,
            "max_new_tokens": self.args.max_completion_length,
            "seed": self.args.seed,
            "stop_token_ids": self.args.stop_token_ids,
            "chat_template_kwargs": self.args.chat_template_kwargs,
        }
        # Under FSDP and DeepSpeed, the policy is whole and on the CPU until training shards it.
        with on_device(self.model, self.args.device):
            standardize(functions, self.model, self.processing_class, prompt_dataset, sampling)
        self._are_rewards_standardized = True

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> RolloutScheduler:
        """
        Creates a learning-rate schedule that changes once per rollout.

        Args:
            num_training_steps (`int`):
                Number of optimizer steps of the run.
            optimizer (`torch.optim.Optimizer`, *optional*):
                Optimizer of the policy, if the trainer has none yet.

        Returns:
            [`RolloutScheduler`]: The schedule.
        """
        if not isinstance(self.lr_scheduler, RolloutScheduler):
            scheduler = super().create_scheduler(num_training_steps // self.args.steps_per_rollout, optimizer)
            self.lr_scheduler = RolloutScheduler(scheduler, self.args.steps_per_rollout)
        return self.lr_scheduler

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        return RolloutSampler(
            super()._get_train_sampler(dataset), get_data_seed(self.args), lambda: int(self.state.epoch or 0)
        )

    # A rollout: sample completions, score them, evaluate the tokens, compute advantages

    def _prepare_inputs(self, generation_batch: list[dict[str, Any]]) -> MicroBatch | dict[str, Any]:
        """Returns the next micro-batch. Starts a new rollout if the current one is used up."""
        if not self.model.training:
            return super()._prepare_inputs(generation_batch)
        if self._rollout is None or self._rollout.is_used_up:
            experience = self._generate_and_score_completions(generation_batch)
            self._rollout = Rollout(experience, self.args, self.accelerator)
        return self._rollout.next_micro_batch()

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Experience | dict[str, Any]:
        """Returns the experience of a rollout. In evaluation, returns minus the objective as the loss."""
        start_trackio_run(self)
        rows = add_prompts(inputs, self._given_processing_class, self._vocabulary_size)
        with default_generation_config(self.model):
            generated = super()._generate_and_score_completions(rows)
        is_training = self.model.training
        state = self.ppo_state if is_training else replace(self.ppo_state)  # evaluation must not change statistics
        experience = build_experience(
            generated, self._scores, self._models, state, self._finish_token_ids, self._pad_token_id
        )
        metrics = rollout_metrics(experience)
        if not is_training:
            self._term_logs["eval"].add(metrics)
            return {"loss": -metrics["objective/rlhf_reward"]}
        self.ppo_state.rollouts += 1
        self._log_advantages(experience)
        if self._guard.check_rollout(experience):
            self._term_logs["train"].add(metrics)
            kl = self.accelerator.reduce(metrics["objective/kl"], reduction="mean").item()
            self.ppo_state.adapt_kl_coef(kl, self.args)
        return experience

    def _tokenize_prompts(self, prompts: list) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Keeps the ids of token prompts. Continues the last message of a chat if it is the assistant's."""
        if isinstance(prompts[0], TokenPrompt):
            prompt_ids, images, fields = [prompt.ids for prompt in prompts], None, {}
        elif isinstance(prompts[0], str):
            prompt_ids, images, fields = tokenize_texts(self.processing_class, prompts), None, {}
        else:
            prompts = [drop_missing_keys(prompt) for prompt in prompts]
            prompt_ids, images, fields = super()._tokenize_prompts(prompts)
            prompt_ids = [
                self._continue_final_message(prompt) if ends_with_assistant(prompt) else ids
                for prompt, ids in zip(prompts, prompt_ids, strict=True)
            ]
        if not all(prompt_ids):
            raise ValueError("A prompt has no tokens. Drop such rows with `Dataset.filter`.")
        if self._max_prompt_length is not None:
            require_length(max(map(len, prompt_ids)), self._max_prompt_length, "A prompt")
        return prompt_ids, images, fields

    def _continue_final_message(self, prompt: list[dict[str, str]]) -> list[int]:
        """Tokenizes a prompt that ends with an assistant message. TRL would open a second one after it."""
        options = {"tools": self.tools or None, "chat_template": self.chat_template, **self.chat_template_kwargs}
        return continue_final_message_ids(self.processing_class, prompt, **options)

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> tuple[list[list[int]], list[list[float]] | None]:
        """Keeps the mode of the policy. Continuous batching leaves it in training mode, in evaluation too."""
        was_training = self.model.training
        generated = super()._generate_single_turn(*args, **kwargs)
        self.model.train(was_training)
        return generated

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor | None, ...]:
        """Skips a forward pass that only GRPO needs. With vLLM it stays, to compare log-probabilities."""
        if self.use_vllm:
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)
        return None, None, None

    def _calculate_rewards(self, inputs: list, prompts: list, completions: list, completion_ids: list) -> torch.Tensor:
        """Stores the scores of this process. GRPO would only compute its own advantages from them."""
        if getattr(self.processing_class, "response_template", None) is not None:  # new in transformers 5.13
            completions = [drop_prefill(*turns) for turns in zip(prompts, completions, strict=True)]
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids)  # (all, functions)
        local = rewards[self.accelerator.process_index * len(prompts) :][: len(prompts)]  # (batch, functions)
        self._scores = (local * self.reward_weights.to(local.device)).nansum(dim=1)  # (batch,)
        self._scores[local.isnan().all(dim=1)] = torch.nan
        if self._printed_rows is not None:
            rows = zip(prompts, completions, self._scores.tolist(), strict=True)
            self._printed_rows += [{"query": p, "model response": c, "score": s} for p, c, s in rows]
        return rewards

    # An optimizer step: the losses of the micro-batches. `CriticOptimizer` updates the critic just before the policy

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """
        Computes the gradients of a micro-batch. The arguments are those of [`~transformers.Trainer.training_step`].

        Args:
            model (`nn.Module`):
                The policy as the trainer wrapped it.
            inputs:
                Prompts. A rollout is sampled when the current one is used up.
            num_items_in_batch (*optional*):
                Not used.

        Returns:
            `torch.Tensor`: The loss, a scalar.
        """
        with self._critic_optimizer.accumulate_gradients():
            return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: MicroBatch | dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """
        Computes PPO's loss of a micro-batch, for policy and critic together. In evaluation, it is minus the objective.

        Args:
            model (`nn.Module`):
                The policy as the trainer wrapped it.
            inputs ([`MicroBatch`] or `dict[str, torch.Tensor]`):
                Micro-batch of a rollout. In evaluation, a dict with its `loss`.
            return_outputs (`bool`, *optional*, defaults to `False`):
                Must be `False`.
            num_items_in_batch (*optional*):
                Not used. The micro-batch knows the number of tokens of its step.

        Returns:
            `torch.Tensor`: The loss, a scalar.

        Raises:
            ValueError: If `return_outputs` is `True`.
        """
        if return_outputs:
            raise ValueError("`return_outputs` must be False, because PPO's loss needs a policy and a critic.")
        if not self.model.training:
            return inputs["loss"]
        batch = inputs.experience
        tokens = join_tokens(batch.prompt_ids, batch.prompt_mask, batch.completion_ids, batch.completion_mask)
        log_probs, entropies = self._models.log_probs(model, tokens)  # (batch, length) each
        values = self._models.values(tokens)  # (batch, length)
        if self._steps_without_guard and not self._guard.is_good_rollout:
            return 0.0 * (log_probs.sum() + values.sum())
        loss, metrics = ppo_loss(inputs, log_probs, entropies, values, self.args)
        if self._guard.check_loss(loss):
            self._term_logs["train"].add(metrics)
        return loss

    @property
    def _steps_without_guard(self) -> bool:
        """Whether a DeepSpeed engine updates the policy before the guard can drop the gradients of a step."""
        return self.accelerator.distributed_type == DistributedType.DEEPSPEED

    # Logs and checkpoints

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """
        Logs GRPO's metrics of completions and rewards, and PPO's metrics under TRL 1.12's names.

        Args:
            logs (`dict[str, float]`):
                Metrics by name.
            start_time (`float`, *optional*):
                Time at which training started.
        """
        mode, prefix = ("train", "") if self.model.training else ("eval", "eval_")
        metrics = add_ratio_variance(self._term_logs[mode].sums(self.accelerator))
        if mode == "train" and (metrics or "loss" in logs):
            state, seconds = self.ppo_state, time.time() - self._start_time
            metrics |= {
                "lr": logs.get("learning_rate", self.lr_scheduler.get_last_lr()[0]),
                "episode": state.rollouts * self.args.batch_size,
                "eps": (state.rollouts - self._first_rollout) * self.args.batch_size / seconds,
                "kl_coef": state.kl_coef,
                "skipped_steps": state.skipped_steps,
            }
        logs.update({f"{prefix}{name}": value for name, value in metrics.items()})
        super().log(logs, start_time)

    def _log_advantages(self, experience: Experience) -> None:
        """Replaces GRPO's advantages in the table of completions with the mean of PPO's over each completion."""
        num_tokens = experience.completion_mask.sum(dim=1).clamp(min=1)  # (batch,)
        means = self.accelerator.gather(experience.advantages.sum(dim=1) / num_tokens).tolist()
        table = self._logs["advantages"]
        table.extend(means[-table.maxlen :])

    def _save_rng_state(self, output_dir: str) -> None:
        """Waits for the files of all processes, because the main process marks the checkpoint as complete next."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        redact_saved_args(output_dir or self.args.output_dir, self.args)

    def _save_checkpoint(self, model: nn.Module, trial: Any | None) -> None:
        """Writes PPO's part first, because TRL's part marks a checkpoint as complete and deletes older ones."""
        if self._checkpoints.save(self.args, self.state):
            super()._save_checkpoint(model, trial)

    def _describe_model(self) -> ModelDescription:
        summary = f"A policy: a causal LM that was trained with {self._name} against a reward model."
        unused = () if self.args.kl_coef else ("kl_estimator",)
        settings = [name for name in CARD_SETTINGS if name not in unused]
        return describe_policy(summary, self.train_dataset, settings)

    @torch.no_grad()
    def generate_completions(self, sampling: bool = False) -> None:
        """
        Prints completions of the evaluation prompts with their scores. They are sampled at a temperature of 0.01. With
        several evaluation datasets, the first one is used. Weights & Biases and Trackio show them as the table
        `eval/completions`.

        Args:
            sampling (`bool`, *optional*, defaults to `False`):
                Whether to print one batch only.
        """
        if self.eval_dataset is None or self.use_vllm:
            return
        start_trackio_run(self)
        was_training, temperature = self.model.training, self.generation_config.temperature
        self.model.eval()
        self.generation_config.temperature = self.generation_kwargs["temperature"] = 0.01
        self._printed_rows, logs = [], copy.deepcopy(self._logs)
        name = next(iter(self.eval_dataset)) if isinstance(self.eval_dataset, dict) else None
        try:
            for rows in self.get_eval_dataloader(name):
                rows = add_prompts(rows, self._given_processing_class, self._vocabulary_size)
                with default_generation_config(self.model):
                    super()._generate_and_score_completions(rows)
                if sampling:
                    break
            if self.accelerator.is_main_process:
                print_table(self._printed_rows)
                log_table("eval/completions", self._printed_rows, self.args, self.state)
        finally:
            self._printed_rows, self._logs = None, logs
            self._metrics["eval"].clear()
            self.generation_config.temperature = self.generation_kwargs["temperature"] = temperature
            self.model.train(was_training)
