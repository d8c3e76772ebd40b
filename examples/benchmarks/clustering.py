"""
Speed of `cluster` compared with the usual ways to group completions by bidirectional entailment.

    python examples/benchmarks/clustering.py --output clustering.json

All methods use the same classifier, and the question comes before both completions:

- `leader_loop` compares each completion with the first member of each group. It makes one call per pair and direction,
  also for repeated completions.
- `distinct_loop` does the same for completions that differ after normalization. Those with equal tokens are undecided.
- `full_matrix` compares all n x n ordered pairs of completions that differ as strings, in batches of ten.
- `ours` stops when the decision (confidence 0.5) and the largest group are certain.
- `complete` finishes all groups.

`ours` and `complete` must make the same decisions and find the same largest groups as `distinct_loop`. If they do not,
the script stops with an error.

The data are 20 sampled short answers per question (TriviaQA), and long answers of five models per prompt (PandaLM).
Each round takes different prompts, drawn with a fixed seed. It runs all methods on them with one thread, in rotating
order. A result is the median over rounds of the ratio of the times. Without an accelerator, the script measures
processor time, so other programs have little influence.

The last part measures how often correct and incorrect answers (EVOUNA, labeled by people) share a group. This measures
the classifier, not the speed. Its goals are the values that the classifier's model card reports for single pairs.

The script takes about ten minutes on one free core.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset

from trl_rlp.data.groups.clustering import cluster, find_largest_group
from trl_rlp.data.groups.equivalence import NLIEquivalence


SHARED = Path(__file__).resolve().parents[2] / "../shared"
CLOCK = time.perf_counter if torch.accelerator.is_available() else time.process_time
THRESHOLD = 0.5
LONG_ANSWER = 60
"""Smallest mean length of the answers to a prompt, in tokens."""


def load_json_lines(path: Path) -> list[dict]:
    # `splitlines` does not work here: it also splits at other characters, which the texts contain.
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def load_short_answers(data: Path, num_generations: int) -> list[dict]:
    rows = load_json_lines(data / "clusters/triviaqa_llama13b_500x20.jsonl")
    return [{"prompt": row["question"], "completions": row["samples"][:num_generations]} for row in rows]


def load_long_answers(data: Path, judge: NLIEquivalence, count: int = 5) -> list[dict]:
    """
    Loads prompts with five different long answers.

    Every pair fits into the classifier, because each method truncates differently.
    """
    texts: dict[str, list[str]] = {}
    for row in load_json_lines(data / "preferences/pandalm_human_842.jsonl"):
        answers = texts.setdefault(row["prompt"][-1]["content"], [])
        for side in ("chosen", "rejected"):
            text = row[side][-1]["content"]
            if text.strip() and text not in answers:
                answers.append(text)
    rows = [{"prompt": prompt, "completions": answers[:count]} for prompt, answers in texts.items()]
    return [row for row in rows if len(row["completions"]) == count and is_long(row, judge)]


def is_long(row: dict, judge: NLIEquivalence) -> bool:
    question, *lengths = map(len, judge.processing_class([row["prompt"], *row["completions"]])["input_ids"])
    fits = 2 * (question + max(lengths)) <= judge.processing_class.model_max_length
    return fits and statistics.mean(lengths) >= LONG_ANSWER


def build_samples(rows: list[dict]) -> Dataset:
    return Dataset.from_list([{**row, "finished": [True] * len(row["completions"])} for row in rows])


@torch.inference_mode()
def predict_entailment(judge: NLIEquivalence, firsts: list[str], seconds: list[str]) -> list[bool]:
    inputs = judge.processing_class(firsts, seconds, padding=True, truncation=True, return_tensors="pt")
    labels = judge.model(**inputs.to(judge.model.device)).logits.argmax(dim=-1)
    names = judge.model.config.id2label
    return [names[label].casefold().startswith("entail") for label in labels.tolist()]


def group_by_leaders(count: int, is_same: Callable[[int, int], bool]) -> list[list[int]]:
    groups: list[list[int]] = []
    for item in range(count):
        home = next((group for group in groups if is_same(group[0], item)), None)
        groups.append([item]) if home is None else home.append(item)
    return groups


def group_pair_by_pair(
    judge: NLIEquivalence, prompt: str, completions: list[str], are_distinct: bool = False
) -> list[list[int]]:
    """Groups completions. Those that are distinct, but have equal tokens, are undecided and therefore not the same."""
    texts = [f"{prompt} {completion}" for completion in completions]
    ids = judge.processing_class(texts)["input_ids"]

    def is_same(a: int, b: int) -> bool:
        if are_distinct and ids[a] == ids[b]:
            return False
        forward = predict_entailment(judge, [texts[a]], [texts[b]])
        backward = predict_entailment(judge, [texts[b]], [texts[a]])
        return forward[0] and backward[0]

    return group_by_leaders(len(texts), is_same)


def expand_largest_group(groups: list[list[int]], forms: list[str], distinct: list[str]) -> list[int]:
    """Returns the positions of all completions in the largest group, from groups of distinct completions."""
    group_ids = {distinct[item]: index for index, group in enumerate(groups) for item in group}
    return find_largest_group([group_ids.get(form, -1) for form in forms])


def run_leader_loop(judge: NLIEquivalence, row: dict) -> list[int]:
    positions = [position for position, completion in enumerate(row["completions"]) if completion.strip()]
    groups = group_pair_by_pair(judge, row["prompt"], [row["completions"][position] for position in positions])
    return [positions[item] for item in max(groups, key=len, default=[])]


def run_distinct_loop(judge: NLIEquivalence, row: dict) -> list[int]:
    forms = [judge.normalize(completion) for completion in row["completions"]]
    distinct = [form for form in dict.fromkeys(forms) if form]
    completions = [row["completions"][forms.index(form)] for form in distinct]
    groups = group_pair_by_pair(judge, row["prompt"], completions, are_distinct=True)
    return expand_largest_group(groups, forms, distinct)


def run_full_matrix(judge: NLIEquivalence, row: dict) -> list[int]:
    forms = [completion.strip() for completion in row["completions"]]
    distinct = [form for form in dict.fromkeys(forms) if form]
    texts = [f"{row['prompt']} {completion}" for completion in distinct]
    pairs = [(a, b) for a in texts for b in texts]
    matrix: list[bool] = []
    for start in range(0, len(pairs), 10):
        matrix += predict_entailment(judge, *(list(side) for side in zip(*pairs[start : start + 10], strict=True)))
    size = len(texts)
    groups = group_by_leaders(size, lambda a, b: matrix[a * size + b] and matrix[b * size + a])
    return expand_largest_group(groups, forms, distinct)


def run_cluster(judge: NLIEquivalence, rows: list[dict], complete_groups: bool = False) -> list[list[int]]:
    """Returns the largest group of each accepted prompt, and an empty list for each rejected prompt."""
    grouped = cluster(build_samples(rows), judge, threshold=THRESHOLD, complete_groups=complete_groups)
    return [find_largest_group(row["cluster_ids"]) if row["confidence"] >= THRESHOLD else [] for row in grouped]


def apply_to_rows(
    way: Callable[[NLIEquivalence, dict], list[int]],
) -> Callable[[NLIEquivalence, list[dict]], list[list[int]]]:
    """Converts a function of one prompt to a function of many prompts."""

    def run(judge: NLIEquivalence, rows: list[dict]) -> list[list[int]]:
        largest = [way(judge, row) for row in rows]
        return [
            group if len(group) / len(row["completions"]) >= THRESHOLD else []
            for row, group in zip(rows, largest, strict=True)
        ]

    return run


WAYS = {
    "ours": run_cluster,
    "complete": lambda judge, rows: run_cluster(judge, rows, complete_groups=True),
    "leader_loop": apply_to_rows(run_leader_loop),
    "full_matrix": apply_to_rows(run_full_matrix),
    "distinct_loop": apply_to_rows(run_distinct_loop),
}


class PairCounter:
    """Counts the pairs that the classifier receives."""

    def __init__(self, judge: NLIEquivalence):
        self.pairs = 0
        judge.model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model, args, kwargs):
        self.pairs += len(kwargs["input_ids"])


def run_round(judge: NLIEquivalence, counter: PairCounter, rows: list[dict], first: int) -> dict[str, dict]:
    """
    Runs all methods on the same prompts, starting with the method at index `first`.

    Returns:
        `dict`: For each method, its `seconds`, its NLI `pairs`, and the number of prompts on which its decision or its
        largest group is `different` from that of `distinct_loop`.
    """
    measured, results = {}, {}
    for name in list(WAYS)[first:] + list(WAYS)[:first]:
        pairs, begin = counter.pairs, CLOCK()
        results[name] = WAYS[name](judge, rows)
        measured[name] = {"seconds": CLOCK() - begin, "pairs": counter.pairs - pairs}
    expected = results["distinct_loop"]
    for name, metrics in measured.items():
        metrics["different"] = sum(a != b for a, b in zip(results[name], expected, strict=True))
        if metrics["different"] and name in ("ours", "complete"):
            raise SystemExit(f"{name} and distinct_loop disagree on {metrics['different']} prompts.")
    return measured


def compare(name: str, judge: NLIEquivalence, rows: list[dict], prompts: int, rounds: int) -> list[dict]:
    drawn = random.Random(0).sample(rows, prompts * rounds)
    counter = PairCounter(judge)
    run_round(judge, counter, drawn[:1], 0)  # warm-up
    parts = [drawn[start : start + prompts] for start in range(0, len(drawn), prompts)]
    measured = [run_round(judge, counter, part, number % len(WAYS)) for number, part in enumerate(parts)]
    print(f"\n{name}: {rounds} rounds of {prompts} prompts, {len(rows[0]['completions'])} completions per prompt")
    for way in WAYS:
        total = {key: sum(metrics[way][key] for metrics in measured) for key in ("seconds", "pairs", "different")}
        print(
            f"  {way:13} {total['pairs'] / len(drawn):6.1f} NLI pairs and {total['seconds'] / len(drawn):6.3f} s per "
            f"prompt, different from distinct_loop on {total['different']} of {len(drawn)} prompts"
        )
    return measured


def compute_speed_ups(name: str, measured: list[dict], goals: dict[tuple[str, str], float]) -> dict[str, dict]:
    """Computes median ratios of seconds. The goal is a ratio of 1 where `goals` has no other."""
    results = {}
    for fast in ("ours", "complete"):
        for slow in ("leader_loop", "full_matrix", "distinct_loop"):
            ratios = [metrics[slow]["seconds"] / metrics[fast]["seconds"] for metrics in measured]
            value = statistics.median(ratios)
            print(f"  {slow} / {fast}: {value:.2f}, rounds {min(ratios):.2f} to {max(ratios):.2f}")
            result = {"value": round(value, 2), "goal": goals.get((slow, fast), 1.0), "better": "higher"}
            results[f"{name}_{fast}_speed_up_over_{slow}"] = result
    return results


def measure_shared_groups(judge: NLIEquivalence, rows: list[dict]) -> dict[str, dict]:
    """Measures how often two answers share a group: two correct answers, and a correct and an incorrect one."""
    samples = build_samples(
        [{"prompt": row["question"], "completions": [a["text"] for a in row["answers"]]} for row in rows]
    )
    shared: dict[int, list[bool]] = {0: [], 1: [], 2: []}  # by the number of correct answers in the pair
    for row, ids in zip(rows, cluster(samples, judge, complete_groups=True)["cluster_ids"], strict=True):
        correct = [answer["correct"] for answer in row["answers"]]
        for b in range(len(ids)):
            for a in range(b):
                shared[correct[a] + correct[b]].append(ids[a] == ids[b] != -1)
    same, different = statistics.mean(shared[2]), statistics.mean(shared[1])
    print(f"\nEVOUNA, {len(rows)} questions")
    print(f"  two correct answers share a group in {same:.1%} of {len(shared[2])} pairs")
    print(f"  a correct and an incorrect answer share a group in {different:.1%} of {len(shared[1])} pairs")
    return {
        "evouna_two_correct_share_a_group": {"value": round(same, 3), "goal": 0.87, "better": "higher"},
        "evouna_correct_and_incorrect_share_a_group": {"value": round(different, 3), "goal": 0.21, "better": "lower"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument(
        "--model", default=str(SHARED / "models/minilm-nli"), help="folder or Hub name of an NLI classifier"
    )
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="folder with clusters/ and preferences/")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=10, help="questions with short answers in each round")
    parser.add_argument("--long_prompts", type=int, default=3, help="prompts with long answers in each round")
    parser.add_argument("--labeled_questions", type=int, default=1000, help="number of EVOUNA questions")
    parser.add_argument("--num_generations", type=int, default=20, help="short answers per question")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    judge = NLIEquivalence(arguments.model)
    short = load_short_answers(arguments.data, arguments.num_generations)
    measured = compare("TriviaQA, short answers", judge, short, arguments.prompts, arguments.rounds)
    results = compute_speed_ups("triviaqa", measured, {("leader_loop", "ours"): 6.0, ("full_matrix", "ours"): 4.0})
    long = load_long_answers(arguments.data, judge)
    measured = compare("PandaLM, long answers", judge, long, arguments.long_prompts, arguments.rounds)
    results |= compute_speed_ups("long_answers", measured, {})
    labeled = load_json_lines(arguments.data / "clusters/evouna_tq_1000.jsonl")[: arguments.labeled_questions]
    results |= measure_shared_groups(judge, labeled)
    print(json.dumps(results, indent=2))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps({"figures": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
