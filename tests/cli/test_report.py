import json
import logging

import pytest

import trl_rlp.cli.report as module
from trl_rlp.cli import main


@pytest.fixture
def folder(tmp_path, write_rows):
    write_rows("samples.jsonl", [{"prompt": "a", "completions": ["b"], "finished": [True]}])
    return tmp_path


def test_the_folder_needs_no_name(folder, capsys):
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"Report: {folder / 'report.html'} (0.0 MB)\n"
    assert "rows-prompts" in (folder / "report.html").read_text(encoding="utf-8")


def test_the_output_can_be_elsewhere(folder, capsys):
    assert main(["report", "--folder", str(folder), "--output", str(folder / "new" / "page.html")]) == 0
    assert (folder / "new" / "page.html").is_file() and not (folder / "report.html").exists()


@pytest.mark.parametrize("joined", [False, True])
def test_the_folder_may_come_after_the_options(folder, joined):
    page = folder / "page.html"
    assert main(["report", *([f"--output={page}"] if joined else ["--output", str(page)]), str(folder)]) == 0
    assert page.is_file()


def test_a_second_word_is_an_error(folder, capsys):
    assert main(["report", str(folder), "other"]) == 2
    assert "does not expect 'other'" in capsys.readouterr().err


def test_a_damaged_file_is_one_line(folder, capsys):
    (folder / "samples.jsonl").write_text(json.dumps({"prompt": "a", "completions": 5}))
    assert main(["report", str(folder)]) == 2
    error = capsys.readouterr().err
    assert (
        error.count("\n") == 1 and "samples.jsonl' is damaged (row 0: `completions` is 5, not a valid list)" in error
    )


def test_a_wrong_folder_is_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "is empty. Pass the output folder of" in error
    assert main(["report"]) == 2
    assert "--folder" in capsys.readouterr().err


def test_a_sampled_report_is_said_on_the_console(folder, monkeypatch, caplog):
    (folder / "samples.jsonl").write_text(json.dumps({"prompt": "a" * 20_000, "completions": ["b"]}))
    monkeypatch.setattr("trl_rlp.report.page.MAX_BYTES", 30_000)
    with caplog.at_level(logging.WARNING):
        assert main(["report", str(folder)]) == 0
    assert "0 of 1 rows are on this page" in caplog.text


def test_a_quickstart_run_keeps_its_own_sections(tmp_path, monkeypatch):
    calls = []

    def rewrite(folder, output):
        calls.append((folder, output))
        page = tmp_path / "report.html"
        page.write_text("page")
        return page

    monkeypatch.setattr(module, "rewrite_page", rewrite)
    for name in ("run.json", "outcome.json"):
        (tmp_path / name).write_text(json.dumps({}))
    assert main(["report", str(tmp_path)]) == 0
    assert calls == [(str(tmp_path), None)]
