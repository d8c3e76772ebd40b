"""A method gets what it needs, and nothing that it would ignore."""

import pytest
from datasets import Dataset
from trl.trainer.reward_trainer import DataCollatorForPreference

from tests.reward_runs import SameText, policy_samples, preferences, rlp_trainer, synthetic_preferences
from tests.tiny_models import tiny_reward_model, tiny_tokenizer
from trl_rlp.data.preferences.collator import SyntheticPreferenceCollator
from trl_rlp.trainer.reward.refinement_inputs import require_pairs


USELESS = {
    "policy_samples": policy_samples,
    "equivalence": SameText,
    "labeling_reward_model": lambda: tiny_reward_model(tiny_tokenizer()),
    "labeling_processing_class": tiny_tokenizer,
    "synthetic_dataset": synthetic_preferences,
}


@pytest.mark.parametrize("name", USELESS)
def test_none_takes_nothing_that_it_would_ignore(tmp_path, name):
    with pytest.raises(ValueError, match=f"`{name}` has no use with `method`='none'. Leave it out"):
        rlp_trainer(tmp_path, method="none", **{name: USELESS[name]()})


@pytest.mark.parametrize(
    "method, given",
    [
        ("uml", {"synthetic_dataset": synthetic_preferences()}),
        ("uml", {"labeling_reward_model": tiny_reward_model(tiny_tokenizer())}),
        ("uml", {"equivalence": SameText()}),
        ("spg", {"policy_samples": policy_samples()}),
        ("spg", {"labeling_processing_class": tiny_tokenizer()}),
    ],
)
def test_other_methods_take_nothing_that_they_would_ignore_either(tmp_path, method, given):
    (name,) = given
    with pytest.raises(ValueError, match=f"`{name}` has no use with `method`='{method}'"):
        rlp_trainer(tmp_path, method=method, **given)


OF_ANOTHER_TYPE = {
    "labeler": (
        {"labeling_reward_model": "reward"},
        TypeError,
        "`labeling_reward_model` must be a model, got `str`",
    ),
    "equivalence": ({"equivalence": "exact"}, TypeError, "`equivalence` must be an object, got 'exact'"),
}


@pytest.mark.parametrize("given, error, match", OF_ANOTHER_TYPE.values(), ids=OF_ANOTHER_TYPE)
def test_arguments_of_another_type_are_named(tmp_path, given, error, match):
    ready = {"policy_samples": policy_samples(), "synthetic_dataset": None, "equivalence": SameText()}
    with pytest.raises(error, match=match):
        rlp_trainer(tmp_path, method="spg", **{**ready, **given})


def test_pairs_and_an_end_of_text_are_needed():
    with pytest.raises(ValueError, match="`train_dataset` is empty"):
        require_pairs(preferences(4).select([]), None)
    with pytest.raises(ValueError, match=r"`train_dataset` lacks the columns \['chosen'\]"):
        require_pairs(preferences(4).remove_columns("chosen"), None)
    for name in ("chosen_ids", "chosen_input_ids"):  # what TRL takes tokenized, under its new name and its old one
        require_pairs(Dataset.from_dict({name: [[1]], name.replace("chosen", "rejected"): [[2]]}), None)
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="`processing_class` has no EOS token"):
        require_pairs(preferences(4), tokenizer)


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
        "`equivalence` is None, but `method`='spg' groups outputs by meaning",
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
    "one output a prompt": (
        "uml",
        {
            "policy_samples": policy_samples().map(
                lambda row: {key: row[key][:1] for key in ("completions", "finished")}
            )
        },
        "`policy_samples` has 1 completions a prompt.*at least 2",
    ),
}


@pytest.mark.parametrize("method, arguments, message", MISSING.values(), ids=MISSING)
def test_what_is_missing_is_named(tmp_path, method, arguments, message):
    with pytest.raises(ValueError, match=message):
        rlp_trainer(tmp_path, method=method, **arguments)


def test_a_stream_cannot_be_mixed_with_synthetic_pairs(tmp_path):
    with pytest.raises(ValueError, match="`train_dataset` is an `IterableDataset`.*without streaming"):
        rlp_trainer(tmp_path, method="spg", data=preferences().to_iterable_dataset())


def test_the_labeler_is_never_the_trained_model(tmp_path):
    tokenizer = tiny_tokenizer()
    model = tiny_reward_model(tokenizer)
    with pytest.raises(ValueError, match="`labeling_reward_model` is the model that is trained"):
        rlp_trainer(
            tmp_path,
            method="spg",
            model=model,
            policy_samples=policy_samples(),
            equivalence=SameText(),
            labeling_reward_model=model,
            labeling_processing_class=tokenizer,
        )


def test_views_need_a_collator_that_brings_them(tmp_path):
    with pytest.raises(ValueError, match="`data_collator` is a `DataCollatorForPreference`, which brings no views"):
        rlp_trainer(tmp_path, data_collator=DataCollatorForPreference(pad_token_id=0))
    with pytest.raises(ValueError, match="`data_collator` has no `views`.*Give it a `ViewSampler`"):
        rlp_trainer(tmp_path, data_collator=SyntheticPreferenceCollator(pad_token_id=0))


def test_redrawing_needs_a_collator_that_draws(tmp_path):
    with pytest.raises(ValueError, match="`redraw_rejected` is True, but `data_collator` is a `DataCollatorForPref"):
        rlp_trainer(
            tmp_path, method="spg", redraw_rejected=True, data_collator=DataCollatorForPreference(pad_token_id=0)
        )
