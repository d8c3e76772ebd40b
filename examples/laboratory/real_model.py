"""
SmolLM2-135M-Instruct on questions with known answers: are synthetic preferences right, and what does r̂ gain by them?

    python examples/laboratory/real_model.py --data own --seeds 0-2
    python examples/laboratory/real_model.py --data svamp --svamp SVAMP.json --seeds 0-2

Each seed has a split of the questions, a π_SFT and a D of its own. The policy that is sampled is π_SFT: at these sizes
PPO moves it by a few hundredths of a nat (see docs/results.md), and half of the time would go there. A seed takes
a quarter of an hour (own) or half an hour (SVAMP) of one core; a second call goes on where the first stopped;
`summary.md` and `figures.json` come beside the runs.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from laboratory import seeds_of
from peft import LoraConfig
from real_stages import draw, human_accuracy, judge_reward_model, label
from real_tables import summary

from trl_rlp.quickstart.preparation import collect_preferences, train_sft
from trl_rlp.quickstart.questions import (
    Question,
    demonstration_dataset,
    load_questions,
    prompt_dataset,
    split_questions,
)
from trl_rlp.quickstart.quickstart_config import DEMONSTRATIONS, MAX_NEW_TOKENS, REWARD, lora
from trl_rlp.quickstart.simulation import without_noise
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


def questions_of(name: str, path: Path | None) -> list[Question]:
    """The project's own questions, or SVAMP's, whose answers are numbers."""
    if name == "own":
        return load_questions()
    if path is None or not path.is_file():
        raise SystemExit(
            f"--data svamp needs --svamp SVAMP.json, the file of github.com/arkilpatel/SVAMP; got {path}."
        )
    rows = [{key.lower(): value for key, value in row.items()} for row in load_rows(path)]
    return [
        Question(
            row["type"].split("-")[0],
            " ".join(filter(None, (row.get("body"), row["question"]))),
            (as_written(row["answer"]),),
        )
        for row in rows
    ]


def as_written(number: float) -> str:
    """A number as one writes it, without an exponent or a point that says nothing."""
    return str(int(number)) if number == int(number) else str(number)


def parts_of(questions: list[Question], sizes: dict[str, int], seed: int) -> dict[str, list[Question]]:
    """A split of the seed's own, each part cut to its size."""
    parts = split_questions(questions, 1000 + seed)
    return {name: entries[: sizes[name]] for name, entries in parts.items()}


def run_seed(folder: Path, seed: int, data: str, questions: list[Question]) -> dict[str, Any]:
    """All stages of one seed; gives their figures."""
    sizes = SIZES[data]
    run = RunFolder(folder, {"data": data, "seed": seed, "sizes": sizes, "refinements": REFINEMENTS})
    model, parts = load_smollm2(), parts_of(questions, sizes, seed)
    sampling = {"num_generations": 10, "max_new_tokens": MAX_NEW_TOKENS, "seed": seed}
    sft = run.stage(
        "sft",
        train_sft,
        base_model=model,
        demonstrations=demonstration_dataset(parts["demonstrations"]),
        args={**DEMONSTRATIONS, "num_train_epochs": 2, "seed": seed},
        lora=lora(model, 1 / 2),
    )
    asked = {"train": prompt_dataset(parts["preferences"]), "heldout": prompt_dataset(parts["heldout"])}
    preferences = run.stage(
        "preferences", collect_preferences, sft_model=sft, questions=asked, sampling=sampling, seed=seed
    )
    human = load_data(preferences / "train").remove_columns("is_flipped")
    training = {
        "base_model": sft,
        "preference_dataset": human,
        "peft_config": lora_of_reward_model(model),
    }
    args = {**REWARD, "num_train_epochs": EPOCHS, "seed": seed}
    reward_models = {"r": run.stage("r", train_reward_model, args={**args, "method": "none"}, **training)}
    samples = run.stage("samples", draw, policy=sft, questions=prompt_dataset(parts["unlabeled"]), sampling=sampling)
    heldout = run.stage(
        "heldout", draw, policy=sft, questions=asked["heldout"], sampling={**sampling, "seed": seed + 500}
    )
    labels = run.stage("labels", label, samples=samples, policy=sft, reward_model=reward_models["r"], seed=seed)
    synthetic = load_data(labels / "spg")
    added: dict[str, dict[str, Any]] = {
        "none": {},
        "spg": {"synthetic_dataset": synthetic},
        "uml": {"policy_samples": load_data(samples).remove_columns("answers")},
    }
    longer = EPOCHS * (len(human) + len(synthetic)) / len(human)  # as many steps on human pairs as SPG takes on both
    for name, fields in REFINEMENTS.items():
        epochs = longer if fields["method"] == "none" else EPOCHS
        reward_models[name] = run.stage(
            name,
            train_reward_model,
            args={**args, **fields, "num_train_epochs": epochs},
            **training,
            **added[fields["method"]],
        )
    for name, path in reward_models.items():
        run.stage(f"judged {name}", judge_reward_model, reward_model=path, samples=heldout, seed=seed)
    clean = without_noise(load_data(preferences / "heldout"))
    run.stage("human", human_accuracy, reward_models=reward_models, pairs=clean)
    return {name: result["figures"] for name, result in run.results().items()}


def lora_of_reward_model(model: Path) -> LoraConfig:
    """An adapter whose score head is trained with it."""
    return LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"], **lora(model, 1 / 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=SIZES, default="own")
    parser.add_argument("--seeds", type=seeds_of, default=[0, 1, 2])
    parser.add_argument("--svamp", type=Path, help="SVAMP.json of github.com/arkilpatel/SVAMP")
    parser.add_argument("--output_dir", type=Path, default=Path("laboratory_runs"))
    arguments = parser.parse_args()
    if len(arguments.seeds) < 2:
        parser.error("--seeds must name at least two, for an interval")
    questions = questions_of(arguments.data, arguments.svamp)
    folder = arguments.output_dir / f"smollm2-{arguments.data}"
    folder.mkdir(parents=True, exist_ok=True)
    runs = {seed: run_seed(folder / f"seed-{seed}", seed, arguments.data, questions) for seed in arguments.seeds}
    (folder / "figures.json").write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    text = summary(runs, list(REFINEMENTS))
    (folder / "summary.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
