"""Mutual information between the latents of two views, on prompts that the heads were not trained on."""

import numpy as np
import torch
from datasets import Dataset

from trl_rlp import RLPRewardTrainer
from trl_rlp.data import scoring_ids
from trl_rlp.data.batching import eval_mode, pad_right
from trl_rlp.data.score_inputs import capture_score_inputs, find_score_layers, select_scored_states


@torch.no_grad()
def estimate_heldout_information(trainer: RLPRewardTrainer, samples: Dataset) -> float:
    """
    Computes the MI estimate of trained heads on held-out prompts, with the batch size of training.

    A view contains its prompt, so the prompt alone can account for a part of the information. The last incomplete
    batch is dropped.

    Args:
        trainer ([`RLPRewardTrainer`]):
            Trainer with a multi-view loss, after `train()`.
        samples (`datasets.Dataset`):
            Two completions of each held-out prompt.

    Returns:
        `float`: Mean over batches, in nats.
    """
    heads, layers = trainer.representation_term.heads_callback.heads, find_score_layers(trainer.model)
    tokenizer, size = trainer.processing_class, trainer.args.view_prompts_per_device
    order = np.random.default_rng(0).permutation(len(samples)).tolist()
    estimates = []
    with eval_mode(trainer.model):
        for start in range(0, len(order) - size + 1, size):
            rows = [samples[index] for index in order[start : start + size]]
            views = [
                scoring_ids(tokenizer, row["prompt"], row["completions"][view], row["finished"][view])
                for view in (0, 1)
                for row in rows
            ]
            input_ids, attention_mask = pad_right(views, tokenizer.pad_token_id)  # (2 * size, length)
            with capture_score_inputs(layers) as captured:
                trainer.model(input_ids=input_ids, attention_mask=attention_mask)
            hidden = select_scored_states(captured[-1], input_ids, tokenizer.pad_token_id)  # (2 * size, hidden)
            estimates.append(heads(*hidden.chunk(2), torch.arange(size))["mi"].item())
    return float(np.mean(estimates))
