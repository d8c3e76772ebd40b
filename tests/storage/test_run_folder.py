import json

import pytest

from trl_rlp.storage.run_folder import RunFolder


def test_a_finished_stage_is_done_once_and_its_figures_are_kept(tmp_path):
    calls = []

    def work(folder, accuracy):
        calls.append(folder.name)
        (folder / "result.txt").write_text("done")
        return {"accuracy": accuracy}

    for _ in range(2):
        run = RunFolder(tmp_path / "run", {"seed": 1})
        folder = run.stage("policy", work, accuracy=0.5)
    assert calls == ["policy.partial"]
    assert folder == tmp_path / "run" / "policy" and (folder / "result.txt").read_text() == "done"
    assert run.figures("policy") == {"accuracy": 0.5} and run.results()["policy"]["seconds"] >= 0


def test_what_json_does_not_have_is_null(tmp_path):
    run = RunFolder(tmp_path / "run", {})
    folder = run.stage("gate", lambda folder: {"human": {"error": float("nan")}, "list": [float("inf"), 1.0]})
    assert "NaN" not in (folder / "stage.json").read_text()
    assert run.figures("gate") == {"human": {"error": None}, "list": [None, 1.0]}


def test_a_damaged_record_of_the_run_is_named(tmp_path):
    RunFolder(tmp_path / "run", {"seed": 1})
    for text in ('{"see', "3"):
        (tmp_path / "run" / "run.json").write_text(text)
        with pytest.raises(ValueError, match=r"run\.json is damaged.* Choose another `output_dir`"):
            RunFolder(tmp_path / "run", {"seed": 1})


def test_an_interrupted_stage_keeps_its_leftovers_and_is_not_finished(tmp_path):
    def interrupted(folder):
        (folder / "shard-0").write_text("half")
        raise KeyboardInterrupt

    run = RunFolder(tmp_path / "run", {})
    with pytest.raises(KeyboardInterrupt):
        run.stage("samples", interrupted)
    assert not run.finished("samples") and not (tmp_path / "run" / "samples").exists()

    folder = run.stage("samples", lambda folder: {"found": (folder / "shard-0").read_text()})
    assert run.figures("samples") == {"found": "half"} and (folder / "shard-0").exists()


def test_other_settings_are_refused_by_name_and_nothing_is_touched(tmp_path):
    RunFolder(tmp_path / "run", {"seed": 1, "method": "spg", "sizes": (1, 2)})
    RunFolder(tmp_path / "run", {"seed": 1, "method": "spg", "sizes": (1, 2)})
    with pytest.raises(ValueError, match=r"\(method, seed differ\)"):
        RunFolder(tmp_path / "run", {"seed": 2, "method": "uml", "sizes": (1, 2)})
    assert json.loads((tmp_path / "run" / "run.json").read_text())["seed"] == 1


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="is not empty and holds no run.json"):
        RunFolder(tmp_path, {})
    assert (tmp_path / "thesis.txt").read_text() == "precious"
