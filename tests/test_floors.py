"""The direction of imports: a package imports only from floors below its own (docs: the house)."""

import ast
from pathlib import Path

import pytest

import trl_rlp


ROOT = Path(trl_rlp.__file__).parent
FLOORS = {
    "losses": 0,
    "storage": 0,
    "data": 1,
    "evaluation": 2,
    "rewards": 2,
    "trainer": 3,
    "stages": 4,
    "pipeline": 5,
    "pipeline_config": 5,
    "rlp_ppo": 5,
    "quickstart": 6,
    "cli": 6,
}
FORBIDDEN_BELOW = {"losses": {"transformers", "trl", "datasets", "accelerate", "peft"}}


def imported_modules(path: Path) -> set[str]:
    """Every absolute module name that the file imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_the_floors(path):
    floor = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if floor == "__init__":
        return
    for name in imported_modules(path):
        top, *rest = name.split(".")
        assert top not in FORBIDDEN_BELOW.get(floor, set()), f"{path} imports {name}"
        assert not name.startswith("trl.experimental"), f"{path} imports {name}"
        if top == "trl_rlp" and rest and rest[0] in FLOORS:
            assert FLOORS[rest[0]] <= FLOORS[floor], f"{path} on floor {floor} imports {name} from above"


def test_every_package_has_a_floor():
    entries = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert entries - {"__init__", "__main__"} <= set(FLOORS)
