"""Sections of gpu_check.py that start programs: the tests marked `gpu`, and training under FSDP2."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
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


def run_program(command: list[str]) -> tuple[int, list[str]]:
    """Runs a program from the root of the repository. Returns its exit status and its lines."""
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return result.returncode, result.stdout.splitlines()


def tests(size: str, record: Record) -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # Other tests marked `gpu` would be found only after the whole suite is imported, which takes too long.
        options = ["-q", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}", "tests/gpu"]
        code, lines = run_program([sys.executable, "-m", "pytest", *options])
        cases = read_report(report) if report.is_file() else {}
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
    """Trains with and without FSDP2. On a CPU, accelerate ignores FSDP2, so the program runs only once."""
    logs = {}
    for name, words in {"with": LAUNCH, "without": ()}.items():
        with tempfile.TemporaryDirectory() as folder:
            code, lines = run_program([sys.executable, *words, str(PROGRAM), folder])
        results = [json.loads(line.removeprefix("RESULT ")) for line in lines if line.startswith("RESULT ")]
        logs[name] = {key: value for result in results for key, value in result.items()}
        record(name, logs[name] if code == 0 else {**logs[name], "last_lines": lines[-LAST_LINES:]})
        if code:
            raise SystemExit(f"The program {name} FSDP2 ended with exit status {code}.")
        if not IS_CUDA:
            break
    if "without" in logs:
        record("deviation_of_losses", find_deviations(logs["with"], logs["without"]))
    failed = sorted(name for log in logs.values() for name, result in log.items() if "error" in result)
    if failed:
        raise SystemExit(f"These parts failed: {', '.join(failed)}.")


def find_deviations(first: dict[str, dict], second: dict[str, dict]) -> dict[str, float]:
    """Returns the largest difference between the logged losses of both runs, for each part that both finished."""
    return {
        name: max(
            abs(mine - theirs) for mine, theirs in zip(first[name]["losses"], second[name]["losses"], strict=True)
        )
        for name in first
        if "losses" in first[name] and "losses" in second.get(name, {})
    }
