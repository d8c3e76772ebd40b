"""docs/architecture.md lists exactly the files of the package. Its names and those of AGENTS.md exist."""

import ast
import re
from pathlib import Path

import pytest

import trl_rlp
from trl_rlp.cli import main
from trl_rlp.cli.main import COMMANDS


ROOT = Path(trl_rlp.__file__).parent
PAGE = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
AGENTS = (Path(__file__).parents[1] / "AGENTS.md").read_text(encoding="utf-8")


def first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]


def tree(folder: Path = ROOT, depth: int = 0) -> list[str]:
    """Returns a nested list as lines: a folder with the first line of its docstring, then its folders and files."""
    indent = "    " * depth
    lines = [f"{indent}- `{folder.name}/`: {first_line(folder / '__init__.py')}"]
    for entry in sorted(folder.iterdir(), key=lambda entry: (entry.is_file(), entry.name)):
        if (entry / "__init__.py").exists():
            lines += tree(entry, depth + 1)
        elif entry.suffix == ".py" and entry.name != "__init__.py":
            lines.append(f"{indent}    - `{entry.name}`: {first_line(entry)}")
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


def read_options(command: str, capsys: pytest.CaptureFixture) -> set[str]:
    """Reads the options of a command from its help."""
    with pytest.raises(SystemExit):
        main([command, "--help"])
    return set(re.findall(r"^  (?:-\w, )?(--\w+)", capsys.readouterr().out, flags=re.M))


def test_the_options_on_the_page_exist(capsys):
    """Checks an option after `trl-rlp COMMAND` in that command, and every other option in all commands."""
    options = {command: read_options(command, capsys) for command in COMMANDS}
    used = re.findall(r"`(?:trl-rlp (\w+) )?(--\w+)", PAGE)
    assert len(used) == len(re.findall(r"--[a-z]\w+", PAGE)) > 0
    known = set().union(*options.values())
    assert [(command, option) for command, option in used if option not in options.get(command, known)] == []


def find_long_functions(tree: ast.Module) -> set[str]:
    """Finds functions of more than 50 lines from `def` to the end, without the docstring. Methods have their class."""
    owners = {
        id(function): node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for function in node.body
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            first = node.body[0]
            docstring = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) else 0
            if node.end_lineno - node.lineno + 1 - docstring > 50:
                found.add(f"{owners[id(node)]}.{node.name}" if id(node) in owners else node.name)
    return found


def test_agents_md_names_every_function_of_more_than_50_lines():
    rule = AGENTS.split("Functions have at most 50 lines")[1].split("\n-")[0]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in ROOT.rglob("*.py")]
    assert set().union(*map(find_long_functions, trees)) == set(re.findall(r"`([\w.]+)`", rule))
