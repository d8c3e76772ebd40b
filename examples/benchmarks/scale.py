"""
Time and memory of the data stages for up to a million prompts, and the gain of a second process.

    python examples/benchmarks/scale.py --output scale.json

The first part groups ten short synthetic outputs of each prompt (`cluster` with `ExactMatch`), and makes synthetic
preferences from the groups (`synthesize_preferences` with `spg` and `chosen="random"`, so no model takes part). The
sizes are 10,000, 100,000 and 1,000,000 prompts. Each runs in a process of its own, with `output_dir` and one thread.
The samples are memory-mapped Arrow files. The figures are:

- `scale_cluster_time_growth` and `scale_prefer_time_growth`: seconds per prompt of the largest size, divided by those
  of the second largest. 1 means that the time is linear.
- `scale_memory_growth`: peak memory of the largest size, divided by that of the second largest. Memory is what the
  process itself holds: its resident memory without the pages of memory-mapped files, which the system can drop at any
  time. A thread reads it every 20 ms. It includes what the imports need, which is also printed.

The second part clusters with an NLI classifier and scores with a reward model, both with random weights. It does so in
one process, and in two that `torch.distributed.run` starts. Each process has one thread. The figure is the time of one
process divided by that of two. It needs two free cores. If the results are not equal to the last bit, the script stops
with an error.

The script takes about a quarter of an hour on two free cores, and 2 GB of disk.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil


NUM_GENERATIONS = 10
ROWS_PER_FILE = 10_000
WORDS = 500


def write_samples(folder: Path, prompts: int) -> None:
    """Writes policy samples. Half of the prompts have a largest group of five to nine completions, and so a pair."""
    import pyarrow as pa

    for first in range(0, prompts, ROWS_PER_FILE):
        rows = range(first, min(first + ROWS_PER_FILE, prompts))
        table = pa.table(
            {
                "prompt": [f"What is the answer to question number {row}?" for row in rows],
                "completions": [
                    [
                        f"The answer is {row * 7 % 1000 + max(0, sample - row % 10)}."
                        for sample in range(NUM_GENERATIONS)
                    ]
                    for row in rows
                ],
                "finished": [[True] * NUM_GENERATIONS for _ in rows],
            }
        )
        with pa.ipc.new_stream(str(folder / f"samples-{first:08d}.arrow"), table.schema) as file:
            file.write_table(table)


class PeakMemory:
    """Peak of this process's own memory inside a `with` block, in MiB."""

    def __enter__(self) -> "PeakMemory":
        self.process, self.peak, self.ended = psutil.Process(), 0.0, threading.Event()
        self.start = self.read()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self.ended.set()
        self.thread.join()

    def watch(self) -> None:
        while not self.ended.wait(0.02):
            self.peak = max(self.peak, self.read())

    def read(self) -> float:
        memory = self.process.memory_info()
        # On Linux, `shared` counts the resident pages of files. Other systems do not have it.
        return (memory.rss - getattr(memory, "shared", 0)) / 2**20


def run_stages(folder: Path) -> None:
    """Groups the samples in the folder, makes preferences from them, and writes the measurements."""
    from datasets import Dataset, concatenate_datasets

    from trl_rlp.data.groups import ExactMatch, cluster
    from trl_rlp.data.preferences import synthesize_preferences
    from trl_rlp.storage import save_data

    samples = concatenate_datasets([Dataset.from_file(str(path)) for path in sorted(folder.glob("samples-*.arrow"))])
    with PeakMemory() as memory:
        begin = time.perf_counter()
        groups = cluster(samples, ExactMatch(), output_dir=folder / "groups")
        middle = time.perf_counter()
        preferences, _ = synthesize_preferences(groups, "spg", chosen="random", output_dir=folder / "preferences")
        save_data(preferences, folder / "stage")
        end = time.perf_counter()
    measured = {
        "prompts": len(samples),
        "preferences": len(preferences),
        "cluster_seconds": middle - begin,
        "prefer_seconds": end - middle,
        "start_mib": memory.start,
        "peak_mib": memory.peak,
    }
    (folder / "measured.json").write_text(json.dumps(measured))


def measure_size(prompts: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        write_samples(Path(folder), prompts)
        run_worker(["--stages", folder])
        measured = json.loads((Path(folder) / "measured.json").read_text())
    seconds = measured["cluster_seconds"] + measured["prefer_seconds"]
    print(
        f"{prompts:,} prompts: cluster {measured['cluster_seconds']:.1f} s, prefer {measured['prefer_seconds']:.1f} s "
        f"({measured['preferences']:,} pairs), {1e6 * seconds / prompts:.0f} µs per prompt, peak memory "
        f"{measured['peak_mib']:.0f} MiB, of which {measured['start_mib']:.0f} MiB before the work",
        flush=True,
    )
    return measured


def run_worker(words: list[str], processes: int = 1) -> None:
    launcher = (
        [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    subprocess.run([sys.executable, *launcher, __file__, *words], env=environment, check=True)


def compute_growth(name: str, values: list[float], goal: float) -> dict[str, dict]:
    return {name: {"value": round(values[-1] / values[-2], 3), "goal": goal, "better": "lower"}}


def measure_growth(sizes: list[int]) -> dict[str, dict]:
    measured = [measure_size(prompts) for prompts in sizes]
    figures = {}
    for stage in ("cluster", "prefer"):
        seconds = [row[f"{stage}_seconds"] / row["prompts"] for row in measured]
        figures |= compute_growth(f"scale_{stage}_time_growth", seconds, 1.2)
    return figures | compute_growth("scale_memory_growth", [row["peak_mib"] for row in measured], 1.3)


def make_models(hidden_size: int):
    """Makes a tokenizer of whole words, an NLI classifier and a reward model with random weights."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", *(f"w{i}" for i in range(WORDS))])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
    settings = {"vocab_size": len(vocabulary), "hidden_size": hidden_size, "intermediate_size": 4 * hidden_size}
    settings |= {"num_hidden_layers": 4, "num_attention_heads": max(1, hidden_size // 64), "pad_token_id": 0}
    torch.manual_seed(0)
    labels = {0: "contradiction", 1: "entailment", 2: "neutral"}
    names = {"id2label": labels, "label2id": {label: index for index, label in labels.items()}}
    classifier, reward_model = (
        AutoModelForSequenceClassification.from_config(BertConfig(**settings, **kind)).eval()
        for kind in (names, {"num_labels": 1})
    )
    return tokenizer, classifier, reward_model


def run_models(folder: Path, prompts: int, hidden_size: int) -> None:
    """Clusters and scores the same samples in all processes that `torch.distributed.run` has started, and times it."""
    import numpy as np
    import torch
    from accelerate import PartialState
    from datasets import Dataset

    from trl_rlp.data.groups import NLIEquivalence, cluster
    from trl_rlp.data.scoring import score_samples
    from trl_rlp.storage.processes import leave_process_group

    state = PartialState(cpu=True)
    torch.set_num_threads(1)
    tokenizer, classifier, reward_model = make_models(hidden_size)
    words = np.random.default_rng(0).integers(WORDS, size=(prompts, NUM_GENERATIONS, 20))
    completions = [[" ".join(f"w{word}" for word in text) for text in row] for row in words]
    samples = Dataset.from_dict(
        {
            "prompt": [f"w{row % WORDS}" for row in range(prompts)],
            "completions": completions,
            "finished": [[True] * NUM_GENERATIONS] * prompts,
        }
    )
    state.wait_for_everyone()
    begin = time.perf_counter()
    groups = cluster(samples, NLIEquivalence(classifier, tokenizer), output_dir=folder / "groups", shard_size=8)
    state.wait_for_everyone()
    middle = time.perf_counter()
    rewards = score_samples(reward_model, tokenizer, samples)
    state.wait_for_everyone()
    seconds = {"cluster": middle - begin, "score": time.perf_counter() - middle}
    if state.is_main_process:
        results = {"seconds": seconds, "cluster_ids": groups["cluster_ids"][:], "rewards": rewards}
        (folder / "results.json").write_text(json.dumps(results))
    leave_process_group()


def measure_processes(prompts: int, hidden_size: int) -> dict[str, dict]:
    results = []
    for processes in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            run_worker(["--models", folder, "--prompts", str(prompts), "--hidden_size", str(hidden_size)], processes)
            results.append(json.loads((Path(folder) / "results.json").read_text()))
        seconds = results[-1]["seconds"]
        print(f"{processes} process(es): " + ", ".join(f"{stage} {value:.1f} s" for stage, value in seconds.items()))
    if any(results[0][name] != results[1][name] for name in ("cluster_ids", "rewards")):
        raise SystemExit("One and two processes have different results.")
    one, two = (result["seconds"] for result in results)
    return {
        f"two_processes_{stage}_speed_up": {
            "value": round(one[stage] / two[stage], 2),
            "goal": 1.7,
            "better": "higher",
        }
        for stage in one
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="numbers of prompts"
    )
    parser.add_argument("--parts", nargs="+", default=["growth", "processes"], choices=["growth", "processes"])
    parser.add_argument("--prompts", type=int, default=400, help="prompts of the comparison of one and two processes")
    parser.add_argument("--hidden_size", type=int, default=256, help="width of the two models of that comparison")
    parser.add_argument("--stages", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--models", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stages is not None:
        run_stages(arguments.stages)
    elif arguments.models is not None:
        run_models(arguments.models, arguments.prompts, arguments.hidden_size)
    else:
        figures = {}
        if "growth" in arguments.parts:
            figures |= measure_growth(arguments.sizes)
        if "processes" in arguments.parts:
            figures |= measure_processes(arguments.prompts, arguments.hidden_size)
        print(json.dumps(figures, indent=2))
        if arguments.output is not None:
            arguments.output.write_text(json.dumps({"figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
