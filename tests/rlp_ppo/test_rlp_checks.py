"""The checks alone. That they run before any work is tested in test_rlp_ppo_trainer.py."""

import logging

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, get_peft_model

from tests.ppo_runs import ppo_config, prompts
from tests.reward_runs import SameText, preferences
from tests.tiny_models import tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.rlp_ppo.rlp_checks import require_rlp_arguments
from trl_rlp.rlp_ppo.rlp_ppo_config import RLPPPOConfig
from trl_rlp.trainer.reward.methods import METHODS


def check(folder, method="spg", reward_args=None, loop=None, **changes) -> None:
    arguments = {
        "model": tiny_causal_lm(tiny_tokenizer()),
        "reward_model": tiny_reward_model(tiny_tokenizer()),
        "train_dataset": prompts(),
        "optimizers": (None, None),
        "preference_dataset": preferences(4),
        "equivalence": SameText(),
    }
    args = ppo_config(folder, RLPPPOConfig, rlp_method=method, rlp_reward_args=reward_args, **(loop or {}))
    require_rlp_arguments(args, **{**arguments, **changes})


@pytest.mark.parametrize("method", [method for method in METHODS if method != "none"])
@pytest.mark.parametrize("kind", ["text", "chat", "ids"])
def test_complete_arguments_are_accepted(tmp_path, method, kind):
    check(tmp_path, method, train_dataset=prompts(kind=kind))
    if method == "uml":
        check(tmp_path, method, equivalence=None)


def test_plain_ppo_needs_nothing_and_refuses_what_it_would_ignore(tmp_path):
    unused = {"preference_dataset": None, "equivalence": None}
    check(tmp_path, "none", **unused, reward_model=None, train_dataset=None)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    check(tmp_path, "none", **unused, optimizers=(optimizer, None))
    for name, value in (("preference_dataset", preferences(4)), ("equivalence", SameText())):
        with pytest.raises(ValueError, match=f'`{name}` is not used with `rlp_method`="none". Set `rlp_method` to'):
            check(tmp_path, "none", **{**unused, name: value})


ERRORS = {
    "no preferences": ({"preference_dataset": None}, "`preference_dataset` is None, but `rlp_method`='spg' needs it"),
    "columns": ({"preference_dataset": Dataset.from_dict({"text": ["a"]})}, "`preference_dataset` lacks the columns"),
    "no text": (
        {"preference_dataset": Dataset.from_dict({"chosen": ["yes"], "rejected": [None]})},
        "`preference_dataset` row 0: `rejected` must be text",
    ),
    "no equivalence": ({"equivalence": None}, "`equivalence` is None, but `rlp_method`='spg' groups completions"),
    "no equivalence for views of one group": (
        {"equivalence": None, "method": "uml", "reward_args": {"views_from": "group"}},
        "`equivalence` is None, but `rlp_method`='uml' groups completions",
    ),
    "no equivalence for anchors": (
        {"equivalence": None, "method": "uml", "loop": {"rlp_anchor_weight": 3.0}},
        "`equivalence` is None, but `rlp_anchor_weight`=3.0 compares completions with anchors",
    ),
    "views in the loop": (
        {"method": "uml", "loop": {"rlp_refine_every": 1}},
        "`num_generations` is 1, but with `rlp_refine_every` and the method 'uml' the views are",
    ),
    "pairs that are drawn again": (
        {"reward_args": {"redraw_rejected": True}, "loop": {"rlp_refine_every": 1}},
        "`rlp_reward_args.redraw_rejected` is True, but with `rlp_refine_every` the pairs",
    ),
    "no reward model": ({"reward_model": None}, "`reward_model` is None, but `rlp_method`='spg' refines it"),
    "adapted policy": (
        {"model": get_peft_model(tiny_causal_lm(tiny_tokenizer()), LoraConfig(target_modules=["q_proj"]))},
        "`model` is a `PeftModel`. Its training cannot start again",
    ),
    "no prompts": ({"train_dataset": None}, "`train_dataset` is None. Pass prompts"),
    "stream": (
        {"train_dataset": IterableDataset.from_generator(lambda: iter([{"prompt": "a"}]))},
        "`train_dataset` is a stream. Its prompts cannot be sampled again",
    ),
    "optimizer": (
        {"optimizers": (torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1), None)},
        "`optimizers` belong to one policy, but `rlp_method`='spg' trains two",
    ),
}


@pytest.mark.parametrize("arguments, match", ERRORS.values(), ids=ERRORS)
def test_invalid_arguments_are_named(tmp_path, arguments, match):
    with pytest.raises((TypeError, ValueError), match=match):
        check(tmp_path, **arguments)


def test_deepspeed_is_refused_because_it_holds_one_engine(tmp_path):
    args = ppo_config(tmp_path, RLPPPOConfig, rlp_method="spg")
    args.deepspeed_plugin = "ZeRO-2"
    policy, reward_model = tiny_causal_lm(tiny_tokenizer()), tiny_reward_model(tiny_tokenizer())
    with pytest.raises(ValueError, match="`rlp_method`='spg' trains several models inside one trainer, but DeepSpeed"):
        require_rlp_arguments(args, policy, reward_model, prompts(), (None, None), preferences(4), SameText())
    args.rlp_method = "none"
    require_rlp_arguments(args, policy, reward_model, prompts(), (None, None), None, None)


def test_a_quantized_policy_is_refused_before_the_first_training(tmp_path):
    policy = tiny_causal_lm(tiny_tokenizer())
    policy.config.quantization_config = {"load_in_4bit": True}
    with pytest.raises(ValueError, match="`model` is quantized. An adapter that is trained on it cannot be merged"):
        check(tmp_path, model=policy)


def test_answers_of_the_wrong_type_are_named(tmp_path):
    check(tmp_path, train_dataset=prompts().add_column("answers", ["a"] * 8))
    with pytest.raises(TypeError, match="`train_dataset` row 0: `answers` must be an accepted answer"):
        check(tmp_path, train_dataset=prompts().add_column("answers", [0.5] * 8))


def test_a_schedule_longer_than_the_run_is_a_warning(tmp_path, caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        check(tmp_path, loop={"rlp_refine_every": 2})
        assert not caplog.records
        check(tmp_path, loop={"rlp_refine_every": 3})
    finally:
        logger.removeHandler(caplog.handler)
    assert "`rlp_refine_every` is 3, but step 5 has 3 rollouts" in caplog.text
