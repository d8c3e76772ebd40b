"""
Effect of the text before both completions of an NLI pair: the instruction, the whole prompt, or nothing.

    python examples/benchmarks/instruction.py --output instruction.json

The data are questions with answers of several systems, labeled by people (EVOUNA). Only questions with a correct and
an incorrect answer are used. Each question is put into the usual forms of a prompt: the question alone, Alpaca's
template, ChatML, and three examples before it. Its answers are grouped once for each form and each value of
`instruction`.

- `wrong` is the share of (correct, incorrect) pairs that share a group. It should be low.
- `right` is the share of (correct, correct) pairs that share a group. It should be high.
- `prompts` is the share of questions with a correct and an incorrect answer in one group.

The intervals are bootstrap intervals at 95% over questions. Nothing else is random. The script takes about ten minutes
on one free core.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch
from datasets import Dataset

from trl_rlp.data.groups import NLIEquivalence, cluster
from trl_rlp.evaluation.intervals import bootstrap_interval


SHARED = Path(__file__).resolve().parents[2] / "../shared"

FORMS = {
    "question": "{question}",
    "Alpaca": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\n{question}\n\n### Response:\n"
    ),
    "ChatML": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
        "<|im_start|>assistant\n"
    ),
    "examples": (
        "Q: What is the capital of France?\nA: Paris\n\nQ: Who wrote Hamlet?\nA: William Shakespeare\n\n"
        "Q: How many legs does a spider have?\nA: Eight\n\nQ: {question}\nA:"
    ),
}
INSTRUCTIONS = {"auto": "auto", "prompt": "prompt", "none": None}


def load_questions(path: Path, count: int) -> list[dict]:
    """Loads the first questions with a correct and an incorrect answer, and with as many answers as most have."""
    # `splitlines` does not work here: it also splits at other characters, which the texts contain.
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    usual = statistics.mode(len(row["answers"]) for row in rows)
    mixed = [row for row in rows if len({answer["correct"] for answer in row["answers"]}) == 2]
    return [row for row in mixed if len(row["answers"]) == usual][:count]


def build_samples(rows: list[dict], form: str) -> Dataset:
    return Dataset.from_dict(
        {
            "prompt": [FORMS[form].replace("{question}", row["question"]) for row in rows],
            "completions": [[answer["text"] for answer in row["answers"]] for row in rows],
            "finished": [[True] * len(row["answers"]) for row in rows],
        }
    )


def find_shared(rows: list[dict], cluster_ids: list[list[int]]) -> dict[int, list[tuple[int, bool]]]:
    """Returns, by the number of correct answers in a pair, the question of each pair and whether it shares a group."""
    shared: dict[int, list[tuple[int, bool]]] = {0: [], 1: [], 2: []}
    for number, (row, ids) in enumerate(zip(rows, cluster_ids, strict=True)):
        correct = [answer["correct"] for answer in row["answers"]]
        for second in range(len(ids)):
            for first in range(second):
                pair = number, ids[first] == ids[second] != -1
                shared[correct[first] + correct[second]].append(pair)
    return shared


def measure(rows: list[dict], form: str, equivalence: NLIEquivalence) -> dict[str, list[float]]:
    """Returns the mean of each share and the ends of its interval."""
    shared = find_shared(rows, cluster(build_samples(rows, form), equivalence, complete_groups=True)["cluster_ids"])
    mixed = {number for number, is_shared in shared[1] if is_shared}
    values = {
        "wrong": shared[1],
        "right": shared[2],
        "prompts": [(number, number in mixed) for number in range(len(rows))],
    }
    results = {}
    for name, pairs in values.items():
        numbers, flags = zip(*pairs, strict=True)
        results[name] = [statistics.mean(flags), *bootstrap_interval(flags, groups=numbers)]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument(
        "--model", default=str(SHARED / "models/minilm-nli"), help="folder or Hub name of an NLI classifier"
    )
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="folder with clusters/")
    parser.add_argument("--questions", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = load_questions(arguments.data / "clusters/evouna_tq_1000.jsonl", arguments.questions)
    print(f"{len(rows)} questions")
    results = {}
    with tempfile.TemporaryDirectory() as folder:  # equal pairs of several forms are classified once
        for form in FORMS:
            for name, instruction in INSTRUCTIONS.items():
                equivalence = NLIEquivalence(arguments.model, instruction=instruction, cache=f"{folder}/labels.sqlite")
                results[f"{form}, {name}"] = measure(rows, form, equivalence)
                shares = [
                    f"{share} {mean:.3f} [{low:.3f}, {high:.3f}]"
                    for share, (mean, low, high) in results[f"{form}, {name}"].items()
                ]
                print(f"{form:9} {name:7} {'   '.join(shares)}", flush=True)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
