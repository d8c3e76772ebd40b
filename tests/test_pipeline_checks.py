"""The checks that step 5 in the loop adds. That checks come before any work is tested in test_pipeline.py."""

import logging

import pytest
from datasets import Dataset

from tests.reward_runs import SameText, preferences
from tests.tiny_models import save, tiny_causal_lm, tiny_tokenizer
from trl_rlp.pipeline_checks import require_run_arguments
from trl_rlp.pipeline_config import RLPConfig


TRAINING = {"use_cpu": True, "bf16": False, "per_device_train_batch_size": 4, "num_generations": 2, "max_steps": 3}


@pytest.fixture(scope="module")
def sft_model(tmp_path_factory):
    tokenizer = tiny_tokenizer()
    return save(tiny_causal_lm(tokenizer), tokenizer, tmp_path_factory.mktemp("sft"))


def check(sft_model, equivalence=None, **settings):
    reward_args = {"use_cpu": True, "bf16": False}
    config = RLPConfig("unused", sft_model, reward_args=reward_args, policy_args=TRAINING, **settings)
    prompts = Dataset.from_dict({"prompt": [f"{row}?" for row in range(8)]})
    require_run_arguments(config, equivalence, preferences(4), prompts, None, None)


def test_anchors_need_an_equivalence(sft_model):
    check(sft_model, method="uml")
    check(sft_model, method="uml", refine_every=1)
    check(sft_model, SameText(), method="uml", anchor_weight=3.0)
    with pytest.raises(
        ValueError, match="`equivalence` is None, but `anchor_weight`=3.0 compares completions with anch"
    ):
        check(sft_model, method="uml", anchor_weight=3.0)
    with pytest.raises(ValueError, match="`equivalence` is None, but `method`='spg' groups completions by meaning"):
        check(sft_model, method="spg", anchor_weight=3.0)


@pytest.mark.parametrize("policy_trainer", ["ppo", "rloo", "grpo"])
def test_a_schedule_longer_than_step_5_is_a_warning(sft_model, caplog, policy_trainer):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        check(sft_model, SameText(), policy_trainer=policy_trainer, refine_every=2)
        assert not caplog.records
        check(sft_model, SameText(), policy_trainer=policy_trainer, refine_every=3)
    finally:
        logger.removeHandler(caplog.handler)
    assert "`refine_every` is 3, but step 5 has 3 rollouts" in caplog.text
