"""The command `trl-rlp sample`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset

from trl_rlp.cli.arguments import parse
from trl_rlp.cli.server_arguments import ServerArguments
from trl_rlp.data.sampling.in_process import sample_completions
from trl_rlp.data.sampling.server import sample_from_server
from trl_rlp.data.sampling_settings import require_settings
from trl_rlp.evaluation.policy_metrics import describe_outputs
from trl_rlp.storage.artifacts import load_policy
from trl_rlp.storage.json_files import write_rows
from trl_rlp.storage.loading import load_rows
from trl_rlp.storage.processes import process_state
from trl_rlp.storage.run_folder import SHARDS


@dataclass
class SampleArguments:
    """
    Arguments of `trl-rlp sample`.

    Args:
        model (`str`):
            Folder or Hub name of a causal LM. With `base_url`, the name of the model on the server.
        prompts (`str`):
            Dataset with a column of prompts: a JSON Lines, CSV or Parquet file, a folder of `save_to_disk`, or a Hub
            name.
        output_dir (`str`):
            Folder for `samples.jsonl` (`prompt`, `completions`, `finished`) and for the shards. After an interruption,
            the next call resumes from the shards.
        split (`str`, *optional*, defaults to `"train"`):
            Split of `prompts`, if it has splits.
        prompt_column (`str`, *optional*, defaults to `"prompt"`):
            Column of the prompts, as text or messages.
        base_url (`str`, *optional*):
            Base URL of an OpenAI-compatible server, for example `http://localhost:8000/v1`. By default, the command
            samples in process.
        num_generations (`int`, *optional*, defaults to `10`):
            Number of completions per prompt, at least 2 (n in the paper).
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature, above 0.
        top_p (`float`, *optional*, defaults to `1.0`):
            Top-p (nucleus) sampling, in (0, 1].
        max_new_tokens (`int`, *optional*, defaults to `300`):
            Maximum completion length, in tokens.
        seed (`int`, *optional*, defaults to `42`):
            Seed. The same seed gives the same samples.
        tokens_per_batch (`int`, *optional*, defaults to `8192`):
            Maximum number of tokens per batch, prompts and completions together. For sampling in process.
    """

    model: str = field(
        metadata={"help": "Folder or Hub name of a causal LM. With `base_url`, the name of the model on the server."}
    )
    prompts: str = field(
        metadata={
            "help": (
                "Dataset with a column of prompts: a JSON Lines, CSV or Parquet file, a folder of `save_to_disk`, or "
                "a Hub name."
            )
        }
    )
    output_dir: str = field(
        metadata={
            "help": (
                "Folder for `samples.jsonl` (`prompt`, `completions`, `finished`) and for the shards. After an "
                "interruption, the next call resumes from the shards."
            )
        }
    )
    split: str = field(default="train", metadata={"help": "Split of `prompts`, if it has splits."})
    prompt_column: str = field(default="prompt", metadata={"help": "Column of the prompts, as text or messages."})
    base_url: str | None = field(
        default=None,
        metadata={
            "help": (
                "Base URL of an OpenAI-compatible server, for example `http://localhost:8000/v1`. By default, the "
                "command samples in process."
            )
        },
    )
    num_generations: int = field(
        default=10, metadata={"help": "Number of completions per prompt, at least 2 (n in the paper)."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature, above 0."})
    top_p: float = field(default=1.0, metadata={"help": "Top-p (nucleus) sampling, in (0, 1]."})
    max_new_tokens: int = field(default=300, metadata={"help": "Maximum completion length, in tokens."})
    seed: int = field(default=42, metadata={"help": "Seed. The same seed gives the same samples."})
    tokens_per_batch: int = field(
        default=8192,
        metadata={
            "help": "Maximum number of tokens per batch, prompts and completions together. For sampling in process."
        },
    )


def main(options: Sequence[str]) -> None:
    """
    Samples completions and writes `samples.jsonl`.

    Args:
        options (`Sequence[str]`):
            Command-line arguments after `trl-rlp sample`.
    """
    arguments, server_arguments = parse(
        "sample", "Samples n completions per prompt.", options, SampleArguments, ServerArguments
    )
    require_settings(max_new_tokens=arguments.max_new_tokens)
    connection = server_arguments.connection()
    prompts = load_rows(arguments.prompts, arguments.split)
    prompts = _rename_prompts(prompts, arguments.prompt_column)
    settings = {
        "num_generations": arguments.num_generations,
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "seed": arguments.seed,
        "output_dir": str(Path(arguments.output_dir) / SHARDS),
    }
    if arguments.base_url is None:
        samples = sample_completions(
            prompts,
            *load_policy(arguments.model),
            max_new_tokens=arguments.max_new_tokens,
            tokens_per_batch=arguments.tokens_per_batch,
            **settings,
        )
    else:
        samples = sample_from_server(
            prompts,
            arguments.base_url,
            arguments.model,
            max_tokens=arguments.max_new_tokens,
            **connection,
            **settings,
        )
    if process_state().is_main_process:
        path = Path(arguments.output_dir) / "samples.jsonl"
        write_rows(path, samples)
        metrics = describe_outputs(samples)
        print(f"{metrics['outputs']} completions, {metrics['finished']:.0%} finished, written to {path}")
        if len(samples) < len(prompts):
            print(f"{len(prompts) - len(samples)} of {len(prompts)} prompts are left out, see the warning")


def _rename_prompts(prompts: Dataset, column: str) -> Dataset:
    names = prompts.column_names
    if column not in names:
        raise ValueError(
            f"`prompt_column`={column!r} names no column of `prompts`, which has {names}. Name one of them."
        )
    if column == "prompt":
        return prompts
    if "prompt" in names:
        raise ValueError(
            f"`prompts` has a column 'prompt' besides `prompt_column`={column!r}. Rename or remove it in the file."
        )
    return prompts.rename_column(column, "prompt")
