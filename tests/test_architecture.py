"""docs/architecture.md lists exactly the files of the package, with the first line of each docstring."""

import ast
import re
from pathlib import Path

import trl_rlp


ROOT = Path(trl_rlp.__file__).parent
PAGE = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")


def first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]


def tree(folder: Path = ROOT, depth: int = 0) -> list[str]:
    """Returns a nested list as lines: a folder with the first line of its docstring, then its folders and files."""
    indent = "  " * depth
    lines = [f"{indent}- `{folder.name}/`: {first_line(folder / '__init__.py')}"]
    for entry in sorted(folder.iterdir(), key=lambda entry: (entry.is_file(), entry.name)):
        if (entry / "__init__.py").exists():
            lines += tree(entry, depth + 1)
        elif entry.suffix == ".py" and entry.name != "__init__.py":
            lines.append(f"{indent}  - `{entry.name}`: {first_line(entry)}")
    return lines


def test_the_tree_lists_every_file_with_its_first_line():
    expected = "\n".join(tree())
    written = PAGE.split("## The tree\n\n")[1].strip()
    assert written == expected, f"Write the tree like this:\n\n{expected}"


def test_the_names_on_the_page_exist():
    """Checks every path, and every constant in the text before the tree."""
    text = PAGE.split("## The tree")[0]
    paths = re.findall(r"`([a-z_]+(?:/[a-z_]+)*/?(?:\.py)?)`", text)
    known = {path for path in paths if "/" in path or path.endswith(".py")}
    missing = sorted(path for path in known if not (ROOT / path).exists() and not (ROOT.parent / path).exists())
    assert not missing
    source = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py"))
    for name in re.findall(r"`([A-Z][A-Z_]{3,})`", text):
        assert re.search(rf"^{name}\b", source, flags=re.M), name
