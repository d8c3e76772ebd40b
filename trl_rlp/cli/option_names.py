"""What the commands call the arguments of Python functions, so that error messages name options that exist."""

_SHARED = {
    "cache": "`equivalence_cache`",
    "instruction": "`equivalence_instruction`",
    "model": "the model",
    "processing_class": "the model's tokenizer",
    "rule": "`equivalence_rule`",
}

OPTION_NAMES: dict[str, dict[str, str]] = {
    "sample": {"processing_class": "the tokenizer of `model`"},
    "anchors": {
        **{name: option for name, option in _SHARED.items() if name != "model"},
        "policy_samples": "`samples`",
    },
    "prefer": {
        **_SHARED,
        "judge": "`judge_model`",
        "method": "`generator`",
        "policy_samples": "`samples`",
    },
    "reward": {
        **_SHARED,
        "eval_dataset": "`eval_preference_dataset`",
        "train_dataset": "`preference_dataset`",
    },
    "run": {**_SHARED, "prompts": "`prompt_dataset`"},
    "evaluate": {
        "model": "the model",
        "policy_samples": "`samples`",
        "processing_class": "the model's tokenizer",
        "reference": "`reference_policy`",
    },
}
"""For each command: arguments of functions that it calls, and their names in the command."""


def name_options(command: str, message: str) -> str:
    """
    Replaces the names of arguments in an error message by those of a command's options.

    Args:
        command (`str`):
            Name of the command.
        message (`str`):
            Error message of a Python function, with the names of arguments in backticks.

    Returns:
        `str`: The message for the command line.

    Example:

    ```python
    >>> from trl_rlp.cli.option_names import name_options

    >>> name_options("prefer", "`rule` must be one of ['strict', 'no_contradiction'], got 'loose'.")
    "`equivalence_rule` must be one of ['strict', 'no_contradiction'], got 'loose'."

    ```
    """
    from trl_rlp.data.argument_names import replace_arguments  # its package imports torch

    return replace_arguments(message, OPTION_NAMES.get(command, {}))
