"""
Checks the package on one NVIDIA GPU and measures it: speed, utilization, memory, and the tests marked `gpu`.

    python examples/benchmarks/gpu_check.py --output gpu_check.json

The check takes at most eight minutes on a GPU with 80 GB. Each section runs in its own process with a deadline. Time
that a section leaves unused is for the later ones. A section that fails or takes too long does not end the check: its
last lines are its result. Results are written to the file as soon as they are measured. All models are random Llamas
that are built on the GPU, so no network is needed.

    python examples/benchmarks/gpu_check.py --size tiny --device cpu --output rehearsal.json

rehearses all sections on a CPU. `--sections scoring,ppo` runs some of them. `--size small` measures one core of a CPU:
models have the size of SmolLM2-135M, and times are processor times.

On a machine without network that has PyTorch, transformers, accelerate, peft and pyarrow, the other packages can be
brought as wheels. Download them for the Python of that machine, here 3.12, in versions that fit its pyarrow and
huggingface_hub (`datasets` 4.8 fits huggingface_hub 1.x):

    python -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \\
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \\
        -d .whl trl==1.16.0 "datasets==4.8.*" evaluate dill multiprocess xxhash

Copy this repository and the folder `.whl` to the machine, and run there:

    python -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target .site .whl/*.whl
    PYTHONPATH=.site:. HF_HUB_OFFLINE=1 python examples/benchmarks/gpu_check.py --output gpu_check.json

| section | measures | compared with |
| --- | --- | --- |
| `roofs` | versions, matrix products and memory bandwidth | |
| `tests` | the tests marked `gpu` | the CPU, and TRL |
| `fsdp2` | PPO and UML under FSDP2 with one process: train, save, resume | the same without FSDP2 |
| `sampling` | policy samples of an 8B model | `generate(num_return_sequences)`, `generate_batch` |
| `scoring` | rewards of an 8B model in bf16, autocast and fp32 | a plain forward pass |
| `nli` | labels of a classifier of the size of DeBERTa-large | a plain forward pass over tokenized pairs |
| `reward` | a training step of a 1B reward model | TRL's trainer with as many tokens |
| `ppo` | rollouts of a 1B policy, by phase | GRPO |
| `stages` | memory before each stage of `run_rlp`, and waits for the GPU | |

Utilization is the share of the measured speed of a matrix product, with 2N FLOPs per token in a forward pass and 6N in
training. Variants take turns. A time is the median of five rounds after three warm-ups, or of fewer rounds where the
deadline is short. The number of rounds is in the file.
"""

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil


SECTIONS = {
    "roofs": ("gpu_inference", 40),
    "tests": ("gpu_programs", 75),
    "fsdp2": ("gpu_programs", 60),
    "sampling": ("gpu_inference", 80),
    "scoring": ("gpu_inference", 50),
    "nli": ("gpu_inference", 35),
    "reward": ("gpu_training", 50),
    "ppo": ("gpu_training", 60),
    "stages": ("gpu_training", 30),
}
"""
Sections in their order: the file with the function of the same name, and the deadline in seconds on a GPU. The first
one also waits until the packages are read from the disk.
"""

GOALS = {
    "uml_step": ("reward", "uml_joint / trl_same_tokens", 1.05, "lower"),
    "scoring_utilization": ("scoring", "utilization", 0.4, "higher"),
    "sampling_speed_up": ("sampling", "speed_up", 1.0, "higher"),
    "ppo_optimization": ("ppo", "utilization / grpo", 0.8, "higher"),
}
"""Figures with a goal: section, name of the result, goal, and which direction is better."""

CPU_DEADLINE = 600
LAST_LINES = 15


class Results:
    """The JSON file of a check. Each change is written at once, so a stopped check keeps what it measured."""

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> dict[str, Any]:
        return json.loads(self.path.read_text())

    def write(self, value: dict[str, Any]) -> None:
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text(json.dumps(value, indent=2) + "\n")
        os.replace(partial, self.path)

    def add(self, section: str, **values: Any) -> None:
        """Adds values to a section."""
        content = self.read()
        content["sections"].setdefault(section, {"results": {}}).update(values)
        self.write(content)

    def record(self, section: str, name: str, value: Any) -> None:
        """Adds a measured result to a section, and prints it."""
        print(f"{section}: {name}: {value}", flush=True)
        results = self.read()["sections"].get(section, {"results": {}})["results"]
        self.add(section, results={**results, name: value})


def run_section(name: str, arguments: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Runs a section in its own process. Returns its status, its time, and its last lines if it did not finish."""
    command = [sys.executable, __file__, "--worker", name, "--size", arguments.size, "--device", arguments.device]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if arguments.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        worker = subprocess.Popen(
            [*command, "--output", str(arguments.output)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the deadline also ends the processes that the section started
        )
        try:
            status = "passed" if worker.wait(timeout=seconds) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "too slow"
        finally:
            end_session(worker)
        log.seek(0)
        lines = log.read().splitlines()
    outcome = {"status": status, "seconds": round(time.perf_counter() - begin, 1)}
    return outcome if status == "passed" else {**outcome, "last_lines": lines[-LAST_LINES:]}


def end_session(worker: subprocess.Popen) -> None:
    """Ends the process of a section and all processes that it started, so that their memory on the GPU is free."""
    # `accelerate launch` starts its processes in sessions of their own, so they are not in the group of the worker.
    children = psutil.Process(worker.pid).children(recursive=True) if worker.poll() is None else []
    try:
        os.killpg(worker.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # all of them have ended
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(children, timeout=5)
    worker.wait()


def collect_figures(sections: dict[str, dict]) -> dict[str, dict]:
    """Returns the figures that have a goal, in the form of the other benchmarks."""
    figures = {}
    for name, (section, result, goal, better) in GOALS.items():
        value = sections.get(section, {"results": {}})["results"].get(result)
        if value is not None:
            figures[f"gpu_{name}"] = {"value": round(value, 4), "goal": goal, "better": better}
    return figures


def is_reached(figure: dict[str, Any]) -> bool:
    value, goal = figure["value"], figure["goal"]
    return value <= goal if figure["better"] == "lower" else value >= goal


def print_summary(content: dict[str, Any]) -> None:
    for name, section in content["sections"].items():
        print(f"{name:10} {section['status']:9} {section['seconds']:6.1f} s")
        for line in section.get("last_lines", []):
            print(f"    {line}")
    for name, figure in content["figures"].items():
        sign = "<=" if figure["better"] == "lower" else ">="
        verdict = "pass" if is_reached(figure) else "FAIL"
        print(f"{verdict} {name}: {figure['value']} (goal {sign} {figure['goal']})")


def has_cuda() -> bool:
    import torch  # here, so that the process that starts the sections stays small

    return torch.cuda.is_available()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the results")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="names of sections, separated by commas")
    parser.add_argument("--size", choices=["full", "small", "tiny"], default="full", help="size of models and data")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--seconds", type=float, default=480, help="maximum time of the whole check on a GPU")
    parser.add_argument("--worker", choices=SECTIONS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.sections = arguments.sections.split(",")
    if arguments.device == "cuda" and arguments.worker is None and not has_cuda():
        parser.error("--device cuda, but PyTorch finds no CUDA device. Rehearse with --device cpu --size tiny.")
    unknown = sorted(set(arguments.sections) - set(SECTIONS))
    if unknown:
        parser.error(f"--sections has unknown names {unknown}. Choose from {', '.join(SECTIONS)}.")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    results = Results(arguments.output)
    if arguments.worker is not None:
        module = importlib.import_module(SECTIONS[arguments.worker][0])
        section = vars(module)[arguments.worker]
        section(arguments.size, lambda name, value: results.record(arguments.worker, name, value))
        return
    results.write({"size": arguments.size, "device": arguments.device, "sections": {}, "figures": {}})
    begin, due = time.perf_counter(), 0
    for name in arguments.sections:
        is_cpu = arguments.device == "cpu"
        due += SECTIONS[name][1]
        left = min(due, arguments.seconds) - (time.perf_counter() - begin)
        seconds = CPU_DEADLINE if is_cpu else left
        if seconds <= 0:
            outcome = {"status": "too slow", "seconds": 0.0, "last_lines": ["No time was left."]}
        else:
            print(f"{name} ...", flush=True)
            outcome = run_section(name, arguments, seconds)
        results.add(name, **outcome)
        content = results.read()
        results.write({**content, "figures": collect_figures(content["sections"])})
    print_summary(results.read())


if __name__ == "__main__":
    main()
