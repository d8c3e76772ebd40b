"""The engine with a stand-in for vLLM. `test_engines.py` runs the real one."""

import json
import shutil

import pytest
from datasets import Dataset
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file

import trl_rlp.data.sampling.vllm_engine as vllm_engine
from tests.data.sampling.fakes import FakeVLLM
from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.sampling import sample_completions
from trl_rlp.data.sampling.completion_text import CompletionReader
from trl_rlp.data.sampling.seeds import derive_seed
from trl_rlp.data.validation import require_samples


TEXTS = ["One?", "What is two and two?", "No", "Three, four,"]
CHATS = [[{"role": "user", "content": "Who?"}], [{"role": "assistant", "content": "It was"}]]
SETTINGS = {"num_generations": 3, "max_new_tokens": 6, "shard_size": 2}


@pytest.fixture
def fake_vllm(monkeypatch, tmp_path):
    return FakeVLLM(monkeypatch, tmp_path)


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def folder(tokenizer, tmp_path):
    model = tiny_causal_lm(tokenizer)
    model.generation_config.eos_token_id = list(range(1, 61))
    return save(model, tokenizer, tmp_path / "model")


def sample(model, rows=TEXTS, **settings):
    return sample_completions(Dataset.from_dict({"prompt": rows}), model, engine="vllm", **{**SETTINGS, **settings})


def test_vllm_gets_token_ids_and_the_settings_of_the_other_engine(fake_vllm, folder, tokenizer):
    samples = sample(folder, temperature=0.7, top_p=0.9, top_k=5, seed=4, engine_args={"gpu_memory_utilization": 0.5})
    require_samples(samples)
    assert fake_vllm.read("llm") == [
        {
            "model": folder,
            "dtype": "float32",
            "max_model_len": 20 + 6,
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
            "gpu_memory_utilization": 0.5,
        }
    ]
    prompts = [[entry["prompt_token_ids"] for entry in request] for request in fake_vllm.read("prompts")]
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    assert prompts == [[ids[1], ids[3]], [ids[0], ids[2]]]  # shards of two, the longest prompts first
    params = sum(fake_vllm.read("params"), [])
    assert [entry.pop("seed") for entry in params] == [derive_seed(4, row) for row in (1, 3, 0, 2)]
    eos = [tokenizer.eos_token_id, *range(1, 61)]
    common = {"n": 3, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "max_tokens": 6, "ignore_eos": True}
    expected = {**common, "stop_token_ids": list(dict.fromkeys(eos)), "detokenize": False}
    assert params == [expected] * 4


@pytest.mark.parametrize("stops", [None, [*range(150, 200)], []], ids=["eos", "others", "none"])
def test_completions_end_as_with_the_other_engine(fake_vllm, folder, tokenizer, stops):
    """The texts are those of the drawn tokens, read as the engine `transformers` reads them."""
    from tests.fake_vllm import vllm

    samples = sample(folder, stop_token_ids=stops)
    (_, params) = fake_vllm.read("prompts"), sum(fake_vllm.read("params"), [])
    drawn = [[list(vllm.LLM._draw(None, entry, index).token_ids) for index in range(3)] for entry in params]
    eos = [tokenizer.eos_token_id, *range(1, 61)]
    reader = CompletionReader(tokenizer, eos if stops is None else stops, eos)
    rows = [1, 3, 0, 2]
    expected = {
        row: reader.read(ids, TEXTS[row], tokenizer(TEXTS[row])["input_ids"])
        for row, ids in zip(rows, drawn, strict=True)
    }
    for row in rows:
        assert (samples[row]["completions"], samples[row]["finished"]) == expected[row]
    finished = sum(samples["finished"], [])
    assert any(finished) == (stops != []) and not all(finished)


def test_chats_are_rendered_here_and_continued(fake_vllm, folder, tokenizer):
    sample(folder, CHATS)
    prompts = [entry["prompt_token_ids"] for entry in sum(fake_vllm.read("prompts"), [])]
    assert sorted(map(tokenizer.decode, prompts)) == ["<|assistant|>It was", "<|user|>Who?<|assistant|>"]


def test_a_resumed_run_samples_the_rest_and_a_finished_one_starts_no_vllm(fake_vllm, folder, tmp_path):
    expected = sample(folder).to_list()
    shards = tmp_path / "shards"
    assert sample(folder, output_dir=shards).to_list() == expected
    before = len(fake_vllm.read("llm"))
    assert sample(folder, output_dir=shards).to_list() == expected and len(fake_vllm.read("llm")) == before
    (shards / "shard-00001.arrow").unlink()
    # Another amount of memory is no other run.
    assert sample(folder, output_dir=shards, engine_args={"gpu_memory_utilization": 0.5}).to_list() == expected
    assert [len(request) for request in fake_vllm.read("prompts")] == [2] * 5


@pytest.mark.parametrize(
    ("change", "match"), [({"seed": 3}, "`seed` was 0 and is 3"), ({"engine": "transformers"}, "`engine` was 'vllm'")]
)
def test_a_folder_of_another_run_is_an_error(fake_vllm, folder, tmp_path, change, match):
    sample(folder, output_dir=tmp_path / "shards")
    prompts = Dataset.from_dict({"prompt": TEXTS})
    with pytest.raises(ValueError, match=match):
        sample_completions(
            prompts, folder, **{"engine": "vllm", "output_dir": tmp_path / "shards", **SETTINGS, **change}
        )


def test_other_weights_are_another_policy(fake_vllm, folder, tokenizer, tmp_path):
    sample(folder, output_dir=tmp_path / "shards")
    shutil.rmtree(folder)
    save(tiny_causal_lm(tokenizer, seed=1), tokenizer, folder)
    with pytest.raises(ValueError, match="`policy` was"):
        sample(folder, output_dir=tmp_path / "shards")


def test_an_adapter_is_merged(fake_vllm, folder, tokenizer, tmp_path, monkeypatch):
    model = tiny_causal_lm(tokenizer)
    policy = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False))
    policy.peft_config["default"].base_model_name_or_path = folder
    policy.save_pretrained(tmp_path / "adapter")
    merged = []
    monkeypatch.setattr(
        "trl_rlp.data.sampling.vllm_engine.VLLMProcess",
        lambda arguments, devices: merged.append(load_file(f"{arguments['model']}/model.safetensors")) or Recorder(),
    )
    sample(tmp_path / "adapter", output_dir=tmp_path / "shards")
    expected = policy.merge_and_unload().state_dict()
    assert merged[0].keys() <= expected.keys()
    assert all((tensor - expected[name]).abs().max() < 1e-6 for name, tensor in merged[0].items())


class Recorder:
    """A process that draws one token."""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def sample(self, prompts, params):
        return [[[70]] * entry["n"] for entry in params]


def test_an_adapter_of_virtual_tokens_is_an_error(fake_vllm, folder, tokenizer, tmp_path):
    policy = get_peft_model(tiny_causal_lm(tokenizer), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    policy.peft_config["default"].base_model_name_or_path = folder
    policy.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="is an adapter of virtual tokens"):
        sample(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"engine_args": {"dtype": "float16", "model": "x"}}, r"`engine_args` may not set \['dtype', 'model'\]"),
        ({"temperature": 0.001}, "`temperature` must be at least 0.01 for `engine`='vllm', got 0.001"),
        ({"tokens_per_batch": 10}, "`tokens_per_batch`=10 has no effect with `engine`='vllm'"),
        ({"engine_args": {"max_model_len": 25}}, "`max_model_len`=25, but .* have 26 tokens, so vLLM would cut"),
        (
            {"stop_token_ids": [10**6]},
            "`stop_token_ids` has .1000000., but the policy's vocabulary",
        ),
        ({"model_options": {"quantization_config": {}}}, "does not read `quantization_config`"),
        ({"rows": ["a", "b" * 600]}, "`prompts` row 1 has 600 tokens"),
    ],
)
def test_bad_arguments_are_errors_before_vllm_starts(fake_vllm, folder, settings, match):
    with pytest.raises(ValueError, match=match):
        sample(folder, **settings)
    assert not fake_vllm.read("llm")


def test_a_loaded_model_and_a_classifier_are_errors(fake_vllm, tokenizer, tmp_path):
    with pytest.raises(TypeError, match="`model` must be a folder or a Hub name for `engine`='vllm', got `LlamaFor"):
        sample(tiny_causal_lm(tokenizer))
    classifier = save(tiny_reward_model(tokenizer), tokenizer, tmp_path / "classifier")
    with pytest.raises(ValueError, match="is not a causal LM"):
        sample(classifier)


def test_trust_and_revision_reach_the_check_of_the_model(fake_vllm, folder, monkeypatch):
    calls = []
    monkeypatch.setattr(vllm_engine, "require_causal_lm", lambda path, **options: calls.append((path, options)))
    options = {"trust_remote_code": True, "revision": "v2"}
    sample(folder, model_options=options)
    assert calls == [(folder, options)]


def test_dtype_and_trust_reach_vllm(fake_vllm, folder):
    sample(folder, model_options={"dtype": "bfloat16", "trust_remote_code": True, "attn_implementation": "sdpa"})
    (arguments,) = fake_vllm.read("llm")
    assert arguments["dtype"] == "bfloat16" and arguments["trust_remote_code"] is True
    assert "attn_implementation" not in json.dumps(arguments)
