"""
How much faster `cluster` is than the usual ways of grouping outputs by bidirectional entailment, at equal decisions.

    python examples/benchmarks/clustering.py --output clustering.json

The other ways, all with the same classifier and the question before both outputs: `leader_loop`, each output compared
with the first member of each group, one pair a call, both directions, repeated outputs too; `distinct_loop`, the same
over the outputs that differ after normalization; `full_matrix`, all n x n ordered pairs of the outputs that differ as
strings, in batches of ten. `ours` stops when the decision (confidence .5) and the largest group are certain,
`complete` finishes all groups. Both must decide as `distinct_loop` does, and find the same largest group.

Data: 20 sampled short answers a question (TriviaQA), and five models' long answers an instruction (PandaLM). Each
round takes other prompts, drawn with a fixed seed, and runs all ways on them in turning order, with one thread; a
figure is the median over rounds of the ratio of their times (processor time without an accelerator, so that other
programs count for little). Last, how often correct and incorrect answers (EVOUNA, labeled by people) share a group;
this says how good the classifier is, not how fast we are, and its goals are what the classifier's card reports of
single pairs.
About ten minutes on one free core.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path

import torch
from datasets import Dataset

from trl_rlp.data.groups.clustering import cluster, largest_group
from trl_rlp.data.groups.equivalence import NLIEquivalence


SHARED = Path(__file__).resolve().parents[2] / "../shared"
CLOCK = time.perf_counter if torch.accelerator.is_available() else time.process_time
THRESHOLD = 0.5
LONG_ANSWER = 60  # tokens, mean over the answers to an instruction


def load_lines(path: Path) -> list[dict]:
    # Not `splitlines`: the texts hold other characters that it takes for the end of a line.
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def short_answers(data: Path, num_generations: int) -> list[dict]:
    rows = load_lines(data / "clusters/triviaqa_llama13b_500x20.jsonl")
    return [{"prompt": row["question"], "completions": row["samples"][:num_generations]} for row in rows]


def long_answers(data: Path, judge: NLIEquivalence, answers: int = 5) -> list[dict]:
    """Instructions with five different answers of some length; no pair is too long, since each way cuts it its way."""
    texts: dict[str, list[str]] = {}
    for row in load_lines(data / "preferences/pandalm_human_842.jsonl"):
        known = texts.setdefault(row["prompt"][-1]["content"], [])
        for side in ("chosen", "rejected"):
            text = row[side][-1]["content"]
            if text.strip() and text not in known:
                known.append(text)
    rows = [{"prompt": prompt, "completions": known[:answers]} for prompt, known in texts.items()]
    return [row for row in rows if len(row["completions"]) == answers and is_long(row, judge)]


def is_long(row: dict, judge: NLIEquivalence) -> bool:
    question, *lengths = map(len, judge.processing_class([row["prompt"], *row["completions"]])["input_ids"])
    fits = 2 * (question + max(lengths)) <= judge.processing_class.model_max_length
    return fits and statistics.mean(lengths) >= LONG_ANSWER


def to_samples(rows: list[dict]) -> Dataset:
    return Dataset.from_list([{**row, "finished": [True] * len(row["completions"])} for row in rows])


@torch.inference_mode()
def entails(judge: NLIEquivalence, firsts: list[str], seconds: list[str]) -> list[bool]:
    inputs = judge.processing_class(firsts, seconds, padding=True, truncation=True, return_tensors="pt")
    labels = judge.model(**inputs.to(judge.model.device)).logits.argmax(dim=-1)
    names = judge.model.config.id2label
    return [names[label].casefold().startswith("entail") for label in labels.tolist()]


def group_by_leaders(count: int, is_same) -> list[list[int]]:
    groups: list[list[int]] = []
    for item in range(count):
        home = next((group for group in groups if is_same(group[0], item)), None)
        groups.append([item]) if home is None else home.append(item)
    return groups


def loop(judge: NLIEquivalence, prompt: str, outputs: list[str]) -> list[list[int]]:
    texts = [f"{prompt} {output}" for output in outputs]

    def is_same(a: int, b: int) -> bool:
        forward, backward = entails(judge, [texts[a]], [texts[b]]), entails(judge, [texts[b]], [texts[a]])
        return forward[0] and backward[0]

    return group_by_leaders(len(texts), is_same)


def spread(groups: list[list[int]], forms: list[str], distinct: list[str]) -> list[int]:
    """The largest group as positions of all outputs, from groups of distinct ones."""
    number = {distinct[item]: index for index, group in enumerate(groups) for item in group}
    return largest_group([number.get(form, -1) for form in forms])


def leader_loop(judge: NLIEquivalence, row: dict) -> list[int]:
    positions = [position for position, output in enumerate(row["completions"]) if output.strip()]
    groups = loop(judge, row["prompt"], [row["completions"][position] for position in positions])
    return [positions[item] for item in max(groups, key=len, default=[])]


def distinct_loop(judge: NLIEquivalence, row: dict) -> list[int]:
    forms = [judge.normalize(output) for output in row["completions"]]
    distinct = [form for form in dict.fromkeys(forms) if form]
    groups = loop(judge, row["prompt"], [row["completions"][forms.index(form)] for form in distinct])
    return spread(groups, forms, distinct)


def full_matrix(judge: NLIEquivalence, row: dict) -> list[int]:
    forms = [output.strip() for output in row["completions"]]
    distinct = [form for form in dict.fromkeys(forms) if form]
    texts = [f"{row['prompt']} {output}" for output in distinct]
    pairs = [(a, b) for a in texts for b in texts]
    matrix: list[bool] = []
    for start in range(0, len(pairs), 10):
        matrix += entails(judge, *(list(side) for side in zip(*pairs[start : start + 10], strict=True)))
    size = len(texts)
    groups = group_by_leaders(size, lambda a, b: matrix[a * size + b] and matrix[b * size + a])
    return spread(groups, forms, distinct)


def ours(judge: NLIEquivalence, rows: list[dict], complete_groups: bool = False) -> list[list[int]]:
    """Largest group of each accepted prompt; a rejected one has none."""
    grouped = cluster(to_samples(rows), judge, threshold=THRESHOLD, complete_groups=complete_groups)
    return [largest_group(row["cluster_ids"]) if row["confidence"] >= THRESHOLD else [] for row in grouped]


def one_by_one(way):
    def run(judge: NLIEquivalence, rows: list[dict]) -> list[list[int]]:
        largest = [way(judge, row) for row in rows]
        return [
            group if len(group) / len(row["completions"]) >= THRESHOLD else []
            for row, group in zip(rows, largest, strict=True)
        ]

    return run


WAYS = {
    "ours": ours,
    "complete": lambda judge, rows: ours(judge, rows, complete_groups=True),
    "leader_loop": one_by_one(leader_loop),
    "full_matrix": one_by_one(full_matrix),
    "distinct_loop": one_by_one(distinct_loop),
}


class PairCounter:
    """Counts the pairs that the classifier is given."""

    def __init__(self, judge: NLIEquivalence):
        self.pairs = 0
        judge.model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model, args, kwargs):
        self.pairs += len(kwargs["input_ids"])


def run_round(judge: NLIEquivalence, counter: PairCounter, rows: list[dict], first: int) -> dict[str, dict]:
    """
    For each way its seconds, NLI pairs, and on how many prompts its decision or its largest group is not that of
    `distinct_loop`.
    """
    measured, results = {}, {}
    for name in list(WAYS)[first:] + list(WAYS)[:first]:
        pairs, begin = counter.pairs, CLOCK()
        results[name] = WAYS[name](judge, rows)
        measured[name] = {"seconds": CLOCK() - begin, "pairs": counter.pairs - pairs}
    expected = results["distinct_loop"]
    for name, figures in measured.items():
        figures["different"] = sum(a != b for a, b in zip(results[name], expected, strict=True))
        if figures["different"] and name in ("ours", "complete"):
            raise SystemExit(f"{name} decides differently from the plain loop on {figures['different']} prompts")
    return measured


def compare(name: str, judge: NLIEquivalence, rows: list[dict], prompts: int, rounds: int) -> list[dict]:
    drawn = random.Random(0).sample(rows, prompts * rounds)
    counter = PairCounter(judge)
    run_round(judge, counter, drawn[:1], 0)
    parts = [drawn[start : start + prompts] for start in range(0, len(drawn), prompts)]
    measured = [run_round(judge, counter, part, number % len(WAYS)) for number, part in enumerate(parts)]
    print(f"\n{name}: {rounds} rounds of {prompts} prompts, {len(rows[0]['completions'])} outputs each")
    for way in WAYS:
        total = {key: sum(figures[way][key] for figures in measured) for key in ("seconds", "pairs", "different")}
        print(
            f"  {way:13} {total['pairs'] / len(drawn):6.1f} NLI pairs and {total['seconds'] / len(drawn):6.3f} s a "
            f"prompt; {total['different']} of {len(drawn)} prompts differ from distinct_loop"
        )
    return measured


def speed_ups(name: str, measured: list[dict], goals: dict[tuple[str, str], float]) -> dict[str, dict]:
    """Median ratios of seconds; where no goal is named, the goal is not to be slower."""
    figures = {}
    for fast in ("ours", "complete"):
        for slow in ("leader_loop", "full_matrix", "distinct_loop"):
            ratios = [one_round[slow]["seconds"] / one_round[fast]["seconds"] for one_round in measured]
            value = statistics.median(ratios)
            print(f"  {slow} / {fast}: {value:.2f}, rounds {min(ratios):.2f} to {max(ratios):.2f}")
            figure = {"value": round(value, 2), "goal": goals.get((slow, fast), 1.0), "better": "higher"}
            figures[f"{name}_{fast}_speed_up_over_{slow}"] = figure
    return figures


def shared_groups(judge: NLIEquivalence, rows: list[dict]) -> dict[str, dict]:
    """How often two answers that people labeled share a group."""
    samples = to_samples(
        [{"prompt": row["question"], "completions": [a["text"] for a in row["answers"]]} for row in rows]
    )
    shared: dict[int, list[bool]] = {0: [], 1: [], 2: []}
    for row, ids in zip(rows, cluster(samples, judge, complete_groups=True)["cluster_ids"], strict=True):
        correct = [answer["correct"] for answer in row["answers"]]
        for b in range(len(ids)):
            for a in range(b):
                shared[correct[a] + correct[b]].append(ids[a] == ids[b] != -1)
    same, different = statistics.mean(shared[2]), statistics.mean(shared[1])
    print(
        f"\nEVOUNA, {len(rows)} questions: two correct answers share a group in {same:.1%} of {len(shared[2])} pairs,"
    )
    print(f"a correct and an incorrect one in {different:.1%} of {len(shared[1])}")
    return {
        "evouna_two_correct_share_a_group": {"value": round(same, 3), "goal": 0.87, "better": "higher"},
        "evouna_correct_and_incorrect_share_a_group": {"value": round(different, 3), "goal": 0.21, "better": "lower"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument(
        "--model", default=str(SHARED / "models/minilm-nli"), help="folder or Hub name of a classifier"
    )
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="folder with clusters/ and preferences/")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=10, help="questions with short answers in each round")
    parser.add_argument("--long_prompts", type=int, default=3, help="instructions with long answers in each round")
    parser.add_argument("--labeled_questions", type=int, default=1000, help="EVOUNA questions")
    parser.add_argument("--num_generations", type=int, default=20, help="short answers a question")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    judge = NLIEquivalence(arguments.model)
    short = short_answers(arguments.data, arguments.num_generations)
    measured = compare("TriviaQA, short answers", judge, short, arguments.prompts, arguments.rounds)
    figures = speed_ups("triviaqa", measured, {("leader_loop", "ours"): 6.0, ("full_matrix", "ours"): 4.0})
    long = long_answers(arguments.data, judge)
    measured = compare("PandaLM, long answers", judge, long, arguments.long_prompts, arguments.rounds)
    figures |= speed_ups("long_answers", measured, {})
    labeled = load_lines(arguments.data / "clusters/evouna_tq_1000.jsonl")[: arguments.labeled_questions]
    figures |= shared_groups(judge, labeled)
    print(json.dumps(figures, indent=2))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps({"figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
