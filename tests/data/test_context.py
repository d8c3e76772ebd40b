import pytest
from accelerate import init_empty_weights
from peft import LoraConfig, get_peft_model
from transformers import (
    BertConfig,
    BertModel,
    BloomConfig,
    BloomModel,
    FalconConfig,
    FalconModel,
    Gemma3TextConfig,
    Gemma3TextModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    MambaConfig,
    MambaModel,
    MptConfig,
    MptModel,
    OPTConfig,
    OPTModel,
    RobertaConfig,
    RobertaModel,
)

from trl_rlp.data.context import read_context


SIZES = {"vocab_size": 66, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
ROTARY = {**SIZES, "intermediate_size": 16, "num_key_value_heads": 1}
ENCODER = {**SIZES, "intermediate_size": 16}


def build(model_class, config):
    with init_empty_weights():
        return model_class(config)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"rope_type": "default"}, 64),
        # transformers defines `max_position_embeddings` as the original context of these two types.
        ({"rope_type": "linear", "factor": 4.0}, 4 * 64),
        ({"rope_type": "dynamic", "factor": 4.0}, 4 * 64),
        ({"rope_type": "yarn", "factor": 4.0}, 4 * 64),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 4 * 64),
        # Qwen3: 40,960 positions are listed, 32,768 are original, and 4 times as many can be read.
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 4 * 32),
        # DeepSeek-V3 and gpt-oss list the extended context.
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}, 64),
        # Phi-3 lists the extended context, and no factor.
        (
            {
                "rope_type": "longrope",
                "short_factor": [1.0] * 4,
                "long_factor": [4.0] * 4,
                "original_max_position_embeddings": 16,
            },
            64,
        ),
        # Llama 3.2 lists 131,072 positions, which is less than 32 times the original 8,192.
        (
            {
                "rope_type": "llama3",
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8,
            },
            64,
        ),
    ],
    ids=[
        "default",
        "linear",
        "dynamic",
        "yarn",
        "yarn-original",
        "yarn-qwen3",
        "yarn-listed",
        "longrope-listed",
        "llama3-listed",
    ],
)
def test_scaled_rope_extends_a_context_that_is_not_extended_yet(parameters, expected):
    config = LlamaConfig(**ROTARY, max_position_embeddings=64, rope_parameters=parameters)
    assert read_context(build(LlamaModel, config)) == expected


def test_scaling_of_some_layers_does_not_extend_a_listed_context():
    """Gemma 3 scales its global layers by 8 and lists the extended context, without the original one."""
    scaling = {"rope_type": "linear", "factor": 8.0}
    config = Gemma3TextConfig(**ROTARY, head_dim=8, max_position_embeddings=131072, rope_scaling=scaling)
    assert config.rope_parameters["full_attention"]["factor"] == 8
    assert read_context(build(Gemma3TextModel, config)) == 131072


@pytest.mark.parametrize(
    ("model_class", "config", "expected"),
    [
        (BertModel, BertConfig(**ENCODER, max_position_embeddings=66), 66),
        # RoBERTa's first position comes after its padding index.
        (RobertaModel, RobertaConfig(**ENCODER, max_position_embeddings=66, pad_token_id=1), 64),
        (RobertaModel, RobertaConfig(**ENCODER, max_position_embeddings=66, pad_token_id=0), 65),
        # The size of the vocabulary is the number of positions, and only the words have a padding index.
        (BertModel, BertConfig(**ENCODER, max_position_embeddings=66, pad_token_id=3), 66),
        # OPT's table has two more rows than positions.
        (OPTModel, OPTConfig(**SIZES, ffn_dim=16, word_embed_proj_dim=16, max_position_embeddings=66), 66),
        (GPT2Model, GPT2Config(vocab_size=66, n_positions=77, n_embd=16, n_layer=1, n_head=2), 77),
        (FalconModel, FalconConfig(**SIZES, max_position_embeddings=66), 66),
        (FalconModel, FalconConfig(**SIZES, max_position_embeddings=66, alibi=True), None),
        (MptModel, MptConfig(vocab_size=66, d_model=16, n_layers=1, n_heads=2, max_seq_len=66), None),
        (BloomModel, BloomConfig(vocab_size=66, hidden_size=16, n_layer=1, n_head=2), None),
        (MambaModel, MambaConfig(vocab_size=66, hidden_size=16, num_hidden_layers=1), None),
        (LlamaModel, LlamaConfig(**ROTARY, max_position_embeddings=0), None),
    ],
    ids=[
        "bert",
        "roberta",
        "roberta-pad-0",
        "bert-vocabulary",
        "opt",
        "gpt2",
        "falcon",
        "falcon-alibi",
        "mpt",
        "bloom",
        "mamba",
        "zero",
    ],
)
def test_the_context_is_the_number_of_positions_that_tokens_can_use(model_class, config, expected):
    assert read_context(build(model_class, config)) == expected


def test_a_config_without_a_value_sets_no_limit_and_an_old_scaling_is_read():
    """Configs of custom code may keep the names of transformers 4."""
    model = build(LlamaModel, LlamaConfig(**ROTARY))
    values = {"max_position_embeddings": None, "rope_scaling": {"type": "linear", "factor": 2.0}}
    model.config.get_text_config = lambda: type("Config", (), {"to_dict": lambda self: values})()
    assert read_context(model) is None
    values["max_position_embeddings"] = 64
    assert read_context(model) == 128


def test_adapters_do_not_change_the_context():
    model = RobertaModel(RobertaConfig(**ENCODER, max_position_embeddings=66, pad_token_id=1))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["query"]))
    assert read_context(adapted) == read_context(model) == 64
