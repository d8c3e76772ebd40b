import itertools

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

import trl_rlp.data.sampling.transformers_engine as transformers_engine
from tests.programs import run_two_processes
from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.sampling.engines import sample_completions
from trl_rlp.data.sampling.seeds import derive_seed
from trl_rlp.data.sampling.shared_prefill import generate_samples
from trl_rlp.data.validation import require_samples


TEXTS = ["One?", "What is two and two?", "No", "Three, four,", "Name a colour of the sky at noon."]
CHATS = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}] for text in TEXTS]
# A tiny random model draws all tokens about equally often. With 60 of 261 tokens as EOS, some samples end.
MANY_EOS = list(range(1, 61))
SMALL = {"num_generations": 3, "max_new_tokens": 8, "shard_size": 2, "tokens_per_batch": 200}


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def model(tokenizer):
    model = tiny_causal_lm(tokenizer)
    model.generation_config.eos_token_id = MANY_EOS
    return model


def prompts(rows=TEXTS, **columns):
    return Dataset.from_dict({"prompt": rows, **columns})


def sample_by_hand(model, tokenizer, row, text, seed, n, max_new_tokens):
    """Draws every token with the prompt's own generator: the most probable one after a division by Exp(1) noise."""
    prompt = tokenizer(text)["input_ids"]
    generator = torch.Generator().manual_seed(derive_seed(seed, row))
    rows = torch.tensor([prompt] * n)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            probabilities = model(rows).logits[:, -1].float().softmax(-1)
        tokens = (probabilities / torch.empty_like(probabilities).exponential_(generator=generator)).argmax(-1)
        rows = torch.cat([rows, tokens[:, None]], dim=1)
    texts, finished = [], []
    for tokens in rows[:, len(prompt) :].tolist():
        kept = list(itertools.takewhile(lambda token: token not in MANY_EOS, tokens))
        texts.append(tokenizer.decode(kept))
        finished.append(len(kept) < len(tokens))
    return texts, finished


@pytest.mark.parametrize("tokens_per_batch", [1, 10_000])
def test_each_prompt_is_drawn_with_its_own_generator(model, tokenizer, tokens_per_batch):
    """The samples of a prompt do not depend on the prompts of its batch."""
    settings = {"num_generations": 4, "max_new_tokens": 3, "seed": 5, "tokens_per_batch": tokens_per_batch}
    samples = sample_completions(prompts(), model, tokenizer, **settings)
    require_samples(samples)
    expected = [sample_by_hand(model, tokenizer, row, text, 5, 4, 3) for row, text in enumerate(TEXTS)]
    assert list(zip(samples["completions"], samples["finished"], strict=True)) == expected
    finished = np.array(samples["finished"])
    assert finished.any() and not finished.all()


def test_a_batch_that_does_not_fit_is_halved_and_said_once(model, tokenizer, tmp_path, monkeypatch, caplog):
    """The device holds 2 prompts x 3 completions at a time. A resumed run may have another budget."""
    settings = {"num_generations": 3, "max_new_tokens": 8, "output_dir": tmp_path}
    expected = sample_completions(prompts(), model, tokenizer, num_generations=3, max_new_tokens=8).to_list()

    failures = []

    def small_device(model, prompt_ids, *args, **kwargs):
        if len(prompt_ids) > 2:
            failures.append(len(prompt_ids))
            raise torch.OutOfMemoryError
        return generate_samples(model, prompt_ids, *args, **kwargs)

    monkeypatch.setattr(transformers_engine, "generate_samples", small_device)
    assert sample_completions(prompts(), model, tokenizer, **settings).to_list() == expected
    assert caplog.text.count("did not fit into the memory of the device") == 1
    assert failures.count(5) == 1  # the batch is halved, not the budget of 8192 tokens, which it does not fill
    (shard,) = tmp_path.glob("shard-*.arrow")
    assert max(Dataset.from_file(str(shard))["tokens_per_batch"]) < 8192 / 8
    assert sample_completions(prompts(), model, tokenizer, tokens_per_batch=1, **settings).to_list() == expected


def test_one_prompt_that_does_not_fit_is_an_error(model, tokenizer, monkeypatch):
    def full_device(*args, **kwargs):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(transformers_engine, "generate_samples", full_device)
    with pytest.raises(torch.OutOfMemoryError, match="The 3 completions of one prompt do not fit"):
        sample_completions(prompts(), model, tokenizer, **SMALL)


def test_a_policy_that_returns_nan_is_an_error(model, tokenizer, tmp_path):
    """Its completions would be texts without meaning."""
    model.lm_head.weight.data[7, 0] = torch.nan
    with pytest.raises(ValueError, match="`model` returns NaN for a prompt of the rows .* load it in bfloat16"):
        sample_completions(prompts(), model, tokenizer, output_dir=tmp_path, **SMALL)
    assert not list(tmp_path.glob("shard-*"))


@pytest.mark.parametrize("rows", [TEXTS, CHATS], ids=["text", "chat"])
def test_rows_keep_their_order_and_their_columns(model, tokenizer, rows):
    model.lm_head.weight.data.zero_()  # all tokens are equally likely, so samples do not depend on the prompt
    data = prompts(rows, answer=[str(row) for row in range(5)], finished=["stale"] * 5)
    samples = sample_completions(data, model, tokenizer, **SMALL)
    assert samples.column_names == ["prompt", "answer", "completions", "finished"]
    assert samples["prompt"][:] == rows and samples["answer"][:] == list("01234")
    require_samples(samples)


def test_each_prompt_gets_its_own_samples(tokenizer):
    """The model always continues token t with t + 1, so a prompt that ends with "a" continues with "bcd"."""
    model = tiny_causal_lm(tokenizer, num_hidden_layers=0, hidden_size=300, tie_word_embeddings=False)
    size = len(tokenizer)
    model.model.embed_tokens.weight.data.copy_(torch.eye(size, 300))
    model.lm_head.weight.data.copy_(1000 * torch.eye(size, 300).roll(1, dims=0))
    samples = sample_completions(
        prompts(["xxa", "k", "long text f", "xb"]), model, tokenizer, **{**SMALL, "max_new_tokens": 3}
    )
    assert samples["completions"][:] == [["bcd"] * 3, ["lmn"] * 3, ["ghi"] * 3, ["cde"] * 3]
    assert samples["finished"][:] == [[False] * 3] * 4


def test_chat_prompts_open_or_continue_an_assistant_turn(model, tokenizer, monkeypatch):
    seen = []

    def record(model, prompt_ids, *args, **kwargs):
        seen.extend(tokenizer.decode(ids) for ids in prompt_ids)
        return generate_samples(model, prompt_ids, *args, **kwargs)

    monkeypatch.setattr(transformers_engine, "generate_samples", record)
    question = [{"role": "user", "content": "Who?"}]
    prefilled = [*question, {"role": "assistant", "content": "It was"}]
    sample_completions(prompts([question, prefilled]), model, tokenizer, **SMALL)
    assert sorted(seen) == ["<|user|>Who?<|assistant|>", "<|user|>Who?<|assistant|>It was"]


def test_samples_depend_on_the_seed_only_and_the_global_random_state_is_kept(model, tokenizer):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = sample_completions(prompts(), model, tokenizer, **SMALL)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert sample_completions(prompts(), model, tokenizer, **SMALL).to_list() == first.to_list()
    assert sample_completions(prompts(), model, tokenizer, seed=1, **SMALL).to_list() != first.to_list()


def test_equal_prompts_in_different_shards_get_different_samples(model, tokenizer):
    samples = sample_completions(prompts(["Who?"] * 4), model, tokenizer, **SMALL)
    assert len({tuple(row) for row in samples["completions"]}) == 4


@pytest.mark.parametrize("policy", ["classifier", "bare"])
def test_a_model_that_is_not_a_causal_lm_is_an_error(model, tokenizer, policy):
    others = {"classifier": tiny_reward_model(tokenizer), "bare": model.model}
    with pytest.raises(TypeError, match="`model` must be a causal LM, got `(LlamaForSeq.*|LlamaModel)`. Load it"):
        sample_completions(prompts(), others[policy], tokenizer, **SMALL)


def test_a_compiled_policy_can_be_sampled(model, tokenizer):
    compiled = torch.compile(model, backend="eager")
    assert len(sample_completions(prompts(), compiled, tokenizer, **SMALL)) == len(prompts())


def test_samples_do_not_depend_on_the_pad_token(model):
    distinct, equal, missing = tiny_tokenizer(), tiny_tokenizer(pad_is_eos=True), tiny_tokenizer()
    missing.pad_token = None
    model.generation_config.pad_token_id = None
    tokenizers = (distinct, equal, missing)
    rows = [sample_completions(prompts(), model, tokenizer, **SMALL).to_list() for tokenizer in tokenizers]
    assert rows[0] == rows[1] == rows[2]
    assert missing.pad_token is None and missing.padding_side == distinct.padding_side


@pytest.mark.parametrize("model_eos", [None, 42, [42, 43]])
def test_eos_of_the_tokenizer_and_of_the_generation_config_end_a_sample(tokenizer, model_eos, monkeypatch):
    """`generate_samples` returns fixed tokens. A sample ends at the first EOS token."""
    model = tiny_causal_lm(tokenizer)
    model.generation_config.eos_token_id = model_eos
    letters = tokenizer("abc")["input_ids"]
    tokens = [[*letters, tokenizer.eos_token_id, 0], [*letters, 42, 43], [*letters, 43, 43], letters + letters[:2]]
    monkeypatch.setattr(transformers_engine, "generate_samples", lambda *_, **__: torch.tensor([tokens]))
    samples = sample_completions(prompts(["x"]), model, tokenizer, num_generations=4, max_new_tokens=5)
    assert samples[0]["finished"] == [True, model_eos is not None, isinstance(model_eos, list), False]
    assert samples[0]["completions"][0] == "abc" and samples[0]["completions"][3] == "abcab"
    assert (samples[0]["completions"][1] == "abc") == (model_eos is not None)


def test_white_space_at_the_start_of_a_completion_is_kept(monkeypatch):
    """SentencePiece decodes the token of " Paris" to "Paris" if it is alone, and to " Paris" after the prompt."""
    vocabulary = {token: index for index, token in enumerate(["<unk>", "</s>", "▁Capital", ":", "▁Paris", "Lyon"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Split(":", "isolated")]
    )
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    assert tokenizer("Capital:")["input_ids"] == [2, 3] and tokenizer.decode([4]) == "Paris"
    monkeypatch.setattr(transformers_engine, "generate_samples", lambda *_, **__: torch.tensor([[[4, 1], [5, 1]]]))
    model = tiny_causal_lm(tokenizer)
    samples = sample_completions(prompts(["Capital:"]), model, tokenizer, num_generations=2, max_new_tokens=2)
    assert samples[0]["completions"] == [" Paris", "Lyon"]


def test_modes_and_generation_config_of_the_model_are_restored(model, tokenizer):
    config = model.generation_config
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    is_training = []
    model.register_forward_pre_hook(lambda model, _: is_training.append(any(m.training for m in model.modules())))
    sample_completions(prompts(), model, tokenizer, **SMALL)
    assert is_training and not any(is_training)
    assert [module.training for module in model.modules()] == modes
    assert model.generation_config is config


def test_the_models_own_generation_settings_have_no_effect(model, tokenizer):
    expected = sample_completions(prompts(), model, tokenizer, **SMALL).to_list()
    model.generation_config = GenerationConfig(
        eos_token_id=MANY_EOS, top_k=1, repetition_penalty=5.0, min_new_tokens=8, num_beams=2, do_sample=False
    )
    assert sample_completions(prompts(), model, tokenizer, **SMALL).to_list() == expected
    greedy = sample_completions(prompts(), model, tokenizer, top_k=1, **SMALL)
    assert all(len(set(row)) == 1 for row in greedy["completions"])


def test_a_lora_policy_is_sampled_with_its_adapter(model, tokenizer, tmp_path):
    base = sample_completions(prompts(), model, tokenizer, **SMALL).to_list()
    policy = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=64, init_lora_weights=False))
    adapted = sample_completions(prompts(), policy, tokenizer, output_dir=tmp_path, **SMALL).to_list()
    assert adapted != base
    with policy.disable_adapter():
        assert sample_completions(prompts(), policy, tokenizer, **SMALL).to_list() == base
        with pytest.raises(ValueError, match="`policy` was"):
            sample_completions(prompts(), policy, tokenizer, output_dir=tmp_path, **SMALL)


def test_an_interrupted_run_resumes_to_the_same_samples(model, tokenizer, tmp_path, monkeypatch):
    settings = {**SMALL, "tokens_per_batch": 1}
    expected = sample_completions(prompts(), model, tokenizer, **settings).to_list()
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) == 4:  # in the middle of the second shard, which has two prompts in two batches
            raise KeyboardInterrupt
        return generate_samples(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(transformers_engine, "generate_samples", interrupted)
        sample_completions(prompts(), model, tokenizer, output_dir=tmp_path, **settings)
    assert len(list(tmp_path.glob("shard-*.arrow"))) == 1
    assert sample_completions(prompts(), model, tokenizer, output_dir=tmp_path, **settings).to_list() == expected
    assert not model.training


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"temperature": 0.7}, r"`temperature` was 1\.0 and is 0\.7"),
        ({"seed": 3}, "`seed` was 0 and is 3"),
        ({"model": 1}, "`policy` was"),
        ({"tokenizer": True}, "`tokenizer` was"),
        ({"rows": TEXTS[:4]}, "`prompts` was"),
    ],
)
def test_a_folder_of_another_run_is_an_error(model, tokenizer, tmp_path, change, match):
    sample_completions(prompts(), model, tokenizer, output_dir=tmp_path, **SMALL)
    settings = {**SMALL, **change}
    if settings.pop("model", None):
        model.lm_head.weight.data[0, 0] += 1e-3
    if settings.pop("tokenizer", None):
        tokenizer.chat_template = "another"
    with pytest.raises(ValueError, match=match):
        sample_completions(prompts(settings.pop("rows", TEXTS)), model, tokenizer, output_dir=tmp_path, **settings)


@pytest.mark.parametrize(
    ("data", "settings", "match"),
    [
        (prompts(), {"num_generations": 1}, "`num_generations` must be at least 2"),
        (prompts(), {"temperature": 0}, "`temperature` must be above 0"),
        (prompts(["a", " "]), {}, "`prompts` row 1 has an empty prompt"),
        (Dataset.from_dict({"text": ["a"]}), {}, r"`prompts` lacks the columns \['prompt'\]"),
        (
            prompts(["a", "b" * 300]),
            {"max_new_tokens": 213},
            "`prompts` row 1 has 300 tokens. With `max_new_tokens`=213 this is more than the model's context of 512",
        ),
    ],
)
def test_bad_arguments_are_errors(model, tokenizer, data, settings, match):
    with pytest.raises(ValueError, match=match):
        sample_completions(data, model, tokenizer, **settings)


def test_prompt_and_completion_may_fill_the_whole_context(model, tokenizer):
    samples = sample_completions(prompts(["b" * 300]), model, tokenizer, num_generations=2, max_new_tokens=212)
    assert len(samples[0]["completions"]) == 2


def test_a_missing_eos_token_or_chat_template_is_an_error(model, tokenizer):
    no_template = tiny_tokenizer(chat=False)
    with pytest.raises(ValueError, match="no chat template, but the prompts are messages"):
        sample_completions(prompts(CHATS), model, no_template)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no EOS token, so no completion could end"):
        sample_completions(prompts(), model, tokenizer)


def test_an_encoder_decoder_is_an_error(tokenizer):
    config = T5Config(vocab_size=300, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    with pytest.raises(ValueError, match="must be a decoder-only causal LM"):
        sample_completions(prompts(), T5ForConditionalGeneration(config), tokenizer)


TWO_PROCESSES = """
import sys
import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl_rlp.data.sampling import transformers_engine
from trl_rlp.storage.processes import leave_process_group
from trl_rlp.data.sampling.engines import sample_completions

folder, texts = sys.argv[1], {texts!r}
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
prompts = Dataset.from_dict({{"prompt": texts}})
calls, generate = [], transformers_engine.generate_samples
transformers_engine.generate_samples = lambda *args, **kwargs: calls.append(1) or generate(*args, **kwargs)
for output_dir in (None, folder + "/shards", folder + "/shards"):
    samples = sample_completions(prompts, model, tokenizer, output_dir=output_dir, **{settings!r})
    samples.to_json(f"{{folder}}/{{output_dir is None}}-{{PartialState().process_index}}.jsonl")
assert torch.distributed.get_world_size() == PartialState().num_processes == 2
# Each process takes free shards. The first two calls sample three shards each, the third loads them.
print("calls:", len(calls))
try:
    sample_completions(prompts, model, tokenizer, output_dir=folder + "/shards", seed=7, **{settings!r})
except ValueError as error:
    print("refused:", error)
leave_process_group()
"""


def test_two_processes_share_the_work_and_return_the_whole_dataset(model, tokenizer, tmp_path):
    torch.set_num_threads(1)  # as in both processes
    expected = sample_completions(prompts(), model, tokenizer, **{**SMALL, "tokens_per_batch": 10_000})
    folder = save(model, tokenizer, tmp_path)
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES.format(texts=TEXTS, settings={**SMALL, "tokens_per_batch": 10_000}))
    results = run_two_processes(script, folder)
    assert [result.returncode for result in results] == [0, 0], results[0].stderr + results[1].stderr
    lines = [line for result in results for line in result.stdout.splitlines()]
    assert sum(line.startswith("refused: `output_dir`") for line in lines) == 2
    assert sum(int(line.split()[1]) for line in lines if line.startswith("calls:")) == 6
    for output in ("True-0", "True-1", "False-0", "False-1"):
        assert Dataset.from_json(f"{folder}/{output}.jsonl").to_list() == expected.to_list()


def test_template_arguments_of_a_row_and_of_all_prompts_reach_the_template_and_the_samples(model, tokenizer):
    tokenizer.chat_template = "{{ style }}:{{ other }}:" + tokenizer.chat_template
    rows = prompts(CHATS[:2], chat_template_kwargs=[{"style": "a"}, {"style": "b"}])
    options = {"chat_template_kwargs": {"style": "c", "other": "d"}, **SMALL}
    samples = sample_completions(rows, model, tokenizer, **options)
    expected = [{"style": "a", "other": "d"}, {"style": "b", "other": "d"}]
    assert samples["chat_template_kwargs"][:] == expected
    samples = sample_completions(prompts(CHATS[:2]), model, tokenizer, **options)
    assert samples["chat_template_kwargs"][:] == [{"style": "c", "other": "d"}] * 2
    samples = sample_completions(prompts(), model, tokenizer, **options)
    assert "chat_template_kwargs" not in samples.column_names  # text has no template


def test_samples_of_another_template_argument_are_not_resumed(model, tokenizer, tmp_path):
    tokenizer.chat_template = "{{ style }}:" + tokenizer.chat_template
    rows = prompts(CHATS[:2])
    sample_completions(rows, model, tokenizer, output_dir=tmp_path, **SMALL)
    with pytest.raises(ValueError, match="prompts"):
        sample_completions(rows, model, tokenizer, output_dir=tmp_path, chat_template_kwargs={"style": "a"}, **SMALL)


def test_stop_tokens_replace_eos_and_stay_in_the_text(model, tokenizer):
    stops = tokenizer("".join(map(chr, range(97, 123))))["input_ids"]  # a to z, none of which is EOS
    samples = sample_completions(prompts(), model, tokenizer, stop_token_ids=stops, **SMALL)
    pairs = [pair for row in samples for pair in zip(row["completions"], row["finished"], strict=True)]
    assert {finished for _, finished in pairs} == {True, False}
    for text, finished in pairs:
        letters = [letter for letter in text if "a" <= letter <= "z"]
        assert len(letters) == finished and text.endswith(tuple(letters) or "")
