import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import trl_rlp


ROOMS = [
    "trl_rlp.data",
    "trl_rlp.data.anchors",
    "trl_rlp.data.groups",
    "trl_rlp.data.judges",
    "trl_rlp.data.preferences",
    "trl_rlp.data.sampling",
    "trl_rlp.evaluation",
    "trl_rlp.losses",
    "trl_rlp.quickstart",
    "trl_rlp.report",
    "trl_rlp.rewards",
    "trl_rlp.rlp_ppo",
    "trl_rlp.storage",
    "trl_rlp.trainer.callbacks",
    "trl_rlp.trainer.ppo",
    "trl_rlp.trainer.reward",
]


@pytest.mark.parametrize("name", trl_rlp.__all__)
def test_every_public_name_exists_and_is_documented(name):
    value = getattr(trl_rlp, name)
    assert value.__name__ == name
    assert value.__doc__ and len(value.__doc__.strip()) > 40


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_names_its_public_names(room):
    module = importlib.import_module(room)
    assert module.__doc__ and len(module.__all__) == len(set(module.__all__))
    for name in module.__all__:
        value = getattr(module, name)
        assert not inspect.isroutine(value) and not inspect.isclass(value) or value.__doc__, name


@pytest.mark.parametrize("room", ["trl_rlp", *ROOMS])
def test_no_public_name_hides_a_module(room):
    """Otherwise `import trl_rlp.room.name as module` would get a function."""
    module = importlib.import_module(room)
    files = {path.stem for path in Path(module.__file__).parent.iterdir()}
    assert not files & set(module.__all__)


def test_the_top_level_is_small():
    assert len(trl_rlp.__all__) <= 40


def test_type_checkers_see_the_names_that_are_imported_lazily():
    """The imports below `TYPE_CHECKING`, the modules that names come from, and `__all__` are the same."""
    tree = ast.parse(Path(trl_rlp.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == trl_rlp._HOME and set(seen) == set(trl_rlp.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'DPOTrainer'"):
        trl_rlp.DPOTrainer  # noqa: B018


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, trl_rlp; assert not {'torch', 'trl', 'transformers', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "run_rlp" in dir(trl_rlp)
