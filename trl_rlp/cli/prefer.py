"""`trl-rlp prefer`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trl_rlp.cli.arguments import EquivalenceArguments, parse
from trl_rlp.data.judges.language_model_judge import language_model_judge
from trl_rlp.data.preferences.preferences import synthesize_preferences
from trl_rlp.storage.artifacts import load_policy, load_reward_model
from trl_rlp.storage.fingerprints import value_fingerprint
from trl_rlp.storage.loading import load_rows
from trl_rlp.storage.run_folder import MANIFEST, RunFolder, write_json


@dataclass
class PreferArguments:
    """
    Arguments of `trl-rlp prefer`.

    Args:
        samples (`str`):
            Samples of the policy, as `trl-rlp sample` writes them.
        output_dir (`str`):
            Folder for `preferences.jsonl` (TRL's preference format with audit columns) and `counts.json`.
        generator (`str`, *optional*, defaults to `"spg"`):
            `"spg"`, `"select_all"`, `"reward"` or `"rlaif"`.
        reward_model (`str`, *optional*):
            Folder or Hub name of r, which picks the chosen side. Needed by all but `"rlaif"`.
        judge_model (`str`, *optional*):
            Folder or Hub name of the language model that judges, for `"rlaif"`; in the paper the policy itself.
        threshold (`float`, *optional*, defaults to `0.5`):
            γ: least confidence of a kept prompt, in [0, 1].
        chosen (`str`, *optional*, defaults to `"reward"`):
            Which member of the largest group is chosen: `"reward"` (the highest) or `"random"`.
        keep_candidates (`bool`, *optional*, defaults to `False`):
            Whether to keep all candidates of the rejected side, for a collator that draws one anew each epoch.
        allow_unfinished_chosen (`bool`, *optional*, defaults to `False`):
            Whether an output that was cut at its length limit may be the chosen side.
        max_length (`int`, *optional*):
            Tokens that r reads at most; longer texts lose the beginning of their prompt.
        seed (`int`, *optional*, defaults to `42`):
            Seed of every random choice.
    """

    samples: str = field(metadata={"help": "Samples of the policy, as `trl-rlp sample` writes them."})
    output_dir: str = field(metadata={"help": "Folder for `preferences.jsonl` and `counts.json`."})
    generator: str = field(default="spg", metadata={"help": "`spg`, `select_all`, `reward` or `rlaif`."})
    reward_model: str | None = field(
        default=None, metadata={"help": "Folder or Hub name of r. Needed by all but `rlaif`."}
    )
    judge_model: str | None = field(
        default=None, metadata={"help": "Folder or Hub name of the language model that judges, for `rlaif`."}
    )
    threshold: float = field(default=0.5, metadata={"help": "gamma: least confidence of a kept prompt, in [0, 1]."})
    chosen: str = field(
        default="reward", metadata={"help": "Which member of the largest group is chosen: `reward` or `random`."}
    )
    keep_candidates: bool = field(
        default=False, metadata={"help": "Whether to keep all candidates of the rejected side."}
    )
    allow_unfinished_chosen: bool = field(
        default=False, metadata={"help": "Whether an output that was cut at its length limit may be the chosen side."}
    )
    max_length: int | None = field(default=None, metadata={"help": "Tokens that r reads at most."})
    seed: int = field(default=42, metadata={"help": "Seed of every random choice."})


def main(options: Sequence[str]) -> None:
    """
    Makes synthetic preferences and writes `preferences.jsonl`.

    Args:
        options (`Sequence[str]`):
            Words after `trl-rlp prefer`.
    """
    arguments, equivalence_arguments = parse(
        "prefer", "Turns samples into synthetic preferences.", options, PreferArguments, EquivalenceArguments
    )
    samples = load_rows(arguments.samples)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("samples", "output_dir")}
    settings |= {"samples": value_fingerprint(samples.to_list()), **vars(equivalence_arguments)}
    folder = Path(arguments.output_dir)
    if not (folder / "preferences.jsonl").exists():
        (folder / MANIFEST).unlink(missing_ok=True)  # a call that came to nothing claims no folder
    RunFolder(folder, settings)
    needs_groups = arguments.generator in {"spg", "select_all"} and "cluster_ids" not in samples.column_names
    reward = load_reward_model(arguments.reward_model) if arguments.reward_model else (None, None)
    preferences, counts = synthesize_preferences(
        samples,
        arguments.generator,
        equivalence=equivalence_arguments.build() if needs_groups else None,
        reward_model=reward[0],
        reward_processing_class=reward[1],
        judge=language_model_judge(*load_policy(arguments.judge_model)) if arguments.judge_model else None,
        threshold=arguments.threshold,
        chosen=arguments.chosen,
        keep_candidates=arguments.keep_candidates,
        allow_unfinished_chosen=arguments.allow_unfinished_chosen,
        max_length=arguments.max_length,
        seed=arguments.seed,
    )
    preferences.to_json(str(folder / "preferences.jsonl"))
    write_json(folder / "counts.json", counts)
    print(f"{len(preferences)} preferences of {len(samples)} prompts, written to {folder / 'preferences.jsonl'}")
    print("\n".join(f"  {reason}: {count}" for reason, count in counts.items()))
