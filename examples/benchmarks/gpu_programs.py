"""Sections of gpu_check.py that start programs: the tests marked `gpu`, and training under FSDP2."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gpu_measurement import IS_CUDA


Record = Callable[[str, Any], None]

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("gpu_fsdp2.py")
CONFIG = ROOT / "examples/configs/fsdp2.yaml"
LAUNCH = ("-m", "accelerate.commands.launch", "--config_file", str(CONFIG), "--num_processes", "1")
LAST_LINES = 15
TEST_LINE = re.compile(r"tests/\S+::(?P<name>\S+) (?P<outcome>PASSED|FAILED|ERROR|SKIPPED)")


def run_program(command: list[str], on_line: Callable[[str], Any]) -> tuple[int, list[str]]:
    """
    Runs a program from the root of the repository. Calls `on_line` with each line as soon as it is printed, because a
    section that is too slow is ended. Returns the exit status and the lines.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    lines = []
    with subprocess.Popen(command, cwd=ROOT, env=environment, **output) as program:
        for line in program.stdout:
            lines.append(line.rstrip())
            on_line(lines[-1])
    return program.returncode, lines


def tests(size: str, record: Record) -> None:
    outcomes: dict[str, dict[str, Any]] = {}

    def record_line(line: str) -> None:
        if found := TEST_LINE.match(line):
            outcomes[found["name"]] = {"outcome": found["outcome"].lower()}
            record("outcomes", outcomes)

    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # Other tests marked `gpu` would be found only after the whole suite is imported, which takes too long.
        options = ["-v", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}", "tests/gpu"]
        code, lines = run_program([sys.executable, "-m", "pytest", *options], record_line)
        cases = read_report(report) if report.is_file() else {}
    if cases:
        record("outcomes", cases)
    if code not in (0, 5) or not cases:
        print("\n".join(lines))
        raise SystemExit(f"pytest ended with exit status {code}.")


def read_report(path: Path) -> dict[str, dict[str, Any]]:
    """Reads the outcome of each test, its seconds and what it recorded, for example its largest deviation."""
    cases = {}
    for case in ElementTree.parse(path).iter("testcase"):
        bad = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        outcome = {"outcome": "passed" if bad is None else bad.tag, "seconds": float(case.attrib["time"])}
        if bad is not None:
            outcome["message"] = bad.attrib.get("message", "")[:300]
        outcome |= {item.attrib["name"]: item.attrib["value"] for item in case.iter("property")}
        cases[case.attrib["name"]] = outcome
    return cases


def fsdp2(size: str, record: Record) -> None:
    """
    Trains with and without FSDP2 at the same time. On a CPU, accelerate ignores FSDP2, so the program runs only once.
    """
    words = {"with": LAUNCH, "without": ()} if IS_CUDA else {"with": LAUNCH}
    logs: dict[str, dict[str, Any]] = {}
    codes: dict[str, int] = {}
    with ThreadPoolExecutor() as pool:
        runs = {pool.submit(run_training, *words[name]): name for name in words}
        for run in as_completed(runs):
            name = runs[run]
            codes[name], lines, logs[name] = run.result()
            record(name, logs[name] if codes[name] == 0 else {**logs[name], "last_lines": lines[-LAST_LINES:]})
    if "without" in logs:
        record("deviation_of_losses", find_deviations(logs["with"], logs["without"]))
    failed = sorted(name for log in logs.values() for name, result in log.items() if "error" in result)
    if failed or any(codes.values()):
        raise SystemExit(f"Exit status of each program: {codes}. These parts failed: {', '.join(failed) or 'none'}.")


def run_training(*words: str) -> tuple[int, list[str], dict[str, dict[str, Any]]]:
    """Runs gpu_fsdp2.py. Returns its exit status, its lines, and its results."""

    def print_result(line: str) -> None:
        if line.startswith("RESULT "):
            print(line, flush=True)  # the last lines of a section that is too slow are its result

    with tempfile.TemporaryDirectory() as folder:
        code, lines = run_program([sys.executable, *words, str(PROGRAM), folder], print_result)
    results = [json.loads(line.removeprefix("RESULT ")) for line in lines if line.startswith("RESULT ")]
    return code, lines, {key: value for result in results for key, value in result.items()}


def find_deviations(first: dict[str, dict], second: dict[str, dict]) -> dict[str, float]:
    """Returns the largest difference between the logged losses of both runs, for each part that both finished."""
    return {
        name: max(
            abs(mine - theirs) for mine, theirs in zip(first[name]["losses"], second[name]["losses"], strict=True)
        )
        for name in first
        if "losses" in first[name] and "losses" in second.get(name, {})
    }
