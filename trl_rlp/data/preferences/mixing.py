"""Human and synthetic preferences in one data set."""

import numpy as np
from datasets import Dataset, Features, Value, concatenate_datasets

from trl_rlp.data.validation import require_columns


def mix_preferences(
    human: Dataset, synthetic: Dataset, synthetic_share: float | None = None, seed: int = 0
) -> Dataset:
    """
    Gives D ∪ D̂: human pairs, then synthetic ones, with the columns of both.

    A column that one side lacks is empty there, except `margin`, which TRL's loss reads: synthetic pairs carry 0 where
    human ones have a margin, and none where they have not. `is_synthetic` tells the pairs apart. The trainer shuffles.

    Args:
        human (`datasets.Dataset`):
            D in TRL's preference format, text or messages, with or without `prompt`; or tokenized.
        synthetic (`datasets.Dataset`):
            D̂ in the same form, tokenized if `human` is.
        synthetic_share (`float`, *optional*):
            Share of synthetic pairs in the result, between 0 and 1 exclusive. All human pairs stay, once each;
            synthetic ones are drawn without replacement, and repeated only where they are too few. Defaults to the
            union, as in the paper.
        seed (`int`, *optional*, defaults to `0`):
            Decides which synthetic pairs are drawn.

    Returns:
        `datasets.Dataset`: the mixture.

    Raises:
        ValueError: if a share is out of range, a column is missing, one side is tokenized and the other not, or one is
            text and the other messages.
    """
    for name, dataset in (("human", human), ("synthetic", synthetic)):
        is_tokenized = {"chosen_ids", "rejected_ids"} <= set(dataset.column_names)
        require_columns(dataset, [] if is_tokenized else ["chosen", "rejected"], name)
    if synthetic_share is not None:
        synthetic = _drawn(synthetic, len(human), synthetic_share, seed)
    human, synthetic = _in_one_form(human, synthetic)
    if "margin" in synthetic.column_names:
        synthetic = synthetic.remove_columns("margin")
    if "margin" in human.column_names:
        feature = human.features["margin"]
        synthetic = synthetic.add_column("margin", [0] * len(synthetic), feature=feature)
    features = Features({**synthetic.features, **human.features, "is_synthetic": Value("bool")})
    return concatenate_datasets(
        [_with_columns(human, features, is_synthetic=False), _with_columns(synthetic, features, is_synthetic=True)]
    )


def _drawn(synthetic: Dataset, humans: int, share: float, seed: int) -> Dataset:
    if not 0 < share < 1:
        raise ValueError(f"`synthetic_share` must be between 0 and 1, both excluded, got {share}. None is the union.")
    wanted = max(1, round(humans * share / (1 - share)))
    rounds, rest = divmod(wanted, len(synthetic))
    order = np.random.default_rng(seed).permutation(len(synthetic))
    return synthetic.select([*np.tile(order, rounds), *order[:rest]])


def _in_one_form(human: Dataset, synthetic: Dataset) -> tuple[Dataset, Dataset]:
    """Both with or both without a `prompt` column: where one has none, the other's prompts join the outputs."""
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
        forms = ["text" if text else "messages" for text in is_text]
        raise ValueError(
            f"`human` holds {forms[0]} and `synthetic` {forms[1]}. Write the prompts of both in one form before "
            "sampling."
        )
    if ("prompt" in human.column_names) == ("prompt" in synthetic.column_names):
        return human, synthetic
    return _with_implicit_prompt(human), _with_implicit_prompt(synthetic)


def _with_implicit_prompt(dataset: Dataset) -> Dataset:
    if "prompt" not in dataset.column_names:
        return dataset
    if "candidates" in dataset.column_names:
        raise ValueError(
            "`human` has no `prompt` column, and `synthetic` has candidates that need theirs. Call "
            "`tokenize_preferences` on both first."
        )
    return dataset.map(_join_prompt, remove_columns="prompt")


def _join_prompt(pair: dict) -> dict:
    return {"chosen": pair["prompt"] + pair["chosen"], "rejected": pair["prompt"] + pair["rejected"]}


def _with_columns(dataset: Dataset, features: Features, is_synthetic: bool) -> Dataset:
    dataset = dataset.add_column("is_synthetic", [is_synthetic] * len(dataset))
    for name in features:
        if name not in dataset.column_names:
            dataset = dataset.add_column(name, [None] * len(dataset), feature=features[name])
    return dataset.select_columns(list(features)).cast(features)
