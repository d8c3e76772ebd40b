import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from tests.cli.two_process_commands import TRAINING, run_commands
from tests.programs import run_torchrun
from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from tests.yes_or_no import QUESTIONS, train_yes_or_no_model
from trl_rlp.cli import launched_processes
from trl_rlp.cli.launched_processes import TURN_SECONDS, end_with_error
from trl_rlp.data.anchors import SemanticAnchors
from trl_rlp.evaluation.judged_outputs import ANSWERS_FILE
from trl_rlp.storage.artifacts import load_data
from trl_rlp.storage.json_files import read_json
from trl_rlp.storage.loading import load_rows


SCRIPT = Path(__file__).parent / "two_process_commands.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Long enough that scoring needs several batches, and clustering several shards."""
    folder, tokenizer = tmp_path_factory.mktemp("data"), tiny_tokenizer(chat=False)
    train_yes_or_no_model(folder / "policy")
    save(tiny_causal_lm(tokenizer), tokenizer, folder / "reference")
    save(tiny_reward_model(tokenizer), tokenizer, folder / "reward")

    def write(name, rows):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    texts = ["yes ", "yes.", "no " * 20]
    write("prompts.jsonl", [{"prompt": question.prompt, "answers": "yes"} for question in QUESTIONS[:16]])
    write("samples.jsonl", [{"prompt": f"{i}?", "completions": texts, "finished": [True] * 3} for i in range(300)])
    pairs = [{"prompt": f"{i}? " * (1 + i % 9), "chosen": "yes " * 40, "rejected": "no!" * 40} for i in range(64)]
    write("preferences.jsonl", pairs)
    for name, text in (("outputs", "own answer {}"), ("reference", "{} as the reference has it")):
        rows = [{"instruction": f"{i}?", "output": text.format(i) * 5, "generator": name} for i in range(12)]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    policy_args = {**TRAINING, "num_generations": 2, "max_completion_length": 4}
    config = {
        "sft_model": str(folder / "policy"),
        "preference_dataset": str(folder / "preferences.jsonl"),
        "prompt_dataset": str(folder / "prompts.jsonl"),
        "eval_prompt_dataset": str(folder / "prompts.jsonl"),
        "method": "spg",
        "equivalence": "exact",
        "num_generations": 4,
        "max_new_tokens": 8,
        "heldout_share": 0.5,
        "reward_args": TRAINING,
        "policy_args": policy_args,
    }
    (folder / "run.json").write_text(json.dumps(config))
    return folder


def read_results(out: Path) -> dict:
    """Reads what the commands wrote: rows and metrics, without times and checkpoints."""
    run = out / "run"
    files = [path for path in sorted(out.glob("*/*.jsonl")) if path.name != ANSWERS_FILE]
    rows = {str(path.relative_to(out)): load_rows(str(path)).to_list() for path in files}
    answers = sorted(line for path in out.glob(f"evaluate/{ANSWERS_FILE}*") for line in path.read_text().splitlines())
    stages = {path.parent.name: read_json(path)["metrics"] for path in sorted(run.glob("*/stage.json"))}
    names = ("policy_samples", "groups", "synthetic_preferences")
    data = {name: load_data(run / name).to_list() for name in names}
    metrics = {name: stages[name] for name in (*names, "gate", "evaluation")}
    return {
        "rows": rows,
        "answers": answers,
        "data": data,
        "stages": metrics,
        "anchors": SemanticAnchors.load(out / "anchors").dataset.to_list(),
        "evaluate": read_json(out / "evaluate" / "metrics.json"),
        "pairs": [load_data_shard(path) for path in sorted(out.glob("reward/_refinement/*/shard-*.arrow"))],
    }


def without_times(text: str) -> str:
    """Drops what trainers log, and the times of the stages of a run, which come before the table of the gate."""
    lines = [line for line in text.splitlines() if "_runtime'" not in line]
    gate = next((number for number, line in enumerate(lines) if "human (" in line), 0)
    return "\n".join(lines[gate:])


def load_data_shard(path: Path) -> list[dict]:
    return Dataset.from_file(str(path)).to_list()


def test_two_processes_write_and_print_what_one_process_does(data, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    result = run_torchrun(SCRIPT, data, two)
    assert (two / "printed-0.json").exists(), result.stderr[-5000:]
    torch.set_num_threads(1)  # as in both processes. A reward is rounded otherwise with two
    run_commands(data, one)
    found, expected = read_results(two), read_results(one)
    assert found == expected
    assert len(found["pairs"]) == 2 and (two / "evaluate" / f"{ANSWERS_FILE}.1").exists()
    printed, alone = (
        {name: without_times(text) for name, text in read_json(out / "printed-0.json").items()} for out in (two, one)
    )
    assert {name: text.replace(str(two), str(one)) for name, text in printed.items()} == alone
    assert set(read_json(two / "printed-1.json").values()) == {""}
    assert "refined reward model" in alone["run"] and "reward model:" in alone["reward"]
    # A fault of one process is one line, and ends both.
    assert result.returncode != 0
    assert [line for line in result.stderr.splitlines() if line.startswith("trl-rlp")] == [
        f"trl-rlp evaluate: {data / 'preferences.jsonl'} is damaged. [Set TRL_RLP_TRACEBACK=1 to see the traceback.]"
    ]


@pytest.mark.parametrize(
    "rank, error, wait",
    [
        (0, ValueError("wrong"), []),
        (1, ValueError("wrong"), [TURN_SECONDS]),
        (0, RuntimeError("Connection closed by peer [::1]:5"), [2 * TURN_SECONDS]),
        (1, torch.distributed.DistNetworkError("lost"), [2 * TURN_SECONDS]),
    ],
    ids=["main process", "other process", "main process lost another", "other process lost another"],
)
def test_a_process_with_an_error_of_its_own_speaks_before_those_that_lost_it(monkeypatch, capsys, rank, error, wait):
    calls = []
    monkeypatch.setattr(launched_processes.time, "sleep", calls.append)
    monkeypatch.setattr(launched_processes.os, "_exit", lambda status: calls.append(f"exit {status}"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    end_with_error("one line", error)
    assert capsys.readouterr().err == "one line\n" and calls == [*wait, "exit 2"]


def test_a_single_process_returns_its_status(capsys):
    assert end_with_error("one line", ValueError("wrong")) == 2
    assert capsys.readouterr().err == "one line\n"
