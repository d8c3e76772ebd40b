"""Files of the repository outside docs/. The site has copies of those that its pages link to, so no link leaves it."""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter


ROOT = Path(__file__).parents[1]
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Pages that are not in docs/, with their paths on the site."""

LANGUAGES = {".py": "python", ".yaml": "yaml", ".md": "markdown"}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
"""The path in a relative link."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the changelog, the page for contributors, and each file that a page links to."""
    for name, uri in PAGES.items():
        files.append(File.generated(config, uri, content=(ROOT / name).read_text(encoding="utf-8")))
    pages = list(files.documentation_pages())
    for page in pages:
        paths = [find_path(link, page.src_uri) for link in LINK.findall(page.content_string)]
        for path in paths if has_links(page) else []:
            if path == "README.md" or path.startswith(("docs/", "..")) or not (ROOT / path).exists():
                continue
            for file in make_copies(path, config):
                if file.src_uri not in files.src_uris:
                    files.append(file)
                    pages += [file] if file.is_documentation_page() else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points the links to files outside docs/ to the copies."""

    def replace(match: re.Match) -> str:
        target = find_uri(find_path(match.group(), page.file.src_uri))
        folder = os.path.dirname(page.file.src_uri)
        return os.path.relpath(target, folder or ".") if target in files.src_uris else match.group()

    return LINK.sub(replace, markdown) if has_links(page.file) else markdown


def has_links(page: File) -> bool:
    """Returns whether the links on a page are links of the repository, and not text in a copy of a file."""
    return not page.src_uri.startswith("source/") or page.src_uri.endswith(".ipynb.md")


def find_path(link: str, src_uri: str) -> str:
    """Returns the path in the repository that a link on a page of the site names."""
    source = {uri: name for name, uri in PAGES.items()}.get(src_uri, f"docs/{src_uri}")
    if src_uri.startswith("source/"):
        source = src_uri.removeprefix("source/")
    return os.path.normpath(os.path.join(os.path.dirname(source), link))


def find_uri(path: str) -> str:
    """Returns the path on the site of a path in the repository."""
    if path == "README.md":
        return "index.md"
    return PAGES.get(path, path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}.md")


def make_copies(path: str, config: MkDocsConfig) -> list[File]:
    """Makes the page of a file, or of a folder and the files in it."""
    source = ROOT / path
    if source.is_dir():
        names = sorted(file.name for file in source.iterdir() if file.suffix in {*LANGUAGES, ".ipynb"})
        text = "\n".join(f"- [{find_title(source / name)}]({source.name}/{name}.md)" for name in names)
        copies = [file for name in names for file in make_copies(f"{path}/{name}", config)]
        return [
            make_page(
                path, f"# {source.name.replace('_', ' ').capitalize()}\n\nFiles in `{path}`:\n\n{text}\n", config
            ),
            *copies,
        ]
    if source.suffix == ".ipynb":
        text, resources = MarkdownExporter().from_filename(str(source))
        pictures = resources["outputs"].items()
        folder = os.path.dirname(find_uri(path))
        made = [
            File.generated(config, f"{folder}/{source.stem}/{name}", content=content) for name, content in pictures
        ]
        for name, _ in pictures:
            text = text.replace(f"]({name})", f"]({source.stem}/{name})")
        return [make_page(path, text, config), *made]
    code = f"``````{LANGUAGES.get(source.suffix, 'text')}\n{source.read_text(encoding='utf-8')}\n``````"
    return [make_page(path, f"---\nsearch:\n  exclude: true\n---\n\n# `{path}`\n\n{code}\n", config)]


def find_title(source: Path) -> str:
    """Returns the title of a notebook, and the name of another file."""
    if source.suffix != ".ipynb":
        return f"`{source.name}`"
    text, _ = MarkdownExporter().from_filename(str(source))
    return re.search(r"^# (.*)", text, flags=re.M)[1]


def make_page(path: str, text: str, config: MkDocsConfig) -> File:
    return File.generated(config, find_uri(path), content=text)
