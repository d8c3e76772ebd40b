import random

import pytest

from trl_rlp.data.normalization import normalize_answer, normalize_text


MERGED_AND_NOT = {
    "Unicode": (
        ("caf\u00e9", "cafe\u0301"),
        [("x\u00b2", "x2"), ("\u00bd", "1/2"), ("\uff15", "5"), ("\ufb01", "fi")],
    ),
    "line ends": (("a\r\nb", "a\nb"), [("a\nb", "a b"), ("a\n\nb", "a\nb")]),
    "white space at the end": (("yes", "yes \n\t"), [("a  b", "a b"), ("a \nb", "a\nb"), ("5\u00a0mm", "5 mm")]),
    "one space at the beginning of the first paragraph": ((" yes\n\nno", "yes\n\nno"), [(" a\n\n b", "a\n\n b")]),
    "empty lines at the beginning": (("yes", " \n\nyes"), [("yes", "no\nyes")]),
    "one space at the beginning": (
        ("yes", " yes"),
        [("return x", "    return x"), ("return x", "\treturn x"), ("  a\n  b", "a\n  b"), (" a\n b", "a\n b")],
    ),
    "one full stop at the end": (
        ("Paris", "Paris."),
        [("5", "5!"), ("cd", "cd ."), ("yes", "yes..."), ("x'", "x'."), ("(0, 1)", "(0, 1)."), ("5", ".5")],
    ),
}
"""For each difference that is merged: a pair that differs in it, and the nearest pairs that stay different."""


@pytest.mark.parametrize("name", MERGED_AND_NOT)
def test_a_difference_without_meaning_is_merged_and_the_nearest_with_meaning_is_not(name):
    (first, second), others = MERGED_AND_NOT[name]
    assert first != second and normalize_text(first) == normalize_text(second)
    for one, other in others:
        assert normalize_text(one) != normalize_text(other)


def test_differences_at_the_end_are_merged_together():
    assert normalize_text("\n Paris. \r\n") == "Paris"
    assert normalize_text("4.") == "4"


def test_only_white_space_becomes_empty():
    assert normalize_text(" \n\u00a0\t") == ""
    assert normalize_text("...") == "..." and normalize_text(".") == "."


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Paris", "  paris"),
        ("the cat", "The cat."),
        ("a bird", "A bird"),
        ("Rio de Janeiro", "Rio De Janeiro"),
        ("Newcastle-upon-Tyne", "Newcastle-Upon-Tyne"),
        ("yes", "Yes!"),
        ("red", '"Red"'),
        ("red", "\u201cRed.\u201d"),
        ("red", '"red".'),
        ("red", "« Red »"),
        ("12 march", "12 March"),
    ],
)
def test_an_answer_may_differ_in_quotes_end_marks_and_capitals_of_ordinary_words(first, second):
    assert normalize_text(first) != normalize_text(second)
    assert normalize_answer(first) == normalize_answer(second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("x = y", "x != y"),
        ("(0, 1)", "[0, 1]"),
        ("5 MW", "5 mW"),
        ("2 MHz", "2 mHz"),
        ("5 Mm", "5 mm"),
        ("5 Mg.", "5 mg."),
        ("5 Pa", "5 pa"),
        ("ready", "!ready"),
        ("US", "us"),
        ("iPhone", "Iphone"),
        ("CO", "Co"),
        ("X", "x"),
        ("A", "a"),
        ("f", "f'"),
        ("5", "5!"),
        ("yes", "yes?"),
        ("5", "-5"),
        ("5", '"5'),
        ("1,000", "1000"),
        ("Foo_bar", "foo_bar"),
        ("Print(x)", "print(x)"),
        ("ls -Rf", "ls -rf"),
        ("the cat", "cat"),
        ('"a" or "b"', 'a" or "b'),
    ],
)
def test_an_answer_keeps_signs_brackets_units_and_names(first, second):
    assert normalize_answer(first) != normalize_answer(second)


@pytest.mark.parametrize("normalize", [normalize_text, normalize_answer])
def test_a_second_normalization_changes_nothing(normalize):
    generator = random.Random(0)
    alphabet = "aB1 .-,%#'\"\t(ßİ\u0345ﬁ½\n\r…/*²–−!“”"
    for _ in range(3000):
        text = "".join(generator.choices(alphabet, k=generator.randrange(8)))
        assert normalize(normalize(text)) == normalize(text), repr(text)
