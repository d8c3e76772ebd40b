import pytest

from trl_rlp.report.visible_text import cut_text, plain_text


def test_a_long_text_is_cut_with_its_length():
    assert cut_text("abc", 3) == "abc"
    assert cut_text("abcd" * 500, 3) == "abc … [cut here: 2,000 characters]"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a", "a"),
        (None, ""),
        ([{"role": "user", "content": "a"}], "a"),
        ([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], "system: a\nuser: b"),
        ([1, "ü"], '[1, "ü"]'),
        ({"a": 1}, '{"a": 1}'),
    ],
)
def test_any_value_becomes_text(value, expected):
    assert plain_text(value) == expected
