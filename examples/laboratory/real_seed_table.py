"""The table of one seed of the experiment with policies on a real model. Its errors are over questions."""

from pathlib import Path

import numpy as np
from real_methods import METHODS, PICK_METHODS
from tables import format_table

from trl_rlp import load_data
from trl_rlp.evaluation.reward_metrics import standard_error
from trl_rlp.quickstart import compute_accuracies
from trl_rlp.storage.json_files import read_json


PARTS = {"trained": "trained questions", "heldout": "held-out questions"}


def write_seed_page(folder: Path, seed: int) -> str:
    """Writes the page `policies.md` of one seed, with all its finished policies. Returns the page."""
    page = (
        f"Seed {seed}. A difference from π_SFT is paired by question. It has its standard error over questions, not "
        "over seeds. One seed is not evidence for or against a method.\n\n" + build_seed_table(folder)
    )
    (folder / "policies.md").write_text(page + "\n", encoding="utf-8")
    return page


def build_seed_table(folder: Path) -> str:
    """Builds the table of all finished policies of a seed."""
    rows = []
    for name in list_policies(folder):
        metrics = read_json(folder / name / "stage.json")["metrics"]
        cells = [f"{metrics[part]['right']:.3f}" for part in PARTS]
        gains = ["–" if name == "pi_sft" else format_gain(folder, name, part) for part in PARTS]
        rows.append([name, *cells, *gains, f"{metrics['kl']:.2f}", f"{metrics['trained']['proxy']:+.2f}"])
    header = ["policy and β", *(f"correct, {text}" for text in PARTS.values())]
    return format_table([*header, *(f"{text}: − π_SFT" for text in PARTS.values()), "KL, nats", "r"], rows)


def list_policies(folder: Path) -> list[str]:
    """Lists the finished policies of a seed, in the order of the methods, with β at the end of a name."""
    order = ["pi_sft", *METHODS, *PICK_METHODS]
    finished = [path.parent.name for path in folder.glob("*/stage.json") if path.parent.name.split(" ")[0] in order]
    return sorted(finished, key=lambda name: (order.index(name.split(" ")[0]), float(name.partition(" ")[2] or 0)))


def format_gain(folder: Path, name: str, part: str) -> str:
    """Formats the paired difference in correct answers from π_SFT, with its standard error over questions."""
    shares = []
    for policy in (name, "pi_sft"):
        samples = load_data(folder / policy / part)
        shares.append(compute_accuracies(samples, samples["answers"][:]))
    differences = np.subtract(*shares)  # (questions,)
    return f"{differences.mean():+.3f} ± {standard_error(differences):.3f}"
