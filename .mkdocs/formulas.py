"""Formulas: LaTeX becomes MathML, which browsers show without a script. Symbols in text and intervals look right."""

import html
import re

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page


FORMULA = re.compile(r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', flags=re.S)
WORD = re.compile(r"\\(?:text|math\w+|operatorname)\{[^}]*\}|\\[A-Za-z]+|(?P<word>[A-Za-z]{3,}|[A-Z]{2}|kl|vf)")
"""A word in LaTeX, such as clip or KL. Commands come first, so that nothing in them matches."""

SYMBOL = re.compile(
    r"<(?P<tag>code|pre|math)\b.*?</(?P=tag)>|<[^>]*>|"
    r"\b(?P<letter>[πprvyzcDIL])_(?P<index>SFT|SKL|JSD|ref|old|vf|[wlMhtφθ12])\b",
    flags=re.S,
)
"""A symbol with an index in text, such as y_w. Code, formulas and tags come first, so that nothing in them matches."""

NAME = re.compile(r"--[a-z]\w*|\btrl-rlp\b")
"""A name in code with a hyphen, at which a browser would break the line."""


def on_page_content(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Converts the formulas that `pymdownx.arithmatex` marked, sets indices, and keeps intervals on one line."""

    def replace(match: re.Match) -> str:
        tag, display = match["tag"], "inline" if match["tag"] == "span" else "block"
        latex = WORD.sub(set_word, html.unescape(match["latex"]).strip())
        return f'<{tag} class="formula">{convert(latex, display=display)}</{tag}>'

    text = re.sub(r"(?<=\d) ± (?=[.\d])", "\u00a0±\u00a0", text)
    text = re.sub(r"(\[[-−+\d.]+,) ([-−+\d.]+\])", "\\1\u00a0\\2", text)
    return SYMBOL.sub(set_symbol, FORMULA.sub(replace, text))


def set_word(match: re.Match) -> str:
    """Returns a word as upright text, and everything else as it is. LaTeX reads a word as a product of letters."""
    return f"\\text{{{match['word']}}}" if match["word"] else match[0]


def set_symbol(match: re.Match) -> str:
    """Returns a symbol with a subscript, code with each name on one line, and everything else as it is."""
    if match["letter"]:
        return f"{match['letter']}<sub>{match['index']}</sub>"
    return NAME.sub(r'<span class="whole">\g<0></span>', match[0]) if match["tag"] == "code" else match[0]
