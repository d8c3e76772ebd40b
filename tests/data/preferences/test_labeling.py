import pickle
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, Features, Json, List

from tests.tiny_models import save, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.groups import ExactMatch, cluster
from trl_rlp.data.preferences import Label, pairing, synthesize_preferences
from trl_rlp.data.preferences.pairing import GENERATORS, GROUP_GENERATORS
from trl_rlp.data.turns import drop_missing_keys


def prefer_first(prompts, firsts, seconds):
    return [0.8] * len(prompts)


def build_samples(form="text"):
    """Two of six prompts have no pair with `spg`: prompt 1, where all differ, and prompt 4, where all agree."""
    prompts = [f"prompt {row}" for row in range(6)]
    if form == "chat":
        prompts = [[{"role": "user", "content": prompt}] for prompt in prompts]
    texts = [["a", "a", "b", "c"], ["a", "b", "c", "d"], ["e", "f", "f", "g"], ["h", "h", "i", "h"], ["j"] * 4]
    rows = {
        "prompt": prompts,
        "completions": [*texts, ["k", "l", "k", "m"]],
        "finished": [[True, True, False, True]] * 6,
    }
    return cluster(Dataset.from_dict(rows), ExactMatch(), complete_groups=True)


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    tokenizer = tiny_tokenizer()
    return save(tiny_reward_model(tokenizer), tokenizer, tmp_path_factory.mktemp("reward"))


def get_pairs(rows):
    """The pairs with rounded rewards, because batches change these by rounding."""
    rounded = ("chosen_reward", "rejected_reward", "label_probability")
    return [{**row, **{name: row[name] and round(row[name], 5) for name in rounded}} for row in rows]


@pytest.mark.parametrize("form", ["text", "chat"])
@pytest.mark.parametrize("method", GENERATORS)
def test_any_batches_give_the_pairs_of_synthesize_preferences(method, form, reward_model):
    samples = build_samples(form)
    tokenizer = tiny_tokenizer()
    options = {"judge": prefer_first, "keep_candidates": method in GROUP_GENERATORS, "seed": 3}
    expected, counts = synthesize_preferences(
        samples, method, reward_model=tiny_reward_model(tokenizer), reward_processing_class=tokenizer, **options
    )
    assert len(expected) + sum(counts.values()) == 6 and len(expected) < 6
    for batch_size in (1, 4):
        label = pickle.loads(pickle.dumps(Label(reward_model, method, **options)))
        pairs = samples.map(
            label, batched=True, batch_size=batch_size, with_indices=True, remove_columns=samples.column_names
        )
        assert pairs.features == expected.features
        assert get_pairs(pairs) == get_pairs(expected)


def test_two_processes_make_the_same_pairs(reward_model):
    samples = build_samples()
    label, removed = Label(reward_model), samples.column_names
    one = samples.map(label, batched=True, with_indices=True, remove_columns=removed)
    options = {"with_indices": True, "with_rank": True, "remove_columns": removed}
    two = samples.map(label, batched=True, batch_size=1, num_proc=2, **options)
    assert get_pairs(two) == get_pairs(one) and one["sample_row"][:] == [0, 2, 3, 5]


def test_rounded_confidences_make_the_same_pairs():
    """The NumPy format of `datasets` rounds 0.7 to 0.69999999, which is below the threshold."""
    row = {"prompt": "a", "completions": ["b"] * 7 + ["c"] * 3, "finished": [True] * 10}
    samples = cluster(Dataset.from_list([row]), ExactMatch(), threshold=0.7)
    label = Label(chosen="random", threshold=0.7)
    pairs = samples.with_format("numpy").map(label, batched=True, remove_columns=samples.column_names)
    assert pairs.with_format(None)["confidence"][:] == [0.7]


def test_tables_keep_the_types_of_tools(reward_model):
    samples, tokenizer = build_samples("chat"), tiny_tokenizer()
    tools = [None, None, None, [{"name": "f", "strict": True}], None, [{"name": "g"}]]
    rows = [{**row, "tools": tool} for row, tool in zip(samples, tools, strict=True)]
    samples = Dataset.from_list(rows, features=Features({**samples.features, "tools": List(Json())}))
    models = {"reward_model": tiny_reward_model(tokenizer), "reward_processing_class": tokenizer}
    expected, _ = synthesize_preferences(samples, "spg", **models)
    options = {"with_indices": True, "remove_columns": samples.column_names}
    pairs = samples.with_format("arrow").map(Label(reward_model), batched=True, batch_size=1, **options)
    pairs = pairs.with_format(None)
    assert pairs.features == expected.features and get_pairs(pairs) == get_pairs(expected)
    assert pairs["tools"][:] == [None, None, tools[3], tools[5]]


@pytest.mark.parametrize("arguments", [({"a": 1}, {"b": 1}), ({"a": 1}, {"a": "7"})])
def test_tool_calls_in_lists_stay_as_they_are(arguments):
    """Arrow fills in the keys of the other call, or refuses arguments of another type."""
    calls = [[{"function": {"name": "f", "arguments": argument}}] for argument in arguments]
    rows = [
        {
            "prompt": [{"role": "assistant", "tool_calls": call}, {"role": "tool", "content": "r"}],
            "completions": ["x", "x", "y"],
            "finished": [True] * 3,
        }
        for call in calls
    ]
    batch = cluster(Dataset.from_list(rows, on_mixed_types="use_json"), ExactMatch())[:]
    pairs = Dataset(Label(chosen="random")(batch))
    assert [drop_missing_keys(prompt) for prompt in pairs["prompt"]] == [row["prompt"] for row in rows]


@pytest.mark.parametrize("kind", ["lists", "numpy", "arrow"])
def test_a_batch_without_a_pair_has_no_rows_and_columns_of_the_same_types(kind, reward_model):
    batches = []
    for rows in ([1, 4], [0, 1]):
        samples = build_samples("chat").select(rows)
        if kind == "arrow":
            batches.append(samples.with_format("arrow")[:])
        else:
            batches.append({name: samples[name][:] for name in samples.column_names})
        if kind == "numpy":
            arrays = {name: np.empty(2, dtype=object) for name in batches[-1]}
            for name, values in batches[-1].items():
                arrays[name][:] = [np.array(value, dtype=object) for value in values]
            batches[-1] = arrays
    empty, full = (Label(reward_model)(batch) for batch in batches)
    assert isinstance(empty, pa.Table) and empty.num_rows == 0 and full.num_rows == 1
    assert empty.schema == full.schema
    assert full.schema.field("chosen_reward").type == pa.float64()


def test_row_numbers_come_from_the_indices_or_a_column(reward_model):
    samples = build_samples()
    batch = {name: samples[name][:] for name in samples.column_names}
    label = Label(None, chosen="random")
    assert label(batch)["sample_row"].to_pylist() == [None] * 4
    numbers = list(range(100, 106))
    assert label({**batch, "sample_row": numbers})["sample_row"].to_pylist() == [100, 102, 103, 105]
    assert label({**batch, "sample_row": numbers}, [7] * 6)["sample_row"].to_pylist() == [7] * 4
    assert label(batch, 1)["sample_row"].to_pylist() == [None] * 4  # `with_rank=True` without `with_indices=True`


def test_batches_without_groups_are_grouped_with_the_equivalence():
    samples = build_samples()
    batch = {name: samples[name][:] for name in ("prompt", "completions", "finished")}
    grouped = {name: samples[name][:] for name in samples.column_names}
    options = {"chosen": "random", "seed": 1}
    ungrouped = Label(equivalence=ExactMatch(), **options)(batch)
    assert ungrouped["chosen"].to_pylist() == Label(**options)(grouped)["chosen"].to_pylist()
    with pytest.raises(ValueError, match="`equivalence` is None, but `method`='spg' groups completions by meaning"):
        Label(**options)(batch)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (
            {"method": "best"},
            r"`method` must be one of \['majority_best', 'reward', 'rlaif', 'select_all', 'spg'\], got 'best'",
        ),
        ({}, "`reward_model` is None, but `method`='spg' with `chosen`='reward' scores completions"),
        ({"method": "rlaif"}, "`judge` is None, but `method`='rlaif' needs a judge"),
        ({"method": "majority_best"}, "`reward_model` is None, but `method`='majority_best' with `chosen`='reward'"),
        (
            {"method": "majority_best", "chosen": "random"},
            "`chosen` must be 'reward' with `method`='majority_best', which picks by reward, got 'random'",
        ),
        ({"chosen": "random", "threshold": -1.0}, r"`threshold` is a share .* must be in \[0, 1\], got -1.0"),
        ({"chosen": "random", "seed": -1}, "`seed` must be at least 0, got -1"),
    ],
)
def test_invalid_arguments_raise_before_any_work(arguments, match):
    with pytest.raises(ValueError, match=match):
        Label(**arguments)


class Interrupted:
    """The generator `spg`, which may be interrupted at a prompt."""

    def __init__(self, stop_at=None):
        self.stop_at, self.blocks = stop_at, []

    def __call__(self, rows, settings):
        prompts = [row["prompt"] for row in rows]
        if self.stop_at in prompts:
            raise KeyboardInterrupt
        self.blocks.append(prompts)
        return pairing.spg(rows, settings)


def test_an_interrupted_call_resumes_after_the_last_finished_shard(tmp_path, monkeypatch):
    samples, options = build_samples(), {"chosen": "random", "shard_size": 2, "output_dir": tmp_path / "shards"}
    expected, counts = synthesize_preferences(samples, "spg", chosen="random")
    first, second, third = Interrupted("prompt 2"), Interrupted(), Interrupted()
    monkeypatch.setitem(GENERATORS, "spg", first)
    with pytest.raises(KeyboardInterrupt):
        synthesize_preferences(samples, "spg", **options)
    for generator in (second, third):
        monkeypatch.setitem(GENERATORS, "spg", generator)
        pairs, again = synthesize_preferences(samples, "spg", **options)
        assert pairs.to_list() == expected.to_list() and again == counts
    assert Counter(map(len, second.blocks)) == {2: 2} and third.blocks == []
    with pytest.raises(ValueError, match="`seed` was 0 and is 1"):
        synthesize_preferences(samples, "spg", seed=1, **options)


def test_shards_without_a_pair_change_nothing():
    samples = build_samples("chat")
    expected, counts = synthesize_preferences(samples, "spg", chosen="random")
    pairs, again = synthesize_preferences(samples, "spg", chosen="random", shard_size=1)
    assert pairs.to_list() == expected.to_list() and pairs.features == expected.features and again == counts
