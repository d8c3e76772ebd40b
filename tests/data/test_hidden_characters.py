import unicodedata

import pytest

from trl_rlp.data.hidden_characters import show_hidden


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain\ttext\nzwei Ümläute 中文 עברית", "plain\ttext\nzwei Ümläute 中文 עברית"),
        ("\x1b[31m\x00\r\x7f", "⟨U+001B⟩[31m⟨U+0000⟩⟨U+000D⟩⟨U+007F⟩"),
        ("\x85\xad", "⟨U+0085⟩⟨U+00AD⟩"),
        ("\u202eevil\u2069", "⟨U+202E⟩evil⟨U+2069⟩"),
        ("\u2028\u200b\ufeff", "⟨U+2028⟩⟨U+200B⟩⟨U+FEFF⟩"),
        ("\ud83d", "⟨U+D83D⟩"),
        ("\U000e0041", "⟨U+E0041⟩"),
        (
            "👩\u200d🔬 ❤\ufe0f\u200d🔥 می\u200cخواهم",
            "👩\u200d🔬 ❤\ufe0f\u200d🔥 می\u200cخواهم",
        ),  # joiners and a selector
        ("a\u3164\u115f\uffa0\u2800\u034f", "a⟨U+3164⟩⟨U+115F⟩⟨U+FFA0⟩⟨U+2800⟩⟨U+034F⟩"),
        ("4\U000e0150\ufe00", "4⟨U+E0150⟩⟨U+FE00⟩"),
        ("\ufffe\uffff\ufdd0\U0010ffff", "⟨U+FFFE⟩⟨U+FFFF⟩⟨U+FDD0⟩⟨U+10FFFF⟩"),
        ("4\ufe0f\ufe0e\u200d\u200c\u200d", "4\ufe0f⟨U+FE0E⟩\u200d⟨U+200C⟩⟨U+200D⟩"),  # bits in selectors or joiners
    ],
)
def test_characters_that_nobody_sees_become_visible(text, expected):
    shown = show_hidden(text)
    assert shown == expected
    shown.encode()  # valid Unicode


def test_all_controls_and_half_surrogates_and_what_unicode_keeps_free_become_visible():
    """The last two characters of each of the 17 planes and 32 others are free."""
    free = [code for code in range(0x110000) if code % 0x10000 >= 0xFFFE or 0xFDD0 <= code <= 0xFDEF]
    hidden = [code for code in range(0x110000) if unicodedata.category(chr(code)) in ("Cc", "Cs", "Zl", "Zp")]
    kept = {code for code in free + hidden if show_hidden(chr(code)) == chr(code)}
    assert len(free) == 66 and len(hidden) == 65 + 2048 + 2 and kept == {ord("\t"), ord("\n")}
