"""Each method accepts the inputs that it needs, and no others."""

import pytest
from datasets import Dataset, DatasetDict
from trl.trainer.reward_trainer import DataCollatorForPreference

from tests.reward_runs import SameText, policy_samples, preferences, rlp_trainer, synthetic_preferences
from tests.tiny_models import tiny_reward_model, tiny_tokenizer
from trl_rlp.data.preferences.collator import SyntheticPreferenceCollator
from trl_rlp.data.preferences.preferences import tokenize_preferences
from trl_rlp.trainer.reward.refinement_inputs import RefinementInputs, check_preferences, describe_synthesis
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


INPUTS = {
    "policy_samples": policy_samples,
    "equivalence": SameText,
    "labeling_reward_model": lambda: tiny_reward_model(tiny_tokenizer()),
    "labeling_processing_class": tiny_tokenizer,
    "synthetic_dataset": synthetic_preferences,
}


@pytest.mark.parametrize("name", INPUTS)
def test_none_accepts_no_inputs(tmp_path, name):
    with pytest.raises(ValueError, match=f"`{name}` is not used with `method`='none'. Remove it"):
        rlp_trainer(tmp_path, method="none", **{name: INPUTS[name]()})


@pytest.mark.parametrize(
    "method, arguments",
    [
        ("uml", {"synthetic_dataset": synthetic_preferences()}),
        ("uml", {"labeling_reward_model": tiny_reward_model(tiny_tokenizer())}),
        ("uml", {"equivalence": SameText()}),
        ("spg", {"policy_samples": policy_samples()}),
        ("spg", {"labeling_processing_class": tiny_tokenizer()}),
    ],
)
def test_other_methods_do_not_accept_unused_inputs(tmp_path, method, arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"`{name}` is not used with `method`='{method}'"):
        rlp_trainer(tmp_path, method=method, **arguments)


WRONG_TYPES = {
    "labeler": (
        {"labeling_reward_model": "reward"},
        TypeError,
        "`labeling_reward_model` must be a model, got `str`",
    ),
    "equivalence": ({"equivalence": "exact"}, TypeError, "`equivalence` must be an object, got 'exact'"),
}


@pytest.mark.parametrize("arguments, error, match", WRONG_TYPES.values(), ids=WRONG_TYPES)
def test_inputs_of_a_wrong_type_are_an_error(tmp_path, arguments, error, match):
    valid = {"policy_samples": policy_samples(), "synthetic_dataset": None, "equivalence": SameText()}
    with pytest.raises(error, match=match):
        rlp_trainer(tmp_path, method="spg", **{**valid, **arguments})


def test_synthetic_pairs_may_be_token_ids_only(tmp_path):
    """A refinement inside a run keeps the pairs of its windows as token ids."""
    pairs = tokenize_preferences(synthetic_preferences(3), tiny_tokenizer())
    pairs = pairs.select_columns(["chosen_ids", "rejected_ids"])
    trainer = rlp_trainer(tmp_path, method="spg", synthetic_dataset=pairs)
    assert trainer.train_dataset["chosen_ids"][-3:] == pairs["chosen_ids"][:]


def test_splits_instead_of_data_are_named(tmp_path):
    pairs = DatasetDict(train=preferences(4), test=preferences(4))
    with pytest.raises(TypeError, match=r"`train_dataset` is a `DatasetDict` with the splits \['train', 'test'\]"):
        rlp_trainer(tmp_path, method="none", data=pairs)
    with pytest.raises(TypeError, match=r"`policy_samples` is a `DatasetDict` with the splits \['train'\]"):
        rlp_trainer(tmp_path, method="uml", policy_samples=DatasetDict(train=policy_samples()))


def test_pairs_and_an_eos_token_are_required():
    with pytest.raises(ValueError, match="`train_dataset` is empty"):
        check_preferences(preferences(4).select([]), None)
    with pytest.raises(ValueError, match=r"`train_dataset` lacks the columns \['chosen'\]"):
        check_preferences(preferences(4).remove_columns("chosen"), None)
    for name in ("chosen_ids", "chosen_input_ids"):  # TRL's new and old name for tokenized pairs
        check_preferences(Dataset.from_dict({name: [[1]], name.replace("chosen", "rejected"): [[2]]}), None)
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    for data in (preferences(4), preferences(4).to_iterable_dataset()):
        with pytest.raises(ValueError, match="`processing_class` has no EOS token, but pairs of text need one"):
            check_preferences(data, tokenizer)
    check_preferences(preferences(4), tokenizer, eos_token="<eos>")
    check_preferences(preferences(4, chat=True), tokenizer)
    check_preferences(Dataset.from_dict({"chosen_ids": [[1]], "rejected_ids": [[2]]}), tokenizer)


def test_pairs_to_evaluate_on_are_checked(tmp_path):
    pairs = preferences(4)
    wrong = pairs.remove_columns("rejected")
    with pytest.raises(ValueError, match=r"`eval_dataset` lacks the columns \['rejected'\]"):
        rlp_trainer(tmp_path, method="none", eval_dataset=wrong)
    with pytest.raises(ValueError, match=r"`eval_dataset\['hard'\]` lacks the columns \['rejected'\]"):
        check_preferences(pairs, None, {"easy": pairs, "hard": wrong})
    check_preferences(pairs, None, DatasetDict(easy=pairs))
    check_preferences(pairs, None, wrong.to_iterable_dataset())  # checked when it is read


MISSING = {
    "samples for uml": ("uml", {"policy_samples": None}, "`policy_samples` is None, but `method`='uml'"),
    "anything for spg": (
        "spg",
        {"synthetic_dataset": None},
        "`policy_samples` and `synthetic_dataset` are None, but `method`='spg'",
    ),
    "equivalence for spg": (
        "spg",
        {"synthetic_dataset": None, "policy_samples": policy_samples()},
        "`equivalence` is None, but `method`='spg' groups completions by meaning",
    ),
    "labeler for spg": (
        "spg",
        {"equivalence": SameText(), "policy_samples": policy_samples()},
        '`labeling_reward_model` is None, but `chosen`="reward".*or set `chosen`="random"',
    ),
    "tokenizer of a labeler": (
        "spg",
        {
            "equivalence": SameText(),
            "policy_samples": policy_samples(),
            "labeling_reward_model": tiny_reward_model(tiny_tokenizer()),
        },
        "`labeling_processing_class` is None, and `labeling_reward_model` was not loaded",
    ),
    "groups for views": (
        "uml",
        {"views_from": "group"},
        "`equivalence` is None, but `views_from`='group' needs groups",
    ),
    "one completion per prompt": (
        "uml",
        {
            "policy_samples": policy_samples().map(
                lambda row: {key: row[key][:1] for key in ("completions", "finished")}
            )
        },
        "`policy_samples` has 1 completions per prompt.*at least 2",
    ),
}


@pytest.mark.parametrize("method, arguments, message", MISSING.values(), ids=MISSING)
def test_a_missing_input_is_named(tmp_path, method, arguments, message):
    with pytest.raises(ValueError, match=message):
        rlp_trainer(tmp_path, method=method, **arguments)


def test_a_stream_cannot_be_mixed_with_synthetic_pairs(tmp_path):
    with pytest.raises(ValueError, match="`train_dataset` is an `IterableDataset`.*without streaming"):
        rlp_trainer(tmp_path, method="spg", data=preferences().to_iterable_dataset())


def test_the_labeling_model_must_not_be_the_model_to_train(tmp_path):
    tokenizer = tiny_tokenizer()
    model = tiny_reward_model(tokenizer)
    with pytest.raises(ValueError, match="`labeling_reward_model` is the model to train"):
        rlp_trainer(
            tmp_path,
            method="spg",
            model=model,
            policy_samples=policy_samples(),
            equivalence=SameText(),
            labeling_reward_model=model,
            labeling_processing_class=tokenizer,
        )


def test_views_need_a_collator_that_adds_them(tmp_path):
    with pytest.raises(ValueError, match="`data_collator` is a `DataCollatorForPreference`, which adds no views"):
        rlp_trainer(tmp_path, data_collator=DataCollatorForPreference(pad_token_id=0))
    with pytest.raises(ValueError, match="`data_collator` has no `views`.*Pass it a `ViewSampler`"):
        rlp_trainer(tmp_path, data_collator=SyntheticPreferenceCollator(pad_token_id=0))


def test_redrawing_needs_a_collator_that_draws_candidates(tmp_path):
    with pytest.raises(ValueError, match="`redraw_rejected` is True, but `data_collator` is a `DataCollatorForPref"):
        rlp_trainer(
            tmp_path, method="spg", redraw_rejected=True, data_collator=DataCollatorForPreference(pad_token_id=0)
        )


@pytest.mark.parametrize(
    ("inputs", "chosen", "text"),
    [
        ({"synthetic_dataset": synthetic_preferences()}, "random", ""),
        (
            {"policy_samples": policy_samples(), "equivalence": SameText()},
            "random",
            ", 4 completions of each prompt, γ = 0.5, groups by `SameText`, a random member of the largest group is "
            "chosen",
        ),
        (
            {
                "policy_samples": policy_samples().map(lambda row: {"cluster_ids": [0, 0, 0, 1], "confidence": 0.75}),
                "labeling_reward_model": tiny_reward_model(tiny_tokenizer()),
            },
            "reward",
            ", 4 completions of each prompt, γ = 0.5, the member with the highest reward is chosen, by a model "
            "without a name",
        ),
    ],
    ids=["ready", "random", "grouped"],
)
def test_a_card_says_what_the_trainer_knows_about_its_pairs(tmp_path, inputs, chosen, text):
    args = RLPRewardConfig(str(tmp_path), method="spg", chosen=chosen, use_cpu=True, bf16=False, report_to="none")
    inputs = RefinementInputs(**{**dict.fromkeys(INPUTS), **inputs})
    assert describe_synthesis(inputs, args) == text
