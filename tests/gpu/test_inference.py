"""Scores, NLI labels and samples on the device equal those on the CPU."""

import copy

import pytest
import torch
from datasets import Dataset
from transformers import GenerationConfig

from tests.tiny_models import tiny_causal_lm, tiny_nli, tiny_reward_model, tiny_tokenizer
from trl_rlp import NLIEquivalence, sample_completions, score
from trl_rlp.data.sampling.shared_prefill import generate_samples


TEXTS = [f"{'word ' * (row % 7)}{row * 37 % 101} and {row}" for row in range(64)]


@pytest.fixture
def reward_model():
    return tiny_reward_model(tiny_tokenizer(), initializer_range=0.3)


def compute_scores(model) -> torch.Tensor:
    return torch.tensor(score(model, tiny_tokenizer(), TEXTS, TEXTS[::-1]))


def test_scores_equal_those_of_the_cpu(reward_model, device, record_property):
    expected = compute_scores(reward_model)
    deviation = (compute_scores(copy.deepcopy(reward_model).to(device)) - expected).abs().max().item()
    record_property("deviation", deviation)
    assert deviation < 1e-4


def test_scores_in_bf16_keep_the_order(reward_model, device, record_property):
    """Spearman's correlation: the correlation of the ranks."""
    models = reward_model, copy.deepcopy(reward_model).to(device, torch.bfloat16)
    ranks = [compute_scores(model).argsort().argsort().double() for model in models]
    agreement = torch.corrcoef(torch.stack(ranks))[0, 1].item()
    record_property("rank_agreement", agreement)
    assert agreement > 0.98


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 1.0), (torch.bfloat16, 0.95)], ids=["fp32", "bf16"])
def test_labels_equal_those_of_the_cpu(device, dtype, share, record_property):
    tokenizer = tiny_tokenizer()
    model = tiny_nli(tokenizer, initializer_range=0.5)
    sides = [""] * len(TEXTS), TEXTS, TEXTS[::-1]
    expected = NLIEquivalence(model, tokenizer).classify(*sides)
    labels = NLIEquivalence(copy.deepcopy(model).to(device, dtype), tokenizer).classify(*sides)
    assert len(set(expected)) > 1
    same = sum(label == other for label, other in zip(labels, expected, strict=True)) / len(labels)
    record_property("same_labels", same)
    assert same >= share


def test_the_same_seed_gives_the_same_samples(device):
    tokenizer = tiny_tokenizer()
    model = tiny_causal_lm(tokenizer).to(device)
    prompts = Dataset.from_dict({"prompt": TEXTS[:6]})
    first, second, other = (
        sample_completions(prompts, model, tokenizer, num_generations=3, max_new_tokens=8, seed=seed)["completions"][:]
        for seed in (1, 1, 2)
    )
    assert first == second != other


def test_a_shared_prefill_gives_the_same_samples(device):
    model = tiny_causal_lm(tiny_tokenizer()).to(device)
    config = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=8, pad_token_id=0)
    samples = []
    for share_prefill in (True, False):
        torch.manual_seed(0)
        samples.append(generate_samples(model, [[7, 8, 9, 10], [11, 12]], 5, config, share_prefill=share_prefill))
    assert samples[0].device.type == device.type
    assert torch.equal(*samples)
