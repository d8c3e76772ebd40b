import copy
import datetime
import json

import pytest
import torch
from datasets import Dataset, List, Value, concatenate_datasets, load_from_disk
from peft import LoraConfig, get_peft_model
from tokenizers.normalizers import Lowercase
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny_models import save, tiny_causal_lm, tiny_tokenizer
from trl_rlp.storage import fingerprints
from trl_rlp.storage.fingerprints import (
    dataset_fingerprint,
    describe_local_models,
    files_fingerprint,
    tokenizer_fingerprint,
    value_fingerprint,
    weights_fingerprint,
)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def test_models_with_equal_weights_have_equal_fingerprints(tokenizer):
    assert weights_fingerprint(tiny_causal_lm(tokenizer)) == weights_fingerprint(tiny_causal_lm(tokenizer))
    assert len(weights_fingerprint(tiny_causal_lm(tokenizer))) == 32


def test_one_bit_of_one_weight_changes_the_fingerprint(tokenizer):
    model = tiny_causal_lm(tokenizer)
    before = weights_fingerprint(model)
    with torch.no_grad():
        model.lm_head.weight.view(torch.int32)[0, 0] ^= 1
    assert weights_fingerprint(model) != before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_changes_the_fingerprint(tokenizer, dtype):
    model = tiny_causal_lm(tokenizer)
    assert weights_fingerprint(copy.deepcopy(model).to(dtype)) != weights_fingerprint(model)


def test_a_disabled_adapter_changes_the_fingerprint(tokenizer):
    model = get_peft_model(tiny_causal_lm(tokenizer), LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False))
    enabled = weights_fingerprint(model)
    with model.disable_adapter():
        disabled = weights_fingerprint(model)
    assert enabled != disabled
    assert weights_fingerprint(model) == enabled


def test_equal_models_in_two_folders_have_equal_fingerprints_of_their_files(tokenizer, tmp_path):
    folders = [save(tiny_causal_lm(tokenizer), tokenizer, tmp_path / name) for name in ("first", "second")]
    for name in ("training_args.bin", "optimizer.bin", "trainer_state.json", "eval_results.json", "README.md"):
        (tmp_path / "second" / name).write_text("of another run")
    assert files_fingerprint(folders[0]) == files_fingerprint(folders[1])


def test_whatever_changes_the_output_of_a_saved_model_changes_the_fingerprint_of_its_files(tokenizer, tmp_path):
    folder = tmp_path / "model"
    save(tiny_causal_lm(tokenizer), tokenizer, folder)
    found = {files_fingerprint(folder)}
    for name in (
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "chat_template.jinja",
    ):
        path = folder / name
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        found.add(files_fingerprint(folder))
    for name in ("pytorch_model.bin", "adapter_model.bin", "adapter_config.json", "modeling_own.py"):
        (folder / name).write_bytes(b"added")
        found.add(files_fingerprint(folder))
    assert len(found) == 1 + 5 + 4


def test_only_models_in_local_folders_are_described(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = save(tiny_causal_lm(tokenizer), tokenizer, tmp_path / "model")
    (tmp_path / "model" / "tokenizer").mkdir()  # a folder with the name of a file
    described = describe_local_models(policy=folder, base="~/model", judge="org/judge", reward_model=None)
    assert set(described) == {"policy_files", "base_files"} and len(set(described.values())) == 1


def test_the_description_of_an_adapter_includes_its_local_base_model(tokenizer, tmp_path):
    base = save(tiny_causal_lm(tokenizer), tokenizer, tmp_path / "base")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", r=2))
    model.save_pretrained(tmp_path / "adapter")
    found = [describe_local_models(policy=tmp_path / "adapter")]
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    found.append(describe_local_models(policy=tmp_path / "adapter"))
    config = tmp_path / "adapter" / "adapter_config.json"
    for name in ("org/base", None):
        config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": name}))
        found.append(describe_local_models(policy=tmp_path / "adapter"))
    assert len({entry["policy_files"] for entry in found}) == 4


def test_the_vocabulary_and_the_chat_template_change_the_fingerprint(tokenizer):
    other_template = tiny_tokenizer()
    other_template.chat_template = "{{ messages }}"
    others = (tiny_tokenizer(offset=1), tiny_tokenizer(chat=False), other_template)
    fingerprints = {tokenizer_fingerprint(other) for other in (tokenizer, *others)}
    assert len(fingerprints) == 4
    assert tokenizer_fingerprint(tiny_tokenizer()) == tokenizer_fingerprint(tokenizer)


def change_backend(name, value):
    tokenizer = tiny_tokenizer()
    setattr(tokenizer.backend_tokenizer, name, value)
    return tokenizer


def change_role(name, token):
    tokenizer = tiny_tokenizer()
    setattr(tokenizer, name, token)
    return tokenizer


def test_all_that_decides_the_token_ids_changes_the_fingerprint_of_a_tokenizer(tokenizer, tmp_path):
    """A tokenizer with `add_bos_token` has the same vocabulary, but its folder of samples is another one."""
    bos = TemplateProcessing(single="<|user|> $A", special_tokens=[("<|user|>", 3)])
    others = [
        change_backend("post_processor", bos),
        change_backend("normalizer", Lowercase()),
        change_role("eos_token", "<|user|>"),
        change_role("bos_token", "<|user|>"),
    ]
    assert len({tokenizer_fingerprint(other) for other in (tokenizer, *others)}) == 5
    padded = tiny_tokenizer()
    padded(["a", "abc"], padding=True, truncation=True, max_length=2)
    padded.save_pretrained(tmp_path)
    padded.pad_token = padded.eos_token
    same = (padded, AutoTokenizer.from_pretrained(tmp_path))
    assert {tokenizer_fingerprint(other) for other in same} == {tokenizer_fingerprint(tokenizer)}


def test_the_content_and_the_order_of_lists_change_the_fingerprint():
    assert value_fingerprint(["a", "b"]) == value_fingerprint(["a", "b"]) != value_fingerprint(["b", "a"])
    assert value_fingerprint(["ab"]) != value_fingerprint(["a", "b"])
    assert value_fingerprint({"role": "user", "content": "é"}) == value_fingerprint({"content": "é", "role": "user"})


CHAT = [
    [{"role": "user", "content": "é"}, {"role": "assistant", "content": None}],
    None,
    [],
    [{"role": "user", "content": ""}],
]
ROWS = {
    "prompt": CHAT,
    "completions": [["a", "bc"], ["", None], None, ["abc"]],
    "finished": [[True, False], [None, True], [], [True]],
    "score": [1.5, None, float("inf"), -0.0],
    "count": [1, None, 3, -4],
    "nothing": [None] * 4,
    "made": [datetime.date(2024, 1, 1), None, None, datetime.date(2024, 1, 2)],
}


def rows_with(**columns):
    return Dataset.from_dict({**ROWS, **columns})


def in_many_ways(folder):
    """Returns datasets with the same rows that were made differently."""
    rows = rows_with()
    rows.save_to_disk(str(folder / "saved"))
    rows.to_parquet(str(folder / "rows.parquet"))
    reordered = Dataset.from_dict({name: values[::-1] for name, values in reversed(ROWS.items())})
    wider = rows.cast_column("score", Value("float64")).cast_column("completions", List(Value("large_string")))
    typed = rows.cast_column("nothing", List({"tool": Value("string")}))
    padded = concatenate_datasets([rows.select([3]), rows, rows.select([0])])
    swapped = [m and [{"content": part["content"], "role": part["role"]} for part in m] for m in CHAT]
    return {
        "memory-mapped": load_from_disk(str(folder / "saved")),
        "parquet": Dataset.from_parquet(str(folder / "rows.parquet"), cache_dir=str(folder / "cache")),
        "from rows": Dataset.from_list(rows.to_list()),
        "indices": reordered.select([3, 2, 1, 0]),
        "chunks": concatenate_datasets([rows.select(range(start, start + 1)) for start in range(4)]),
        "slice": padded.select(range(1, 5)),
        "shuffled slice": padded.select([1, 2, 3, 4]).with_format("numpy"),
        "wider types": wider,
        "typed nulls": typed,
        "order of keys": rows_with(prompt=swapped),
        "flat": reordered.select([3, 2, 1, 0]).flatten_indices(),
    }


def test_equal_rows_have_equal_fingerprints_however_they_were_made(tmp_path, monkeypatch):
    expected = dataset_fingerprint(rows_with())
    assert len(expected) == 32
    made = in_many_ways(tmp_path)
    assert {name: dataset_fingerprint(rows) for name, rows in made.items()} == dict.fromkeys(made, expected)
    monkeypatch.setattr(fingerprints, "_ROWS_AT_ONCE", 1)
    assert {name: dataset_fingerprint(rows) for name, rows in made.items()} == dict.fromkeys(made, expected)


def test_every_change_of_a_dataset_changes_its_fingerprint():
    others = [
        rows_with().select([1, 0, 2, 3]),
        rows_with().select([0, 1, 2]),
        rows_with(nothing=[None, None, None, 0]),
        rows_with(prompt=[*CHAT[:3], [{"role": "user", "content": None}]]),
        rows_with(prompt=[CHAT[0], [], None, CHAT[3]]),
        rows_with(completions=[["ab", "c"], ["", None], None, ["abc"]]),
        rows_with(completions=[["a", "bc"], [None, ""], None, ["abc"]]),
        rows_with(completions=[["a", "bc", ""], [None], None, ["abc"]]),
        rows_with(finished=[[True, False], [None, True], [], [False]]),
        rows_with(score=[1.5, None, float("inf"), 0.0]),
        rows_with(count=[1, 3, None, -4]),
        rows_with(count=[1.0, None, 3.0, -4.0]),
        rows_with(count=["1", None, "3", "-4"]),
        rows_with(made=[datetime.date(2024, 1, 1), None, None, datetime.date(2024, 1, 3)]),
        rows_with().rename_column("count", "counts"),
        rows_with().remove_columns("nothing"),
    ]
    assert len({dataset_fingerprint(rows) for rows in [rows_with(), *others]}) == 1 + len(others)


def test_some_columns_of_a_dataset_can_decide_its_fingerprint():
    rows, other = rows_with(), rows_with(count=[0] * 4)
    assert dataset_fingerprint(rows, ["prompt", "score"]) == dataset_fingerprint(other, ["score", "prompt"])
    assert dataset_fingerprint(rows, ["prompt"]) != dataset_fingerprint(rows, ["score"])


def test_the_fingerprint_of_an_empty_dataset_depends_on_its_columns():
    assert dataset_fingerprint(rows_with().select([])) == dataset_fingerprint(rows_with().select([]))
    assert dataset_fingerprint(Dataset.from_dict({"a": []})) != dataset_fingerprint(Dataset.from_dict({"b": []}))
