"""Semantic anchors: the majority answer of each prompt among the completions of the initial policy."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset, Value, concatenate_datasets
from transformers.utils import logging

from trl_rlp.data.anchors.anchor_rows import (
    FEATURES,
    REASONS,
    ROWS_AT_ONCE,
    build_rows,
    join_copies,
    pool_rows,
    replace_majorities,
)
from trl_rlp.data.groups.clustering import Group, cluster, has_groups, require_decided_groups
from trl_rlp.data.groups.equivalence import Equivalence, require_equivalence
from trl_rlp.data.groups.instruction import require_instruction_column
from trl_rlp.data.turns import Messages
from trl_rlp.data.validation import require_samples
from trl_rlp.storage.artifacts import load_data, save_data
from trl_rlp.storage.fingerprints import dataset_fingerprint, value_fingerprint
from trl_rlp.storage.json_files import read_json, write_json
from trl_rlp.storage.paths import expand_path
from trl_rlp.storage.processes import run_on_main


logger = logging.get_logger(__name__)

MANIFEST = "anchors.json"
"""The file of a saved folder that describes the anchors. It is written last."""


class Anchor(NamedTuple):
    """
    The majority answer of a prompt.

    Args:
        text (`str`):
            The first completion of the largest group. Later completions are compared with it.
        members (`list[str]`):
            The distinct texts of the group. `text` is the first of them.
        confidence (`float`):
            Share of the group among the completions of the prompt, in (0, 1].
        members_finished (`list[bool]`):
            Whether each member was finished in at least one completion. Only a finished text can be preferred in a
            pair.
    """

    text: str
    members: list[str]
    confidence: float
    members_finished: list[bool]


class SemanticAnchors:
    """
    The anchors of prompts: what the majority of the initial policy's completions means, if the majority is clear.

    Anchors are ours and not the paper's. Published SPG groups the completions of the current policy. A policy that
    drifts can then make its own errors the majority. Anchors are made once, from the initial policy, and later
    completions are compared with them. A wrong majority is an anchor too, and what uses the anchor learns it. Prompts
    with many good answers have no majority, and so no anchor.

    Make anchors with [`~SemanticAnchors.from_samples`], or load them with [`~SemanticAnchors.load`].

    Args:
        dataset ([`~datasets.Dataset`]):
            One row for each prompt, also for prompts without an anchor: `prompt`, `anchor` (text or `None`), `members`
            and `members_finished` (lists, empty without an anchor), `confidence` (in [0, 1], without an anchor a lower
            bound), `num_generations` (number of completions), `reason` (why there is no anchor, or `None`), and
            further columns of the samples that hold single values.
        threshold (`float`):
            Smallest confidence of an anchor, in [0, 1] (γ in the paper).
        equivalence_fingerprint (`str`):
            Fingerprint of the equivalence that grouped the completions.

    Attributes:
        fingerprint (`str`): Differs whenever rows, threshold or equivalence differ.
        num_prompts (`int`): Number of prompts. The length of the object is the number of anchors.

    Example:

    ```python
    >>> row = {"prompt": "2 + 2?", "completions": ["4", "5", "4."], "finished": [True, True, True]}
    >>> anchors = SemanticAnchors.from_samples(Dataset.from_list([row]), ExactMatch())
    >>> anchors.find("2 + 2?").members, anchors.find("Why?")
    (['4', '4.'], None)
    ```
    """

    def __init__(self, dataset: Dataset, threshold: float, equivalence_fingerprint: str):
        self.dataset = dataset
        self.threshold = threshold
        self.equivalence_fingerprint = equivalence_fingerprint
        self.fingerprint = value_fingerprint([dataset_fingerprint(dataset), threshold, equivalence_fingerprint])
        self._anchors = _index_anchors(dataset)
        self._num_anchors = sum(anchor is not None for anchor in self._anchors.values())

    @classmethod
    def from_samples(
        cls,
        samples: Dataset,
        equivalence: Equivalence,
        *,
        threshold: float = 0.5,
        output_dir: str | Path | None = None,
    ) -> "SemanticAnchors":
        """
        Makes anchors from policy samples. Call it with samples of the initial policy, before any training.

        A prompt gets an anchor if the largest group of its completions has at least two members and at least a share
        γ of the completions. These are the prompts that SPG accepts. Its completions need not be finished. Rows with
        the same prompt become one row with the completions of all of them. If they are already grouped, they are
        merged as in [`~SemanticAnchors.merge`], which loses anchors: it does not know the groups of a row without one.

        Under `accelerate launch`, the processes share the questions, and every process must call it.

        Args:
            samples ([`~datasets.Dataset`]):
                Policy samples: `prompt`, `completions` and `finished`. If they have `cluster_ids` and `confidence`
                (from [`cluster`]), these groups are used.
            equivalence ([`Equivalence`]):
                Decides which completions mean the same, as for [`cluster`].
            threshold (`float`, *optional*, defaults to `0.5`):
                Smallest confidence of an anchor, in [0, 1] (γ in the paper).
            output_dir (`str` or `Path`, *optional*):
                Folder for finished groups. An interrupted call resumes from it.

        Returns:
            [`SemanticAnchors`]: The anchors.

        Raises:
            TypeError, ValueError: For the same reasons as [`cluster`], or if the groups of `samples` were made for
                another threshold.
            ValueError: If no prompt has an anchor.
        """
        samples = require_samples(samples, "samples")
        require_equivalence(equivalence)
        require_instruction_column(samples, equivalence, "samples")
        Group(equivalence, threshold=threshold)  # checks the threshold
        if has_groups(samples.column_names):
            require_decided_groups(samples, threshold)
        else:
            samples = _group_completions(samples, equivalence, threshold, output_dir)
        rows = _merge_prompts(build_rows(samples, equivalence, threshold), equivalence, threshold)
        return cls._build(rows, threshold, equivalence.fingerprint)

    @classmethod
    def _build(cls, rows: Dataset, threshold: float, equivalence_fingerprint: str) -> "SemanticAnchors":
        """Builds the object, and checks that there is an anchor."""
        anchors = cls(rows, threshold, equivalence_fingerprint)
        counts = anchors.counts
        if not len(anchors):
            remedy = REASONS[max(counts, key=counts.get)]
            raise ValueError(f"None of {anchors.num_prompts} prompts has an anchor. Rejected: {counts}. {remedy}")
        logger.info(f"{len(anchors)} of {anchors.num_prompts} prompts have an anchor. Rejected: {counts}.")
        return anchors

    def merge(self, *others: "SemanticAnchors", equivalence: Equivalence, key: str | None = None) -> "SemanticAnchors":
        """
        Merges anchors, for example those of several policies.

        The anchors of one prompt are compared by their meaning. If they mean the same, their groups become one:

        pooled confidence = Σ |g̃_i| / Σ |y_i|

        Completions of a row without an anchor count in the denominator only. The prompt keeps its anchor if the pooled
        confidence is at least the threshold, which must be the same for all anchors. If anchors of one prompt
        contradict each other, it has none. The number of contradictions is logged.

        With `key`, the prompts with the same value in this column then share their pooled majority: the largest group
        of their anchors, if it reaches the threshold. It counts also if other anchors contradict it.

        Under `accelerate launch`, the processes share the questions, and every process must call it.

        Args:
            others ([`SemanticAnchors`]):
                Other anchors. Of two rows with the same prompt, the first keeps its further columns. A further column
                that not all anchors have is left out.
            equivalence ([`Equivalence`]):
                Decides which anchors mean the same.
            key (`str`, *optional*):
                Column that names what prompts are paraphrases of. Prompts with `None` there have no paraphrases.

        Returns:
            [`SemanticAnchors`]: The merged anchors. This object does not change.

        Raises:
            TypeError: If another object is no [`SemanticAnchors`], or `equivalence` is no object with the members of
                [`Equivalence`].
            ValueError: If there is nothing to merge, thresholds differ, a column is missing or has two types, or no
                prompt has an anchor.
        """
        require_equivalence(equivalence)
        for other in others:
            if not isinstance(other, SemanticAnchors):
                raise TypeError(f"`others` must be `SemanticAnchors`, got `{type(other).__name__}`. Load them first.")
        if not others and key is None:
            raise ValueError("`merge` has nothing to merge. Pass other anchors, or `key`.")
        merged = [self, *others]
        for anchors in merged:
            if anchors.threshold != self.threshold:
                raise ValueError(
                    f"`others` have the threshold {anchors.threshold}, and these anchors have {self.threshold}. Make "
                    "all of them with one `threshold`."
                )
            require_instruction_column(anchors.dataset, equivalence, "anchors")
            if key is not None:
                require_key(anchors.dataset, key, "anchors")
        rows = _merge_prompts(_join_rows([anchors.dataset for anchors in merged]), equivalence, self.threshold)
        if key is not None:
            rows = _share_majorities(rows, key, equivalence, self.threshold)
        fingerprints = {anchors.equivalence_fingerprint for anchors in merged} | {equivalence.fingerprint}
        return self._build(rows, self.threshold, " + ".join(sorted(fingerprints)))

    def find(self, prompt: str | Messages) -> Anchor | None:
        """
        Returns the anchor of a prompt.

        Args:
            prompt (`str` or `list[dict]`):
                Text or messages.

        Returns:
            [`Anchor`] or `None`: `None` for a prompt without an anchor, and for an unknown prompt.
        """
        return self._anchors.get(prompt_key(prompt))

    def knows(self, prompt: str | Messages) -> bool:
        """
        Checks whether a prompt has a row, with or without an anchor.

        Args:
            prompt (`str` or `list[dict]`):
                Text or messages.

        Returns:
            `bool`.
        """
        return prompt_key(prompt) in self._anchors

    def __len__(self) -> int:
        return self._num_anchors

    @property
    def num_prompts(self) -> int:
        """Number of prompts, with or without an anchor."""
        return len(self.dataset)

    @property
    def mean_confidence(self) -> float:
        """Mean confidence of the prompts with an anchor, in (0, 1]."""
        return float(np.mean([anchor.confidence for anchor in self._anchors.values() if anchor is not None]))

    @property
    def counts(self) -> dict[str, int]:
        """
        Number of prompts without an anchor by reason: `below_threshold`, `single_member` (the largest group has one
        member) and `contradiction` (merged anchors contradict each other).
        """
        counts = Counter(self.dataset["reason"][:])
        return {reason: counts[reason] for reason in REASONS}

    def save(self, folder: str | Path) -> None:
        """
        Saves the anchors to a folder. With several processes, only the main process writes.

        Args:
            folder (`str` or `Path`):
                The folder. It is created if it does not exist.
        """
        path = Path(expand_path(folder)) / MANIFEST
        values = {
            "fingerprint": self.fingerprint,
            "threshold": self.threshold,
            "equivalence": self.equivalence_fingerprint,
            "prompts": self.num_prompts,
            "anchors": len(self),
            "prompts_without_anchor": self.counts,
        }
        save_data(self.dataset, folder)
        run_on_main(lambda: write_json(path, values))

    @classmethod
    def load(cls, folder: str | Path) -> "SemanticAnchors":
        """
        Loads anchors and compares their fingerprint with the saved one.

        Args:
            folder (`str` or `Path`):
                Folder of [`~SemanticAnchors.save`] or of `trl-rlp anchors`.

        Returns:
            [`SemanticAnchors`]: The anchors.

        Raises:
            FileNotFoundError: If the folder does not hold anchors.
            ValueError: If the folder is damaged.
        """
        path = Path(expand_path(folder)) / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(
                f"'{folder}' has no `{MANIFEST}`, so it holds no anchors. Pass a folder of `SemanticAnchors.save` or "
                "`trl-rlp anchors`."
            )
        try:
            values = read_json(path)
            dataset = load_data(folder)
            missing = {"prompt", *FEATURES} - set(dataset.column_names)
            anchors = None if missing else cls(dataset, values["threshold"], values["equivalence"])
            is_whole = anchors is not None and anchors.fingerprint == values["fingerprint"]
        except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"The anchors in '{folder}' are damaged ({reason}). Make them again.") from error
        if anchors is None or not is_whole:
            raise ValueError(
                f"The anchors in '{folder}' have changed since they were saved: their fingerprint differs. Make them "
                "again."
            )
        return anchors


def prompt_key(prompt: str | Messages) -> str:
    """
    Returns a text that is equal for equal prompts.

    Args:
        prompt (`str` or `list[dict]`):
            Text, a [`TokenPrompt`], or messages.

    Returns:
        `str`: The text itself. For messages, their JSON text with sorted keys, without keys whose value is `None`.
        Datasets fill in such keys.

    Example:

    ```python
    >>> prompt_key([{"role": "user", "content": "2 + 2?", "tool_calls": None}])
    '[{"content": "2 + 2?", "role": "user"}]'
    ```
    """
    return str(prompt) if isinstance(prompt, str) else json.dumps(_drop_missing(prompt), sort_keys=True)


def require_key(dataset: Dataset, key: str, name: str) -> None:
    """
    Checks that a dataset has a column that can name paraphrases.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows of anchors, or the prompts or samples that anchors are made from.
        key (`str`):
            Name of the column.
        name (`str`):
            Name of the dataset's argument, for the error message.

    Raises:
        ValueError: If the column is missing, does not hold single values, or is a result.
    """
    if key not in dataset.column_names:
        raise ValueError(
            f"`key`={key!r} names no column of `{name}`, which has {dataset.column_names}. Add it to the samples that "
            "the anchors are made from."
        )
    if key in FEATURES or not isinstance(dataset.features[key], Value):
        reason = "is a result" if key in FEATURES else "does not hold single values"
        raise ValueError(
            f"`key`={key!r} cannot name paraphrases, because this column of `{name}` {reason}. Name a column with one "
            "text or number for each meaning."
        )


def _drop_missing(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _drop_missing(entry) for key, entry in value.items() if entry is not None}
    return [_drop_missing(entry) for entry in value] if isinstance(value, list) else value


def _index_anchors(dataset: Dataset) -> dict[str, Anchor | None]:
    names = ["anchor", "members", "confidence", "members_finished"]
    index: dict[str, Anchor | None] = {}
    for batch in dataset.select_columns(["prompt", *names]).iter(ROWS_AT_ONCE):
        rows = zip(*(batch[name] for name in names), strict=True)
        for prompt, row in zip(batch["prompt"], rows, strict=True):
            index[prompt_key(prompt)] = None if row[0] is None else Anchor(*row)
    return index


def _group_completions(
    samples: Dataset, equivalence: Equivalence, threshold: float, output_dir: str | Path | None
) -> Dataset:
    """Groups the completions of each prompt, those of all its rows together."""
    samples = join_copies(samples, _list_keys(samples))
    numbers: dict[int, list[int]] = {}
    for number, completions in enumerate(samples["completions"]):
        numbers.setdefault(len(completions), []).append(number)
    # The prompts may have different numbers of copies, but `cluster` expects one number of completions.
    groups = [
        cluster(
            samples.select(rows),
            equivalence,
            threshold=threshold,
            output_dir=None if output_dir is None else Path(output_dir) / str(size),
        )
        for size, rows in numbers.items()
    ]
    order = np.argsort([number for rows in numbers.values() for number in rows])
    return groups[0] if len(groups) == 1 else concatenate_datasets(groups).select(order)


def _list_keys(rows: Dataset) -> list[str]:
    batches = rows.select_columns("prompt").iter(ROWS_AT_ONCE)
    return [prompt_key(prompt) for batch in batches for prompt in batch["prompt"]]


def _join_rows(datasets: Sequence[Dataset]) -> Dataset:
    names = [name for name in datasets[0].column_names if all(name in other.column_names for other in datasets)]
    datasets = [dataset.select_columns(names) for dataset in datasets]
    if all(dataset.features == datasets[0].features for dataset in datasets):
        return concatenate_datasets(datasets)
    try:
        # As Python values, because equal prompts may have different types: wide texts, or chats with further keys.
        columns = {name: [value for dataset in datasets for value in dataset[name][:]] for name in names}
        rows = Dataset.from_dict({name: columns[name] for name in names if name not in FEATURES})
        majorities = Dataset.from_dict({name: columns[name] for name in FEATURES}, features=FEATURES)
        return concatenate_datasets([rows, majorities], axis=1)
    except (ValueError, TypeError, pa.ArrowException) as error:
        raise ValueError(
            "The anchors have columns of different types, for example prompts as text and as messages, so they cannot "
            f"be merged ({' '.join(str(error).split())})."
        ) from error


def _merge_prompts(rows: Dataset, equivalence: Equivalence, threshold: float) -> Dataset:
    """Merges the rows with the same prompt into the first of them."""
    keys = _list_keys(rows)
    first_rows = {key: number for number, key in reversed(list(enumerate(keys)))}
    if len(first_rows) == len(rows):
        return rows
    majorities, num_contradictions = pool_rows(rows, keys, equivalence, threshold, allow_contradiction=False)
    numbers = sorted(first_rows.values())
    logger.info(
        f"{len(rows) - len(numbers)} rows are merged into others with the same prompt. {num_contradictions} prompts "
        "have no anchor because their anchors contradict each other."
    )
    return replace_majorities(rows.select(numbers), [majorities[number] for number in numbers])


def _share_majorities(rows: Dataset, key: str, equivalence: Equivalence, threshold: float) -> Dataset:
    """Gives all prompts with the same value of a column their pooled majority."""
    labels = [(number,) if value is None else value for number, value in enumerate(rows[key][:])]
    majorities, num_contradictions = pool_rows(rows, labels, equivalence, threshold, allow_contradiction=True)
    logger.info(f"{len(rows)} prompts have {len(set(labels))} meanings. {num_contradictions} have contradictions.")
    return replace_majorities(rows, majorities)
