import json

import pytest

from trl_rlp.cli.prefer import main


@pytest.fixture
def words(tmp_path):
    """No two completions agree, so `spg` accepts no prompt and fails."""
    row = {"prompt": "a", "completions": ["x", "y", "z"], "finished": [True] * 3}
    (tmp_path / "samples.jsonl").write_text(json.dumps(row) + "\n")
    samples = ["--samples", str(tmp_path / "samples.jsonl"), "--chosen", "random"]
    return [*samples, "--equivalence", "exact", "--output_dir", str(tmp_path / "out")]


def test_a_failed_call_leaves_an_empty_folder(tmp_path, words):
    with pytest.raises(ValueError, match="below_threshold"):
        main(words)
    assert not list((tmp_path / "out").iterdir())


def test_the_manifest_of_another_run_is_never_deleted(tmp_path, words):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text('{"seed": 1}')
    with pytest.raises(ValueError, match="holds a run with other settings"):
        main(words)
    assert (tmp_path / "out" / "run.json").read_text() == '{"seed": 1}'


def test_other_files_in_the_folder_are_refused(tmp_path, words):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="is not empty and holds no run.json"):
        main(words)
