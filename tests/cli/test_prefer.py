import json
import shutil

import pytest
from datasets import Dataset

import trl_rlp.cli.prefer as module
from trl_rlp.cli import main as run_command
from trl_rlp.cli.prefer import main
from trl_rlp.storage.json_files import replace_nan
from trl_rlp.storage.loading import load_rows
from trl_rlp.storage.run_folder import RunFolder


@pytest.fixture
def words(tmp_path):
    """No two completions agree, so `spg` accepts no prompt."""
    row = {"prompt": "a", "completions": ["x", "y", "z"], "finished": [True] * 3}
    (tmp_path / "samples.jsonl").write_text(json.dumps(row) + "\n")
    samples = ["--samples", str(tmp_path / "samples.jsonl"), "--chosen", "random"]
    return [*samples, "--equivalence", "exact", "--output_dir", str(tmp_path / "out")]


@pytest.fixture
def result(monkeypatch):
    """Replaces the synthesis by a result that is known already."""
    preferences = Dataset.from_dict({"prompt": ["a"], "chosen": ["x"], "rejected": ["y"]})
    monkeypatch.setattr(module, "synthesize_preferences", lambda *_, **__: (preferences, {"accepted": 1}))
    return preferences


def test_wrong_arguments_do_not_create_the_folder(tmp_path, words):
    with pytest.raises(ValueError, match="`threshold` is a share"):
        main([*words, "--threshold", "2"])
    assert not (tmp_path / "out").exists()


def test_the_folder_belongs_to_the_settings_of_a_killed_call(tmp_path, words, result, monkeypatch):
    """A hard kill runs no cleanup, so the folder must belong to the call before the work starts."""

    def interrupted(*_, output_dir, **__):
        assert output_dir == tmp_path / "out" / "shards" and (tmp_path / "out" / "run.json").exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "synthesize_preferences", interrupted)
        main(words)
    with pytest.raises(ValueError, match="`seed` was 42 and is 7"):
        main([*words, "--seed", "7"])
    main(words)
    assert (tmp_path / "out" / "preferences.jsonl").exists()


def test_the_folder_of_another_run_is_refused_before_any_work_and_stays_unchanged(tmp_path, words, monkeypatch):
    (tmp_path / "out" / "policy").mkdir(parents=True)
    for name in ("run.json", "preferences.jsonl", "policy/model"):
        (tmp_path / "out" / name).write_text('{"seed": 1}')
    before = {path: path.stat() for path in sorted((tmp_path / "out").rglob("*"))}
    monkeypatch.setattr(module, "synthesize_preferences", lambda *_, **__: pytest.fail("work was done"))
    with pytest.raises(ValueError, match="belongs to another command"):
        main(words)
    after = {path: path.stat() for path in sorted((tmp_path / "out").rglob("*"))}
    assert after.keys() == before.keys()
    assert all(after[path].st_mtime_ns == before[path].st_mtime_ns for path in before)
    assert (tmp_path / "out" / "run.json").read_text() == '{"seed": 1}'


def test_a_folder_that_another_run_claims_in_the_meantime_stays_unchanged(tmp_path, words, monkeypatch):
    monkeypatch.setattr(module, "check_synthesis", lambda *_, **__: RunFolder(tmp_path / "out", {"seed": 1}))
    monkeypatch.setattr(module, "synthesize_preferences", lambda *_, **__: pytest.fail("work was done"))
    with pytest.raises(ValueError, match="belongs to another command"):
        main(words)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.json"]


def test_an_interrupted_write_leaves_no_preferences_and_the_same_settings_write_them(
    tmp_path, words, result, monkeypatch
):
    def interrupted(value):
        if "chosen" in value:
            raise KeyboardInterrupt
        return replace_nan(value)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("trl_rlp.storage.json_files.replace_nan", interrupted)
        main(words)
    assert not (tmp_path / "out" / "preferences.jsonl").exists()
    main(words)
    assert load_rows(str(tmp_path / "out" / "preferences.jsonl")).to_list() == result.to_list()


@pytest.mark.parametrize("is_main_process", [True, False])
def test_only_the_main_process_writes_and_prints(tmp_path, words, result, monkeypatch, capsys, is_main_process):
    class Process:
        def __init__(self):
            self.is_main_process = is_main_process

        def wait_for_everyone(self):
            pass

    for name in ("manifest", "run_folder"):
        monkeypatch.setattr(f"trl_rlp.storage.{name}.process_state", Process)
    main(words)
    names = ["counts.json", "preferences.jsonl", "run.json"] if is_main_process else []
    assert sorted(path.name for path in tmp_path.glob("out/*")) == names
    assert ("1 preferences of 1 prompts" in capsys.readouterr().out) == is_main_process


def test_other_files_in_the_folder_are_refused(tmp_path, words):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="is not empty and holds no run.json"):
        main(words)


def test_an_unknown_generator_is_named_as_the_option(words):
    match = r"`--generator` must be one of \['majority_best', 'reward', 'rlaif', 'select_all', 'spg'\], got 'sgp'"
    with pytest.raises(ValueError, match=match):
        main([*words, "--generator", "sgp"])


# The command on tiny models


def test_a_missing_nli_model_is_named_with_a_remedy(tmp_path, models, samples, capsys):
    words = ["--samples", samples, "--reward_model", models["reward"], "--equivalence_model", "no-such/nli"]
    assert run_command(["prefer", *words, "--output_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "No model could be loaded from 'no-such/nli'" in error and "`--equivalence exact`" in error


def test_preferences_and_counts_are_written(tmp_path, models, samples, capsys):
    words = ["prefer", "--samples", samples, "--reward_model", models["reward"], "--equivalence", "exact"]
    assert run_command([*words, "--output_dir", str(tmp_path / "out")]) == 0
    assert "4 preferences of 4 prompts" in capsys.readouterr().out
    rows = load_rows(str(tmp_path / "out" / "preferences.jsonl"))
    assert all(row["chosen"].lower().startswith("yes") and row["rejected"] in {"no", ""} for row in rows)
    assert isinstance(json.loads((tmp_path / "out" / "counts.json").read_text()), dict)


def test_majority_best_also_writes_its_picks(tmp_path, models, write_rows, capsys):
    rows = [
        {"prompt": "a", "completions": ["x", "x", "y", "z"], "finished": [True] * 4},
        {"prompt": "b", "completions": ["x", "x", "x", "x"], "finished": [False, True, True, True]},
        {"prompt": "c", "completions": ["x", "y", "z", "w"], "finished": [True] * 4},
    ]
    words = ["prefer", "--samples", write_rows("s.jsonl", rows), "--generator", "majority_best"]
    words += ["--equivalence", "exact", "--output_dir", str(tmp_path / "out")]
    assert run_command(words) == 2
    assert "`reward_model` is None, but `generator`='majority_best'" in capsys.readouterr().err
    words += ["--reward_model", models["reward"]]
    for _ in range(2):  # the second call loads the shards
        assert run_command(words) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("1 preferences of 3 prompts") and lines[1].startswith("2 picks of 3 prompts")
    pairs, picks = (load_rows(str(tmp_path / "out" / f"{name}.jsonl")) for name in ("preferences", "picks"))
    assert [(row["prompt"], row["chosen"]) for row in pairs] == [("a", "x")]
    assert [(row["prompt"], row["completion"]) for row in picks] == [("a", "x"), ("b", "x")]
    assert picks["confidence"][:] == [0.5, 1.0] and picks["reward"][0] == pairs["chosen_reward"][0]


def test_an_nli_model_and_a_judge_can_be_used(tmp_path, models, samples, capsys):
    words = ["prefer", "--samples", samples, "--output_dir", str(tmp_path / "out"), "--threshold", "0.2"]
    nli = ["--reward_model", models["reward"], "--equivalence_model", models["nli"], "--generator", "select_all"]
    assert run_command([*words, *nli]) == 0
    judged = [*words, "--generator", "rlaif", "--judge_model", models["policy"]]
    assert run_command(judged) == 2  # the folder has the preferences of another generator
    words[4] = str(tmp_path / "judged")
    judge = shutil.copytree(models["policy"], tmp_path / "judge")
    judged = [*words, "--generator", "rlaif", "--judge_model", str(judge), "--max_length", "200"]
    assert run_command(judged) == 0 and run_command(judged) == 0
    (judge / "chat_template.jinja").write_text("another template")
    assert run_command(judged) == 2 and "other settings: `judge_model_files` was" in capsys.readouterr().err


def test_no_accepted_prompt_is_one_line(tmp_path, models, write_rows, capsys):
    rows = [{"prompt": "a", "completions": ["x", "y", "z"], "finished": [True] * 3}]
    words = ["prefer", "--samples", write_rows("s.jsonl", rows), "--reward_model", models["reward"]]
    assert run_command([*words, "--equivalence", "exact", "--output_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("trl-rlp prefer: ") and "below_threshold" in error
    # Another generator needs another folder.
    more = ["--equivalence", "exact", "--generator", "reward", "--output_dir"]
    assert run_command([*words, *more, str(tmp_path / "out")]) == 2
    assert "`generator` was 'spg' and is 'reward'. Choose another" in capsys.readouterr().err
    assert run_command([*words, *more, str(tmp_path / "reward")]) == 0


def test_a_judge_that_nothing_asks_is_an_error(words, tmp_path):
    match = r"`--judge_model` has no effect with `--generator` spg. Remove it, or choose one of \['rlaif'\]"
    with pytest.raises(ValueError, match=match):
        main([*words, "--judge_model", "no/such"])
    assert not (tmp_path / "out").exists()
