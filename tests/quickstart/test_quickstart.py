"""The whole quickstart on a tiny model that has learnt to answer every question with yes or no."""

import json

import pytest
from rich.console import Console

import trl_rlp.quickstart.quickstart as module
from tests.yes_or_no import QUESTIONS, yes_or_no_model
from trl_rlp.quickstart.quickstart import quickstart
from trl_rlp.quickstart.quickstart_config import QuickstartConfig
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
    policy_rollouts=1,
    completions_per_rollout=8,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return yes_or_no_model(tmp_path_factory.mktemp("model"))


def config(model, folder, **overrides):
    return QuickstartConfig(**{"output_dir": str(folder), "model": model, "minutes": 60.0, **overrides})


@pytest.fixture
def few_questions(monkeypatch):
    monkeypatch.setattr(module, "load_questions", lambda: QUESTIONS)


def test_whole_run_writes_figures_and_page_and_goes_on(model, tmp_path, few_questions):
    with (tmp_path / "screen.txt").open("w") as screen:
        console = Console(file=screen, width=140)
        page = quickstart(config(model, tmp_path / "run"), TINY, console)
        seconds = json.loads((tmp_path / "run" / "outcome.json").read_text())["seconds"]
        again = quickstart(config(model, tmp_path / "run"), TINY, console)
    outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())

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
    assert outcome["stages"]["gate"]["figures"]["figures"]["human"]["before"]["pairs"] > 0

    text = page.read_text()
    assert all(question.question in text for question in QUESTIONS if question.question in str(outcome["questions"]))
    said = (tmp_path / "screen.txt").read_text()
    assert "Step 0" in said and "Step 5" in said and "not evidence" in said
    assert "'loss'" not in said and "'loss'" in (tmp_path / "run" / "log.txt").read_text()


def test_a_run_without_synthetic_training_still_describes_the_preferences(model, tmp_path, few_questions):
    quickstart(config(model, tmp_path / "run", method="uml"), TINY, Console(quiet=True))
    outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert "synthetic_preferences" not in outcome["stages"]
    assert outcome["synthetic"]["spg"]["pairs"] > 0


def test_no_time_left_cuts_the_work_and_says_so(model, tmp_path, few_questions, capsys):
    sizes = Sizes(**{**vars(TINY), "policy_rollouts": 3, "preference_questions": 12})
    page = quickstart(config(model, tmp_path / "run", minutes=1e-6), sizes)
    outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert outcome["sizes"]["policy_rollouts"] == 2
    assert outcome["plans"]["plan_algorithm"]["share"] < 1
    assert "was cut to" in page.read_text()
    assert "the work ahead is cut to" in capsys.readouterr().out


def test_another_run_in_the_folder_is_refused(model, tmp_path, few_questions):
    (tmp_path / "run.json").write_text('{"seed": 1}')
    with pytest.raises(ValueError, match="holds a run with other settings"):
        quickstart(config(model, tmp_path), TINY, Console(quiet=True))
