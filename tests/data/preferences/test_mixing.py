import pytest
from datasets import Dataset
from trl import RewardConfig, RewardTrainer

from tests.tiny_models import tiny_reward_model, tiny_tokenizer
from trl_rlp.data.preferences.mixing import mix_preferences
from trl_rlp.data.preferences.preferences import tokenize_preferences


def human(rows=4, **overrides):
    columns = {
        "prompt": [f"p{row}" for row in range(rows)],
        "chosen": [f"good {row}" for row in range(rows)],
        "rejected": [f"bad {row}" for row in range(rows)],
    }
    return Dataset.from_dict({**columns, **overrides})


def synthetic(rows=3, **overrides):
    columns = {
        "prompt": [f"s{row}" for row in range(rows)],
        "chosen": [f"yes {row}" for row in range(rows)],
        "rejected": [f"no {row}" for row in range(rows)],
        "confidence": [0.5] * rows,
        "rejected_finished": [False] * rows,
    }
    return Dataset.from_dict({**columns, **overrides})


def test_the_default_is_the_union():
    mixed = mix_preferences(human(source=["hh"] * 4), synthetic())
    assert mixed["prompt"][:] == ["p0", "p1", "p2", "p3", "s0", "s1", "s2"]
    assert mixed["is_synthetic"][:] == [False] * 4 + [True] * 3
    assert mixed["confidence"][:] == [None] * 4 + [0.5] * 3
    assert mixed["source"][:] == ["hh"] * 4 + [None] * 3
    assert "margin" not in mixed.column_names


def test_synthetic_pairs_carry_margin_0_where_human_ones_have_a_margin():
    mixed = mix_preferences(human(margin=[1.0, 2.0, 3.0, 0.5]), synthetic(margin=[9] * 3))
    assert mixed["margin"][:] == [1.0, 2.0, 3.0, 0.5, 0.0, 0.0, 0.0]
    assert "margin" not in mix_preferences(human(), synthetic(margin=[9] * 3)).column_names


def test_a_share_keeps_all_human_pairs_and_draws_or_repeats_synthetic_ones():
    # 8 human pairs at a share of .2 ask for 8 * .2 / .8 = 2 synthetic ones; at .6 for 12, of which 3 exist.
    few = mix_preferences(human(8), synthetic(), synthetic_share=0.2)
    assert [prompt for prompt in few["prompt"] if prompt[0] == "p"] == [f"p{row}" for row in range(8)]
    drawn = [prompt for prompt in few["prompt"] if prompt[0] == "s"]
    assert len(drawn) == len(set(drawn)) == 2
    many = mix_preferences(human(8), synthetic(), synthetic_share=0.6)
    assert sorted(prompt for prompt in many["prompt"] if prompt[0] == "s") == ["s0"] * 4 + ["s1"] * 4 + ["s2"] * 4
    orders = {tuple(mix_preferences(human(8), synthetic(), 0.2, seed=seed)["prompt"][8:]) for seed in range(20)}
    assert len(orders) == 6
    assert (
        mix_preferences(human(8), synthetic(), 0.2, seed=3)["prompt"][:]
        == (mix_preferences(human(8), synthetic(), 0.2, seed=3)["prompt"][:])
    )


@pytest.mark.parametrize("share", [0.0, 1.0, -1])
def test_a_share_out_of_range_is_named(share):
    with pytest.raises(ValueError, match="`synthetic_share` must be between 0 and 1, both excluded, got"):
        mix_preferences(human(), synthetic(), synthetic_share=share)


@pytest.mark.parametrize("implicit", ["human", "synthetic"])
@pytest.mark.parametrize("form", ["text", "chat"])
def test_prompts_join_the_outputs_where_one_side_has_none(implicit, form):
    def convert(dataset):
        if form == "text":
            return dataset
        roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
        return dataset.map(lambda row: {key: [{"role": role, "content": row[key]}] for key, role in roles.items()})

    sets = {"human": convert(human(1)), "synthetic": convert(synthetic(1))}
    expected = [row["prompt"] + row["chosen"] for dataset in sets.values() for row in dataset]
    sets[implicit] = sets[implicit].map(
        lambda row: {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}, remove_columns="prompt"
    )
    mixed = mix_preferences(**sets)
    assert "prompt" not in mixed.column_names
    assert mixed["chosen"][:] == expected


def test_messages_with_other_fields_are_aligned():
    def chat(dataset, **fields):
        columns = ("prompt", "chosen", "rejected")
        return dataset.map(lambda row: {key: [{**fields, "content": row[key], "role": "user"}] for key in columns})

    mixed = mix_preferences(chat(human(1), name="Ann"), chat(synthetic(1)))
    assert mixed["prompt"][:] == [
        [{"name": "Ann", "content": "p0", "role": "user"}],
        [{"name": None, "content": "s0", "role": "user"}],
    ]


def test_sets_that_do_not_fit_are_named():
    tokenizer = tiny_tokenizer()
    with pytest.raises(ValueError, match="One of `human` and `synthetic` is tokenized and the other is not"):
        mix_preferences(tokenize_preferences(human(), tokenizer), synthetic())
    chats = {key: [[{"role": "user", "content": "a"}]] for key in ("prompt", "chosen", "rejected")}
    with pytest.raises(ValueError, match="`human` holds text and `synthetic` messages"):
        mix_preferences(human(), Dataset.from_dict(chats))
    with pytest.raises(ValueError, match="`synthetic` has candidates that need theirs. Call `tokenize_preferences`"):
        mix_preferences(human().remove_columns("prompt"), synthetic(candidates=[["a"]] * 3))
    with pytest.raises(ValueError, match=r"`human` lacks the columns \['rejected'\]"):
        mix_preferences(human().remove_columns("rejected"), synthetic())


@pytest.mark.parametrize("tokenized_first", [False, True])
def test_the_mixture_trains_an_unmodified_reward_trainer_with_the_right_ends(tokenized_first, tmp_path):
    tokenizer = tiny_tokenizer()
    people, machine = (
        human(margin=[0.1] * 4),
        synthetic(candidates=[["a", "b"]] * 3, candidates_finished=[[True] * 2] * 3),
    )
    if tokenized_first:
        mixed = mix_preferences(*(tokenize_preferences(pairs, tokenizer) for pairs in (people, machine)))
    else:
        mixed = tokenize_preferences(mix_preferences(people, machine), tokenizer)
    args = RewardConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none", max_steps=1, logging_steps=1)
    trainer = RewardTrainer(tiny_reward_model(tokenizer), args, train_dataset=mixed, processing_class=tokenizer)
    trainer.train()
    eos = tokenizer.eos_token_id
    assert [ids[-1] == eos for ids in mixed["rejected_ids"]] == [True] * 4 + [False] * 3
    assert all(ids[-1] == eos for ids in mixed["chosen_ids"])
    assert mixed["candidate_ids"][0] is None and len(mixed["candidate_ids"][4]) == 2
