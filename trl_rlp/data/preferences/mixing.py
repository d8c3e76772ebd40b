"""The mixture of human and synthetic preferences in one dataset."""

from typing import Any

import numpy as np
from datasets import Dataset, Features, Json, LargeList, List, Value, concatenate_datasets

from trl_rlp.data.validation import require_columns


_MARK = "is_synthetic"
_KWARGS = "chat_template_kwargs"


def mix_preferences(
    human: Dataset, synthetic: Dataset, synthetic_share: float | None = None, seed: int = 0
) -> Dataset:
    """
    Builds D ∪ D̂: human preferences, then synthetic preferences, with the columns of both.

    A column with different types in the two datasets gets the wider type: floats rather than integers, messages with
    the keys of both, JSON for other dicts. A column that one dataset lacks is empty in its rows: `None`, or `{}` for
    `chat_template_kwargs`, which TRL reads as a dict. The exception is `margin`, which TRL's loss reads. If human
    pairs have a margin, synthetic pairs get margin 0. If human pairs have no margin, synthetic pairs lose theirs. The
    column `is_synthetic` marks the synthetic pairs. The rows are not shuffled, because the trainer shuffles them.

    Args:
        human ([`~datasets.Dataset`]):
            Human preferences D in TRL's preference format, as text or messages, with or without `prompt`. Or tokenized
            preferences.
        synthetic ([`~datasets.Dataset`]):
            Synthetic preferences D̂ in the same format. They must be tokenized if `human` is.
        synthetic_share (`float`, *optional*):
            Share of synthetic pairs in the result, between 0 and 1, both excluded. All human pairs are kept once.
            Synthetic pairs are drawn without replacement. They are repeated only if there are too few. Defaults to the
            union, as in the paper.
        seed (`int`, *optional*, defaults to `0`):
            Seed that selects the synthetic pairs.

    Returns:
        `datasets.Dataset`: The mixture.

    Raises:
        ValueError: If `synthetic_share` is out of range, a column is missing, only one dataset is tokenized, one
            dataset holds text and the other messages, or a column has another type in the other dataset.
    """
    human, synthetic = _require_pairs(human, "human"), _require_pairs(synthetic, "synthetic")
    if synthetic_share is not None:
        synthetic = _draw_synthetic(synthetic, len(human), synthetic_share, seed)
    human, synthetic = _align_prompts(human, synthetic)
    if "margin" in synthetic.column_names:
        synthetic = synthetic.remove_columns("margin")
    if "margin" in human.column_names:
        feature = human.features["margin"]
        synthetic = synthetic.add_column("margin", [0] * len(synthetic), feature=feature)
    _check_types(human, synthetic)
    shared = {
        name: _join_types(name, feature, synthetic.features[name])
        for name, feature in human.features.items()
        if name in synthetic.column_names
    }
    features = Features({**synthetic.features, **human.features, **shared, _MARK: Value("bool")})
    if _KWARGS in features and _KWARGS not in shared and isinstance(features[_KWARGS], dict):
        features[_KWARGS] = Json()  # a struct would fill in its keys where there are no arguments
    return concatenate_datasets(
        [_align_columns(human, features, is_synthetic=False), _align_columns(synthetic, features, is_synthetic=True)]
    )


def _require_pairs(dataset: Dataset, name: str) -> Dataset:
    dataset = require_columns(dataset, [], name)
    is_tokenized = {"chosen_ids", "rejected_ids"} <= set(dataset.column_names)
    return require_columns(dataset, [] if is_tokenized else ["chosen", "rejected"], name)


def _check_types(human: Dataset, synthetic: Dataset) -> None:
    for name, dataset in (("human", human), ("synthetic", synthetic)):
        if _MARK in dataset.column_names:
            raise ValueError(
                f"`{name}` has a column `{_MARK}`, which marks the rows of the mixture. Rename or remove it."
            )
    for name in set(human.column_names) & set(synthetic.column_names):
        kinds = [_describe_kind(dataset.features[name]) for dataset in (human, synthetic)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"The column `{name}` holds {kinds[0]} in `human` and {kinds[1]} in `synthetic`. Rename it in one of "
                "them."
            )


def _describe_kind(feature: Any) -> str:
    if not isinstance(feature, Value):
        return "nested values"
    return "text" if "string" in feature.dtype else "numbers"


def _join_types(name: str, human: Any, synthetic: Any) -> Any:
    """Returns a type that holds the values of both. Of two types of texts or of integers, it is that of `human`."""
    if human == synthetic:
        return human
    types = human, synthetic
    if all(isinstance(one, Json | dict) for one in types):
        are_messages = all("role" in one for one in types if isinstance(one, dict))
        if any(isinstance(one, Json) for one in types) or (human.keys() != synthetic.keys() and not are_messages):
            return Json()  # a struct would fill in the keys of the other dataset
        both = {key: _join_types(name, human[key], synthetic[key]) for key in human.keys() & synthetic.keys()}
        return {**synthetic, **human, **both}
    if all(isinstance(one, List | LargeList) for one in types):
        return type(human)(_join_types(name, human.feature, synthetic.feature))
    if all(isinstance(one, Value) for one in types) and _describe_kind(human) == _describe_kind(synthetic):
        return synthetic if "float" in synthetic.dtype and "float" not in human.dtype else human
    raise ValueError(
        f"The column `{name}` holds {human} in `human` and {synthetic} in `synthetic`. Rename it in one of them."
    )


def _draw_synthetic(synthetic: Dataset, num_human: int, share: float, seed: int) -> Dataset:
    if not 0 < share < 1:
        raise ValueError(
            f"`synthetic_share` must be between 0 and 1, both excluded, got {share}. Pass None for the union."
        )
    num_synthetic = max(1, round(num_human * share / (1 - share)))
    rounds, rest = divmod(num_synthetic, len(synthetic))
    order = np.random.default_rng(seed).permutation(len(synthetic))
    return synthetic.select([*np.tile(order, rounds), *order[:rest]])


def _align_prompts(human: Dataset, synthetic: Dataset) -> tuple[Dataset, Dataset]:
    """Joins prompts and completions in both datasets if only one of them has a `prompt` column."""
    tokenized = ["chosen_ids" in dataset.column_names for dataset in (human, synthetic)]
    if tokenized[0] != tokenized[1]:
        raise ValueError(
            "One of `human` and `synthetic` is tokenized and the other is not. Call `tokenize_preferences` on both or "
            "on neither."
        )
    if tokenized[0]:
        return human, synthetic
    is_text = [isinstance(dataset.features["chosen"], Value) for dataset in (human, synthetic)]
    if is_text[0] != is_text[1]:
        formats = ["text" if text else "messages" for text in is_text]
        raise ValueError(
            f"`human` holds {formats[0]} and `synthetic` holds {formats[1]}. Write the prompts of both in one format "
            "before sampling."
        )
    if ("prompt" in human.column_names) == ("prompt" in synthetic.column_names):
        return human, synthetic
    return _make_prompts_implicit(human), _make_prompts_implicit(synthetic)


def _make_prompts_implicit(dataset: Dataset) -> Dataset:
    if "prompt" not in dataset.column_names:
        return dataset
    if "candidates" in dataset.column_names:
        raise ValueError(
            "`human` has no `prompt` column, but the `candidates` of `synthetic` need their prompts. Call "
            "`tokenize_preferences` on both first."
        )
    return dataset.map(_join_prompt, remove_columns="prompt")


def _join_prompt(pair: dict) -> dict:
    return {"chosen": pair["prompt"] + pair["chosen"], "rejected": pair["prompt"] + pair["rejected"]}


def _align_columns(dataset: Dataset, features: Features, is_synthetic: bool) -> Dataset:
    dataset = dataset.add_column(_MARK, [is_synthetic] * len(dataset))
    for name in features:
        if name not in dataset.column_names:
            empty = {} if name == _KWARGS else None
            values = Dataset.from_dict({name: [empty] * len(dataset)}, features=Features({name: features[name]}))
            dataset = concatenate_datasets([dataset, values], axis=1)
    try:
        return dataset.select_columns(list(features)).cast(features)
    except (TypeError, ValueError) as error:  # for example an integer that does not fit
        raise ValueError(
            f"The types of `human` and `synthetic` differ ({' '.join(str(error).split())}). Cast both to the same "
            "`features`."
        ) from error
