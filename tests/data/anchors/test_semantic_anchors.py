import json
import logging
import re
import shutil

import pyarrow as pa
import pytest
from datasets import Dataset

from tests.data.anchors.fakes import FirstLetter
from trl_rlp.data.anchors import Anchor, SemanticAnchors, prompt_key
from trl_rlp.data.anchors.anchor_rows import FEATURES
from trl_rlp.data.groups import ExactMatch, cluster
from trl_rlp.data.token_prompts import TokenPrompt


def build_samples(completions, finished=None, **columns):
    """Prompts are `a`, `b`, ... unless they are passed."""
    prompts = columns.pop("prompt", [chr(ord("a") + row) for row in range(len(completions))])
    finished = finished or [[True] * len(texts) for texts in completions]
    return Dataset.from_dict({"prompt": prompts, "completions": completions, "finished": finished, **columns})


def make(completions, threshold=0.5, **columns):
    return SemanticAnchors.from_samples(build_samples(completions, **columns), FirstLetter(), threshold=threshold)


def get_rows(anchors):
    """The rows without the prompts' own columns."""
    names = ["anchor", "members", "confidence", "num_generations", "reason"]
    return [tuple(row[name] for name in names) for row in anchors.dataset.to_list()]


# From samples


def test_the_largest_group_is_the_anchor_if_it_is_clear():
    """
    Prompt a: x1, x2 and x1 of four begin with x, so its confidence is 3/4. The anchor is the first of them, and x1
    is a member once. Prompt b: two of four is the threshold itself. Prompt c: one of four is below it.
    """
    anchors = make([["x1", "y", "x2", "x1"], ["", "z", "z.", "x"], ["w", "x", "y", "z"]])
    assert get_rows(anchors) == [
        ("x1", ["x1", "x2"], 0.75, 4, None),
        ("z", ["z", "z."], 0.5, 4, None),
        (None, [], 0.25, 4, "below_threshold"),
    ]
    assert anchors.find("a") == Anchor("x1", ["x1", "x2"], 0.75, [True, True])
    assert anchors.find("c") is None and anchors.knows("c")
    assert anchors.find("d") is None and not anchors.knows("d")
    assert (len(anchors), anchors.num_prompts, anchors.mean_confidence) == (2, 3, 0.625)
    assert anchors.counts == {"below_threshold": 1, "single_member": 0, "contradiction": 0}


def test_one_completion_is_no_majority():
    """At a threshold of 0, every group is large enough, but the only group of prompt a has one member."""
    anchors = make([["x", ""], ["y1", "y2"]], threshold=0.0)
    assert get_rows(anchors) == [(None, [], 0.5, 2, "single_member"), ("y1", ["y1", "y2"], 1.0, 2, None)]


def test_a_text_is_finished_if_one_of_its_completions_is():
    finished = [[False, True, False, False]]
    anchors = make([["x1", "x1", "x2", "y"]], finished=finished)
    assert anchors.find("a") == Anchor("x1", ["x1", "x2"], 0.75, [True, False])


def test_an_accepted_prompt_is_one_that_spg_accepts():
    samples = build_samples([["x", "x", "y"], ["x", "y", "z"]])
    groups = cluster(samples, FirstLetter(), threshold=0.6)
    anchors = SemanticAnchors.from_samples(samples, FirstLetter(), threshold=0.6)
    assert anchors.dataset["confidence"][:] == groups["confidence"][:]


def test_groups_of_the_samples_are_used():
    samples = build_samples([["x", "x", "y"]])
    groups = cluster(samples, FirstLetter())
    equivalence = FirstLetter()
    anchors = SemanticAnchors.from_samples(groups, equivalence)
    assert not equivalence.calls
    assert anchors.fingerprint == SemanticAnchors.from_samples(samples, FirstLetter()).fingerprint
    # x, y, z and w were compared until no group could reach 0.9. Whether one reaches 0.5 is not known.
    undecided = cluster(build_samples([["x", "y", "z", "w"]]), FirstLetter(), threshold=0.9)
    with pytest.raises(ValueError, match="clustered for another threshold"):
        SemanticAnchors.from_samples(undecided, equivalence)


def test_chat_prompts_are_found_without_the_keys_that_datasets_fill_in():
    chats = [
        [{"role": "user", "content": "2 + 2?", "name": None}],
        [{"role": "user", "content": "3 + 3?", "name": "Ada"}],
    ]
    anchors = make([["4", "4"], ["6", "6"]], prompt=chats)
    assert anchors.find([{"content": "2 + 2?", "role": "user"}]).text == "4"
    assert anchors.find(chats[1]).text == "6"
    assert anchors.find([{"role": "user", "content": "3 + 3?"}]) is None


def test_the_key_of_a_token_prompt_is_its_text():
    assert prompt_key(TokenPrompt("2 + 2?", [1, 2])) == "2 + 2?"
    assert type(prompt_key(TokenPrompt("2 + 2?", [1, 2]))) is str
    message = {"role": "user", "content": "a", "tool_calls": [{"arguments": {"x": None, "y": 1}}], "name": None}
    assert json.loads(prompt_key([message])) == [
        {"role": "user", "content": "a", "tool_calls": [{"arguments": {"y": 1}}]}
    ]


def test_columns_of_single_values_and_the_instruction_are_kept():
    samples = build_samples(
        [["x", "x"]], topic=["sums"], rewards=[[0.1, 0.2]], question=[[{"role": "user", "content": "q"}]]
    )
    equivalence = FirstLetter(instruction="question")
    anchors = SemanticAnchors.from_samples(samples, equivalence)
    new = ["anchor", "members", "members_finished", "confidence", "num_generations", "reason"]
    assert anchors.dataset.column_names == ["prompt", "topic", "question", *new]


def test_completions_of_the_same_prompt_are_grouped_together(tmp_path):
    """
    x has 3 of 4 and 1 of 4 completions, so 4 of 8. The second row alone has no majority, but its x counts. The row's
    own columns are the first's. Prompts may have different numbers of rows.
    """
    prompts = ["p", "q", "p"]
    completions = [["x1", "x1", "x2", "y"], ["z", "z", "z", "z"], ["v", "x3", "u", "w"]]
    samples = build_samples(completions, prompt=prompts, topic=[1, 2, 3])
    for folder in (None, tmp_path, tmp_path):
        anchors = SemanticAnchors.from_samples(samples, FirstLetter(), output_dir=folder)
        assert get_rows(anchors) == [("x1", ["x1", "x2", "x3"], 0.5, 8, None), ("z", ["z"], 1.0, 4, None)]
        assert anchors.dataset["topic"][:] == [1, 2]


def test_an_interrupted_call_asks_only_about_groups_that_are_not_finished(tmp_path):
    equivalence = FirstLetter()
    samples = build_samples([["x", "xx"], ["y", "yy"]])
    for _ in range(2):
        SemanticAnchors.from_samples(samples, equivalence, output_dir=tmp_path)
        assert len(equivalence.calls) == 1


def test_groups_of_the_same_prompt_are_merged():
    """x has 3 of 4 and 2 of 4 completions, so the pooled confidence is 5/8."""
    completions = [["x1", "x1", "x2", "y"], ["z", "z", "z", "z"], ["y", "x3", "x1", "w"]]
    groups = cluster(build_samples(completions, prompt=["p", "q", "p"]), FirstLetter())
    anchors = SemanticAnchors.from_samples(groups, FirstLetter())
    assert get_rows(anchors) == [("x1", ["x1", "x2", "x3"], 0.625, 8, None), ("z", ["z"], 1.0, 4, None)]


# Bad input


@pytest.mark.parametrize(
    ("samples", "options", "error", "match"),
    [
        (
            build_samples([["x", "y"]]),
            {"threshold": 1.0},
            ValueError,
            "None of 1 prompts has an anchor. Rejected: {'b",
        ),
        (build_samples([["x", "x"]]), {"threshold": 1.5}, ValueError, "`threshold` is a share of the completions and"),
        (build_samples([["x"]]), {}, ValueError, "`samples` has 1 completions per prompt, but RLP compares"),
        (Dataset.from_dict({"prompt": ["a"]}), {}, ValueError, "`samples` lacks the columns"),
        ([{"prompt": "a"}], {}, TypeError, "`samples` must be a `datasets.Dataset`"),
        (build_samples([["x", "x"]]), {"equivalence": "nli"}, TypeError, "`equivalence` must be an object"),
        (
            build_samples([["x", "x"]]),
            {"equivalence": FirstLetter(instruction="question")},
            ValueError,
            "`instruction`='question' names no column of `samples`",
        ),
    ],
)
def test_bad_input_is_one_line(samples, options, error, match):
    options = {"equivalence": FirstLetter(), **options}
    with pytest.raises(error, match=re.escape(match)) as caught:
        SemanticAnchors.from_samples(samples, **options)
    assert "\n" not in str(caught.value)


# Merging


def test_anchors_of_two_policies_are_pooled():
    """
    Prompt a: 3/4 and 2/4 mean the same, so 5 of 8. Prompt b: 4/4 say x and 4/4 say y. Prompt c: 2/4 and no majority,
    so 2 of 8 are certain. Prompt d has one row.
    """
    first = make([["x1", "x1", "x1", "y"], ["x"] * 4, ["x", "x", "y", "z"]])
    second = make([["x2", "x1", "y", "z"], ["y"] * 4, ["w", "x", "y", "z"], ["v", "v", "v", "u"]])
    equivalence = FirstLetter()
    merged = first.merge(second, equivalence=equivalence)
    assert get_rows(merged) == [
        ("x1", ["x1", "x2"], 0.625, 8, None),
        (None, [], 0.5, 8, "contradiction"),
        (None, [], 0.25, 8, "below_threshold"),
        ("v", ["v"], 0.75, 4, None),
    ]
    # All prompts are asked about in one call. Prompt c has one anchor only, so there is nothing to compare.
    assert equivalence.calls == [[("a", "x1", "x2"), ("b", "x", "y")]]
    assert len(first) == 3 and first.find("b").confidence == 1.0


def test_a_prompt_without_any_anchor_keeps_its_reason_and_the_largest_lower_bound():
    """Texts that are equal need no question, so 1 of 4 and 2 of 5 are known to agree: at least 2 of 9."""
    first = make([["x", "x", "x", "x"], ["w", "x", "y", "z"]])
    second = make([["x", "x", "x", "x", "x"], ["v", "v", "y", "z", "u"]])
    merged = first.merge(second, equivalence=FirstLetter())
    assert get_rows(merged)[1] == (None, [], 2 / 9, 9, "below_threshold")


def test_paraphrases_share_their_pooled_majority():
    """
    Fact 1 has x with 3 of 4 and 4 of 4, and y with 2 of 4: 7 of 12 say x, so all three prompts get x. Fact 2 has x and
    y with 2 of 4 each, and neither reaches half of 8. Prompt f has no paraphrase.
    """
    completions = [["x1", "x1", "x2", "y"], ["y", "y", "z", "w"], ["x2"] * 4, ["x", "x", "y", "z"]]
    anchors = make([*completions, ["y", "y", "x", "z"], ["u"] * 4], fact=[1, 1, 1, 2, 2, None])
    merged = anchors.merge(equivalence=FirstLetter(), key="fact")
    shared = ("x1", ["x1", "x2"], 7 / 12, 12, None)
    contradicted = (None, [], 0.25, 8, "contradiction")
    assert get_rows(merged) == [shared] * 3 + [contradicted] * 2 + [("u", ["u"], 1.0, 4, None)]
    assert merged.dataset["prompt"][:] == anchors.dataset["prompt"][:]


def test_a_contradiction_of_policies_comes_before_the_paraphrases():
    """The policies contradict each other about prompt a, so its 8 completions count for nothing: 4 of 12 say x."""
    first = make([["x"] * 4, ["x"] * 4], fact=[1, 1])
    second = make([["y"] * 4], fact=[1])
    third = make([["z"] * 4], prompt=["c"], fact=[2])
    merged = first.merge(second, third, equivalence=FirstLetter(), key="fact")
    assert get_rows(merged)[0] == (None, [], 4 / 12, 12, "below_threshold")
    assert get_rows(merged)[2] == ("z", ["z"], 1.0, 4, None)


def test_merging_logs_the_number_of_contradictions(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.set_level(logging.INFO, "trl_rlp.data.anchors.semantic_anchors")
    make([["x"] * 2, ["x"] * 2]).merge(make([["x"] * 2, ["y"] * 2]), equivalence=FirstLetter())
    assert "1 prompts have no anchor because their anchors contradict each other" in caplog.text


def test_the_instruction_of_a_column_reaches_the_equivalence_of_a_merge():
    equivalence = FirstLetter(instruction="question")
    samples = build_samples([["x1", "x1"]], question=["What?"])
    first = SemanticAnchors.from_samples(samples, equivalence)
    second = SemanticAnchors.from_samples(build_samples([["x2", "x2"]], question=["What?"]), equivalence)
    first.merge(second, equivalence=equivalence)
    assert equivalence.calls == [[("What?", "x1", "x2")]]


def test_equal_prompts_of_different_types_are_merged():
    """One file has wide texts, or a key that only some chats have. Each pair of anchors has 2 + 2 of 4 completions."""
    wide = Dataset(pa.table({"prompt": pa.array(["a"], pa.large_string()), "completions": [["x", "x"]]}))
    wide = SemanticAnchors.from_samples(wide.add_column("finished", [[True, True]]), FirstLetter())
    chats = [[{"role": "user", "content": "a"}], [{"role": "user", "content": "a", "name": "Ada"}]]
    keys = [[{**chats[0][0], "name": None}], chats[1]]
    for first, second in [
        (make([["x", "x"]]), wide),
        (make([["x", "x"]], prompt=chats[:1]), make([["x", "x"]] * 2, prompt=keys)),
    ]:
        for merged in (first.merge(second, equivalence=FirstLetter()), second.merge(first, equivalence=FirstLetter())):
            assert merged.find(first.dataset[0]["prompt"]).confidence == 1.0 and len(merged) == len(second)
            assert merged.dataset.filter(lambda row: row["num_generations"] == 4).num_rows == 1
            assert {name: merged.dataset.features[name] for name in FEATURES} == FEATURES


def test_what_cannot_be_merged_is_one_line():
    text = make([["x", "x"]])
    chat = make([["x", "x"]], prompt=[[{"role": "user", "content": "a"}]])
    with pytest.raises(ValueError, match="columns of different types"):
        text.merge(chat, equivalence=FirstLetter())
    with pytest.raises(ValueError, match="`key`='fact' names no column of `anchors`"):
        text.merge(equivalence=FirstLetter(), key="fact")
    with pytest.raises(ValueError, match="`key`='prompt' .* column of `anchors` does not hold single values. Name"):
        chat.merge(equivalence=FirstLetter(), key="prompt")
    with pytest.raises(ValueError, match="`key`='anchor' cannot name paraphrases, because this .* is a result"):
        text.merge(equivalence=FirstLetter(), key="anchor")
    with pytest.raises(ValueError, match="`others` have the threshold 0.3, and these anchors have 0.5"):
        text.merge(make([["x", "x"]], threshold=0.3), equivalence=FirstLetter())
    with pytest.raises(ValueError, match="nothing to merge"):
        text.merge(equivalence=FirstLetter())
    with pytest.raises(TypeError, match="`others` must be `SemanticAnchors`, got `str`"):
        text.merge("folder", equivalence=FirstLetter())
    with pytest.raises(ValueError, match="None of 1 prompts has an anchor. .*'contradiction': 1.* Merge anchors that"):
        text.merge(make([["y", "y"]]), equivalence=FirstLetter())


# On disk


@pytest.mark.parametrize("form", ["text", "chat"])
def test_saved_anchors_are_the_same(tmp_path, form):
    prompts = ["a", "b"] if form == "text" else [[{"role": "user", "content": name}] for name in "ab"]
    anchors = make([["x1", "x2"], ["x", "y"]], prompt=prompts, threshold=0.6)
    anchors.save(tmp_path / "anchors")
    loaded = SemanticAnchors.load(str(tmp_path / "anchors"))
    assert loaded.fingerprint == anchors.fingerprint and loaded.threshold == 0.6
    assert loaded.dataset.to_list() == anchors.dataset.to_list()
    assert loaded.find(prompts[0]) == anchors.find(prompts[0]) and loaded.knows(prompts[1])
    assert json.loads((tmp_path / "anchors" / "anchors.json").read_text()) == {
        "fingerprint": anchors.fingerprint,
        "threshold": 0.6,
        "equivalence": "first letter",
        "prompts": 2,
        "anchors": 1,
        "prompts_without_anchor": {"below_threshold": 1, "single_member": 0, "contradiction": 0},
    }


def test_the_fingerprint_depends_on_rows_threshold_and_equivalence():
    completions = [["x", "x", "y"]]
    fingerprints = {make(completions).fingerprint, make([["x", "x", "x"]]).fingerprint}
    fingerprints |= {make(completions, threshold=0.6).fingerprint}
    fingerprints |= {SemanticAnchors.from_samples(build_samples(completions), ExactMatch()).fingerprint}
    assert len(fingerprints) == 4 and make(completions).fingerprint in fingerprints


def remove_data(folder):
    shutil.rmtree(folder / "data")


def cut_manifest(folder):
    (folder / "anchors.json").write_text("{")


def remove_value(folder):
    (folder / "anchors.json").write_text("{}")


def cut_data(folder):
    (file,) = (folder / "data").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:200])


@pytest.mark.parametrize("damage", [remove_data, cut_manifest, remove_value, cut_data])
def test_a_damaged_folder_is_one_line(tmp_path, damage):
    make([["x", "x"]]).save(tmp_path / "anchors")
    damage(tmp_path / "anchors")
    with pytest.raises(ValueError, match="The anchors in '.*' are damaged .*Make them again") as caught:
        SemanticAnchors.load(tmp_path / "anchors")
    assert "\n" not in str(caught.value)


def test_rows_of_other_anchors_and_other_folders_are_refused(tmp_path):
    make([["x", "x"]]).save(tmp_path / "one")
    make([["y", "y"]]).save(tmp_path / "other")
    shutil.rmtree(tmp_path / "one" / "data")
    shutil.copytree(tmp_path / "other" / "data", tmp_path / "one" / "data")
    with pytest.raises(ValueError, match="have changed since they were saved"):
        SemanticAnchors.load(tmp_path / "one")
    with pytest.raises(FileNotFoundError, match=r"has no `anchors.json`, so it holds no anchors"):
        SemanticAnchors.load(tmp_path)
    build_samples([["x", "x"]]).save_to_disk(str(tmp_path / "one" / "data"))
    with pytest.raises(ValueError, match="have changed since they were saved"):
        SemanticAnchors.load(tmp_path / "one")
