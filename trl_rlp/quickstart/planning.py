"""Plans of the quickstart: before each stage, the threads and the amounts of work that fit the rest of the time."""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from trl_rlp.quickstart.sizes import ESTIMATES, LIMITS, OPEN_SIZES, Sizes, fit_sizes
from trl_rlp.quickstart.threads import find_fastest_threads
from trl_rlp.storage.run_folder import RunFolder


PLANNED_SHARE = 0.9
"""Share of the time budget that the plans use. The rest is a reserve."""
MEASURED_SECONDS = 10.0
"""The slowdown comes from the last stages that together take at least so many seconds on two free cores."""


class Planner:
    """
    Plans a run before each of its stages.

    The time of the last stages, compared with [`ESTIMATES`], shows how slow the machine is. The sizes that are still
    open shrink until the rest of the run fits the rest of the time. Sizes grow again if the machine becomes faster,
    but never above the full amounts.

    Args:
        run ([`RunFolder`]):
            Folder of the run. Each plan is a stage of it, so a resumed run keeps its plans.
        sizes ([`Sizes`]):
            Full amounts of work.
        end (`float`):
            `time.perf_counter()` at the end of the time budget.
        console (`rich.console.Console`):
            Console for what is reduced.

    The attribute `threads` collects the numbers of threads that were chosen.
    """

    def __init__(self, run: RunFolder, sizes: Sizes, end: float, console: Console):
        self.run, self.full_sizes, self.end, self.console = run, sizes, end, console
        self.sizes = sizes
        self.most_threads = torch.get_num_threads()
        self.threads: set[int] = set()
        self.run_folders = [run]

    def plan(self, stage: str) -> Sizes:
        """
        Plans the next stage and the stages after it.

        Args:
            stage (`str`):
                The next stage, a key of [`OPEN_SIZES`].

        Returns:
            [`Sizes`]: The amounts of work from this stage on. Sizes of earlier stages are as they were.
        """
        name = f"plan_{stage}"
        self._load_last_plan(stage)
        self.run.stage(name, self._write_plan, stage=stage)
        plan = self.run.metrics(name)
        if plan["changes"]:
            self.console.print(
                f"        this machine takes {plan['slowdown']:.1f} times as long as two free cores: "
                f"{plan['changes']}",
                soft_wrap=True,
            )
        self.sizes = Sizes(**plan["sizes"])
        return self.sizes

    def prepare(self, run: RunFolder, stage: str, arguments: dict[str, Any]) -> None:
        """
        Prepares a stage that starts: chooses the number of threads, and the rollouts of a policy.

        It is a callback of [`RunFolder.on_start`].

        Args:
            run ([`RunFolder`]):
                Folder of the stage.
            stage (`str`):
                Name of the stage.
            arguments (`dict`):
                Keyword arguments of its work. `args` of a policy's stage changes.
        """
        if stage not in ESTIMATES:
            return
        self._choose_threads()
        if run.path not in [known.path for known in self.run_folders]:
            self.run_folders.append(run)
        rollouts = {"policy": "policy_rollouts", "retrained_policy": "retrained_policy_rollouts"}
        if stage in rollouts:
            sizes = self.plan(stage)
            arguments["args"] = {**arguments["args"], "max_steps": vars(sizes)[rollouts[stage]]}

    @contextlib.contextmanager
    def all_threads(self) -> Iterator[None]:
        """Restores PyTorch's number of threads at the end of a `with` block."""
        try:
            yield
        finally:
            torch.set_num_threads(self.most_threads)

    def list_plans(self) -> dict[str, dict[str, Any]]:
        """
        Collects the plans that were made.

        Returns:
            `dict`: `sizes`, `changes` (empty if there are none), `slowdown` and `left` (seconds) of each plan, by the
            stage that it was made for.
        """
        results = self.run.results()
        return {stage: results[f"plan_{stage}"]["metrics"] for stage in OPEN_SIZES if f"plan_{stage}" in results}

    def _load_last_plan(self, stage: str) -> None:
        """A resumed run skips finished stages, so their plans are read from the folder."""
        earlier = list(OPEN_SIZES)[: list(OPEN_SIZES).index(stage)]
        finished = [name for name in earlier if self.run.is_finished(f"plan_{name}")]
        if finished:
            self.sizes = Sizes(**self.run.metrics(f"plan_{finished[-1]}")["sizes"])

    def _write_plan(self, folder: Path, stage: str) -> dict[str, Any]:
        left, slowdown = self.end - time.perf_counter(), self._measure_slowdown(stage)
        sizes = fit_sizes(stage, self._list_wished_sizes(stage), left, slowdown)
        changes = describe_changes(self.sizes, sizes)
        return {"sizes": asdict(sizes), "changes": changes, "slowdown": slowdown, "left": left}

    def _list_wished_sizes(self, stage: str) -> Sizes:
        """Returns the full amounts of work, except where earlier stages have decided."""
        wished = replace(self.sizes, **{name: vars(self.full_sizes)[name] for name in OPEN_SIZES[stage]})
        return replace(
            wished, **{name: min(vars(wished)[name], vars(wished)[limit]) for name, limit in LIMITS.items()}
        )

    def _measure_slowdown(self, stage: str) -> float:
        """Divides the time of the last stages by their time on two free cores."""
        results = {name: result for run in self.run_folders for name, result in run.results().items()}
        stages = list(ESTIMATES)
        taken = expected = 0.0
        for name in reversed(stages[: stages.index(stage)]):
            if name in results and expected < MEASURED_SECONDS:
                taken += results[name]["seconds"]
                expected += ESTIMATES[name](self.sizes)
        return taken / expected if expected else 1.0

    def _choose_threads(self) -> None:
        threads = find_fastest_threads(self.most_threads) if self.most_threads > 1 else 1
        if threads != torch.get_num_threads():
            self.console.print(f"        {threads} of {os.cpu_count()} cores from here on")
        torch.set_num_threads(threads)
        self.threads.add(threads)


def describe_changes(before: Sizes, after: Sizes) -> str:
    """
    Describes how a plan changes the amounts of work.

    Args:
        before ([`Sizes`]), after ([`Sizes`]):
            Amounts of work before and after the plan.

    Returns:
        `str`: For example `"4 instead of 6 policy rollouts"`. Empty if nothing changes.
    """
    return ", ".join(
        f"{vars(after)[name]} instead of {value} {name.replace('_', ' ')}"
        for name, value in vars(before).items()
        if vars(after)[name] != value
    )
