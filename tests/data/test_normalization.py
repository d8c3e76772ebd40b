import random

import pytest

from trl_rlp.data.normalization import normalize_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The\tAppaloosa. \n", "the appaloosa"),
        ("**Bold** «text»!", "bold text"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("Ｔｏｋｙｏ", "tokyo"),
        ("（東京）", "東京"),
        ("caf\u0065\u0301", "caf\u00e9"),
        ("Paris , France", "paris france"),
    ],
)
def test_case_outer_punctuation_and_white_space_are_ignored(text, expected):
    assert normalize_text(text) == expected


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("5", "-5"),
        ("5", ".5"),
        ("5", "-.5"),
        ("3.5", "35"),
        ("5", "5%"),
        ("C", "C#"),
        ("C", "C++"),
        ("R&D", "RD"),
        ("1,000", "1000"),
        ("cant", "can't"),
        ("a", "the a"),
        ("?", "!"),
        ("-$5", "$5"),
        ("\u20135", "5"),
        ("- 5", "5"),
        ("10\u00b2", "102"),
        ("\u00bd", "12"),
        ("3 - 4", "3 4"),
        ("6 / 2", "6 * 2"),
        ("x = -y", "x = y"),
        ("A-", "A"),
        ("(-\u221e, 0)", "(\u221e, 0)"),
    ],
)
def test_differences_that_may_change_the_meaning_are_kept(first, second):
    assert normalize_text(first) != normalize_text(second)


def test_a_sign_or_decimal_point_before_a_number_is_kept():
    assert normalize_text("(-5)") == "-5"
    assert normalize_text('".5".') == ".5"
    assert normalize_text("-.5,") == "-.5"
    assert normalize_text("\u22125") == normalize_text("\u20135") == "-5"


def test_only_white_space_becomes_empty():
    assert normalize_text(" \n\u00a0\t") == ""
    assert normalize_text("...") == "..."
    assert normalize_text('" yes ."') == "yes"


def test_a_second_normalization_changes_nothing():
    generator = random.Random(0)
    alphabet = "aB1 .-,%#'\"(ßİ\u0345ﬁ½\n…/*²–−"
    for _ in range(3000):
        text = "".join(generator.choices(alphabet, k=generator.randrange(8)))
        assert normalize_text(normalize_text(text)) == normalize_text(text), repr(text)
