import pytest

from trl_rlp.data.argument_names import rename_arguments, replace_arguments
from trl_rlp.data.preferences.pairing import NoPairsError


NAMES = {"threshold": "`confidence_threshold` in `reward_args`", "model": "the model"}


def test_names_are_replaced_in_backticks_only():
    message = "`model` has a threshold. `model` has no `threshold`=0.5, and `threshold_of_model` stays."
    assert replace_arguments(message, NAMES) == (
        "The model has a threshold. The model has no `confidence_threshold` in `reward_args`=0.5, and "
        "`threshold_of_model` stays."
    )


def test_a_text_with_the_name_of_an_argument_is_not_replaced_again():
    names = {"a": "`a` (`b` of a trainer)", "b": "`c`", "c": "`a`"}
    assert replace_arguments("`a` is small. `b` and `c` too.", names) == (
        "`a` (`b` of a trainer) is small. `c` and `a` too."
    )
    assert replace_arguments("`` and `a`", {}) == "`` and `a`"


def test_an_error_keeps_its_type_and_its_other_values():
    with pytest.raises(NoPairsError, match=r"^Lower `confidence_threshold` in `reward_args`\.$") as caught:
        with rename_arguments(NAMES):
            raise NoPairsError("Lower `threshold`.")
    assert caught.value.args == ("Lower `confidence_threshold` in `reward_args`.",)
    with pytest.raises(UnicodeDecodeError) as caught, rename_arguments(NAMES):
        raise UnicodeDecodeError("utf-8", b"a", 0, 1, "`model`")
    assert caught.value.args == ("utf-8", b"a", 0, 1, "The model")


def test_other_errors_are_not_touched():
    with pytest.raises(KeyError, match="`threshold`"), rename_arguments(NAMES):
        raise KeyError("`threshold`")
