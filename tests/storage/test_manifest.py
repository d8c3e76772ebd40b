import json
import os
from pathlib import Path

import pytest

import trl_rlp.storage.manifest as module
from trl_rlp.storage.manifest import check_folder, claim_folder, require_writable


SETTINGS = {"seed": 1, "method": "spg", "sizes": (1, 2)}


def test_the_first_call_writes_the_manifest_and_equal_settings_are_accepted(tmp_path):
    folder = tmp_path / "new" / "folder"
    claim_folder(folder, "run.json", SETTINGS)
    assert json.loads((folder / "run.json").read_text()) == {"seed": 1, "method": "spg", "sizes": [1, 2]}
    before = (folder / "run.json").stat().st_mtime_ns
    claim_folder(folder, "run.json", SETTINGS)
    assert (folder / "run.json").stat().st_mtime_ns == before
    assert [path.name for path in folder.iterdir()] == ["run.json"]


def test_a_second_run_that_starts_at_the_same_time_is_refused(tmp_path, monkeypatch):
    """Another run writes the manifest after the check of this run."""
    make = Path.mkdir

    def make_too_late(path, **options):
        make(path, **options)
        (path / "run.json").write_text('{"seed": 2, "method": "spg", "sizes": [1, 2]}')

    monkeypatch.setattr(Path, "mkdir", make_too_late)
    with pytest.raises(ValueError, match="holds a run with other settings: `seed` was 2 and is 1"):
        claim_folder(tmp_path, "run.json", SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_file_system_without_hard_links_holds_a_manifest_too(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    claim_folder(tmp_path, "run.json", SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_other_settings_are_refused_by_name_and_the_manifest_stays(tmp_path):
    claim_folder(tmp_path, "run.json", SETTINGS)
    before = (tmp_path / "run.json").read_bytes()
    match = (
        "holds a run with other settings: `method` was 'spg' and is 'uml', `seed` was 1 and is 2, `top_k` was None "
        "and is 5. Choose another `output_dir`, or delete this one to start again."
    )
    with pytest.raises(ValueError, match=match):
        claim_folder(tmp_path, "run.json", {"seed": 2, "method": "uml", "sizes": (1, 2), "top_k": 5})
    with pytest.raises(ValueError, match=r"settings: `sizes` was \[1, 2\] and is None\. Choose"):
        claim_folder(tmp_path, "run.json", {"seed": 1, "method": "spg"})
    assert (tmp_path / "run.json").read_bytes() == before


def test_the_folder_of_another_command_is_refused_without_advice_to_delete_it(tmp_path):
    claim_folder(tmp_path, "run.json", {"seed": 1, "sft_model": "sft", "temperature": 1.0})
    with pytest.raises(ValueError, match="belongs to another command") as error:
        claim_folder(tmp_path, "run.json", SETTINGS)
    assert "delete" not in str(error.value) and "temperature" not in str(error.value)


@pytest.mark.parametrize("text", ['{"see', "3", ""])
def test_a_damaged_manifest_is_named(tmp_path, text):
    claim_folder(tmp_path, "run.json", SETTINGS)
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json is damaged.* Choose another `output_dir`, or delete this one"):
        claim_folder(tmp_path, "run.json", SETTINGS)


def test_a_folder_with_files_of_unknown_origin_is_refused_and_left_unchanged(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"is not empty and holds no run\.json.*Choose an empty folder"):
        claim_folder(tmp_path, "run.json", SETTINGS)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"thesis.txt": "precious"}


def test_only_files_that_match_the_pattern_count(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    claim_folder(tmp_path, "run.json", SETTINGS, run_files="shard-*.jsonl")
    assert (tmp_path / "run.json").exists()


def test_the_check_writes_nothing_and_refuses_what_a_claim_refuses(tmp_path):
    folder = tmp_path / "new" / "folder"
    check_folder(folder, "run.json", SETTINGS)
    assert not list(tmp_path.iterdir())
    folder.mkdir(parents=True)
    check_folder(folder, "run.json", SETTINGS)
    assert not list(folder.iterdir())
    claim_folder(folder, "run.json", SETTINGS)
    check_folder(folder, "run.json", SETTINGS)
    with pytest.raises(ValueError, match="`seed` was 1 and is 2"):
        check_folder(folder, "run.json", {**SETTINGS, "seed": 2})
    with pytest.raises(ValueError, match=r"is not empty and holds no run\.json"):
        check_folder(folder.parent, "run.json", SETTINGS)
    assert [path.name for path in folder.iterdir()] == ["run.json"]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("precious")
    for folder in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(ValueError, match="cannot be written, because .*file is not a writable folder"):
            check_folder(folder, "run.json", SETTINGS)
    monkeypatch.setattr(module.os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match="cannot be written"):
        check_folder(tmp_path / "new", "run.json", SETTINGS)


def test_a_finished_run_in_a_folder_that_is_only_readable_is_accepted(tmp_path, monkeypatch):
    claim_folder(tmp_path, "run.json", SETTINGS)
    before = (tmp_path / "run.json").read_bytes()
    monkeypatch.setattr(module.os, "access", lambda path, mode: False)
    claim_folder(tmp_path, "run.json", SETTINGS)
    assert (tmp_path / "run.json").read_bytes() == before


def test_a_second_process_raises_the_error_of_the_main_process(tmp_path, monkeypatch):
    """The second process does not look at the folder. It gets the outcome by broadcast."""

    class SecondProcess:
        is_main_process = False

    def broadcast(values):
        values[:] = ["`output_dir` holds another run"]

    monkeypatch.setattr(module, "process_state", SecondProcess)
    monkeypatch.setattr(module, "broadcast_object_list", broadcast)
    with pytest.raises(ValueError, match="holds another run"):
        claim_folder(tmp_path / "run", "run.json", SETTINGS)
    assert not Path(tmp_path / "run").exists()


def test_a_folder_to_write_is_checked_without_making_it(tmp_path):
    require_writable(tmp_path / "new" / "folder")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ValueError, match="cannot be written, because .*file is not a writable folder"):
        require_writable(tmp_path / "file")
