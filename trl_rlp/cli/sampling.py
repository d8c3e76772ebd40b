"""Sampling with the options that several commands share."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset

from trl_rlp.cli.model_arguments import InferenceArguments
from trl_rlp.data.sampling.engines import require_engine, sample_completions
from trl_rlp.data.sampling_settings import require_settings
from trl_rlp.evaluation.policy_metrics import describe_outputs
from trl_rlp.storage.json_files import write_rows
from trl_rlp.storage.loading import load_rows
from trl_rlp.storage.processes import process_state
from trl_rlp.storage.run_folder import SHARDS
from trl_rlp.trainer.mappings import parse_mapping


SAMPLES = "samples.jsonl"
"""Name of the file of the samples."""


@dataclass
class SamplingArguments:
    """
    Arguments that define how completions are sampled.

    Args:
        split (`str`, *optional*, defaults to `"train"`):
            Split of `prompts`, if it has splits.
        prompt_column (`str`, *optional*, defaults to `"prompt"`):
            Column of the prompts, as text or messages.
        engine (`str`, *optional*):
            What draws the tokens: `transformers`, `vllm` or `server`. By default, `server` if `base_url` is given, and
            `transformers` if not.
        engine_args (`dict` or `str`, *optional*):
            Arguments of `vllm.LLM`, for example `{"gpu_memory_utilization": 0.8}`. A command line takes JSON, and YAML
            takes a mapping.
        base_url (`str`, *optional*):
            Base URL of an OpenAI-compatible server, for example `http://localhost:8000/v1`.
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
        tokens_per_batch (`int`, *optional*):
            Maximum number of tokens per batch of `transformers`, prompts and completions together. Defaults to what
            fits into the free memory of the device, and to 8192 on the CPU.
    """

    split: str = field(default="train", metadata={"help": "Split of `prompts`, if it has splits."})
    prompt_column: str = field(default="prompt", metadata={"help": "Column of the prompts, as text or messages."})
    engine: str | None = field(
        default=None,
        metadata={
            "help": (
                "What draws the tokens: `transformers`, `vllm` or `server`. By default, `server` if `base_url` is "
                "given, and `transformers` if not."
            )
        },
    )
    engine_args: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": (
                'Arguments of `vllm.LLM`, for example `{"gpu_memory_utilization": 0.8}`. A command line takes JSON, '
                "and YAML takes a mapping."
            )
        },
    )
    base_url: str | None = field(
        default=None,
        metadata={"help": "Base URL of an OpenAI-compatible server, for example `http://localhost:8000/v1`."},
    )
    num_generations: int = field(
        default=10, metadata={"help": "Number of completions per prompt, at least 2 (n in the paper)."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature, above 0."})
    top_p: float = field(default=1.0, metadata={"help": "Top-p (nucleus) sampling, in (0, 1]."})
    max_new_tokens: int = field(default=300, metadata={"help": "Maximum completion length, in tokens."})
    seed: int = field(default=42, metadata={"help": "Seed. The same seed gives the same samples."})
    tokens_per_batch: int | None = field(
        default=None,
        metadata={
            "help": (
                "Maximum number of tokens per batch of `transformers`, prompts and completions together. Defaults to "
                "what fits into the free memory of the device, and to 8192 on the CPU."
            )
        },
    )

    def choose_engine(self, connection: dict[str, Any]) -> dict[str, Any]:
        """
        Chooses the engine and its arguments.

        Args:
            connection (`dict`):
                Settings of the connection to a server.

        Returns:
            `dict`: `engine`, `engine_args` and `tokens_per_batch` of [`sample_completions`].

        Raises:
            ImportError: If vLLM is chosen and not installed, or in a version that TRL does not support.
            TypeError: If `engine_args` is not a mapping.
            ValueError: If the engine is unknown, an argument does not fit it, or a setting is out of range.
        """
        names = ("num_generations", "temperature", "top_p", "max_new_tokens", "seed")
        require_settings(**{name: getattr(self, name) for name in names})
        engine = self.engine or ("transformers" if self.base_url is None else "server")
        arguments = parse_mapping("engine_args", self.engine_args) or {}
        if engine == "server" and self.base_url is None and "base_url" not in arguments:
            raise ValueError("`engine`='server' needs the address of the server. Pass it as `base_url`.")
        if engine == "server":
            arguments = {"base_url": self.base_url, **connection, **arguments}
        elif self.base_url is not None:
            raise ValueError(f"`base_url` is passed, but `engine`={engine!r} asks no server. Remove one of them.")
        require_engine(engine, arguments, self.tokens_per_batch)
        return {"engine": engine, "engine_args": arguments, "tokens_per_batch": self.tokens_per_batch}

    def load_prompts(self, name: str) -> Dataset:
        """
        Loads prompts.

        Args:
            name (`str`):
                File, folder or Hub name of the prompts.

        Returns:
            [`~datasets.Dataset`]: The rows, with the prompts in the column `prompt`.

        Raises:
            ValueError: If there is no column `prompt_column`, or another one would be in its place.
        """
        prompts, column = load_rows(name, self.split), self.prompt_column
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

    def sample(
        self,
        prompts: Dataset,
        model: str,
        engine: dict[str, Any],
        model_arguments: InferenceArguments,
        output_dir: str | Path,
    ) -> Dataset:
        """
        Samples completions, and writes them to `samples.jsonl`. The main process writes and prints.

        Args:
            prompts ([`~datasets.Dataset`]):
                The prompts.
            model (`str`):
                Folder or Hub name of the model, or its name on a server.
            engine (`dict`):
                Result of [`~SamplingArguments.choose_engine`].
            model_arguments ([`InferenceArguments`]):
                How the model is loaded.
            output_dir (`str` or `Path`):
                Folder of the file and of the shards.

        Returns:
            [`~datasets.Dataset`]: Policy samples.
        """
        samples = sample_completions(
            prompts,
            model,
            num_generations=self.num_generations,
            temperature=self.temperature,
            top_p=self.top_p,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            model_options=model_arguments.policy_options(),
            output_dir=str(Path(output_dir) / SHARDS),
            **engine,
        )
        if process_state().is_main_process:
            path = Path(output_dir) / SAMPLES
            write_rows(path, samples)
            metrics = describe_outputs(samples)
            print(f"{metrics['outputs']} completions, {metrics['finished']:.0%} finished, written to {path}")
            if len(samples) < len(prompts):
                print(f"{len(prompts) - len(samples)} of {len(prompts)} prompts are left out, see the warning")
        return samples


def require_effect(unread: Any, reason: str) -> None:
    """
    Checks that no option is set that nothing reads.

    Args:
        unread:
            Dataclass of options with defaults.
        reason (`str`):
            Why nothing reads them, for the error message, for example "without `model`".

    Raises:
        ValueError: If an option is not its default.
    """
    defaults = vars(type(unread)())
    names = [name for name, value in vars(unread).items() if value != defaults[name]]
    if names:
        raise ValueError(f"`{names[0]}` has no effect {reason}. Remove it.")
