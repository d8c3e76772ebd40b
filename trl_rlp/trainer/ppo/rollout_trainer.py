"""GRPO's trainer with PPO's rollouts: the one place that overrides private names of TRL's."""

import copy
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import Sampler
from trl import GRPOTrainer

from trl_rlp.data.sampling.shared_prefill import own_settings_off
from trl_rlp.data.token_prompts import TokenPrompt, add_prompts, require_length
from trl_rlp.data.turns import continue_final_message_ids, ends_with_assistant
from trl_rlp.trainer.ppo.experience import experience_of
from trl_rlp.trainer.ppo.ppo_callback import PPOCallback
from trl_rlp.trainer.ppo.ppo_models import PPOModels
from trl_rlp.trainer.ppo.rollout import Rollout
from trl_rlp.trainer.ppo.rollout_sampler import RolloutSampler, data_seed
from trl_rlp.trainer.ppo.sample_generations import print_table
from trl_rlp.trainer.term_log import TermLog


class RolloutTrainer(GRPOTrainer):
    """
    Generates and scores as GRPO does, and makes of each generation batch a [`Rollout`].

    Every name that it overrides is listed in `tests/test_trl_contract.py`. What it reads is set by
    [`RLPPPOTrainer`], of which it is a part.
    """

    _ends: list[int]
    _longest_prompt: int | None
    _models: PPOModels
    _pad_token_id: int
    _ppo: PPOCallback
    _terms: dict[str, TermLog]
    _vocabulary_size: int
    _rollout: Rollout | None = None
    _scores: torch.Tensor | None = None
    _table: list[dict[str, Any]] | None = None

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        return RolloutSampler(
            super()._get_train_sampler(dataset), data_seed(self.args), lambda: int(self.state.epoch or 0)
        )

    def _prepare_inputs(self, generation_batch: list[dict[str, Any]]) -> dict[str, Any]:
        """Gives the next micro-batch; where a rollout is used up, of a new one."""
        if not self.model.training:
            return super()._prepare_inputs(generation_batch)
        if self._rollout is None or self._rollout.is_used_up:
            experience = self._generate_and_score_completions(generation_batch)
            self._rollout = Rollout(experience, self.args, self.accelerator)
        return self._rollout.take()

    def _tokenize_prompts(self, prompts: list) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Leaves prompts that are token ids as they are, and goes on with an assistant's turn that a prompt begins."""
        if isinstance(prompts[0], TokenPrompt):
            prompt_ids, images, fields = [prompt.ids for prompt in prompts], None, {}
        else:
            prompt_ids, images, fields = super()._tokenize_prompts(prompts)
            prompt_ids = [
                self._continue_final_message_ids(prompt) if ends_with_assistant(prompt) else ids
                for prompt, ids in zip(prompts, prompt_ids, strict=True)
            ]
        if not all(prompt_ids):
            raise ValueError("A prompt has no tokens. Drop such rows with `Dataset.filter`.")
        if self._longest_prompt is not None:
            require_length(max(map(len, prompt_ids)), self._longest_prompt, "A prompt")
        return prompt_ids, images, fields

    def _continue_final_message_ids(self, prompt: list[dict[str, str]]) -> list[int]:
        # TRL opens a second turn behind the one that is begun.
        options = {"tools": self.tools or None, "chat_template": self.chat_template, **self.chat_template_kwargs}
        return continue_final_message_ids(self.processing_class, prompt, **options)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor | None, ...]:
        """Saves a pass over the policy that GRPO needs and PPO does not, unless vLLM's figures are held against it."""
        if self.use_vllm:
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)
        return None, None, None

    def _calculate_rewards(self, inputs: list, prompts: list, completions: list, completion_ids: list) -> torch.Tensor:
        """Keeps this process's scores, which GRPO turns into advantages of its own."""
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids)  # (all, functions)
        own = rewards[self.accelerator.process_index * len(prompts) :][: len(prompts)]  # (batch, functions)
        self._scores = (own * self.reward_weights.to(own.device)).nansum(dim=1)
        self._scores[own.isnan().all(dim=1)] = torch.nan
        if self._table is not None:
            table = zip(prompts, completions, self._scores.tolist(), strict=True)
            self._table += [{"query": p, "model response": c, "score": s} for p, c, s in table]
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Gives a rollout with all that the losses need; in evaluation, minus the objective as its loss."""
        rows = add_prompts(inputs, self.processing_class, self._vocabulary_size)
        with own_settings_off(self.model):
            generated = super()._generate_and_score_completions(rows)
        state, pad = self._ppo.ppo_state, self._pad_token_id
        if not self.model.training:
            # Evaluation prompts must not move the statistics of the run.
            _, terms = experience_of(generated, self._scores, self._ends, self._models, replace(state), pad)
            self._terms["eval"].add(terms)
            return {"loss": -terms["objective/rlhf_reward"]}
        batch, terms = experience_of(generated, self._scores, self._ends, self._models, state, pad)
        self._log_advantages(batch)
        is_finite = self._ppo.begin_rollout(batch)
        if is_finite:
            self._terms["train"].add(terms)
            state.adapt_kl_coef(self.accelerator.reduce(terms["objective/kl"], reduction="mean").item(), self.args)
        return batch

    def _save_checkpoint(self, model: nn.Module, trial: Any | None) -> None:
        """Writes PPO's part first: TRL deletes older checkpoints once its own part is whole."""
        if self._ppo.must_wait(self.args, self.state):
            return  # asked for after the callbacks, as `save_strategy="best"` does
        self._ppo.save(self.args, self.state)
        super()._save_checkpoint(model, trial)

    def _log_advantages(self, batch: dict[str, torch.Tensor]) -> None:
        """Puts the mean advantage of each completion into the table of completions, in the place of GRPO's."""
        means = batch["advantages"].sum(dim=1) / batch["completion_mask"].sum(dim=1).clamp(min=1)  # (batch,)
        table, means = self._logs["advantages"], self.accelerator.gather(means).tolist()
        table.extend(means[-table.maxlen :])

    @torch.no_grad()
    def generate_completions(self, sampling: bool = False) -> None:
        """
        Prints completions of the evaluation prompts (of several data sets, the first one's), drawn at a temperature
        of 0.01, with their scores.

        Args:
            sampling (`bool`, *optional*, defaults to `False`):
                Whether one batch of prompts is enough.
        """
        if self.eval_dataset is None or self.use_vllm:
            return
        was_training, temperature = self.model.training, self.generation_config.temperature
        self.model.eval()
        self.generation_config.temperature = self.generation_kwargs["temperature"] = 0.01
        self._table, logs = [], copy.deepcopy(self._logs)
        name = next(iter(self.eval_dataset)) if isinstance(self.eval_dataset, dict) else None
        try:
            for rows in self.get_eval_dataloader(name):
                rows = add_prompts(rows, self.processing_class, self._vocabulary_size)
                with own_settings_off(self.model):
                    super()._generate_and_score_completions(rows)
                if sampling:
                    break
            if self.accelerator.is_main_process:
                print_table(self._table)
        finally:
            self._table, self._logs = None, logs
            self._metrics["eval"].clear()
            self.generation_config.temperature = self.generation_kwargs["temperature"] = temperature
            self.model.train(was_training)
