"""The list of pages for language models, llms.txt (https://llmstxt.org), and the Markdown of each page."""

import re
from pathlib import Path

from markdownify import markdownify
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page


NAV: list[Navigation] = []
"""The navigation of the build."""

TEXTS: dict[str, str] = {}
"""Markdown of each page of the navigation, by its path in docs/."""


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> None:
    """Keeps the navigation, whose order llms.txt has."""
    NAV[:] = [nav]


@event_priority(50)  # before LaTeX becomes MathML
def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> None:
    """Keeps the Markdown of a page. The text of the reference is in the docstrings, so it is read from the HTML."""
    generated = page.file.src_uri.startswith("reference/")
    TEXTS[page.file.src_uri] = markdownify(html, heading_style="ATX") if generated else page.markdown


def on_post_build(config: MkDocsConfig) -> None:
    """Writes llms.txt and the Markdown of each page that it lists."""
    lines = [f"# {config.site_name}", "", f"> {config.site_description}"]
    section = None
    for page in NAV[0].pages:
        title = page.ancestors[-1].title if page.ancestors else "Pages"
        if title != section:
            lines += ["", f"## {title}", ""]
            section = title
        text = TEXTS[page.file.src_uri]
        lines.append(f"- [{page.title}]({page.file.src_uri}): {find_description(text)}")
        path = Path(config.site_dir, page.file.src_uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    Path(config.site_dir, "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def find_description(text: str) -> str:
    """Returns the first two sentences of the first paragraph that is not a heading, a picture or code."""
    paragraphs = re.sub(r"^(```.*?^```|#.*?|!\[.*?)$", "", text, flags=re.M | re.S).split("\n\n")
    paragraph = next((part for part in paragraphs if re.match(r"[\w`*\[]", part.strip())), "")
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(paragraph.replace("**", "").split()))
    return " ".join(re.split(r"(?<=[.:]) (?=[A-Z`])", plain)[:2]).removesuffix(":")
