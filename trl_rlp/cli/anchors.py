"""The command `trl-rlp anchors`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from datasets import Dataset

from trl_rlp.cli.arguments import EquivalenceArguments, parse
from trl_rlp.cli.model_arguments import InferenceArguments
from trl_rlp.cli.sampling import SamplingArguments, require_effect
from trl_rlp.cli.server_arguments import ServerArguments
from trl_rlp.data.anchors.semantic_anchors import SemanticAnchors, require_key
from trl_rlp.data.groups.clustering import has_groups, require_decided_groups
from trl_rlp.data.groups.equivalence import Equivalence
from trl_rlp.data.groups.instruction import require_instruction_column
from trl_rlp.data.validation import require_samples
from trl_rlp.storage.fingerprints import dataset_fingerprint
from trl_rlp.storage.loading import load_rows
from trl_rlp.storage.run_folder import RunFolder


GROUPS = "groups"
"""Name of the folder of finished groups, next to the anchors."""


@dataclass
class AnchorArguments:
    """
    Arguments of `trl-rlp anchors`. Anchors are made from `samples`, or from `model` and `prompts`, or by merging saved
    anchors.

    Args:
        output_dir (`str`):
            Folder for the anchors. It also keeps finished samples and groups. After an interruption, the next call
            resumes from them.
        samples (`str`, *optional*):
            Samples of the initial policy, as written by `trl-rlp sample`.
        model (`str`, *optional*):
            Folder or Hub name of the initial policy, which is sampled. With `base_url`, its name on the server.
        prompts (`str`, *optional*):
            Prompts for `model`: a JSON Lines, CSV or Parquet file, a folder of `save_to_disk`, or a Hub name.
        threshold (`float`, *optional*, defaults to `0.5`):
            Minimum confidence of an anchor, in [0, 1] (gamma in the paper).
        merge (`list[str]`, *optional*):
            Folders of other anchors to merge, for example those of another policy.
        key (`str`, *optional*):
            Column that names what prompts are paraphrases of. Paraphrases share their pooled majority.
    """

    output_dir: str = field(
        metadata={
            "help": (
                "Folder for the anchors. It also keeps finished samples and groups. After an interruption, the next "
                "call resumes from them."
            )
        }
    )
    samples: str | None = field(
        default=None, metadata={"help": "Samples of the initial policy, as written by `trl-rlp sample`."}
    )
    model: str | None = field(
        default=None,
        metadata={
            "help": (
                "Folder or Hub name of the initial policy, which is sampled. With `base_url`, its name on the server."
            )
        },
    )
    prompts: str | None = field(
        default=None,
        metadata={
            "help": (
                "Prompts for `model`: a JSON Lines, CSV or Parquet file, a folder of `save_to_disk`, or a Hub name."
            )
        },
    )
    threshold: float = field(
        default=0.5, metadata={"help": "Minimum confidence of an anchor, in [0, 1] (gamma in the paper)."}
    )
    merge: list[str] | None = field(
        default=None,
        metadata={"help": "Folders of other anchors to merge, for example those of another policy."},
    )
    key: str | None = field(
        default=None,
        metadata={
            "help": "Column that names what prompts are paraphrases of. Paraphrases share their pooled majority."
        },
    )

    def require_one_source(self) -> None:
        """
        Checks that it is clear what the anchors are made from.

        Raises:
            ValueError: If there is no source, or more than one, or one is incomplete.
        """
        if (self.model is None) != (self.prompts is None):
            raise ValueError("`model` and `prompts` belong together. Pass both, or pass `samples`.")
        if self.samples is not None and self.model is not None:
            raise ValueError("`samples` and `model` are both passed. Pass one of them.")
        if self.samples is None and self.model is None and not self.merge:
            raise ValueError("Anchors need `samples`, or `model` and `prompts`, or folders to `merge`. Pass one.")
        if self.samples is None and self.model is None and self.threshold != 0.5:
            raise ValueError("`threshold` has no effect if anchors are only merged. Remove it.")
        if self.samples is None and self.model is None and self.key is None and len(self.merge or []) == 1:
            raise ValueError("`merge` has one folder, so there is nothing to merge. Pass another one, or `key`.")


def main(options: Sequence[str]) -> None:
    """
    Makes anchors and saves them.

    Args:
        options (`Sequence[str]`):
            Command-line arguments after `trl-rlp anchors`.
    """
    arguments, sampling, equivalence_arguments, server, models = parse(
        "anchors",
        "Makes anchors: the majority answer of each prompt. Not part of the paper.",
        options,
        AnchorArguments,
        SamplingArguments,
        EquivalenceArguments,
        ServerArguments,
        InferenceArguments,
    )
    arguments.require_one_source()
    if not 0 <= arguments.threshold <= 1:
        raise ValueError(f"`threshold` is a share of the completions in [0, 1], got {arguments.threshold}. Try 0.5.")
    engine = None if arguments.model is None else sampling.choose_engine(server.connection())
    if engine is None:
        require_effect(sampling, "without `model`")
    if engine is None or engine["engine"] != "server":
        require_effect(server, "without a server")
    rows = _load_rows(arguments, sampling)
    merged = [SemanticAnchors.load(folder) for folder in arguments.merge or []]
    settings = {
        "rows": None if rows is None else dataset_fingerprint(rows),
        "merge": [anchors.fingerprint for anchors in merged],
        **{name: getattr(arguments, name) for name in ("model", "threshold", "key")},
        **{name: getattr(sampling, name) for name in ("num_generations", "temperature", "top_p", "max_new_tokens")},
        "seed": sampling.seed,
        **equivalence_arguments.deciding(),
        **models.deciding(),
    }
    RunFolder.check(arguments.output_dir, settings)
    equivalence = equivalence_arguments.build(models.inference_dtype)
    _require_mergeable(rows, merged, arguments, equivalence)
    run = RunFolder(arguments.output_dir, settings)  # After all checks, so wrong arguments leave the folder free.
    if engine is not None:
        rows = sampling.sample(rows, arguments.model, engine, models, run.path)
    if rows is not None:
        groups = run.path / GROUPS
        merged.insert(
            0, SemanticAnchors.from_samples(rows, equivalence, threshold=arguments.threshold, output_dir=groups)
        )
    anchors, *others = merged
    if others or arguments.key is not None:
        anchors = anchors.merge(*others, equivalence=equivalence, key=arguments.key)
    anchors.save(run.path)
    if run.state.is_main_process:
        _print(anchors, run)


def _load_rows(arguments: AnchorArguments, sampling: SamplingArguments) -> Dataset | None:
    """Loads the samples, or the prompts that are sampled."""
    if arguments.model is not None:
        return sampling.load_prompts(arguments.prompts)
    return None if arguments.samples is None else require_samples(load_rows(arguments.samples), "samples")


def _require_mergeable(
    rows: Dataset | None, merged: list[SemanticAnchors], arguments: AnchorArguments, equivalence: Equivalence
) -> None:
    """Checks what is needed later, before any work."""
    sources = [("merge", anchors.dataset) for anchors in merged]
    if rows is not None:
        sources.append(("samples" if arguments.model is None else "prompts", rows))
        for anchors in merged:
            if anchors.threshold != arguments.threshold:
                raise ValueError(
                    f"`merge` has anchors of the threshold {anchors.threshold}, but `threshold` is "
                    f"{arguments.threshold}. Make all of them with one."
                )
        if has_groups(rows.column_names):
            require_decided_groups(rows, arguments.threshold)
    for name, source in sources:
        require_instruction_column(source, equivalence, name)
        if arguments.key is not None:
            require_key(source, arguments.key, name)


def _print(anchors: SemanticAnchors, run: RunFolder) -> None:
    print(
        f"{len(anchors)} of {anchors.num_prompts} prompts have an anchor, with a mean confidence of "
        f"{anchors.mean_confidence:.2f}, written to {run.path}"
    )
    print("\n".join(f"  {reason}: {count}" for reason, count in anchors.counts.items()))
