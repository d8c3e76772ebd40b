import json

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.tiny_models import save, tiny_causal_lm, tiny_tokenizer
from trl_rlp.storage.adapters import find_adapter, load_merged_model


TOKENIZER = tiny_tokenizer()
IDS = torch.tensor([[70, 71, 72]])


@pytest.fixture
def adapter(tmp_path) -> str:
    base = save(tiny_causal_lm(TOKENIZER), TOKENIZER, tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    return save(get_peft_model(AutoModelForCausalLM.from_pretrained(base), config), TOKENIZER, tmp_path / "adapter")


def test_only_an_adapter_has_a_configuration(tmp_path, adapter):
    assert find_adapter(adapter).base_model_name_or_path == str(tmp_path / "base")
    assert find_adapter(tmp_path / "base") is None


def test_the_model_is_plain_and_computes_what_the_adapter_computes(tmp_path, adapter):
    model = load_merged_model(AutoModelForCausalLM, adapter, find_adapter(adapter), dtype="float32")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert torch.allclose(model(IDS).logits, PeftModel.from_pretrained(base, adapter)(IDS).logits, atol=1e-5)
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.save_pretrained(tmp_path / "merged")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(IDS).logits, model(IDS).logits)


def test_the_adapter_of_a_policy_fits_a_classifier(adapter):
    config = find_adapter(adapter)
    model = load_merged_model(AutoModelForSequenceClassification, adapter, config, num_labels=1)
    policy = load_merged_model(AutoModelForCausalLM, adapter, config)
    assert torch.allclose(model.model(IDS).last_hidden_state, policy.model(IDS).last_hidden_state, atol=1e-6)
    assert config.task_type == "CAUSAL_LM"


def test_a_quantized_base_model_is_refused(tmp_path, adapter):
    """The merged weights would be rounded to 16 values each, and most of the adapter with them."""
    config = find_adapter(adapter)
    with pytest.raises(ValueError, match="would be merged into quantized weights of .*base', which rounds it"):
        load_merged_model(AutoModelForCausalLM, adapter, config, quantization_config={"load_in_4bit": True})
    settings = json.loads((tmp_path / "base" / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "base" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="Load it without `quantization_config`, onto a base model that is not"):
        load_merged_model(AutoModelForCausalLM, adapter, config)


def test_virtual_tokens_are_refused(tmp_path):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    save(get_peft_model(tiny_causal_lm(TOKENIZER), config), TOKENIZER, tmp_path)
    with pytest.raises(ValueError, match="adapter of virtual tokens .*PROMPT_TUNING.* cannot be merged"):
        load_merged_model(AutoModelForCausalLM, tmp_path, find_adapter(tmp_path))
