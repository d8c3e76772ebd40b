"""Pages of tables that a script writes. The site puts a sentence before them that says what they are for."""

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page


INTRODUCTIONS = {
    "laboratory/tables.md": "These tables compare the methods of the paper in the [laboratory](../laboratory.md). "
    "[How to read the tables](../laboratory.md#how-to-read-the-tables) explains their columns.",
    "laboratory/ours/tables.md": "These tables compare our methods with PPO and published SPG in the "
    "[laboratory](../../laboratory.md#our-methods). "
    "[How to read the tables of ours](../../laboratory.md#how-to-read-the-tables-of-ours) explains them.",
    "laboratory/smollm2_own.md": "These tables show labels and reward models of SmolLM2-135M-Instruct on the "
    "questions of this project. [Results](../results.md#a-real-language-model) sums them up.",
    "laboratory/smollm2_svamp.md": "These tables show labels and reward models of SmolLM2-135M-Instruct on the "
    "questions of SVAMP. [Results](../results.md#svamp) sums them up.",
    "laboratory/smollm2_policies.md": "These tables compare policies of SmolLM2-135M-Instruct, see "
    "[the laboratory](../laboratory.md#policies-of-a-real-model). [Results](../results.md#policies) sums them up.",
}
"""The sentences by page."""


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Adds the introduction of a page of tables."""
    introduction = INTRODUCTIONS.get(page.file.src_uri)
    return f"{introduction}\n\n{markdown}" if introduction else markdown
