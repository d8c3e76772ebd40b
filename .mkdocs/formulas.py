"""Formulas and numbers: LaTeX becomes MathML, which browsers show without a script, and intervals stay on one line."""

import html
import re

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page


FORMULA = re.compile(r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', flags=re.S)


def on_page_content(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Converts the formulas that `pymdownx.arithmatex` marked, and keeps intervals on one line."""

    def replace(match: re.Match) -> str:
        tag, display = match["tag"], "inline" if match["tag"] == "span" else "block"
        return f'<{tag} class="formula">{convert(html.unescape(match["latex"]).strip(), display=display)}</{tag}>'

    text = re.sub(r"(?<=\d) ± (?=[.\d])", "\u00a0±\u00a0", text)
    text = re.sub(r"(\[[−+\d.]+,) ([−+\d.]+\])", "\\1\u00a0\\2", text)
    return FORMULA.sub(replace, text)
