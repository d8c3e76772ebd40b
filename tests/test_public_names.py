import subprocess
import sys

import pytest

import trl_rlp


@pytest.mark.parametrize("name", trl_rlp.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(trl_rlp, name)
    assert value.__name__ == name
    assert value.__doc__ and len(value.__doc__.strip()) > 40


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'PPOTrainer'"):
        trl_rlp.PPOTrainer  # noqa: B018


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, trl_rlp; assert not {'torch', 'trl', 'transformers', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "run_rlp" in dir(trl_rlp)
