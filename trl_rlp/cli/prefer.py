"""The command `trl-rlp prefer`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from trl_rlp.cli.arguments import EquivalenceArguments, parse
from trl_rlp.cli.model_arguments import InferenceArguments
from trl_rlp.data.judges.language_model import language_model_judge
from trl_rlp.data.preferences.pairing import GENERATORS, GROUP_GENERATORS, JUDGE_GENERATORS
from trl_rlp.data.preferences.picks import collect_picks
from trl_rlp.data.preferences.preferences import check_synthesis, synthesize_preferences
from trl_rlp.storage.artifacts import load_policy, load_reward_model
from trl_rlp.storage.fingerprints import dataset_fingerprint, describe_local_models
from trl_rlp.storage.json_files import write_json, write_rows
from trl_rlp.storage.loading import load_rows
from trl_rlp.storage.run_folder import SHARDS, RunFolder


@dataclass
class PreferArguments:
    """
    Arguments of `trl-rlp prefer`.

    Args:
        samples (`str`):
            Policy samples, as written by `trl-rlp sample`.
        output_dir (`str`):
            Folder for `preferences.jsonl` (TRL's preference format with audit columns), `counts.json` and the shards.
            After an interruption, the next call resumes from the shards. `majority_best` also writes `picks.jsonl`
            (TRL's prompt-completion format).
        generator (`str`, *optional*, defaults to `"spg"`):
            How pairs are made: `spg`, `select_all`, `reward`, `rlaif` or `majority_best`. The last one is not the
            paper's.
        reward_model (`str`, *optional*):
            Folder or Hub name of the reward model r, which selects the chosen completion. Not needed by
            `rlaif`, nor by `spg` and `select_all` with `--chosen random`.
        judge_model (`str`, *optional*):
            Folder or Hub name of the language model that serves as judge. Required by `rlaif`. The paper uses the
            policy itself.
        threshold (`float`, *optional*, defaults to `0.5`):
            Minimum confidence of an accepted prompt, in [0, 1] (gamma in the paper).
        chosen (`str`, *optional*, defaults to `"reward"`):
            Which member of the largest group is chosen: `reward` (the one with the highest reward) or `random`. Must
            be `reward` with `majority_best`.
        keep_candidates (`bool`, *optional*, defaults to `False`):
            Whether to keep all candidates for the rejected completion. A collator can then draw a new one in each
            epoch.
        allow_unfinished_chosen (`bool`, *optional*, defaults to `False`):
            Whether the chosen completion may be unfinished, that is, truncated at the maximum length.
        max_length (`int`, *optional*):
            Maximum input length of the reward model, in tokens. Longer inputs lose the beginning of their prompt.
        seed (`int`, *optional*, defaults to `42`):
            Seed of all random choices.
    """

    samples: str = field(metadata={"help": "Policy samples, as written by `trl-rlp sample`."})
    output_dir: str = field(
        metadata={
            "help": (
                "Folder for `preferences.jsonl` (TRL's preference format with audit columns), `counts.json` and the "
                "shards. After an interruption, the next call resumes from the shards. `majority_best` also writes "
                "`picks.jsonl` (TRL's prompt-completion format)."
            )
        }
    )
    generator: str = field(
        default="spg",
        metadata={
            "help": (
                "How pairs are made: `spg`, `select_all`, `reward`, `rlaif` or `majority_best`. The last one is not "
                "the paper's."
            )
        },
    )
    reward_model: str | None = field(
        default=None,
        metadata={
            "help": (
                "Folder or Hub name of the reward model r, which selects the chosen completion. Not needed by "
                "`rlaif`, nor by `spg` and `select_all` with `--chosen random`."
            )
        },
    )
    judge_model: str | None = field(
        default=None,
        metadata={
            "help": (
                "Folder or Hub name of the language model that serves as judge. Required by `rlaif`. The paper uses "
                "the policy itself."
            )
        },
    )
    threshold: float = field(
        default=0.5, metadata={"help": "Minimum confidence of an accepted prompt, in [0, 1] (gamma in the paper)."}
    )
    chosen: str = field(
        default="reward",
        metadata={
            "help": (
                "Which member of the largest group is chosen: `reward` (the one with the highest reward) or `random`. "
                "Must be `reward` with `majority_best`."
            )
        },
    )
    keep_candidates: bool = field(
        default=False,
        metadata={
            "help": (
                "Whether to keep all candidates for the rejected completion. A collator can then draw a new one in "
                "each epoch."
            )
        },
    )
    allow_unfinished_chosen: bool = field(
        default=False,
        metadata={
            "help": "Whether the chosen completion may be unfinished, that is, truncated at the maximum length."
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": (
                "Maximum input length of the reward model, in tokens. Longer inputs lose the beginning of their "
                "prompt."
            )
        },
    )
    seed: int = field(default=42, metadata={"help": "Seed of all random choices."})


def main(options: Sequence[str]) -> None:
    """
    Makes synthetic preferences and writes `preferences.jsonl` and `counts.json`, and for `majority_best` its picks.

    Args:
        options (`Sequence[str]`):
            Command-line arguments after `trl-rlp prefer`.
    """
    arguments, equivalence_arguments, model_arguments = parse(
        "prefer",
        "Makes synthetic preferences from policy samples.",
        options,
        PreferArguments,
        EquivalenceArguments,
        InferenceArguments,
    )
    if arguments.generator not in GENERATORS:
        raise ValueError(f"`--generator` must be one of {sorted(GENERATORS)}, got {arguments.generator!r}.")
    if arguments.judge_model and arguments.generator not in JUDGE_GENERATORS:
        raise ValueError(
            f"`--judge_model` has no effect with `--generator` {arguments.generator}. Remove it, or choose one of "
            f"{sorted(JUDGE_GENERATORS)}."
        )
    if arguments.reward_model:
        model_arguments.require_exact("reward_model")
    samples = load_rows(arguments.samples)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("samples", "output_dir")}
    settings |= {"samples": dataset_fingerprint(samples), **equivalence_arguments.deciding()}
    settings |= model_arguments.deciding()
    settings |= describe_local_models(judge_model=arguments.judge_model)
    RunFolder.check(arguments.output_dir, settings)
    synthesis = _load_synthesis(samples, arguments, equivalence_arguments, model_arguments)
    check_synthesis(samples, **synthesis)
    run = RunFolder(arguments.output_dir, settings)  # After all checks, so wrong arguments leave the folder free.
    preferences, counts = synthesize_preferences(samples, **synthesis, output_dir=run.path / SHARDS)
    files = {"preferences": preferences}
    if arguments.generator == "majority_best":
        names = ("reward_model", "reward_processing_class", "max_length")
        files["picks"] = collect_picks(samples, preferences, **{name: synthesis[name] for name in names})
    if run.state.is_main_process:
        for name, rows in files.items():
            path = run.path / f"{name}.jsonl"
            write_rows(path, rows)
            print(f"{len(rows)} {name} of {len(samples)} prompts, written to {path}")
        write_json(run.path / "counts.json", counts)
        print("\n".join(f"  {reason}: {count}" for reason, count in counts.items()))


def _load_synthesis(
    samples: Dataset,
    arguments: PreferArguments,
    equivalence_arguments: EquivalenceArguments,
    model_arguments: InferenceArguments,
) -> dict[str, Any]:
    """Loads the models, and returns the keyword arguments of the synthesis."""
    needs_groups = arguments.generator in GROUP_GENERATORS and "cluster_ids" not in samples.column_names
    reward_model, tokenizer, judge = None, None, None
    if arguments.reward_model:
        options = model_arguments.reward_options("reward_model")
        reward_model, tokenizer = load_reward_model(arguments.reward_model, **options)
    if arguments.judge_model:
        judge = language_model_judge(*load_policy(arguments.judge_model, **model_arguments.policy_options()))
    return {
        "method": arguments.generator,
        "equivalence": equivalence_arguments.build(model_arguments.inference_dtype) if needs_groups else None,
        "reward_model": reward_model,
        "reward_processing_class": tokenizer,
        "judge": judge,
        "threshold": arguments.threshold,
        "chosen": arguments.chosen,
        "keep_candidates": arguments.keep_candidates,
        "allow_unfinished_chosen": arguments.allow_unfinished_chosen,
        "max_length": arguments.max_length,
        "seed": arguments.seed,
    }
