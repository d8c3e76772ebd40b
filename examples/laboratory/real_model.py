"""
SmolLM2-135M-Instruct on questions with known answers: label accuracy of synthetic preferences, and quality of r̂.

    python examples/laboratory/real_model.py --data own --seeds 0-2
    python examples/laboratory/real_model.py --data svamp --svamp SVAMP.json --seeds 0-2

Each seed has its own split of the questions, its own π_SFT and its own D. P is sampled from π_SFT, not from a policy
after PPO, which would take half of the time. `real_policies.py` trains policies. A seed takes about 15 minutes (own)
or 30 minutes (svamp) on one core. The same command resumes an interrupted run. It writes `summary.md` and
`metrics.json` to the folder that holds the folders of the seeds.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from datasets import Dataset
from laboratory import parse_seeds
from peft import LoraConfig
from real_stages import (
    build_synthetic_preferences,
    evaluate_on_human_pairs,
    evaluate_on_policy_pairs,
    sample_questions,
)
from real_tables import build_summary

from trl_rlp.quickstart.preparation import collect_preferences, train_sft
from trl_rlp.quickstart.questions import (
    Question,
    demonstration_dataset,
    load_questions,
    prompt_dataset,
    split_questions,
)
from trl_rlp.quickstart.quickstart_config import DEMONSTRATIONS, MAX_NEW_TOKENS, REWARD, lora
from trl_rlp.quickstart.simulation import restore_labels
from trl_rlp.quickstart.smollm2 import load_smollm2
from trl_rlp.stages.reward_model import train_reward_model
from trl_rlp.storage.artifacts import load_data
from trl_rlp.storage.loading import load_rows
from trl_rlp.storage.run_folder import RunFolder


SIZES = {
    "own": {"demonstrations": 72, "preferences": 107, "unlabeled": 105, "heldout": 74},
    "svamp": {"demonstrations": 200, "preferences": 150, "unlabeled": 150, "heldout": 100},
}
EPOCHS = 3
REFINEMENTS: dict[str, dict[str, Any]] = {
    "human pairs only": {"method": "none"},
    "spg": {"method": "spg"},
    "uml": {"method": "uml"},
    "uml, cosine": {"method": "uml", "representation_recipe": "cosine", "mi_estimator": "nce"},
}


def load_dataset_questions(name: str, path: Path | None) -> list[Question]:
    """Loads the questions of this project, or those of SVAMP. The answers of SVAMP are numbers."""
    if name == "own":
        return load_questions()
    if path is None or not path.is_file():
        raise SystemExit(
            f"--data svamp needs --svamp SVAMP.json, the file from github.com/arkilpatel/SVAMP, but got {path}."
        )
    rows = [{key.lower(): value for key, value in row.items()} for row in load_rows(path)]
    return [
        Question(
            row["type"].split("-")[0],
            " ".join(filter(None, (row.get("body"), row["question"]))),
            (format_number(row["answer"]),),
        )
        for row in rows
    ]


def format_number(number: float) -> str:
    """Formats a number without an exponent. Integers get no decimal point."""
    return str(int(number)) if number == int(number) else str(number)


def split_for_seed(questions: list[Question], sizes: dict[str, int], seed: int) -> dict[str, list[Question]]:
    """Splits the questions with the seed and takes the first questions of each part, up to its size."""
    parts = split_questions(questions, 1000 + seed)
    return {name: part[: sizes[name]] for name, part in parts.items()}


def run_seed(folder: Path, seed: int, data: str, questions: list[Question]) -> dict[str, Any]:
    """Runs all stages of one seed. Returns their metrics."""
    sizes = SIZES[data]
    run = RunFolder(folder, {"data": data, "seed": seed, "sizes": sizes, "refinements": REFINEMENTS})
    model, parts = load_smollm2(), split_for_seed(questions, sizes, seed)
    sampling = {"num_generations": 10, "max_new_tokens": MAX_NEW_TOKENS, "seed": seed}
    sft = run.stage(
        "sft",
        train_sft,
        base_model=model,
        demonstrations=demonstration_dataset(parts["demonstrations"]),
        args={**DEMONSTRATIONS, "num_train_epochs": 2, "seed": seed},
        lora=lora(model, 1 / 2),
    )
    labeled = {"train": prompt_dataset(parts["preferences"]), "heldout": prompt_dataset(parts["heldout"])}
    preferences = run.stage(
        "preferences", collect_preferences, sft_model=sft, questions=labeled, sampling=sampling, seed=seed
    )
    human = load_data(preferences / "train").remove_columns("is_flipped")
    training = {
        "base_model": sft,
        "preference_dataset": human,
        "peft_config": build_reward_lora(model),
    }
    args = {**REWARD, "num_train_epochs": EPOCHS, "seed": seed}
    reward_models = {"r": run.stage("r", train_reward_model, args={**args, "method": "none"}, **training)}
    unlabeled = prompt_dataset(parts["unlabeled"])
    samples = run.stage("samples", sample_questions, policy=sft, questions=unlabeled, sampling=sampling)
    heldout_sampling = {**sampling, "seed": seed + 500}
    heldout = run.stage(
        "heldout", sample_questions, policy=sft, questions=labeled["heldout"], sampling=heldout_sampling
    )
    labels = run.stage(
        "labels", build_synthetic_preferences, samples=samples, policy=sft, reward_model=reward_models["r"], seed=seed
    )
    reward_models |= run_refinements(run, args, training, load_data(labels / "spg"), load_data(samples))
    for name, path in reward_models.items():
        run.stage(f"judged {name}", evaluate_on_policy_pairs, reward_model=path, samples=heldout, seed=seed)
    clean = restore_labels(load_data(preferences / "heldout"))
    run.stage("human", evaluate_on_human_pairs, reward_models=reward_models, pairs=clean)
    return {name: result["metrics"] for name, result in run.results().items()}


def run_refinements(
    run: RunFolder, args: dict[str, Any], training: dict[str, Any], synthetic: Dataset, samples: Dataset
) -> dict[str, Path]:
    """Trains r̂ of every refinement. Without new data, r̂ takes as many steps on human pairs as SPG on all pairs."""
    new_data: dict[str, dict[str, Any]] = {
        "none": {},
        "spg": {"synthetic_dataset": synthetic},
        "uml": {"policy_samples": samples.remove_columns("answers")},
    }
    human = training["preference_dataset"]
    epochs_of_spg = EPOCHS * (len(human) + len(synthetic)) / len(human)
    reward_models = {}
    for name, fields in REFINEMENTS.items():
        epochs = epochs_of_spg if fields["method"] == "none" else EPOCHS
        reward_models[name] = run.stage(
            name,
            train_reward_model,
            args={**args, **fields, "num_train_epochs": epochs},
            **training,
            **new_data[fields["method"]],
        )
    return reward_models


def build_reward_lora(model: Path) -> LoraConfig:
    """Builds the adapter settings of the reward models. The score head is trained and saved with the adapter."""
    return LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"], **lora(model, 1 / 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=SIZES, default="own", help="questions of this project, or SVAMP")
    parser.add_argument("--seeds", type=parse_seeds, default=[0, 1, 2], help="at least two seeds, as in 0-2")
    parser.add_argument("--svamp", type=Path, help="SVAMP.json from github.com/arkilpatel/SVAMP")
    parser.add_argument("--output_dir", type=Path, default=Path("laboratory_runs"), help="folder of the runs")
    arguments = parser.parse_args()
    if len(arguments.seeds) < 2:
        parser.error("--seeds needs at least two seeds, because intervals are computed over seeds")
    questions = load_dataset_questions(arguments.data, arguments.svamp)
    folder = arguments.output_dir / f"smollm2-{arguments.data}"
    folder.mkdir(parents=True, exist_ok=True)
    runs = {seed: run_seed(folder / f"seed-{seed}", seed, arguments.data, questions) for seed in arguments.seeds}
    (folder / "metrics.json").write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    text = build_summary(runs, list(REFINEMENTS))
    (folder / "summary.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
