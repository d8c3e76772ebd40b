import pytest

import trl_rlp.quickstart


@pytest.mark.parametrize("name", trl_rlp.quickstart.__all__)
def test_every_public_name_exists_and_is_documented(name):
    value = vars(trl_rlp.quickstart)[name]
    assert value.__name__ == name
    assert value.__doc__ and len(value.__doc__.strip()) > 40
