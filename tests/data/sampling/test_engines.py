"""The front door of the engines, and the agreement of the engines with exact probabilities on a real vLLM."""

import importlib.util
import itertools
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from scipy.stats import chisquare
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tests.data.sampling.fakes import FAKE_VLLM
from tests.servers import run_server
from tests.tiny_models import save, tiny_causal_lm, tiny_tokenizer
from trl_rlp.data.sampling import sample_completions, sample_from_server
from trl_rlp.data.sampling.engines import ENGINES, require_engine


PROMPTS = Dataset.from_dict({"prompt": ["One?", "Two?"]})
EOS, STOP, UNKNOWN = 0, 1, 2
WORDS = ["<eos>", "stop", "<unk>", *"abcdefghijklmnopqrst"]
LENGTH = 2
SAMPLES = 5_000


@pytest.mark.parametrize("engine", ["transformers", "vllm", "server"])
def test_each_engine_is_chosen_by_its_name(engine, monkeypatch):
    calls = []
    monkeypatch.setitem(ENGINES, engine, lambda call: calls.append(call) or "samples")
    monkeypatch.setattr("trl_rlp.data.sampling.engines.require_vllm", lambda: None)
    arguments = {"base_url": "http://localhost:1/v1"} if engine == "server" else None
    assert sample_completions(PROMPTS, "policy", engine=engine, engine_args=arguments, seed=3) == "samples"
    assert calls[0].settings["seed"] == 3 and calls[0].engine_args == (arguments or {})


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"engine": "sglang"}, r"`engine` must be one of \['server', 'transformers', 'vllm'\], got 'sglang'"),
        ({"engine_args": {"dtype": "x"}}, r"`engine_args` has \['dtype'\], but the engine 'transformers' has no arg"),
        ({"engine": "server"}, "`engine`='server' needs the address of the server. Pass it as `base_url`"),
        ({"engine": "server", "engine_args": {"url": "x"}}, r"`engine_args` has \['url'\], but a server has \['"),
        ({"engine": "server", "tokens_per_batch": 4}, "`tokens_per_batch`=4 has no effect with `engine`='server'"),
        ({"tokens_per_batch": 0}, "`tokens_per_batch` must be at least 1"),
    ],
)
def test_an_engine_with_wrong_arguments_is_an_error(arguments, match):
    with pytest.raises(ValueError, match=match):
        sample_completions(PROMPTS, "policy", **arguments)


def test_engine_args_that_are_no_mapping_are_an_error():
    with pytest.raises(TypeError, match="`engine_args` must be a mapping, got `str`"):
        sample_completions(PROMPTS, "policy", engine_args="x")


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_that_is_not_installed_is_an_error_before_any_work():
    with pytest.raises(ImportError, match="`engine`='vllm' needs vLLM, which is not installed"):
        sample_completions(PROMPTS, "no such folder", engine="vllm")


def test_a_client_of_servers_that_is_not_installed_is_an_error_before_any_work(tmp_path, monkeypatch):
    """Neither the check of the settings nor the sampling needs a server for it, and no folder is started."""
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"pip install 'trl-rlp\[server\]'"):
        require_engine("server", {"base_url": "http://localhost:1/v1"})
    prompts = Dataset.from_dict({"prompt": ["One?"]})
    with pytest.raises(ImportError, match=r"pip install 'trl-rlp\[server\]'"):
        sample_from_server(prompts, "http://localhost:1/v1", "policy", output_dir=tmp_path / "samples")
    assert not (tmp_path / "samples").exists()


def test_a_policy_is_loaded_by_its_path_as_it_would_be_by_hand(tmp_path):
    tokenizer = tiny_tokenizer()
    model = tiny_causal_lm(tokenizer)
    folder = save(model, tokenizer, tmp_path)
    settings = {"num_generations": 2, "max_new_tokens": 4}
    expected = sample_completions(PROMPTS, model, tokenizer, **settings).to_list()
    assert sample_completions(PROMPTS, folder, **settings).to_list() == expected
    halved = sample_completions(PROMPTS, folder, model_options={"dtype": "bfloat16"}, **settings)
    assert halved.num_rows == 2
    with pytest.raises(ValueError, match="`model_options` is set, but `model` is loaded"):
        sample_completions(PROMPTS, model, tokenizer, model_options={"dtype": "bfloat16"})
    with pytest.raises(TypeError, match="`processing_class` is None, but `model` is loaded"):
        sample_completions(PROMPTS, model)


def test_the_server_is_asked_as_by_its_own_function(fake, tmp_path):
    arguments = {"base_url": fake.url, "extra_body": {"top_k": -1}, "max_concurrency": 1}
    settings = {"num_generations": 3, "temperature": 0.7, "seed": 2}
    samples = sample_completions(
        PROMPTS, "policy", engine="server", engine_args=arguments, max_new_tokens=17, **settings
    )
    theirs = sample_from_server(PROMPTS, model="policy", max_tokens=17, **arguments, **settings)
    assert samples.to_list() == theirs.to_list() and fake.requests[:2] == fake.requests[2:]
    named = {**arguments, "model": "other name"}
    sample_completions(PROMPTS, tmp_path, engine="server", engine_args=named, num_generations=3, shard_size=1)
    assert fake.requests[-1]["model"] == "other name"


@pytest.mark.parametrize(
    "setting", [{"top_k": 5}, {"stop_token_ids": [1]}, {"chat_template_kwargs": {"style": "a"}}], ids=str
)
def test_what_does_not_reach_a_server_is_an_error(fake, setting):
    (name,) = setting
    with pytest.raises(ValueError, match=f"`{name}`=.* does not reach a server. Remove it, or pass `engine_args="):
        sample_completions(PROMPTS, "policy", engine="server", engine_args={"base_url": fake.url}, **setting)
    assert not fake.requests


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A tiny Llama with 23 words, whose probabilities are far from equal. vLLM's CPU kernels need heads of 64."""
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=128,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        initializer_range=0.1,
        eos_token_id=EOS,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    model.generation_config.update(do_sample=True, top_k=3, temperature=0.1, repetition_penalty=2.0)  # has no effect
    return save(model, tokenizer, tmp_path_factory.mktemp("policy")), model, tokenizer


def list_outcomes(model, tokenizer, stops, **settings):
    """Computes the exact probability of each completion of two tokens, as (text, finished)."""
    warpers = [
        TemperatureLogitsWarper(settings.get("temperature", 1.0)),
        TopKLogitsWarper(settings.get("top_k") or len(WORDS)),
        TopPLogitsWarper(settings.get("top_p", 1.0)),
    ]

    def next_token(rows):
        with torch.no_grad():
            scores = model(torch.tensor(rows)).logits[:, -1].float()
        for warper in warpers:
            scores = warper(None, scores)
        return scores.double().softmax(-1)

    prompt = tokenizer("a b c")["input_ids"]
    first = next_token([prompt])[0]
    second = next_token([[*prompt, token] for token in range(len(WORDS))])
    outcomes = Counter()
    for token, other in itertools.product(range(len(WORDS)), repeat=LENGTH):
        ids = [token] if token in stops else [token, other]
        text = " ".join(WORDS[index] for index in ids if index not in (EOS, UNKNOWN))  # without special tokens
        outcomes[text, ids[-1] in stops] += float(first[token] * second[token, other])
    return outcomes


def require_agreement(samples, outcomes):
    """Compares frequencies with exact probabilities: chi-square, with rare outcomes in one cell."""
    pairs = zip(sum(samples["completions"], []), sum(samples["finished"], []), strict=True)
    counts = Counter((text.strip(), finished) for text, finished in pairs)
    total = counts.total()
    impossible = [outcome for outcome in counts if outcomes[outcome] < 1e-9]
    assert not impossible, "completions that the policy cannot write"
    cells = [outcome for outcome, probability in outcomes.items() if probability * total >= 5]
    observed = [counts[outcome] for outcome in cells]
    expected = [outcomes[outcome] * total for outcome in cells]
    rest = total - sum(expected)
    if rest >= 5:
        observed, expected = [*observed, total - sum(observed)], [*expected, rest]
    scale = sum(observed) / sum(expected)
    result = chisquare(observed, [value * scale for value in expected])
    distance = sum(abs(counts[outcome] / total - probability) for outcome, probability in outcomes.items()) / 2
    finished = sum(count for (_, finished), count in counts.items() if finished) / total
    exact = sum(probability for (_, finished), probability in outcomes.items() if finished)
    sys.stdout.write(
        f"\n{total} samples, {len(cells)} cells: chi-square p = {result.pvalue:.3f}, total variation {distance:.4f}, "
        f"finished {finished:.4f} (exact {exact:.4f})\n"
    )
    assert result.pvalue > 1e-4 and abs(finished - exact) < 0.02


WHOLE = {}
CUT = {"temperature": 0.8, "top_k": 12, "top_p": 0.9}


def sample(model, tokenizer=None, **settings):
    """Each row has the same prompt, and so do both shards."""
    prompts = Dataset.from_dict({"prompt": ["a b c"] * 100})
    settings = {"num_generations": SAMPLES // 100, "max_new_tokens": LENGTH, "shard_size": 50, **settings}
    return sample_completions(prompts, model, tokenizer, **settings)


@pytest.mark.parametrize("settings", [WHOLE, CUT], ids=["whole", "cut"])
def test_transformers_agrees_with_exact_probabilities(policy, settings):
    _, model, tokenizer = policy
    samples = sample(model, tokenizer, stop_token_ids=[EOS, STOP], tokens_per_batch=20_000, **settings)
    require_agreement(samples, list_outcomes(model, tokenizer, [EOS, STOP], **settings))


def finds_vllm():
    spec = importlib.util.find_spec("vllm")
    return spec is not None and FAKE_VLLM.as_posix() not in str(spec.origin)


needs_vllm = pytest.mark.skipif(not finds_vllm(), reason="needs vLLM, see `make vllm`")


@pytest.mark.slow
@needs_vllm
@pytest.mark.parametrize("settings", [WHOLE, CUT], ids=["whole", "cut"])
def test_vllm_agrees_with_exact_probabilities_and_repeats_its_samples(policy, settings, tmp_path):
    folder, model, tokenizer = policy
    settings = {**settings, "stop_token_ids": [EOS, STOP], "engine": "vllm", "engine_args": {"enforce_eager": True}}
    samples = sample(folder, output_dir=tmp_path, **settings)
    require_agreement(samples, list_outcomes(model, tokenizer, [EOS, STOP], **settings))
    (tmp_path / "shard-00001.arrow").unlink()
    assert sample(folder, output_dir=tmp_path, **settings).to_list() == samples.to_list()


@pytest.mark.slow
@needs_vllm
def test_a_vllm_server_agrees_with_exact_probabilities(policy):
    folder, model, tokenizer = policy
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--dtype", "float32"]
    command += ["--served-model-name", "policy", "--enforce-eager", "--max-model-len", "16"]
    with run_server(Path(folder), command, seconds=600) as url:
        arguments = {"base_url": url, "extra_body": {"top_k": -1, "repetition_penalty": 1.0}, "max_concurrency": 4}
        samples = sample("policy", engine="server", engine_args=arguments)
    require_agreement(samples, list_outcomes(model, tokenizer, [EOS]))
