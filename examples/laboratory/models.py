"""Tiny models from scratch: a tokenizer of whole words, a two-layer Llama, and two kinds of reward model."""

import copy
from pathlib import Path

import torch
from task import ANIMALS, FILLERS, OPENERS, QUESTIONS, STATEMENTS, VALUES
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaPreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from trl_rlp.losses.log_probs import token_log_probs


SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Makes a tokenizer of all words of the world."""
    texts = [*QUESTIONS, *OPENERS, *STATEMENTS]
    words = {word for text in texts for word in text.split() if "{" not in word}
    words |= {*ANIMALS, *FILLERS, "or", *VALUES, *(value for values in VALUES.values() for value in values)}
    vocabulary = {word: index for index, word in enumerate([*SPECIAL_TOKENS, *sorted(words)])}
    backend = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=64
    )


def make_policy(tokenizer: PreTrainedTokenizerFast, seed: int, hidden_size: int = 64) -> LlamaForCausalLM:
    """Makes a two-layer Llama with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


class LogRatioRewardModel(LlamaPreTrainedModel):
    r"""
    Reward model without a trained score head: $r(x, y) = \sum_t \log p_\phi(y_t) - \log p_{SFT}(y_t)$.

    A model this small does not learn to check an answer at the last token. Its knowledge of answers is in its
    next-token probabilities. This differs from the paper, so a control uses the paper's head.

    Args:
        policy (`LlamaForCausalLM`):
            The policy π_SFT. The reward model holds one trained and one frozen copy of it.
    """

    def __init__(self, policy: LlamaForCausalLM):
        config = copy.deepcopy(policy.config)
        config.num_labels = 1
        super().__init__(config)
        self.model = copy.deepcopy(policy)
        self.reference = copy.deepcopy(policy).requires_grad_(False)
        # The multi-view loss reads the input of a score layer. This one is not trained and adds nothing to the reward.
        self.score = nn.Linear(config.hidden_size, 1, bias=False).requires_grad_(False)
        nn.init.zeros_(self.score.weight)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs: bool
    ) -> SequenceClassifierOutputWithPast:
        hidden = self.model.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        with torch.no_grad():
            reference = self.reference(input_ids=input_ids, attention_mask=attention_mask).logits
        zero = self.score(hidden).sum() * 0  # the layer must run, or the multi-view loss has nothing to read
        log_probs, reference_log_probs = (
            token_log_probs(logits[:, :-1], input_ids[:, 1:])[0] for logits in (self.model.lm_head(hidden), reference)
        )  # (batch, length - 1)
        rewards = ((log_probs - reference_log_probs) * attention_mask[:, 1:]).sum(1, keepdim=True)  # (batch, 1)
        return SequenceClassifierOutputWithPast(logits=rewards + zero)


def make_reward_model(policy: LlamaForCausalLM, head: str, folder: Path) -> nn.Module:
    """
    Makes a reward model that starts from π_SFT.

    Args:
        policy (`LlamaForCausalLM`):
            The policy π_SFT.
        head (`str`):
            `"log_ratio"`, or `"last_token"` for the paper's head.
        folder (`Path`):
            Folder with the saved π_SFT.
    """
    if head == "log_ratio":
        return LogRatioRewardModel(policy)
    return LlamaForSequenceClassification.from_pretrained(folder, num_labels=1)
