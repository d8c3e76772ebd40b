"""
Throughput and peak memory of `PPOTrainer` compared with that of TRL 1.12.0, the last release that had one.

    python examples/benchmarks/ppo_step.py --output ppo_step.json

TRL 1.12.0 is installed in its own virtual environment, which the script creates if needed. Each measurement runs this
file as a worker in its own process. Both sides get the same random models, the same prompts (token ids of one length)
and the same settings under the same names. Completions have full length (`stop_token=None`). The script stops with an
error unless both sides generate the same number of tokens and train on the same number of tokens.

Gradient checkpointing is off on both sides. The trainer of TRL 1.12 never uses it, even with
`gradient_checkpointing=True`. With `--checkpointing 1`, both sides get `gradient_checkpointing=True`, which is their
default. Then only ours uses it. It saves memory and computes activations twice.

In each round, both sides run in alternating order, on a CPU with one thread. The first rollout of a worker is a
warm-up. Rollouts are measured in processor time, so other programs have little influence. With one thread, this equals
the wall time of an idle machine. Peak memory is the largest resident set of the worker. The script also reports the
part that is used after the models are made, without interpreter, libraries and weights. A result is the median over
rounds of the ratio of ours to TRL's. The script takes about fifteen minutes on one core.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path


# Other packages are imported in workers only, because each side has its own. The main process must also stay small: on
# Linux, the peak memory of a process is at least that of the process that started it.

SIDES = ("ours", "former")
FORMER = ("torch==2.13.0", "trl==1.12.0 transformers==5.24.0")
"""Packages for the trainer of TRL 1.12, in the order of installation."""

SIZES = {
    "rollouts": (2, "measured rollouts of a worker, after one warm-up rollout"),
    "batch": (4, "completions per micro-batch"),
    "micro_batches": (4, "micro-batches per rollout"),
    "epochs": (4, "PPO epochs per rollout"),
    "prompt_tokens": (32, "tokens per prompt"),
    "completion_tokens": (64, "tokens per completion"),
    "vocabulary": (49_152, "vocabulary size"),
    "hidden_size": (256, "hidden size of all models, 64 per attention head"),
    "layers": (4, "layers of all models"),
    "checkpointing": (0, "whether to set gradient_checkpointing (1) or not (0)"),
}
GOALS = {"episodes_per_second": (1.25, "higher"), "peak_memory": (0.8, "lower")}
MEASURED = {
    "episodes_per_second": "episodes/s",
    "peak_memory": "MiB at peak",
    "memory_in_training": "MiB of it after the models were made",
}


def make_environment(folder: Path) -> str:
    """Creates the environment with TRL 1.12 if it is missing or out of date. Returns its Python interpreter."""
    python = folder / "bin/python"
    installed = folder / "installed.txt"
    if not installed.is_file() or installed.read_text() != "\n".join(FORMER):
        print(f"Installing {', '.join(FORMER)} into {folder}", flush=True)
        venv.create(folder, with_pip=True, symlinks=True)
        for requirements in FORMER:
            subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements.split()], check=True)
        # Written last, so an interrupted installation is repeated.
        installed.write_text("\n".join(FORMER))
    return str(python)


def measure(side: str, python: str, sizes: dict[str, int]) -> dict:
    """Runs a worker of one side in its own process. Returns its measurements."""
    command = [python, __file__, "--worker", side, *(f"--{name}={value}" for name, value in sizes.items())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    worker = subprocess.run(command, env=environment, capture_output=True, text=True)
    if worker.returncode:
        raise SystemExit(f"The worker of {side!r} failed.\n{worker.stderr}")
    return json.loads(worker.stdout.splitlines()[-1])


def make_tokenizer(vocabulary: int):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<pad>", "<eos>", *(f"w{i}" for i in range(vocabulary - 2))]
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def make_models(sizes: argparse.Namespace) -> dict:
    """Makes policy, reference, reward and value model, by their argument names in both trainers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.hidden_size * 11 // 4,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.hidden_size // 64,
        num_labels=1,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    policy, reference = LlamaForCausalLM(config), LlamaForCausalLM(config)
    reference.load_state_dict(policy.state_dict())
    reward, value = LlamaForSequenceClassification(config), LlamaForSequenceClassification(config)
    return {"model": policy, "ref_model": reference, "reward_model": reward, "value_model": value}


def make_prompts(sizes: argparse.Namespace):
    import numpy as np
    from datasets import Dataset

    rows = (sizes.rollouts + 1) * sizes.batch * sizes.micro_batches
    ids = np.random.default_rng(0).integers(2, sizes.vocabulary, size=(rows, sizes.prompt_tokens))
    return Dataset.from_dict({"input_ids": ids.tolist()})


def load_trainer(side: str) -> tuple[type, type]:
    if side == "ours":
        from trl_rlp import PPOConfig, PPOTrainer

        return PPOConfig, PPOTrainer
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    return PPOConfig, PPOTrainer


def make_config(config_class: type, folder: str, sizes: argparse.Namespace):
    return config_class(
        folder,
        total_episodes=(sizes.rollouts + 1) * sizes.batch * sizes.micro_batches,
        per_device_train_batch_size=sizes.batch,
        gradient_accumulation_steps=sizes.micro_batches,
        num_ppo_epochs=sizes.epochs,
        num_mini_batches=1,
        response_length=sizes.completion_tokens,
        stop_token=None,
        kl_estimator="k1",
        gradient_checkpointing=bool(sizes.checkpointing),
        num_sample_generations=0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        dataloader_pin_memory=False,
    )


class Meter:
    """Records the start of each rollout, and counts the tokens that are generated and trained on."""

    def __init__(self, policy):
        self.begins: list[float] = []
        self.generated = self.trained = 0
        self._generate, policy.generate = policy.generate, self._count_generated
        policy.register_forward_pre_hook(self._count_trained, with_kwargs=True)

    def _count_generated(self, **kwargs):
        self.begins.append(time.process_time())
        output = self._generate(**kwargs)
        sequences = output.sequences if kwargs.get("return_dict_in_generate") else output
        self.generated += sequences.numel() - kwargs["input_ids"].numel()
        return output

    def _count_trained(self, policy, args, kwargs):
        import torch

        if torch.is_grad_enabled():
            self.trained += kwargs["input_ids"].numel()


def run_worker(side: str, sizes: argparse.Namespace) -> dict:
    """Trains one side. Returns its throughput in episodes per second, memory in MiB, and tokens."""
    import psutil
    import torch
    import transformers
    import trl

    config_class, trainer_class = load_trainer(side)
    models, tokenizer, prompts = make_models(sizes), make_tokenizer(sizes.vocabulary), make_prompts(sizes)
    memory_before = psutil.Process().memory_info().rss / 2**20
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(config_class, folder, sizes)
        trainer = trainer_class(config, tokenizer, train_dataset=prompts, **models)
        meter = Meter(models["model"])
        trainer.train()
    seconds = time.process_time() - meter.begins[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {
        "episodes_per_second": sizes.rollouts * sizes.batch * sizes.micro_batches / seconds,
        "peak_memory": peak,
        "memory_in_training": peak - memory_before,
        "tokens": [len(meter.begins), meter.generated, meter.trained],
        "versions": f"trl {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}",
    }


def require_equal_work(round_results: dict[str, dict], sizes: dict[str, int]) -> None:
    """Checks that both sides generated and trained on the expected number of tokens."""
    rollouts = sizes["rollouts"] + 1
    rows = rollouts * sizes["batch"] * sizes["micro_batches"]
    completion = sizes["completion_tokens"]
    expected = [rollouts, rows * completion, sizes["epochs"] * rows * (sizes["prompt_tokens"] + completion)]
    for side, measured in round_results.items():
        if measured["tokens"] != expected:
            raise SystemExit(
                f"{side!r} has {measured['tokens']} [rollouts, generated tokens, trained tokens], expected {expected}."
            )


def summarize(rounds: list[dict[str, dict]]) -> dict[str, dict]:
    """Prints medians over rounds. Returns the ratios that have a goal."""
    for side in SIDES:
        print(f"{side}: {rounds[0][side]['versions']}")
        for name, unit in MEASURED.items():
            values = [results[side][name] for results in rounds]
            print(f"  {statistics.median(values):.4g} {unit}, rounds {min(values):.4g} to {max(values):.4g}")
    summary = {}
    for name in MEASURED:
        ratios = [results["ours"][name] / results["former"][name] for results in rounds]
        value = statistics.median(ratios)
        print(f"ours / former, {name}: {value:.3f}, rounds {min(ratios):.3f} to {max(ratios):.3f}")
        if name in GOALS:
            goal, better = GOALS[name]
            summary[f"ppo_step_{name}"] = {"value": round(value, 4), "goal": goal, "better": better}
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--former_environment",
        type=Path,
        default=Path.home() / ".cache/trl_rlp/trl-1.12",
        help="folder of the virtual environment with TRL 1.12.0",
    )
    for name, (default, text) in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        print(json.dumps(run_worker(arguments.worker, arguments)))
        return
    pythons = {"ours": sys.executable, "former": make_environment(arguments.former_environment)}
    sizes = {name: vars(arguments)[name] for name in SIZES}
    rounds = []
    for number in range(arguments.rounds):
        order = SIDES if number % 2 == 0 else SIDES[::-1]
        rounds.append({side: measure(side, pythons[side], sizes) for side in order})
        require_equal_work(rounds[-1], sizes)
    summary = summarize(rounds)
    print(json.dumps(summary, indent=2))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps({"figures": summary}, indent=2) + "\n")


if __name__ == "__main__":
    main()
