"""The direction of imports: a package imports only from floors below its own (docs/architecture.md)."""

import ast
from pathlib import Path

import pytest

import trl_rlp


ROOT = Path(trl_rlp.__file__).parent
FLOORS = {
    "losses": 0,
    "storage": 0,
    "data": 1.0,
    "data.sampling": 1.1,
    "data.groups": 1.1,
    "data.judges": 1.1,
    "data.anchors": 1.15,
    "data.preferences": 1.2,
    "evaluation": 2,
    "rewards": 2,
    "trainer": 3.0,
    "trainer.reward": 3.1,
    "trainer.ppo": 3.1,
    "trainer.callbacks": 3.2,
    "stages": 4,
    "pipeline_presets": 5.0,
    "pipeline_config": 5.02,
    "pipeline_checks": 5.05,
    "memory_estimate": 5.1,
    "pipeline": 5.1,
    "rlp_ppo": 5.2,
    "report": 5.3,
    "quickstart": 6.0,
    "cli": 6.1,
}
"""Floor of each room. Two rooms on one floor do not import from each other: PPO knows nothing about RLP."""

FORBIDDEN = {"losses": {"transformers", "trl", "datasets", "accelerate", "peft"}}


def room(name: str) -> str:
    """Returns the room of a module, for example `data.groups` for `data.groups.nli`."""
    parts = name.split(".")
    return next(".".join(parts[:end]) for end in range(len(parts), 0, -1) if ".".join(parts[:end]) in FLOORS)


def imported_modules(path: Path) -> set[str]:
    """Returns every absolute module name that the file imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_the_floors(path):
    relative = path.relative_to(ROOT)
    if relative.parts[0] == "__init__.py":
        return
    own = room(".".join(relative.with_suffix("").parts))
    for name in imported_modules(path):
        top, _, rest = name.partition(".")
        assert top not in FORBIDDEN.get(own, set()), f"{path} imports {name}"
        assert not name.startswith("trl.experimental"), f"{path} imports {name}"
        if top == "trl_rlp" and rest:
            other = room(rest)
            assert other == own or FLOORS[other] < FLOORS[own], (
                f"{path} in {own} imports {name}, which is not below it"
            )


def test_every_package_has_a_floor():
    entries = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert entries - {"__init__", "__main__"} <= set(FLOORS)
