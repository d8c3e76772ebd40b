# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "trl-rlp[ray]",
# ]
# ///
"""
Makes preferences on Ray: from prompts to samples, groups and pairs, as Parquet files.

    pip install "trl-rlp[ray]"
    python examples/scale/ray_pipeline.py --policy my-policy --reward_model my-reward --equivalence my-nli \
        --prompts prompts.jsonl --output_dir pairs

It connects to the cluster in `RAY_ADDRESS`, or starts Ray on this machine. All nodes must see `output_dir`. The
prompts are cut into blocks. Each block is sampled, grouped and labeled, and each of these results is written before
the next one starts. After an interruption, the same command continues after the last result. The pairs are those of
`cluster` and `synthesize_preferences` on the same samples.

With a GPU in the cluster, vLLM samples through `ray.data.llm`. Without one, transformers does. `--engine server` asks
an OpenAI-compatible server at `--base_url`.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset
from transformers import GenerationConfig, HfArgumentParser, PreTrainedTokenizerBase

import trl_rlp
from trl_rlp import ExactMatch, Group, Label, load_policy, sample_completions, sample_from_server
from trl_rlp.data.sampling.completion_text import CompletionReader
from trl_rlp.data.sampling.seeds import derive_seed
from trl_rlp.data.turns import prompt_token_ids
from trl_rlp.data.validation import require_prompts
from trl_rlp.storage import RunFolder, load_rows
from trl_rlp.storage.artifacts import load_tokenizer
from trl_rlp.storage.fingerprints import dataset_fingerprint, describe_local_models


ENGINES = ("vllm", "transformers", "server")
SEED_BITS = 31


@dataclass
class PipelineArguments:
    """Arguments of this program."""

    policy: str = field(metadata={"help": "Folder or Hub name of the policy, or its name on the server."})
    reward_model: str = field(metadata={"help": "Folder or Hub name of the reward model r."})
    prompts: str = field(metadata={"help": "File or Hub name of the prompts."})
    output_dir: str = field(metadata={"help": "Folder for the results, which all nodes see."})
    equivalence: str = field(
        default="exact", metadata={"help": "Folder or Hub name of an NLI classifier, or `exact` for equal texts."}
    )
    engine: str | None = field(
        default=None, metadata={"help": "What samples: `vllm` (the default with a GPU), `transformers` or `server`."}
    )
    base_url: str | None = field(default=None, metadata={"help": "URL of the server."})
    num_generations: int = field(default=10, metadata={"help": "Completions per prompt."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    max_new_tokens: int = field(default=256, metadata={"help": "Maximum length of a completion, in tokens."})
    threshold: float = field(default=0.5, metadata={"help": "Minimum confidence of an accepted prompt, in [0, 1]."})
    seed: int = field(default=0, metadata={"help": "Seed of the samples and of all draws."})
    workers: int = field(default=2, metadata={"help": "Workers of each step, with one GPU or half a CPU each."})
    block_size: int = field(default=10_000, metadata={"help": "Number of prompts in a block."})
    batch_size: int = field(default=64, metadata={"help": "Number of prompts in a batch."})

    def __post_init__(self):
        if self.engine not in (None, *ENGINES):
            raise ValueError(f"`--engine` must be one of {list(ENGINES)}, got {self.engine!r}.")
        if (self.engine == "server") != (self.base_url is not None):
            raise ValueError("`--engine server` needs `--base_url`, and the other engines take none.")

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the results: everything but the number of workers and where the server is."""
        return {name: value for name, value in vars(self).items() if name not in ("output_dir", "workers", "base_url")}


class Sample:
    """Samples the prompts of a table with transformers or from a server. The policy is loaded in the worker."""

    def __init__(self, args: PipelineArguments):
        self.args = args
        self.policy = None if args.engine == "server" else load_policy(args.policy)

    def __call__(self, table: pa.Table) -> pa.Table:
        args, prompts = self.args, Dataset(table)
        # Each batch has its own seed, because sampling counts the rows of a batch from 0.
        seed = derive_seed(args.seed, prompts[0]["sample_row"], bits=SEED_BITS)
        options = {"num_generations": args.num_generations, "temperature": args.temperature, "seed": seed}
        if self.policy is None:
            samples = sample_from_server(
                prompts, args.base_url, args.policy, max_tokens=args.max_new_tokens, **options
            )
        else:
            samples = sample_completions(prompts, *self.policy, max_new_tokens=args.max_new_tokens, **options)
        return samples.with_format("arrow")[:]


class Requests:
    """
    Makes one request of vLLM for each sample, with a seed of its own.

    Ray's vLLM engine returns only the first completion of a request, and not why it ended.
    """

    def __init__(self, args: PipelineArguments):
        self.args = args
        self.tokenizer = load_tokenizer(args.policy)
        self.stop_token_ids = find_stop_token_ids(args.policy, self.tokenizer)

    def __call__(self, table: pa.Table) -> pa.Table:
        requests = []
        for row in table.to_pylist():
            for sample in range(self.args.num_generations):
                request = {
                    "tokenized_prompt": prompt_token_ids(row["prompt"], self.tokenizer),
                    "seed": derive_seed(self.args.seed, row["sample_row"], sample, bits=SEED_BITS),
                    "stop_token_ids": self.stop_token_ids,
                }
                requests.append({"sample_row": row["sample_row"], "sample": sample, "row": json.dumps(row), **request})
        return pa.Table.from_pylist(requests)


class Collect:
    """Puts the samples of a prompt together. A completion is finished if its last token is a stop token."""

    def __init__(self, args: PipelineArguments):
        self.tokenizer = load_tokenizer(args.policy)
        stop_token_ids = find_stop_token_ids(args.policy, self.tokenizer)
        self.reader = CompletionReader(self.tokenizer, stop_token_ids, stop_token_ids)

    def __call__(self, table: pa.Table) -> pa.Table:
        answers = table.sort_by("sample").to_pylist()
        row = json.loads(answers[0]["row"])
        tokens = [answer["tokens"] for answer in answers]
        completions, finished = self.reader.read(tokens, row["prompt"], list(answers[0]["prompt_token_ids"]))
        return pa.Table.from_pylist([{**row, "completions": completions, "finished": finished}])


def find_stop_token_ids(policy: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the tokens that end a completion: the tokenizer's EOS token and those of the generation config."""
    try:
        configured = GenerationConfig.from_pretrained(policy).eos_token_id
    except OSError:  # the policy has no generation config
        configured = None
    configured = [] if configured is None else configured if isinstance(configured, list) else [configured]
    return list(dict.fromkeys([tokenizer.eos_token_id, *configured]))


def build_request(row: dict[str, Any], args: PipelineArguments) -> dict[str, Any]:
    """Returns what Ray's vLLM engine reads of a request."""
    params = {
        "temperature": args.temperature,
        "max_tokens": args.max_new_tokens,
        "stop_token_ids": list(row["stop_token_ids"]),
        "ignore_eos": True,  # EOS is among the stop tokens
        "detokenize": False,
        "seed": int(row["seed"]),
    }
    kept = {name: row[name] for name in ("sample_row", "sample", "row")}
    return {**kept, "tokenized_prompt": list(row["tokenized_prompt"]), "sampling_params": params}


def read_answer(row: dict[str, Any]) -> dict[str, Any]:
    """Returns what is kept of an answer of Ray's vLLM engine."""
    kept = {name: row[name] for name in ("sample_row", "sample", "row")}
    tokens = {"tokens": list(row["generated_tokens"]), "prompt_token_ids": list(row["prompt_token_ids"])}
    return {**kept, **tokens}


class Pipeline:
    """The steps of this program on a Ray cluster."""

    def __init__(self, args: PipelineArguments):
        self.args = args
        self.ray = import_ray()
        self.ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False)
        self.ray.data.DataContext.get_current().execution_options.preserve_order = True
        require_same_version(self.ray)
        has_gpus = self.ray.cluster_resources().get("GPU", 0) > 0
        args.engine = args.engine or ("vllm" if has_gpus else "transformers")
        # Without GPUs, half of the CPUs stay free for reading and writing, which would otherwise wait without end.
        self.resources = {"num_gpus": 1} if has_gpus else {"num_cpus": 0.5}

    def map(self, dataset, step: type, **arguments: Any):
        """Runs a class on batches of columns. Each worker makes one object of it."""
        return dataset.map_batches(
            step,
            fn_constructor_kwargs=arguments,
            batch_size=self.args.batch_size,
            batch_format="pyarrow",
            compute=self.ray.data.ActorPoolStrategy(size=self.args.workers),
            **self.resources,
        )

    def sample(self, rows: pa.Table):
        # Each batch is a block of Ray, so the samples do not depend on the number of workers.
        starts = range(0, len(rows), self.args.batch_size)
        prompts = self.ray.data.from_arrow([rows.slice(start, self.args.batch_size) for start in starts])
        if self.args.engine == "vllm":
            return self.sample_with_vllm(prompts)
        return self.map(prompts, Sample, args=self.args)

    def sample_with_vllm(self, prompts):
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig

        args = self.args
        config = vLLMEngineProcessorConfig(
            model_source=args.policy,
            engine_kwargs={"skip_tokenizer_init": True, "generation_config": "vllm"},
            concurrency=args.workers,
            batch_size=args.batch_size,
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
        )
        ask = build_processor(config, preprocess=lambda row: build_request(row, args), postprocess=read_answer)
        on_cpus = {"fn_constructor_kwargs": {"args": args}, "batch_format": "pyarrow"}
        pool = self.ray.data.ActorPoolStrategy(size=args.workers)
        answers = ask(prompts.map_batches(Requests, compute=pool, **on_cpus))
        return answers.groupby("sample_row").map_groups(Collect, compute=pool, **on_cpus)

    def group(self, samples: Path):
        equivalence = ExactMatch() if self.args.equivalence == "exact" else self.args.equivalence
        return self.map(self.read(samples), Group, equivalence=equivalence, threshold=self.args.threshold)

    def label(self, groups: Path):
        settings = {"threshold": self.args.threshold, "seed": self.args.seed}
        return self.map(self.read(groups), Label, reward_model=self.args.reward_model, **settings)

    def read(self, folder: Path):
        # Ray would read a small folder as one block, which only one worker can take. Ray 2.51 also reads `stage.json`
        # unless it is told the extension.
        return self.ray.data.read_parquet(
            str(folder), file_extensions=["parquet"], override_num_blocks=2 * self.args.workers
        )


def write_result(folder: Path, build, source: Any) -> dict[str, int]:
    """Runs a step, and writes its result to a folder. An interrupted write starts again."""
    for path in folder.glob("*.parquet"):
        path.unlink()
    build(source).write_parquet(str(folder))
    return {"rows": sum(pq.read_metadata(path).num_rows for path in folder.glob("*.parquet"))}


def import_ray():
    try:
        import ray.data
    except ImportError as error:
        raise ImportError('Ray is not installed. Run `pip install "trl-rlp[ray]"`.') from error
    return ray


def require_same_version(ray) -> None:
    """Checks that all nodes have the version of the package that this process has."""

    def find_version() -> str | None:
        try:
            import trl_rlp
        except ImportError:
            return None
        return trl_rlp.__version__

    nodes = [node for node in ray.nodes() if node["Alive"]]
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    tasks = [
        ray.remote(num_cpus=0, scheduling_strategy=strategy(node["NodeID"], soft=False))(find_version).remote()
        for node in nodes
    ]
    for node, version in zip(nodes, ray.get(tasks), strict=True):
        if version != trl_rlp.__version__:
            raise RuntimeError(
                f"The Ray node {node['NodeManagerHostname']} has trl_rlp {version}, but this process has "
                f"{trl_rlp.__version__}. Install the same version on all nodes."
            )


def read_rows(output_dir: str | Path, kind: str) -> Dataset:
    """Reads a result of all blocks in the order of the prompts: `samples`, `groups` or `pairs`."""
    blocks = sorted(path for path in Path(output_dir).glob(f"{kind}-*") if path.suffix != ".partial")
    files = [path for block in blocks for path in sorted(block.glob("*.parquet"))]
    if not files:
        raise ValueError(
            f"'{output_dir}' has no {kind}. See the counts in the documentation of synthetic preferences."
        )
    table = pa.concat_tables([pq.read_table(path) for path in files], promote_options="permissive")
    return Dataset(table.take(pc.sort_indices(table["sample_row"])))


def main(args: PipelineArguments) -> None:
    prompts = require_prompts(load_rows(args.prompts))
    numbered = prompts.remove_columns([name for name in ("sample_row",) if name in prompts.column_names])
    rows = numbered.add_column("sample_row", list(range(len(prompts)))).with_format("arrow")
    pipeline = Pipeline(args)
    models = {} if args.engine == "server" else {"policy": args.policy}
    models |= {"reward_model": args.reward_model, "equivalence": args.equivalence}
    content = {"prompt_rows": dataset_fingerprint(prompts), **describe_local_models(**models)}
    run = RunFolder(args.output_dir, {**args.settings, **content})
    for block, start in enumerate(range(0, len(prompts), args.block_size)):
        part = rows[start : start + args.block_size]
        samples = run.stage(f"samples-{block:05d}", write_result, build=pipeline.sample, source=part)
        groups = run.stage(f"groups-{block:05d}", write_result, build=pipeline.group, source=samples)
        run.stage(f"pairs-{block:05d}", write_result, build=pipeline.label, source=groups)
        print(f"Block {block}: prompts {start} to {start + len(part) - 1} are done.", flush=True)
    print(f"{len(read_rows(run.path, 'pairs'))} pairs of {len(prompts)} prompts, written to {run.path}")


if __name__ == "__main__":
    main(*HfArgumentParser(PipelineArguments).parse_args_into_dataclasses())
