"""A model of the wrong kind is refused. It would get a head with random weights."""

import sys
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.distributed.fsdp import StateDictType
from transformers import AutoModelForSequenceClassification

from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.storage import artifacts
from trl_rlp.storage.artifacts import load_policy, load_reward_model, load_tokenizer


IDS = torch.tensor([[5, 6, 7, 1]])


def save_adapter(folder, base, model, task_type):
    lora = get_peft_model(model, LoraConfig(task_type=task_type, target_modules=["q_proj"]))
    lora.peft_config["default"].base_model_name_or_path = str(base)
    lora.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return lora.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root, tokenizer = tmp_path_factory.mktemp("models"), tiny_tokenizer()
    for name, options in (("", {}), (" tied", {"tie_word_embeddings": True})):
        save(tiny_causal_lm(tokenizer, **options), tokenizer, root / f"policy{name}")
        save(tiny_reward_model(tokenizer, **options), tokenizer, root / f"reward{name}")
    save(tiny_reward_model(tokenizer, num_labels=2), tokenizer, root / "two labels")
    save_adapter(root / "policy adapter", root / "policy", tiny_causal_lm(tokenizer), "CAUSAL_LM")
    base = AutoModelForSequenceClassification.from_pretrained(root / "policy", num_labels=1)
    model = save_adapter(root / "reward adapter", root / "policy", base, "SEQ_CLS")
    return root, model(input_ids=IDS).logits.item()


@pytest.mark.parametrize("name", ["policy", "policy tied", "policy adapter"])
def test_a_policy_is_loaded_as_a_policy_only(folders, name):
    model, _ = load_policy(folders[0] / name)
    assert model(input_ids=IDS).logits.shape == (1, 4, len(tiny_tokenizer()))
    with pytest.raises(ValueError, match=f"{name}' is not a reward model with one label"):
        load_reward_model(folders[0] / name)


@pytest.mark.parametrize("name", ["reward", "reward tied", "reward adapter"])
def test_a_reward_model_is_loaded_as_a_reward_model_only(folders, name):
    model, _ = load_reward_model(folders[0] / name)
    if name == "reward adapter":
        assert model(input_ids=IDS).logits.item() == pytest.approx(folders[1], abs=1e-6)
    with pytest.raises(ValueError, match=f"{name}' is not a causal LM"):
        load_policy(folders[0] / name)


def test_a_classifier_with_two_labels_is_refused(folders):
    with pytest.raises(ValueError, match="two labels' is not a reward model with one label"):
        load_reward_model(folders[0] / "two labels")


def fake_trainer(model, zero=None, fsdp_plugin=None):
    accelerator = SimpleNamespace(
        unwrap_model=lambda model, **_: model,
        state=SimpleNamespace(fsdp_plugin=fsdp_plugin),
        deepspeed_config={"zero_optimization": zero},
    )
    return SimpleNamespace(
        model=model,
        args=SimpleNamespace(push_to_hub=True),
        processing_class=tiny_tokenizer(),
        is_deepspeed_enabled=zero is not None,
        accelerator=accelerator,
        save_model=lambda path: None,
    )


@pytest.mark.parametrize("zero", [{"stage": 2}, {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}])
def test_the_engine_of_deepspeed_saves_what_it_can_gather(tmp_path, zero):
    """It gathers one layer at a time, and transformers pushes the model."""
    trainer, seen = fake_trainer(tiny_causal_lm(tiny_tokenizer()), zero), []
    trainer.save_model = seen.append
    artifacts.save_trained_model(trainer, tmp_path)
    assert seen == [str(tmp_path)]


@pytest.mark.parametrize("is_quantized", [False, True])
def test_an_adapter_is_merged_before_saving_except_into_quantized_weights(tmp_path, monkeypatch, is_quantized):
    model = get_peft_model(tiny_causal_lm(tiny_tokenizer()), LoraConfig(target_modules=["q_proj"]))
    trainer = fake_trainer(model)
    monkeypatch.setattr(artifacts, "is_quantized", lambda model: is_quantized)
    artifacts.save_trained_model(trainer, tmp_path)
    assert isinstance(trainer.model, PeftModel) == is_quantized


def test_whole_weights_are_saved_under_fsdp_with_sharded_checkpoints(tmp_path):
    """transformers saves weights with this type only. Checkpoints keep the type of the launch configuration."""
    plugin, seen = SimpleNamespace(state_dict_type=StateDictType.SHARDED_STATE_DICT), []
    trainer = fake_trainer(tiny_causal_lm(tiny_tokenizer()), fsdp_plugin=plugin)
    trainer.save_model = lambda path: seen.append("FULL_STATE_DICT" in str(plugin.state_dict_type))
    artifacts.save_trained_model(trainer, tmp_path)
    assert seen == [True] and plugin.state_dict_type == StateDictType.SHARDED_STATE_DICT


@pytest.mark.parametrize(("stage", "has_adapter"), [(3, False), (3, True), (2, True)])
def test_under_deepspeed_gathered_weights_are_saved_without_the_engine(
    tmp_path, monkeypatch, caplog, stage, has_adapter
):
    """The engine cannot save a merged model. ZeRO-3 has the weights only inside the `with` block."""
    model, gathered = tiny_causal_lm(tiny_tokenizer()), []
    if has_adapter:
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    count = len(list(model.parameters()))

    @contextmanager
    def gather(parameters):
        gathered.append(len(parameters))
        yield
        assert (tmp_path / "config.json").is_file()

    module = SimpleNamespace(zero=SimpleNamespace(GatheredParameters=gather), __spec__=ModuleSpec("deepspeed", None))
    monkeypatch.setitem(sys.modules, "deepspeed", module)
    trainer = fake_trainer(model, zero={"stage": stage})
    expected = model(input_ids=IDS).logits
    artifacts.save_trained_model(trainer, tmp_path)
    assert gathered == [count] and "cannot push this model to the Hub. Upload" in caplog.text
    torch.testing.assert_close(load_policy(tmp_path)[0](input_ids=IDS).logits, expected)


def test_a_tokenizer_is_loaded_from_the_folder_of_its_model(folders):
    root, _ = folders
    assert load_tokenizer(root / "policy").get_vocab() == tiny_tokenizer().get_vocab()
    with pytest.raises(OSError, match="No model could be loaded from"):
        load_tokenizer(root / "nothing")


def test_a_missing_model_is_an_error_in_one_line():
    with pytest.raises(OSError) as caught, artifacts.explain_missing_model("name"):
        raise OSError("No connection.\nCheck it.")
    assert str(caught.value).endswith("(No connection. Check it.)")
