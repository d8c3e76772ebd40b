"""A method gets what it needs, and nothing that it would ignore."""

import pytest
from trl.trainer.reward_trainer import DataCollatorForPreference

from tests.reward_runs import SameText, policy_samples, preferences, rlp_trainer, synthetic_preferences
from tests.tiny_models import tiny_reward_model, tiny_tokenizer
from trl_rlp.data.collator import SyntheticPreferenceCollator


USELESS = {
    "policy_samples": policy_samples,
    "equivalence": SameText,
    "labelling_reward_model": lambda: tiny_reward_model(tiny_tokenizer()),
    "labelling_processing_class": tiny_tokenizer,
    "synthetic_dataset": synthetic_preferences,
}


@pytest.mark.parametrize("name", USELESS)
def test_none_takes_nothing_that_it_would_ignore(tmp_path, name):
    with pytest.raises(ValueError, match=f'`{name}` has no use with `method`="none". Set `method`'):
        rlp_trainer(tmp_path, method="none", **{name: USELESS[name]()})


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
    "labeller for spg": (
        "spg",
        {"equivalence": SameText(), "policy_samples": policy_samples()},
        '`labelling_reward_model` is None, but `chosen`="reward".*or set `chosen`="random"',
    ),
    "tokenizer of a labeller": (
        "spg",
        {
            "equivalence": SameText(),
            "policy_samples": policy_samples(),
            "labelling_reward_model": tiny_reward_model(tiny_tokenizer()),
        },
        "`labelling_processing_class` is None, and `labelling_reward_model` was not loaded",
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


def test_the_labeller_is_never_the_trained_model(tmp_path):
    tokenizer = tiny_tokenizer()
    model = tiny_reward_model(tokenizer)
    with pytest.raises(ValueError, match="`labelling_reward_model` is the model that is trained"):
        rlp_trainer(
            tmp_path,
            method="spg",
            model=model,
            policy_samples=policy_samples(),
            equivalence=SameText(),
            labelling_reward_model=model,
            labelling_processing_class=tokenizer,
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
