import pytest
from trl import GRPOConfig

from tests.ppo_runs import ppo_config
from trl_rlp.trainer.hub_options import hub_options


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, {"trust_remote_code": False}),
        ({"trust_remote_code": True}, {"trust_remote_code": True}),
        (
            {"trust_remote_code": True, "model_init_kwargs": {"revision": "v1", "dtype": "bfloat16"}},
            {"trust_remote_code": True, "revision": "v1"},
        ),
        ({"model_init_kwargs": {"trust_remote_code": True}}, {"trust_remote_code": True}),
    ],
    ids=str,
)
def test_revision_and_trust_come_from_the_configuration(tmp_path, settings, expected):
    assert hub_options(ppo_config(tmp_path, **settings)) == expected
    assert hub_options(GRPOConfig(str(tmp_path), bf16=False, use_cpu=True, **settings)) == expected
