"""Tiny random models and tokenizers, built from configs. Tests with them are fast and need no network."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)


CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ROLE_TOKENS = ["<|system|>", "<|user|>", "<|assistant|>"]


def tiny_tokenizer(pad_is_eos: bool = False, chat: bool = True, offset: int = 0) -> PreTrainedTokenizerFast:
    """
    Builds a byte-level tokenizer with 256 bytes, `<pad>`, `<eos>` and three roles.

    `offset` shifts all ids, to get a different tokenizer.
    """
    fillers = [f"<unused_{index}>" for index in range(offset)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special_tokens = ["<pad>", "<eos>", *ROLE_TOKENS]
    vocabulary = {token: index for index, token in enumerate([*fillers, *special_tokens, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<eos>",
        pad_token="<eos>" if pad_is_eos else "<pad>",
        extra_special_tokens=["<pad>", *ROLE_TOKENS],
        model_max_length=512,
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _llama_config(tokenizer, **overrides) -> LlamaConfig:
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    return LlamaConfig(**{**settings, **overrides})


def tiny_causal_lm(tokenizer, seed: int = 0, **overrides) -> LlamaForCausalLM:
    """Builds a two-layer causal Llama with random weights. The same `seed` gives the same weights."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(_llama_config(tokenizer, **overrides)).eval()


def tiny_reward_model(tokenizer, seed: int = 0, num_labels: int = 1, **overrides) -> LlamaForSequenceClassification:
    """Builds a two-layer Llama with a score head and random weights. The same `seed` gives the same weights."""
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(_llama_config(tokenizer, num_labels=num_labels, **overrides)).eval()


def tiny_nli(tokenizer, seed: int = 0, labels=("contradiction", "neutral", "entailment"), **overrides):
    """Builds a one-layer BERT classifier over `labels` with random weights. The same `seed` gives the same weights."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=overrides.pop("max_position_embeddings", 128),
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        **overrides,
    )
    return BertForSequenceClassification(config).eval()


def save(model, tokenizer, folder) -> str:
    """Saves `model` and `tokenizer` to `folder`. Returns the path as text, for `from_pretrained`."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def tiny_talker(tokenizer, answers: list[str], steps: int = 150, seed: int = 0) -> LlamaForCausalLM:
    """Trains a Llama for a few seconds. It replies to every prompt with one of `answers` and EOS."""
    model = tiny_causal_lm(tokenizer, seed, hidden_size=32, intermediate_size=64, max_position_embeddings=1024)
    generator = torch.Generator().manual_seed(seed)
    endings = [tokenizer(answer)["input_ids"] + [tokenizer.eos_token_id] for answer in answers]
    longest = max(map(len, endings))
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
    for _ in range(steps):
        length = int(torch.randint(8, 64, (), generator=generator))
        asked = torch.randint(len(tokenizer) - 256, len(tokenizer), (16, length), generator=generator)
        said = [endings[i] for i in torch.randint(len(endings), (16,), generator=generator)]
        said = torch.tensor([ids + [-100] * (longest - len(ids)) for ids in said])  # (16, longest)
        labels = torch.cat([torch.full_like(asked, -100), said], dim=1)  # (16, length + longest)
        loss = model(torch.cat([asked, said.clamp_min(0)], dim=1), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()
