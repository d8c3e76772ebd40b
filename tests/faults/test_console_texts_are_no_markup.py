"""Texts of models and paths of users are printed as they are: rich takes none of them for markup or for an emoji."""

import copy
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from trl_rlp.cli.run import print_result
from trl_rlp.pipeline import RLPResult, Round
from trl_rlp.quickstart.report import print_summary
from trl_rlp.trainer.ppo.sample_generations import print_table


OUTCOME = json.loads((Path(__file__).parents[1] / "quickstart" / "outcome.json").read_text(encoding="utf-8"))
TEXTS = ("[INST] 4", "[/INST] 4", "[b]bold[/b] four", "see [link]", "at :warning: 4")


def build_console():
    return Console(file=io.StringIO(), width=240)


def get_text(console):
    return console.file.getvalue()


@pytest.mark.parametrize("text", TEXTS)
def test_the_examples_of_the_quickstart(text):
    outcome, console = copy.deepcopy(OUTCOME), build_console()
    outcome["questions"][0] |= {"question": f"{text}?", "majority": f"{text}!", "answer": f"{text}."}
    print_summary(outcome, console)
    assert all(part in get_text(console) for part in (f"{text}?", f"{text}! (right)", f"{text}."))


@pytest.mark.parametrize("text", TEXTS)
def test_the_completions_that_a_trainer_prints(text):
    console = build_console()
    print_table([{"query": text, "model response": [{"role": "assistant", "content": text}]}], console)
    assert get_text(console).count(text) == 2


def test_a_terminal_obeys_no_completion():
    """A policy with byte tokens can write escape sequences, which clear a screen or rewrite lines above."""
    outcome, console = copy.deepcopy(OUTCOME), build_console()
    outcome["questions"][0] |= {"majority": "4\x1b[2J", "answer": "4\r5"}
    print_summary(outcome, console)
    print_table([{"query": "2 + 2\x9b2J", "model response": "4\x1b]0;title\x07"}], console)
    shown = get_text(console)
    assert "4⟨U+001B⟩[2J" in shown and "4⟨U+000D⟩5" in shown and "2 + 2⟨U+009B⟩2J" in shown
    assert not {"\x1b", "\r", "\x9b", "\x07"} & set(shown)


@pytest.mark.parametrize("text", TEXTS)
def test_the_folders_of_a_run(text, capsys):
    folder = Path(f"run {text} " + "x" * 100)
    entry = Round(*(folder / name for name in ("p", "d", "r", "pi")))
    stages = {"gate": {"metrics": {"comparisons": {}}}}
    print_result(RLPResult(folder / "r", folder / "pi", *entry, stages=stages, rounds=[entry]), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [
        f"refined reward model: {folder / 'r'}",
        f"retrained policy:     {folder / 'pi'}",
        f"For one HTML file about this run: trl-rlp report '{folder}'",
    ]
