"""The command `trl-rlp sample`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trl_rlp.cli.arguments import parse
from trl_rlp.cli.model_arguments import InferenceArguments
from trl_rlp.cli.sampling import SAMPLES, SamplingArguments, require_effect
from trl_rlp.cli.server_arguments import ServerArguments
from trl_rlp.storage.processes import run_on_main
from trl_rlp.storage.run_folder import SHARDS
from trl_rlp.storage.shard_folder import MANIFEST


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
            the next call resumes from the shards. A `samples.jsonl` without shards is never replaced.
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
                "interruption, the next call resumes from the shards. A `samples.jsonl` without shards is never "
                "replaced."
            )
        }
    )


def main(options: Sequence[str]) -> None:
    """
    Samples completions and writes `samples.jsonl`.

    Args:
        options (`Sequence[str]`):
            Command-line arguments after `trl-rlp sample`.
    """
    arguments, sampling_arguments, server_arguments, model_arguments = parse(
        "sample",
        "Samples n completions per prompt.",
        options,
        SampleArguments,
        SamplingArguments,
        ServerArguments,
        InferenceArguments,
    )
    engine = sampling_arguments.choose_engine(server_arguments.connection())
    unread = model_arguments if engine["engine"] == "server" else server_arguments
    require_effect(unread, f"with `engine`={engine['engine']!r}")
    prompts = sampling_arguments.load_prompts(arguments.prompts)
    run_on_main(lambda: _require_own_samples(Path(arguments.output_dir)))
    sampling_arguments.sample(prompts, arguments.model, engine, model_arguments, arguments.output_dir)


def _require_own_samples(folder: Path) -> None:
    path = folder / SAMPLES
    if path.exists() and not (folder / SHARDS / MANIFEST).exists():
        raise ValueError(f"{path} has no shards, so its origin is unknown. Choose another `output_dir`, or remove it.")
