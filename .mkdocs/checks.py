"""The check of the built site: its pages and style sheets load nothing from another host."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError


LOADS = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed|object)\b[^>]*?\b(?:src|data|srcset)=["']?(?:https?:)?//[^>]*"""
    r"""|<link\b(?![^>]*rel=["']?canonical)[^>]*href=["']?(?:https?:)?//[^>]*"""
    r"""|@import[^;]*//[^;]*|url\(\s*["']?(?:https?:)?//[^)]*\)""",
    flags=re.I,
)


def on_post_build(config: MkDocsConfig) -> None:
    """Raises an error for the first page or style sheet that loads something from another host."""
    for path in sorted(Path(config.site_dir).rglob("*")):
        if path.suffix in {".html", ".css", ".svg"}:
            match = LOADS.search(path.read_text(encoding="utf-8"))
            if match:
                raise PluginError(
                    f"{path.relative_to(config.site_dir)} loads from another host: {match.group()[:200]}"
                )
