"""A text is refused if, and only if, the model cannot read it."""

import sys

import pytest
from datasets import Dataset
from transformers import (
    BloomConfig,
    BloomModel,
    MambaConfig,
    MambaForCausalLM,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from tests.ppo_runs import ppo_config
from tests.tiny_models import tiny_causal_lm, tiny_tokenizer
from trl_rlp.data.groups.embedding import EmbeddingEquivalence
from trl_rlp.data.groups.encoders import get_context_length
from trl_rlp.data.sampling.engines import sample_completions
from trl_rlp.data.scoring import score
from trl_rlp.trainer.ppo.ppo_setup import max_prompt_length


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


def sizes(tokenizer):
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "num_labels": 1,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }


def test_a_reward_model_with_yarn_scores_up_to_its_extended_context(tokenizer):
    """A user extended a context of 64 to 256 with YaRN. A text of 101 tokens was refused. Only 257 are too many."""
    config = Qwen2Config(
        **sizes(tokenizer), num_key_value_heads=1, max_position_embeddings=64, rope_parameters=dict(YARN)
    )
    model = Qwen2ForSequenceClassification(config)
    assert len(score(model, tokenizer, ["a" * 100, "a" * 255], ["", ""])) == 2
    with pytest.raises(ValueError, match="Row 0 has 257 tokens, more than the model's context of 256"):
        score(model, tokenizer, ["a" * 256], [""])


def test_a_roberta_reward_model_refuses_a_text_instead_of_failing_in_its_embedding(tokenizer):
    """
    RoBERTa's position 0 is padding, so 66 rows with pad token 0 hold 65 tokens. A user's text of 66 tokens passed the
    check and failed with an index error.
    """
    model = RobertaForSequenceClassification(RobertaConfig(**sizes(tokenizer), max_position_embeddings=66))
    assert len(score(model, tokenizer, ["a" * 64], [""])) == 1
    with pytest.raises(ValueError, match="Row 0 has 66 tokens, more than the model's context of 65"):
        score(model, tokenizer, ["a" * 65], [""])


def test_a_policy_with_yarn_is_sampled_and_trained_in_its_extended_context(tokenizer, tmp_path):
    """Prompt and completion must fit into the extended context, in sampling and in PPO."""
    model = tiny_causal_lm(tokenizer, max_position_embeddings=64, rope_parameters=dict(YARN))
    assert max_prompt_length(model, ppo_config(tmp_path, response_length=6)) == 250
    prompts = Dataset.from_dict({"prompt": ["a" * 252]})
    assert len(sample_completions(prompts, model, tokenizer, num_generations=2, max_new_tokens=4)) == 1
    with pytest.raises(ValueError, match="more than the model's context of 256"):
        sample_completions(prompts, model, tokenizer, num_generations=2, max_new_tokens=5)


def test_an_encoder_with_scaled_positions_reads_its_extended_context(tokenizer):
    """An embedding model with YaRN was cut at its original context of 64."""
    config = Qwen2Config(
        **sizes(tokenizer), num_key_value_heads=1, max_position_embeddings=64, rope_parameters=dict(YARN)
    )
    assert get_context_length(Qwen2ForSequenceClassification(config), tokenizer) == 256


def test_an_encoder_and_a_tokenizer_without_a_limit_embed_and_compare(tokenizer):
    """A tokenizer without a limit names 10^30 tokens. With an encoder with ALiBi, this was an OverflowError."""
    tokenizer.model_max_length = 10**30
    settings = {"vocab_size": len(tokenizer), "hidden_size": 16, "n_layer": 1, "n_head": 2}
    model = BloomModel(BloomConfig(**settings))
    assert get_context_length(model, tokenizer) == sys.maxsize
    equivalence = EmbeddingEquivalence(model, tokenizer, threshold=-1.0)
    assert equivalence.are_equivalent([""], ["a" * 600], ["b"]) == [True]


def test_a_model_without_positions_has_no_limit(tokenizer, tmp_path):
    """Mamba's config has no number of positions. A config with 0 positions left a negative length for prompts."""
    mamba = MambaForCausalLM(MambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1))
    for model in (mamba, tiny_causal_lm(tokenizer, max_position_embeddings=0)):
        assert max_prompt_length(model, ppo_config(tmp_path)) is None
