"""What only infers runs in bf16 on accelerators. The ranking of rewards stays, and the score head is in fp32."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaForCausalLM

from tests.tiny_models import save, tiny_causal_lm, tiny_nli, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.row_scores import score_rows
from trl_rlp.storage import artifacts, precision
from trl_rlp.storage.artifacts import load_complete_model, load_policy, load_reward_model
from trl_rlp.storage.precision import cast_weights, choose_dtype, is_half, require_inference_dtype


TOKENIZER = tiny_tokenizer()
GENERATOR = torch.Generator().manual_seed(0)
LENGTHS = torch.randint(5, 40, (100,), generator=GENERATOR).tolist()
ROWS = [torch.randint(5, len(TOKENIZER), (length,), generator=GENERATOR).tolist() for length in LENGTHS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A reward model whose rewards differ by more than those of tiny models with small random weights."""
    model = tiny_reward_model(TOKENIZER, hidden_size=64, intermediate_size=128, initializer_range=0.2)
    return save(model, TOKENIZER, tmp_path_factory.mktemp("reward"))


def test_bf16_ranks_as_fp32_does(folder):
    exact, rounded = (
        np.array(score_rows(load_reward_model(folder, dtype=dtype)[0], ROWS)) for dtype in ("float32", "bfloat16")
    )
    assert spearmanr(exact, rounded).statistic > 0.99
    margins = [scores[:50] - scores[50:] for scores in (exact, rounded)]
    is_clear = np.abs(margins[0]) > 0.1 * exact.std()
    assert is_clear.sum() > 35 and (np.sign(margins[0]) == np.sign(margins[1]))[is_clear].all()
    assert len(set(rounded)) == len(set(exact)) == 100, "rewards in bf16 would be equal too often"


def test_the_score_head_keeps_its_weights_and_computes_in_fp32(folder):
    exact, _ = load_reward_model(folder, dtype="float32")
    model, _ = load_reward_model(folder, dtype="bfloat16")
    assert model.dtype == model.config.dtype == torch.bfloat16
    assert torch.equal(model.score.weight, exact.score.weight)
    assert {p.dtype for name, p in model.named_parameters() if name != "score.weight"} == {torch.bfloat16}
    assert model(torch.tensor([ROWS[0]])).logits.dtype == torch.float32
    frequencies = dict(exact.named_buffers())
    assert all(torch.equal(buffer, frequencies[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("shard_size", ["1GB", "20KB"], ids=["one file", "shards"])
def test_the_score_head_of_a_saved_bf16_model_is_not_rounded_when_it_is_loaded(folder, tmp_path, shard_size):
    """Its config names bf16, so transformers rounds all weights, although the file has the head in fp32."""
    model, tokenizer = load_reward_model(folder, dtype="bfloat16")
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    tokenizer.save_pretrained(tmp_path)
    loaded, _ = load_reward_model(tmp_path, dtype="bfloat16")
    assert [parameter.dtype for parameter in loaded.parameters()] == [p.dtype for p in model.parameters()]
    assert score_rows(loaded, ROWS[:8]) == score_rows(model, ROWS[:8])


@pytest.fixture(scope="module")
def bf16_folder(folder, tmp_path_factory):
    """A checkpoint whose weights, with those of the head, are all in bf16, as most published ones."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16)
    return save(model, TOKENIZER, tmp_path_factory.mktemp("bf16"))


@pytest.mark.parametrize("options", [{}, {"dtype": "auto"}, {"dtype": "bfloat16"}])
def test_the_head_of_a_bf16_checkpoint_computes_in_fp32_whatever_dtype_is_asked_for(bf16_folder, options):
    """In bf16, most of the rewards would be equal, and the first completion would count as the best."""
    model, _ = load_reward_model(bf16_folder, **options)
    assert model.dtype == torch.bfloat16 and model.score.weight.dtype == torch.float32
    assert len(set(score_rows(model, ROWS))) == len(ROWS)


def test_the_head_of_a_model_on_the_hub_is_not_rounded(folder, tmp_path, monkeypatch):
    model, tokenizer = load_reward_model(folder, dtype="bfloat16")
    repository = tmp_path / "models--org--reward"
    save(model, tokenizer, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    options = {"cache_dir": tmp_path, "local_files_only": True, "num_labels": 1}
    for dtype in ("auto", "bfloat16"):
        loaded = load_complete_model(
            AutoModelForSequenceClassification, "org/reward", "a reward model", dtype=dtype, **options
        )
        assert torch.equal(loaded.score.weight, model.score.weight)


def test_a_model_that_is_spread_over_devices_has_its_score_head_in_fp32(folder):
    model, _ = load_reward_model(folder, dtype="bfloat16", device_map={"": "cpu"})
    exact, _ = load_reward_model(folder, dtype="float32")
    assert torch.equal(model.score.weight, exact.score.weight)
    assert model.dtype == torch.bfloat16 and model(torch.tensor([ROWS[0]])).logits.dtype == torch.float32


def test_a_copy_can_be_cast_to_any_dtype(folder):
    """PPO's value model is a copy of the reward model in the policy's dtype."""
    model, _ = load_reward_model(folder, dtype="bfloat16")
    for dtype in (torch.float32, torch.bfloat16):
        assert model.to(dtype)(torch.tensor([ROWS[0]])).logits.dtype == dtype


def test_without_a_dtype_a_cpu_keeps_the_checkpoint_and_an_accelerator_takes_bf16(folder, monkeypatch):
    assert choose_dtype(torch.device("cpu")) == "auto"
    assert load_reward_model(folder)[0].dtype == torch.float32
    monkeypatch.setattr(precision, "is_torch_bf16_gpu_available", lambda: True)
    assert choose_dtype(torch.device("xpu")) == "bfloat16"
    assert choose_dtype(torch.device("xpu"), "float32") == "float32"
    monkeypatch.setattr(precision, "is_torch_bf16_gpu_available", lambda: False)
    assert choose_dtype(torch.device("xpu")) == "auto"
    monkeypatch.setattr(artifacts, "choose_dtype", lambda device, dtype: dtype or "bfloat16")
    assert load_reward_model(folder)[0].dtype == torch.bfloat16
    assert load_reward_model(folder, dtype="float32")[0].dtype == torch.float32


def test_a_gpu_that_only_emulates_bf16_does_not_take_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert choose_dtype(torch.device("cuda")) == "auto"


def test_a_policy_takes_the_options_of_from_pretrained(tmp_path, monkeypatch):
    folder = save(tiny_causal_lm(TOKENIZER), TOKENIZER, tmp_path)
    model, _ = load_policy(folder, dtype="bfloat16", attn_implementation="eager", revision="main")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"
    monkeypatch.setattr(LlamaForCausalLM, "to", lambda *_: pytest.fail("the model is on its devices already"))
    load_policy(folder, device_map={"": "cpu"})


@pytest.mark.parametrize(
    ("auto_class", "task_type"),
    [(AutoModelForCausalLM, "CAUSAL_LM"), (AutoModelForSequenceClassification, "SEQ_CLS")],
)
@pytest.mark.parametrize(("base_dtype", "dtype"), [("float32", "bfloat16"), ("bfloat16", "auto")])
def test_an_adapter_is_merged_before_the_weights_are_rounded(tmp_path, auto_class, task_type, base_dtype, dtype):
    """A change below half of bf16's spacing is lost if it is added to a weight that is rounded already."""
    build = tiny_causal_lm if task_type == "CAUSAL_LM" else tiny_reward_model
    load = load_policy if task_type == "CAUSAL_LM" else load_reward_model
    base = save(build(TOKENIZER).to(getattr(torch, base_dtype)), TOKENIZER, tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type=task_type, init_lora_weights=False)
    model = get_peft_model(auto_class.from_pretrained(base), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data *= 0.02
    save(model, TOKENIZER, tmp_path / "adapter")
    name = "model.layers.0.self_attn.q_proj.weight"
    exact, rounded = (load(tmp_path / "adapter", dtype=choice)[0] for choice in ("float32", dtype))
    assert task_type == "CAUSAL_LM" or rounded.score.weight.dtype == torch.float32
    exact, rounded = (model.state_dict()[name] for model in (exact, rounded))
    assert torch.equal(exact.bfloat16(), rounded)


def test_quantized_weights_are_refused_where_they_change_decisions(folder):
    with pytest.raises(ValueError, match="would be quantized .`quantization_config`., but its rewards decide"):
        load_reward_model(folder, quantization_config={"load_in_4bit": True})


def test_other_classifiers_compute_their_logits_in_fp32():
    model = tiny_nli(TOKENIZER)
    exact = model(torch.tensor([ROWS[0]])).logits
    cast_weights(model, "bfloat16")
    logits = model(torch.tensor([ROWS[0]])).logits
    assert logits.dtype == torch.float32 and torch.allclose(logits, exact, atol=1e-2)


def test_names_of_dtypes():
    assert is_half("bfloat16") and is_half(torch.float16) and not is_half("auto") and not is_half(torch.float32)
    require_inference_dtype("inference_dtype", "auto")
    with pytest.raises(ValueError, match="`inference_dtype` must be one of .*'bfloat16'.*, got 'int8'"):
        require_inference_dtype("inference_dtype", "int8")
