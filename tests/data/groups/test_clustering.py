import functools
import logging
import pickle
import random

import multiprocess
import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from datasets.fingerprint import Hasher

from tests.tiny_models import save, tiny_nli, tiny_tokenizer
from trl_rlp.data.groups import ExactMatch, Group, NLIEquivalence, cluster, find_largest_group
from trl_rlp.data.groups.clustering import find_majority, has_groups, require_decided_groups


def build_samples(completions, prompts=None):
    rows = {"prompt": prompts or [f"q{row}" for row in range(len(completions))], "completions": completions}
    return Dataset.from_dict({**rows, "finished": [[True] * len(texts) for texts in completions]})


class RandomEquivalence:
    """An equivalence with a random relation. It is symmetric but not transitive, and ignores case and outer spaces."""

    fingerprint = "relation"

    def __init__(self, seed, density):
        self.seed, self.density, self.calls = seed, density, []

    def normalize(self, text):
        return text.strip().casefold()

    def is_same(self, prompt, first, second):
        first, second = sorted([self.normalize(first), self.normalize(second)])
        return random.Random(f"{self.seed} {prompt} {first} {second}").random() < self.density

    def are_equivalent(self, prompts, firsts, seconds):
        self.calls.append(list(zip(prompts, firsts, seconds, strict=True)))
        return [self.is_same(*pair) for pair in self.calls[-1]]


def run_plain_loop(prompt, completions, equivalence):
    """Runs the leader loop over the distinct completions. Returns the groups as lists of positions."""
    groups, group_by_text = [], {}
    for position, completion in enumerate(completions):
        text = equivalence.normalize(completion)
        if not text:
            continue
        if text not in group_by_text:
            found = (group for group in groups if equivalence.is_same(prompt, completions[group[0]], completion))
            group_by_text[text] = next(found, None) or []
            if not group_by_text[text]:
                groups.append(group_by_text[text])
        group_by_text[text].append(position)
    return groups


def draw_samples(generator, num_prompts, num_generations):
    texts = ["a", "A ", "b", "B", "c", "d", "e", "f", "g", "", "  "]
    return build_samples([generator.choices(texts, k=num_generations) for _ in range(num_prompts)])


@pytest.mark.parametrize("density", [0.05, 0.3, 0.7])
@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.3, 0.5, 0.7, 1.0])
def test_confidence_and_largest_group_match_the_plain_loop(density, threshold):
    samples = draw_samples(random.Random(f"{density} {threshold}"), num_prompts=150, num_generations=7)
    equivalence = RandomEquivalence(1, density)
    for row in cluster(samples, equivalence, threshold=threshold):
        groups = run_plain_loop(row["prompt"], row["completions"], equivalence)
        largest = max(groups, key=len, default=[])
        confidence = len(largest) / 7
        if confidence >= threshold:
            assert row["confidence"] == row["confidence_upper"] == confidence
            assert find_largest_group(row["cluster_ids"]) == largest
        else:
            assert row["confidence"] <= confidence <= row["confidence_upper"] < threshold


def test_groups_that_are_used_at_a_lower_threshold_match_the_plain_loop():
    """Of two equally large groups, the first opened is the largest. A search for a larger group may not find it."""
    samples, equivalence = (
        draw_samples(random.Random(6), num_prompts=300, num_generations=4),
        RandomEquivalence(3, 0.3),
    )
    decided = 0
    for row in cluster(samples, equivalence, threshold=0.6):
        try:
            require_decided_groups({name: [row[name]] for name in ("confidence", "confidence_upper")}, 0.5)
        except ValueError:
            continue
        decided += 1
        largest = max(run_plain_loop(row["prompt"], row["completions"], equivalence), key=len)
        assert find_majority(row["cluster_ids"], 0.5) == (largest if len(largest) >= 2 else [])
    assert decided > 100


@pytest.mark.parametrize("density", [0.05, 0.3, 0.7])
def test_complete_groups_match_the_plain_loop(density):
    samples = draw_samples(random.Random(density), num_prompts=150, num_generations=7)
    equivalence = RandomEquivalence(2, density)
    for row in cluster(samples, equivalence, complete_groups=True):
        groups = run_plain_loop(row["prompt"], row["completions"], equivalence)
        expected = [-1] * 7
        for cluster_id, group in enumerate(groups):
            for position in group:
                expected[position] = cluster_id
        assert row["cluster_ids"] == expected
        assert row["confidence"] == row["confidence_upper"] == max(map(len, groups), default=0) / 7


def test_duplicates_and_empty_completions_are_not_compared():
    equivalence = RandomEquivalence(0, 0.5)
    (row,) = cluster(build_samples([["Yes", "yes ", "", " ", "YES"]]), equivalence)
    assert equivalence.calls == []
    assert row["cluster_ids"] == [0, 0, -1, -1, 0] and row["confidence"] == 0.6


def test_empty_completions_lower_the_confidence_and_may_leave_no_group():
    grouped = cluster(build_samples([["", ""], ["a", ""]]), RandomEquivalence(0, 0.5), threshold=0.6)
    assert grouped["cluster_ids"][:] == [[-1, -1], [0, -1]]
    assert grouped["confidence"][:] == [0.0, 0.5]
    assert find_largest_group([-1, -1]) == []


def test_a_majority_needs_two_members_and_the_share():
    assert find_majority([0, 1, 1, 0, -1], 0.4) == [0, 3]  # 2 of 5, and the group that was opened first
    assert find_majority([0, 1, 1, 0, -1], 0.5) == []
    assert find_majority([0, 1], 0.0) == find_majority([-1, -1], 0.0) == []


def test_pairs_of_all_prompts_are_compared_in_one_call():
    equivalence = RandomEquivalence(0, 0.0)
    cluster(build_samples([["a", "b", "c"]] * 40), equivalence, threshold=1.0)
    assert [len(call) for call in equivalence.calls] == [40]


def test_more_prompts_than_can_be_searched_at_once(monkeypatch):
    monkeypatch.setattr("trl_rlp.data.groups.clustering._PROMPTS_AT_ONCE", 3)
    samples = draw_samples(random.Random(0), num_prompts=20, num_generations=5)
    equivalence = RandomEquivalence(3, 0.3)
    grouped = cluster(samples, equivalence)
    assert max(len({prompt for prompt, _, _ in call}) for call in equivalence.calls) == 3
    monkeypatch.undo()
    assert grouped.to_dict() == cluster(samples, equivalence).to_dict()


def test_the_equivalence_gets_a_chat_prompt_as_text():
    equivalence = RandomEquivalence(0, 0.0)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    cluster(build_samples([["a", "b"]], [chat]), equivalence, threshold=1.0)
    assert equivalence.calls == [[("Be brief.\nWho?", "a", "b")]]


def test_columns_are_added_or_replaced_and_other_columns_are_kept():
    samples = build_samples([["4", "5", "4."]]).add_column("audit", [7])
    grouped = cluster(samples, ExactMatch())
    assert grouped.column_names == [*samples.column_names, "cluster_ids", "confidence", "confidence_upper"]
    assert has_groups(grouped.column_names) and not has_groups(samples.column_names)
    again = cluster(grouped, ExactMatch(), threshold=0.9)
    assert again.column_names == grouped.column_names
    assert again[0]["audit"] == 7 and again[0]["confidence"] == 2 / 3 < 0.9


def test_groups_of_a_tiny_classifier_match_the_plain_loop():
    tokenizer = tiny_tokenizer()
    equivalence = NLIEquivalence(tiny_nli(tokenizer, initializer_range=2.0), tokenizer, rule="no_contradiction")
    equivalence.is_same = lambda *pair: equivalence.are_equivalent(*([part] for part in pair))[0]
    generator = random.Random(0)
    samples = build_samples([generator.choices(["a", "B", "cc", "d d", "e", "f?"], k=6) for _ in range(12)])
    sizes = set()
    for row in cluster(samples, equivalence, complete_groups=True):
        groups = run_plain_loop(row["prompt"], row["completions"], equivalence)
        assert find_largest_group(row["cluster_ids"]) == max(groups, key=len)
        sizes |= {len(group) for group in groups}
    assert len(sizes) > 1, (
        "The random classifier must find equivalent completions. Otherwise this test proves nothing."
    )


@pytest.mark.parametrize("threshold", [-0.1, 1.01, float("nan")])
def test_a_threshold_outside_the_unit_interval_raises(threshold):
    with pytest.raises(ValueError, match=r"`threshold` is a share of the completions and must be in \[0, 1\], got"):
        cluster(build_samples([["a", "b"]]), ExactMatch(), threshold=threshold)


def test_samples_with_one_completion_per_prompt_raise():
    with pytest.raises(ValueError, match="`samples` has 1 completions per prompt"):
        cluster(build_samples([["a"]]), ExactMatch())


@pytest.mark.parametrize(("threshold", "warns"), [(0.5, True), (0.51, False), (0.0, False)])
def test_a_threshold_of_at_most_one_completion_logs_a_warning(threshold, warns, caplog, monkeypatch):
    logging.Logger.warning_once.cache_clear()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("trl_rlp"), "propagate", True)
    cluster(build_samples([["a", "b"]]), ExactMatch(), threshold=threshold)
    assert any("is at most one completion" in record.getMessage() for record in caplog.records) == warns


GROUPS = ["cluster_ids", "confidence", "confidence_upper"]


def test_group_gives_the_groups_of_cluster_for_any_batches():
    samples = draw_samples(random.Random(5), num_prompts=40, num_generations=5)
    group, equivalence = Group(RandomEquivalence(4, 0.3), threshold=0.4), RandomEquivalence(4, 0.3)
    expected = cluster(samples, equivalence, threshold=0.4)
    for batch_size in (1, 7, 40):
        assert samples.map(group, batched=True, batch_size=batch_size).to_dict() == expected.to_dict()
    table = group(samples.with_format("arrow")[:])
    assert table.schema.field("cluster_ids").type == pa.list_(pa.int64())
    assert table.to_pydict() == expected.to_dict()
    batch = {"prompt": np.array(samples["prompt"][:], dtype=object), "completions": samples["completions"][:]}
    assert {name: group(batch)[name] for name in GROUPS} == {name: expected[name][:] for name in GROUPS}


def test_a_call_does_not_change_what_the_cache_of_datasets_compares():
    group = Group(ExactMatch())
    before = Hasher.hash(group)
    group({"prompt": ["a"], "completions": [["x", "y"]]})
    assert Hasher.hash(group) == before


def test_rows_with_another_number_of_completions_have_their_own_threshold():
    batch = {"prompt": ["a", "b"], "completions": [["x", "x", "y", "z"], ["x", "y"]]}
    columns = Group(ExactMatch(), threshold=0.5)(batch)
    assert columns["confidence"] == [0.5, 0.5] and columns["cluster_ids"][0][:2] == [0, 0]


def test_groups_are_made_by_processes_that_load_the_classifier_themselves(tmp_path, monkeypatch):
    """The processes are spawned, as CUDA needs it, and each of them is told its rank."""
    monkeypatch.setattr(multiprocess, "Pool", multiprocess.get_context("spawn").Pool)
    tokenizer = tiny_tokenizer()
    model = tiny_nli(tokenizer, initializer_range=2.0)
    folder = save(model, tokenizer, tmp_path / "nli")
    texts = random.Random(0)
    samples = build_samples([texts.choices(["a", "B", "cc", "d d", "e", "f?"], k=6) for _ in range(12)])
    group = Group(folder, "no_contradiction", 0.3, tokens_per_batch=128)
    grouped = samples.map(group, batched=True, batch_size=4, with_rank=True, num_proc=2)
    expected = cluster(samples, NLIEquivalence(model, tokenizer, rule="no_contradiction"), threshold=0.3)
    assert grouped.to_dict() == expected.to_dict()
    assert max(max(ids) for ids in grouped["cluster_ids"]) > 0


def test_an_equivalence_may_come_from_a_name_a_function_or_an_object(tmp_path):
    tokenizer = tiny_tokenizer()
    model = tiny_nli(tokenizer, initializer_range=2.0)
    folder = save(model, tokenizer, tmp_path / "nli")
    batch = {"prompt": ["q"], "completions": [["a", "b", "c c", "a"]]}
    loaded = Group(NLIEquivalence(model, tokenizer))
    with pytest.raises(TypeError, match="`equivalence` is a `NoneType`, which lacks"):
        Group(lambda: None)({"prompt": ["a"], "completions": [["b", "c"]]})
    for group in (Group(folder), Group(functools.partial(NLIEquivalence, folder))):
        assert pickle.loads(pickle.dumps(group))(batch) == loaded(batch)
    with pytest.raises(TypeError, match="`equivalence` is a loaded model, which is not sent to other processes"):
        pickle.dumps(loaded)
    assert pickle.loads(pickle.dumps(Group(ExactMatch())))(batch)["confidence"] == [0.5]


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"equivalence": ExactMatch}, TypeError, "`equivalence` must be an object, got the class `ExactMatch`"),
        (
            {"equivalence": "nli", "rule": "loose"},
            ValueError,
            r"`rule` must be one of \['no_contradiction', 'strict'\]",
        ),
        ({"equivalence": ExactMatch(), "rule": "strict"}, TypeError, r"\['rule'\] are options of an NLI classifier"),
        ({"equivalence": ExactMatch(), "threshold": 2.0}, ValueError, r"`threshold` .* must be in \[0, 1\], got 2.0"),
    ],
)
def test_invalid_arguments_of_group_raise_before_any_work(arguments, error, match):
    with pytest.raises(error, match=match):
        Group(**arguments)


class OwnVerdicts(ExactMatch):
    """Returns verdicts of another type, or with another number of them."""

    def __init__(self, convert):
        self.convert = convert

    def are_equivalent(self, prompts, firsts, seconds):
        return self.convert(super().are_equivalent(prompts, firsts, seconds))


@pytest.mark.parametrize("convert", [np.array, lambda verdicts: [*map(int, verdicts)], iter])
def test_verdicts_may_be_of_numpy_or_numbers(convert):
    samples = build_samples([["4", "four", "4", "5", "5"]])
    assert cluster(samples, OwnVerdicts(convert)).to_list() == cluster(samples, ExactMatch()).to_list()


@pytest.mark.parametrize("convert", [lambda verdicts: verdicts[1:], lambda verdicts: [*verdicts, True]])
def test_another_number_of_verdicts_is_an_error(convert):
    samples = build_samples([["4", "four", "5"]])
    with pytest.raises(ValueError, match=r"`are_equivalent` of `OwnVerdicts` returned \d verdicts for \d pairs. It"):
        cluster(samples, OwnVerdicts(convert))
