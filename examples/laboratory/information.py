"""What the latents of two outputs, with their prompt, share on instructions that no head was trained on."""

import numpy as np
import torch
from datasets import Dataset

from trl_rlp import RLPRewardTrainer, scoring_ids
from trl_rlp.data.batching import eval_mode, pad_right
from trl_rlp.trainer.score_head import capture_score_inputs, score_layers, select_scored_states


@torch.no_grad()
def heldout_information(trainer: RLPRewardTrainer, samples: Dataset) -> float:
    """
    Gives the MI estimate of a trained run's heads, in batches as large as those of training.

    Args:
        trainer ([`RLPRewardTrainer`]):
            With a multi-view term, after `train()`.
        samples (`datasets.Dataset`):
            Two outputs of each of other instructions.

    Returns:
        `float`, nats.
    """
    heads, layers = trainer.representation_term.heads_callback.heads, score_layers(trainer.model)
    tokenizer, size = trainer.processing_class, trainer.args.view_prompts_per_device
    order = np.random.default_rng(0).permutation(len(samples)).tolist()
    estimates = []
    with eval_mode(trainer.model):
        for start in range(0, len(order) - size + 1, size):
            rows = [samples[place] for place in order[start : start + size]]
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
