import json
import shutil

import pytest

import trl_rlp.data.sampling.transformers_engine as transformers_engine
from tests.data.sampling.fakes import FakeVLLM
from tests.servers import FakeServer
from trl_rlp.cli import main
from trl_rlp.data.sampling.engines import sample_completions
from trl_rlp.storage.artifacts import load_policy
from trl_rlp.storage.loading import load_rows


@pytest.fixture
def words(tmp_path, models, write_rows):
    prompts = write_rows("prompts.jsonl", [{"prompt": "a?"}, {"prompt": "b?"}])
    words = ["sample", "--model", models["policy"], "--prompts", prompts, "--output_dir", str(tmp_path / "out")]
    return [*words, "--num_generations", "3", "--max_new_tokens", "4"]


def test_json_lines_are_written_from_another_column(tmp_path, models, write_rows, capsys):
    prompts = write_rows("prompts.jsonl", [{"instruction": "a"}, {"instruction": "b"}])
    words = ["sample", "--model", models["policy"], "--prompts", prompts, "--prompt_column", "instruction"]
    words += ["--num_generations", "3", "--max_new_tokens", "4", "--output_dir", str(tmp_path / "out")]
    assert main(words) == 0
    assert "6 completions" in capsys.readouterr().out
    rows = load_rows(str(tmp_path / "out" / "samples.jsonl"))
    assert rows["prompt"] == ["a", "b"] and [len(row) for row in rows["completions"]] == [3, 3]


def test_options_reach_the_sampler(tmp_path, models, words):
    options = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "tokens_per_batch": 20}
    assert main([*words, *(f"--{name}={value}" for name, value in options.items())]) == 0
    prompts = load_rows(words[words.index("--prompts") + 1])
    expected = sample_completions(
        prompts, *load_policy(models["policy"]), num_generations=3, max_new_tokens=4, **options
    )
    assert load_rows(str(tmp_path / "out" / "samples.jsonl")).to_list() == expected.to_list()


def test_a_second_call_reads_the_shards(tmp_path, words, monkeypatch):
    assert main(words) == 0
    first = (tmp_path / "out" / "samples.jsonl").read_text()
    (tmp_path / "out" / "samples.jsonl").unlink()
    monkeypatch.setattr(transformers_engine, "generate_samples", lambda *_, **__: 1 / 0)
    assert main(words) == 0
    assert (tmp_path / "out" / "samples.jsonl").read_text() == first
    assert main([*words, "--seed", "7"]) == 2  # the shards have another seed


def test_samples_of_unknown_origin_are_not_replaced(tmp_path, words, capsys):
    assert main(words) == 0
    samples = tmp_path / "out" / "samples.jsonl"
    shutil.rmtree(tmp_path / "out" / "shards")
    text = samples.read_text()
    assert main([*words, "--seed", "7"]) == 2
    assert f"{samples} has no shards, so its origin is unknown. Choose another" in capsys.readouterr().err
    assert samples.read_text() == text and not (tmp_path / "out" / "shards").exists()


def test_a_server_gets_the_same_options(tmp_path, words):
    fake = FakeServer()
    words[2] = "served-policy"
    options = ["--base_url", fake.url, "--temperature", "0.5", "--top_p", "0.9", "--max_concurrency", "1"]
    assert main([*words, *options]) == 0
    mapping = ["--engine", "server", "--engine_args", json.dumps({"base_url": fake.url})]
    assert main([*words, *options[2:], *mapping]) == 0  # the shards are finished, so nothing is asked
    fake.server.shutdown()
    fake.server.server_close()
    expected = {"model": "served-policy", "n": 3, "max_tokens": 4, "temperature": 0.5, "top_p": 0.9}
    assert len(fake.requests) == 2 and all(expected.items() <= request.items() for request in fake.requests)
    assert fake.max_concurrent == 1
    rows = load_rows(str(tmp_path / "out" / "samples.jsonl"))
    assert rows["prompt"][:] == ["a?", "b?"] and rows["finished"][0] == [True, False, True]


def test_vllm_gets_the_engine_args(tmp_path, words, models, monkeypatch):
    fake_vllm = FakeVLLM(monkeypatch, tmp_path)
    assert main([*words, "--engine", "vllm", "--engine_args", '{"gpu_memory_utilization": 0.5}']) == 0
    (arguments,) = fake_vllm.read("llm")
    assert arguments["model"] == models["policy"] and arguments["gpu_memory_utilization"] == 0.5
    rows = load_rows(str(tmp_path / "out" / "samples.jsonl"))
    assert [len(row) for row in rows["completions"]] == [3, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "server"], "`engine`='server' needs the address of the server. Pass it as `base_url`."),
        (["--engine", "transformers", "--base_url", "x"], "`base_url` is passed, but `engine`='transformers' asks no"),
        (["--engine", "sglang"], "`engine` must be one of ['server', 'transformers', 'vllm'], got 'sglang'"),
        (["--base_url", "x", "--tokens_per_batch", "5"], "`tokens_per_batch`=5 has no effect with `engine`='server'"),
        (["--base_url", "x", "--model_revision", "v2"], "`model_revision` has no effect with `engine`='server'"),
        (
            ["--base_url", "x", "--inference_dtype", "float32"],
            "`inference_dtype` has no effect with `engine`='server'",
        ),
        (["--max_concurrency", "2"], "`max_concurrency` has no effect with `engine`='transformers'. Remove it."),
    ],
)
def test_an_engine_with_wrong_options_is_an_error(words, options, message, capsys):
    assert main([*words, *options]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_model_is_an_error(tmp_path, write_rows, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    prompts = write_rows("prompts.jsonl", [{"prompt": "a"}])
    assert main(["sample", "--model", "no-such-model", "--prompts", prompts, "--output_dir", str(tmp_path)]) == 2
    assert "No model could be loaded from 'no-such-model'" in capsys.readouterr().err


def test_a_missing_prompt_column_is_an_error(tmp_path, models, write_rows, capsys):
    prompts = write_rows("prompts.jsonl", [{"text": "a"}])
    words = ["sample", "--model", models["policy"], "--prompts", prompts, "--output_dir", str(tmp_path / "out")]
    assert main(words) == 2
    assert "`prompt_column`='prompt' names no column of `prompts`, which has ['text']" in capsys.readouterr().err
