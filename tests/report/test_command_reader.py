import os
import shutil

import pytest
from datasets import Dataset

from tests.report.run_folders import (
    build_samples,
    log_policy,
    log_reward_model,
    write_lines,
    write_log,
    write_preferences,
)
from trl_rlp.cli.anchors import main as make_anchors
from trl_rlp.data.anchors import SemanticAnchors
from trl_rlp.data.groups import ExactMatch
from trl_rlp.data.preferences import synthesize_preferences
from trl_rlp.report.contents_reader import read_contents
from trl_rlp.report.run_report import write_report
from trl_rlp.storage.artifacts import save_data
from trl_rlp.storage.json_files import write_json


def test_pairs_and_completions_of_a_trainer_are_read(run, tmp_path):
    folder = tmp_path / "trainer"
    write_log(folder, log_policy())
    (arrow,) = (run / "synthetic_preferences" / "data").glob("*.arrow")
    (folder / "_refinement" / "pairs-1").mkdir(parents=True)
    shutil.copy(arrow, folder / "_refinement" / "pairs-1" / "shard-00000.arrow")
    (folder / "completions").mkdir()
    Dataset.from_list([{"step": 1, "prompt": "a", "completion": "b"}]).to_parquet(
        folder / "completions" / "completions_00001.parquet"
    )
    contents = read_contents(folder)
    assert contents.rounds[0].prompts is None and len(contents.rounds[0].pairs) > 0
    assert contents.completions.column("completion") == ["b"]


def test_pairs_of_several_trainings_are_those_that_were_written_last(tmp_path):
    """The folders are named after hashes, so their order says nothing."""
    write_log(tmp_path, log_reward_model())
    for number, name in enumerate(("pairs-b", "pairs-c", "pairs-a"), start=1):
        folder = tmp_path / "_refinement" / name
        samples, options = build_samples(10 * number), {"threshold": 0.5, "chosen": "random"}
        synthesize_preferences(samples, "spg", equivalence=ExactMatch(), output_dir=folder, shard_size=10, **options)
        for shard in folder.glob("shard-*.arrow"):
            os.utime(shard, (number, number))
    contents = read_contents(tmp_path)
    (data,) = contents.rounds
    assert data.number == 1 and len(data.pairs) == 30
    assert contents.missing == [
        "The folder _refinement holds the pairs of 3 trainings. Only those that were written last are shown."
    ]


def test_samples_preferences_and_anchors_are_read(tmp_path):
    rows = [{**row, "answers": ["4"]} for row in build_samples().to_list()]
    write_lines(tmp_path / "sample" / "samples.jsonl", rows)
    (data,) = read_contents(tmp_path / "sample").rounds
    assert len(data.prompts) == 6 and data.answers == [["4"]] * 6

    (tmp_path / "prefer").mkdir()
    write_json(tmp_path / "prefer" / "run.json", {"generator": "spg", "threshold": 0.7})
    pairs = [{"prompt": "a", "chosen": "b", "rejected": "c", "confidence": 0.8}]
    write_lines(tmp_path / "prefer" / "preferences.jsonl", pairs)
    (data,) = read_contents(tmp_path / "prefer").rounds
    assert data.threshold == 0.7 and len(data.pairs) == 1

    save_data(Dataset.from_list([{"prompt": "a", "anchor": "b", "confidence": 0.8}]), tmp_path / "anchors")
    write_json(tmp_path / "anchors" / "anchors.json", {"threshold": 0.5})
    assert len(read_contents(tmp_path / "anchors").anchors) == 1


def test_shards_of_preferences_also_tell_why_a_prompt_has_no_pair(tmp_path):
    write_preferences(tmp_path)
    contents = read_contents(tmp_path)
    assert contents.rounds[0].counts == {"below_threshold": 7} and len(contents.rounds[0].pairs) == 10
    (text,) = contents.missing
    assert text.startswith("`trl-rlp prefer` has not finished")


def test_unfinished_samples_are_described(tmp_path):
    (tmp_path / "shards").mkdir()
    write_json(tmp_path / "shards" / "samples.json", {"seed": 1})
    (tmp_path / "shards" / "shard-00000.arrow").touch()
    (text,) = read_contents(tmp_path).missing
    assert text.startswith("`trl-rlp sample` has not finished (1 finished shards")


def test_unfinished_anchors_are_described(tmp_path, monkeypatch, capsys):
    """The command also samples, into the same files as `trl-rlp sample`."""
    samples = write_lines(tmp_path / "samples.jsonl", build_samples().to_list())
    folder = tmp_path / "out"
    options = ["--samples", str(samples), "--equivalence", "exact", "--output_dir", str(folder)]
    with monkeypatch.context() as patch:
        patch.setattr(SemanticAnchors, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make_anchors(options)
    (folder / "shards").mkdir()
    for name in ("run.json", "shards/samples.json", "shards/shard-00000.arrow", "samples.jsonl"):
        (folder / name).touch()
        assert read_contents(folder).missing == [
            "`trl-rlp anchors` has not finished. The same command goes on after the last finished shard."
        ]
    make_anchors(options)
    assert read_contents(folder).missing == [] and len(read_contents(folder).anchors) == 6


@pytest.mark.parametrize(
    ("columns", "left_out"),
    [
        ({"answers": {"text": ["4"], "answer_start": [1]}}, ["answers"]),
        ({"answers": 42}, ["answers"]),
        ({"confidence": "high", "answers": "4"}, ["confidence"]),
        ({"confidence": 87.5}, ["confidence"]),
        ({"cluster_ids": [0, 0, 1, 1], "confidence": "high"}, ["cluster_ids", "confidence"]),
        ({"answers": ["4"], "cluster_ids": [0, 0, 1, 1], "confidence": 0.5}, []),
    ],
)
def test_columns_of_the_prompts_with_our_names_are_no_damage(tmp_path, columns, left_out):
    """`trl-rlp sample` keeps the columns of the prompts and does not check them."""
    write_lines(tmp_path / "samples.jsonl", [{**row, **columns} for row in build_samples().to_list()])
    contents = read_contents(tmp_path)
    (data,) = contents.rounds
    assert data.prompts.names == {"prompt", "completions", "finished", *columns} - set(left_out)
    assert (data.answers is None) == ("answers" not in data.prompts.names)
    assert all(text.endswith(f": {', '.join(left_out)}.") for text in contents.missing)
    assert len(contents.missing) == bool(left_out)
    assert write_report(tmp_path).is_file()


@pytest.mark.parametrize("text", ['{"loss": 1}\n{"loss": 2}\n', '{"policy": {"loss": "low"}}'])
def test_metrics_of_another_program_do_not_hide_a_training(tmp_path, text):
    write_log(tmp_path, log_policy())
    (tmp_path / "metrics.json").write_text(text)
    contents = read_contents(tmp_path)
    assert list(contents.logs) == ["trainer"] and contents.evaluation == {}
    (tmp_path / "judge_answers.jsonl").touch()
    with pytest.raises(ValueError, match="metrics.json' is damaged .* Run `trl-rlp evaluate` again"):
        read_contents(tmp_path)


def test_an_evaluation_is_read_and_an_unfinished_one_is_described(tmp_path):
    annotation = {"instruction": "a", "output_1": "b", "output_2": "c", "preference": 2}
    write_json(tmp_path / "annotations.json", [annotation])
    (tmp_path / "judge_answers.jsonl").touch()
    contents = read_contents(tmp_path)
    (text,) = contents.missing
    assert text.startswith("`trl-rlp evaluate` has not finished.") and contents.evaluation == {}
    assert contents.annotations["outputs"].take([0]) == [annotation]
    write_json(tmp_path / "metrics.json", {"win_rate": {"win_rate": 1.0}})
    contents = read_contents(tmp_path)
    assert contents.evaluation["win_rate"] == {"win_rate": 1.0} and contents.missing == []
    assert list(contents.annotations) == ["outputs"]
