import json

import pytest

import trl_rlp.cli.anchors as module
from trl_rlp.cli import main
from trl_rlp.data.anchors import SemanticAnchors
from trl_rlp.data.groups import ExactMatch, cluster
from trl_rlp.storage.loading import load_rows


ROWS = [
    {"prompt": "2 + 2?", "fact": "sum", "completions": ["4", "4.", "5"], "finished": [True] * 3},
    {"prompt": "two plus two?", "fact": "sum", "completions": ["4", "4", "4"], "finished": [True] * 3},
    {"prompt": "why?", "fact": "open", "completions": ["a", "b", "c"], "finished": [True] * 3},
]


@pytest.fixture
def words(tmp_path, write_rows):
    words = ["anchors", "--samples", write_rows("samples.jsonl", ROWS), "--equivalence", "exact"]
    return [*words, "--output_dir", str(tmp_path / "out")]


def load(folder):
    return SemanticAnchors.load(folder).dataset.to_list()


def test_anchors_are_made_from_samples(tmp_path, words, capsys):
    """The confidences are 2/3 and 1, and their mean is 5/6."""
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"2 of 3 prompts have an anchor, with a mean confidence of 0.83, written to {tmp_path / 'out'}",
        "  below_threshold: 1",
        "  single_member: 0",
        "  contradiction: 0",
    ]
    expected = SemanticAnchors.from_samples(load_rows(tmp_path / "samples.jsonl"), ExactMatch())
    assert load(tmp_path / "out") == expected.dataset.to_list()
    assert SemanticAnchors.load(tmp_path / "out").fingerprint == expected.fingerprint


def test_a_second_call_reads_the_groups(tmp_path, words, monkeypatch):
    assert main(words) == 0
    first = load(tmp_path / "out")
    (tmp_path / "out" / "anchors.json").unlink()
    monkeypatch.setattr(ExactMatch, "normalize", lambda *_: 1 / 0)
    assert main(words) == 0
    assert load(tmp_path / "out") == first


def test_grouped_samples_from_a_folder(tmp_path, words):
    cluster(load_rows(tmp_path / "samples.jsonl"), ExactMatch()).save_to_disk(str(tmp_path / "grouped"))
    words[2] = str(tmp_path / "grouped")
    assert main(words) == 0
    assert [row["anchor"] for row in load(tmp_path / "out")] == ["4", "4", None]


def test_a_model_is_sampled_as_by_the_command_sample(tmp_path, models, write_rows, capsys):
    prompts = write_rows("prompts.jsonl", [{"instruction": "a", "fact": 1}, {"instruction": "b", "fact": 1}])
    words = ["--model", models["policy"], "--prompts", prompts, "--prompt_column", "instruction"]
    words += ["--num_generations", "3", "--max_new_tokens", "4", "--seed", "3"]
    assert main(["sample", *words, "--output_dir", str(tmp_path / "samples")]) == 0
    # Embeddings of random weights are near each other, so every prompt has a majority.
    words += ["--equivalence", "embedding", "--equivalence_model", models["nli"], "--embedding_threshold", "-1"]
    words += ["--threshold", "0.4", "--key", "fact", "--output_dir", str(tmp_path / "out")]
    assert main(["anchors", *words]) == 0
    assert "6 completions" in capsys.readouterr().out
    samples = (tmp_path / "samples" / "samples.jsonl").read_text()
    assert (tmp_path / "out" / "samples.jsonl").read_text() == samples
    rows = load(tmp_path / "out")
    assert [row["num_generations"] for row in rows] == [6, 6] and rows[0]["anchor"] == rows[1]["anchor"]


def test_folders_are_merged(tmp_path, words, write_rows, capsys):
    """
    The other policy contradicts the second prompt. By facts, the sums then have 2 of 3 + 6 completions, which is below
    one half, and the open questions have 3 of 3 + 3, which is one half.
    """
    assert main(words) == 0
    other = [{**ROWS[1], "completions": ["5"] * 3}, {**ROWS[2], "prompt": "who?", "completions": ["d"] * 3}]
    words[2] = write_rows("other.jsonl", other)
    words[-1] = str(tmp_path / "merged")
    assert main([*words, "--merge", str(tmp_path / "out")]) == 0
    assert [(row["prompt"], row["anchor"]) for row in load(tmp_path / "merged")] == [
        ("two plus two?", None),
        ("who?", "d"),
        ("2 + 2?", "4"),
        ("why?", None),
    ]
    assert "  contradiction: 1" in capsys.readouterr().out
    only = ["anchors", "--equivalence", "exact", "--key", "fact", "--output_dir", str(tmp_path / "shared"), "--merge"]
    assert main([*only, str(tmp_path / "merged")]) == 0
    assert [row["anchor"] for row in load(tmp_path / "shared")] == [None, "d", None, "d"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Anchors need `samples`, or `model` and `prompts`, or folders to `merge`. Pass one."),
        (["--model", "m"], "`model` and `prompts` belong together"),
        (["--samples", "s", "--model", "m", "--prompts", "p"], "`samples` and `model` are both passed"),
        (["--samples", "s", "--threshold", "1.5"], "`threshold` is a share of the completions in [0, 1], got 1.5"),
        (["--merge", "a", "--threshold", "0.7"], "`threshold` has no effect if anchors are only merged"),
        (["--samples", "SAMPLES", "--temperature", "0.7"], "`temperature` has no effect without `model`. Remove it."),
        (["--samples", "SAMPLES", "--timeout", "7"], "`timeout` has no effect without a server. Remove it."),
        (["--model", "m", "--prompts", "PROMPTS", "--num_generations", "1"], "`num_generations` must be at least 2"),
        (
            ["--samples", "SAMPLES", "--key", "facts"],
            "`key`='facts' names no column of `samples`, which has ['prompt'",
        ),
        (
            ["--samples", "SAMPLES", "--key", "completions"],
            "`key`='completions' cannot name paraphrases, because this",
        ),
        (["--samples", "GROUPED"], "`samples` row 2 was clustered for another threshold. Its confidence is between"),
        (["--merge", "a"], "`merge` has one folder, so there is nothing to merge. Pass another one, or `key`."),
        (["--samples", "SAMPLES", "--merge", "nowhere"], "'nowhere' has no `anchors.json`, so it holds no anchors."),
        (["--samples", "PROMPTS"], "`samples` lacks the columns ['completions', 'finished']."),
        (["--samples", "ONE"], "`samples` has 1 completions per prompt, but RLP compares completions."),
    ],
)
def test_bad_input_is_one_line_and_creates_no_folder(tmp_path, write_rows, options, message, capsys):
    files = {
        "SAMPLES": write_rows("samples.jsonl", ROWS),
        "PROMPTS": write_rows("prompts.jsonl", [{"prompt": "a"}]),
        "ONE": write_rows("one.jsonl", [{"prompt": "a", "completions": ["x"], "finished": [True]}]),
    }
    if "GROUPED" in options:
        files["GROUPED"] = str(tmp_path / "grouped")
        cluster(load_rows(files["SAMPLES"]), ExactMatch(), threshold=0.9).save_to_disk(files["GROUPED"])
    options = [files.get(word, word) for word in options]
    assert main(["anchors", *options, "--equivalence", "exact", "--output_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"trl-rlp anchors: {message}")
    assert not (tmp_path / "out").exists()


def test_no_anchor_at_all_is_one_line(tmp_path, words, write_rows, capsys):
    words[2] = write_rows("open.jsonl", ROWS[2:])
    assert main(words) == 2
    assert "None of 1 prompts has an anchor. Rejected: {'below" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out" / "anchors.json").exists()


def test_a_folder_of_other_settings_is_refused(tmp_path, words, capsys):
    assert main(words) == 0
    assert main([*words, "--threshold", "0.7"]) == 2
    assert "`threshold` was 0.5 and is 0.7" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "anchors.json").read_text())["threshold"] == 0.5


def test_anchors_of_another_threshold_are_refused_before_any_work(tmp_path, words, capsys):
    assert main(words) == 0
    words[-1] = str(tmp_path / "merged")
    assert main([*words, "--merge", str(tmp_path / "out"), "--threshold", "0.6"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "`merge` has anchors of the threshold 0.5, but `threshold` is 0.6" in error
    assert not (tmp_path / "merged").exists()


def test_a_list_of_folders_may_be_in_a_file(tmp_path, words, capsys):
    assert main(words) == 0
    (tmp_path / "config.yaml").write_text(f"merge: [{tmp_path / 'out'}]\n")
    words[-1] = str(tmp_path / "merged")
    assert main([*words, "--config", str(tmp_path / "config.yaml")]) == 0
    assert [row["num_generations"] for row in load(tmp_path / "merged")] == [6, 6, 6]


def test_only_the_main_process_prints(words, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(module, "_print", lambda anchors, run: made.append(run.state.is_main_process))
    assert main(words) == 0 and made == [True]
