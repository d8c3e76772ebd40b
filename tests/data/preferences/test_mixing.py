import pytest
from datasets import Dataset, Features, Json, List, Value
from trl import RewardConfig, RewardTrainer

from tests.tiny_models import tiny_reward_model, tiny_tokenizer
from trl_rlp.data.preferences.mixing import mix_preferences
from trl_rlp.data.preferences.preferences import tokenize_preferences
from trl_rlp.data.turns import drop_missing_keys


def build_human(rows=4, **overrides):
    columns = {
        "prompt": [f"p{row}" for row in range(rows)],
        "chosen": [f"good {row}" for row in range(rows)],
        "rejected": [f"bad {row}" for row in range(rows)],
    }
    return Dataset.from_dict({**columns, **overrides})


def build_synthetic(rows=3, **overrides):
    columns = {
        "prompt": [f"s{row}" for row in range(rows)],
        "chosen": [f"yes {row}" for row in range(rows)],
        "rejected": [f"no {row}" for row in range(rows)],
        "confidence": [0.5] * rows,
        "rejected_finished": [False] * rows,
    }
    return Dataset.from_dict({**columns, **overrides})


def test_the_default_is_the_union():
    mixed = mix_preferences(build_human(source=["hh"] * 4), build_synthetic())
    assert mixed["prompt"][:] == ["p0", "p1", "p2", "p3", "s0", "s1", "s2"]
    assert mixed["is_synthetic"][:] == [False] * 4 + [True] * 3
    assert mixed["confidence"][:] == [None] * 4 + [0.5] * 3
    assert mixed["source"][:] == ["hh"] * 4 + [None] * 3
    assert "margin" not in mixed.column_names


def test_synthetic_pairs_get_margin_0_if_human_pairs_have_a_margin():
    mixed = mix_preferences(build_human(margin=[1.0, 2.0, 3.0, 0.5]), build_synthetic(margin=[9] * 3))
    assert mixed["margin"][:] == [1.0, 2.0, 3.0, 0.5, 0.0, 0.0, 0.0]
    assert "margin" not in mix_preferences(build_human(), build_synthetic(margin=[9] * 3)).column_names


def test_a_share_keeps_all_human_pairs_and_draws_or_repeats_synthetic_pairs():
    # With 8 human pairs, a share of 0.2 needs 8 * 0.2 / 0.8 = 2 synthetic pairs. A share of 0.6 needs 12, and 3 exist.
    few = mix_preferences(build_human(8), build_synthetic(), synthetic_share=0.2)
    assert [prompt for prompt in few["prompt"] if prompt[0] == "p"] == [f"p{row}" for row in range(8)]
    drawn = [prompt for prompt in few["prompt"] if prompt[0] == "s"]
    assert len(drawn) == len(set(drawn)) == 2
    many = mix_preferences(build_human(8), build_synthetic(), synthetic_share=0.6)
    assert sorted(prompt for prompt in many["prompt"] if prompt[0] == "s") == ["s0"] * 4 + ["s1"] * 4 + ["s2"] * 4


def test_the_draw_depends_on_the_seed():
    mixtures = [mix_preferences(build_human(8), build_synthetic(), 0.2, seed=seed)["prompt"][:] for seed in range(20)]
    assert len({tuple(prompts[8:]) for prompts in mixtures}) == 6
    assert mixtures[3] == mix_preferences(build_human(8), build_synthetic(), 0.2, seed=3)["prompt"][:]


@pytest.mark.parametrize("share", [0.0, 1.0, -1])
def test_a_share_out_of_range_raises(share):
    with pytest.raises(ValueError, match="`synthetic_share` must be between 0 and 1, both excluded, got"):
        mix_preferences(build_human(), build_synthetic(), synthetic_share=share)


@pytest.mark.parametrize("implicit", ["human", "synthetic"])
@pytest.mark.parametrize("form", ["text", "chat"])
def test_prompts_join_the_completions_if_one_dataset_has_no_prompts(implicit, form):
    def convert(dataset):
        if form == "text":
            return dataset
        roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
        return dataset.map(lambda row: {key: [{"role": role, "content": row[key]}] for key, role in roles.items()})

    sets = {"human": convert(build_human(1)), "synthetic": convert(build_synthetic(1))}
    expected = [row["prompt"] + row["chosen"] for dataset in sets.values() for row in dataset]
    sets[implicit] = sets[implicit].map(
        lambda row: {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}, remove_columns="prompt"
    )
    mixed = mix_preferences(**sets)
    assert "prompt" not in mixed.column_names
    assert mixed["chosen"][:] == expected


def test_messages_with_different_fields_are_aligned():
    def convert_to_chat(dataset, **fields):
        columns = ("prompt", "chosen", "rejected")
        return dataset.map(lambda row: {key: [{**fields, "content": row[key], "role": "user"}] for key in columns})

    mixed = mix_preferences(convert_to_chat(build_human(1), name="Ann"), convert_to_chat(build_synthetic(1)))
    assert mixed["prompt"][:] == [
        [{"name": "Ann", "content": "p0", "role": "user"}],
        [{"name": None, "content": "s0", "role": "user"}],
    ]


QUESTION = [{"role": "user", "content": "q"}]
NAMED = [{"role": "user", "content": "q", "name": "Ann"}]
CALLS = [[{"role": "user", "content": "q", "call": {"arguments": {name: 1}}}] for name in "ab"]


@pytest.mark.parametrize(
    ("column", "human", "synthetic", "kind"),
    [
        ("prompt", QUESTION, NAMED, None),
        ("prompt", NAMED, QUESTION, None),
        ("prompt", QUESTION, NAMED, List(Json())),
        ("prompt", *CALLS, None),
        ("k", 1, 1.5, None),
        ("k", 1.5, 1, None),
        ("chat_template_kwargs", {"a": 1}, {"b": 1}, None),
    ],
)
@pytest.mark.parametrize("is_json_in_human", [True, False])
def test_the_wider_type_holds_the_values_of_both(column, human, synthetic, kind, is_json_in_human):
    pair = {"prompt": QUESTION, "chosen": QUESTION, "rejected": QUESTION}
    rows = [[{**pair, column: value}] for value in (human, synthetic)]
    datasets = [Dataset.from_list(row) for row in rows]
    if kind is not None:
        at = 0 if is_json_in_human else 1
        datasets[at] = Dataset.from_list(rows[at], features=Features({**datasets[at].features, column: kind}))
    mixed = mix_preferences(*datasets)[column]
    if column == "prompt":
        mixed = [drop_missing_keys(prompt) for prompt in mixed]
    assert list(mixed) == [human, synthetic]


def test_types_that_no_type_holds_are_an_error_in_one_line():
    pair = {"chosen": "a", "rejected": "b"}
    datasets = [Dataset.from_list([{**pair, "k": value}]) for value in ([1], [{"a": 1}])]
    with pytest.raises(ValueError, match="The column `k` holds Value.* in `human` and {.* in `synthetic`. Rename it"):
        mix_preferences(*datasets)
    narrow = Dataset.from_list([{**pair, "k": 1}]).cast_column("k", Value("int8"))
    with pytest.raises(ValueError, match=r"types of `human` and `synthetic` differ .*300.*Cast both to the same"):
        mix_preferences(narrow, Dataset.from_list([{**pair, "k": 300}]))


def test_datasets_that_do_not_fit_raise():
    tokenizer = tiny_tokenizer()
    with pytest.raises(ValueError, match="One of `human` and `synthetic` is tokenized and the other is not"):
        mix_preferences(tokenize_preferences(build_human(), tokenizer), build_synthetic())
    chats = {key: [[{"role": "user", "content": "a"}]] for key in ("prompt", "chosen", "rejected")}
    with pytest.raises(ValueError, match="`human` holds text and `synthetic` holds messages"):
        mix_preferences(build_human(), Dataset.from_dict(chats))
    with pytest.raises(ValueError, match="`candidates` of `synthetic` need their prompts. Call `tokenize_pref"):
        mix_preferences(build_human().remove_columns("prompt"), build_synthetic(candidates=[["a"]] * 3))
    with pytest.raises(ValueError, match=r"`human` lacks the columns \['rejected'\]"):
        mix_preferences(build_human().remove_columns("rejected"), build_synthetic())


@pytest.mark.parametrize("tokenized_first", [False, True])
def test_the_mixture_trains_an_unmodified_reward_trainer_with_eos_for_finished_completions(tokenized_first, tmp_path):
    tokenizer = tiny_tokenizer()
    human = build_human(margin=[0.1] * 4)
    synthetic = build_synthetic(candidates=[["a", "b"]] * 3, candidates_finished=[[True] * 2] * 3)
    if tokenized_first:
        mixed = mix_preferences(*(tokenize_preferences(pairs, tokenizer) for pairs in (human, synthetic)))
    else:
        mixed = tokenize_preferences(mix_preferences(human, synthetic), tokenizer)
    args = RewardConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none", max_steps=1, logging_steps=1)
    trainer = RewardTrainer(tiny_reward_model(tokenizer), args, train_dataset=mixed, processing_class=tokenizer)
    trainer.train()
    eos = tokenizer.eos_token_id
    assert [ids[-1] == eos for ids in mixed["rejected_ids"]] == [True] * 4 + [False] * 3
    assert all(ids[-1] == eos for ids in mixed["chosen_ids"])
    assert mixed["candidate_ids"][0] is None and len(mixed["candidate_ids"][4]) == 2


def test_template_arguments_that_human_pairs_lack_are_empty():
    """TRL reads the column as a dict, and fails for `None`. A key with `None` would be defined for the template."""
    turn = [{"role": "assistant", "content": "yes"}]
    human = Dataset.from_dict({"chosen": [turn], "rejected": [turn]})
    synthetic = human.add_column("chat_template_kwargs", [{"enable_thinking": False}])
    assert list(mix_preferences(human, synthetic)["chat_template_kwargs"]) == [{}, {"enable_thinking": False}]
