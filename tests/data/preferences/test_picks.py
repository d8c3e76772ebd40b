import logging

import pytest
from datasets import Dataset, Features, Json, List
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.groups import ExactMatch, cluster
from trl_rlp.data.preferences import collect_picks, synthesize_preferences
from trl_rlp.data.scoring import score, scoring_ids
from trl_rlp.evaluation import best_outputs
from trl_rlp.storage.json_files import write_rows
from trl_rlp.storage.loading import load_rows


TEXTS = ["Who?", "Why?", "When?", "Where?", "How?"]
COMPLETIONS = [
    ["a", "a", "b", "c"],  # a pair
    ["d", "d.", " d", "d"],  # one text, so there is a pick without a pair
    ["a", "b", "c", "d"],  # no majority
    ["e", "e", "e", "e"],  # one text, but unfinished
    ["", "", "", ""],  # no text
]


def build_samples(form="text"):
    prompts = TEXTS if form == "text" else [[{"role": "user", "content": text}] for text in TEXTS]
    finished = [[True] * 4, [False, True, True, True], [True] * 4, [False] * 4, [True] * 4]
    return Dataset.from_dict({"prompt": prompts, "completions": COMPLETIONS, "finished": finished})


@pytest.fixture(scope="module")
def models():
    tokenizer = tiny_tokenizer()
    return {"reward_model": tiny_reward_model(tokenizer), "reward_processing_class": tokenizer}


def synthesize(samples, models, **options):
    return synthesize_preferences(samples, "majority_best", equivalence=ExactMatch(), **models, **options)[0]


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("form", ["text", "chat"])
def test_each_prompt_with_a_finished_majority_has_a_pick(form, grouped, models):
    samples = build_samples(form)
    samples = cluster(samples, ExactMatch()) if grouped else samples
    pairs = synthesize(samples, models)
    picks = collect_picks(samples, pairs, **models)
    assert picks.column_names == ["prompt", "completion", "sample_row", "confidence", "reward"]
    assert pairs["sample_row"][:] == [0] and picks["sample_row"][:] == [0, 1]
    assert picks["confidence"][:] == [0.5, 1.0]
    assert picks["completion"][0] == pairs["chosen"][0] and picks["reward"][0] == pairs["chosen_reward"][0]
    prompt = samples["prompt"][1]
    rewards = score(*models.values(), [prompt] * 3, COMPLETIONS[1][1:])
    best = COMPLETIONS[1][1:][rewards.index(max(rewards))]
    assert picks["prompt"][1] == prompt and picks["reward"][1] == pytest.approx(max(rewards), abs=1e-6)
    assert picks["completion"][1] == (best if form == "text" else [{"role": "assistant", "content": best}])


def test_the_picks_are_what_is_selected_within_the_majority(models):
    """With groups, the rows of one text that the user's own groups leave out are no picks either."""
    samples = build_samples()
    best = best_outputs(samples, *models.values(), within="majority", equivalence=ExactMatch())
    expected = best.filter(lambda row: row["has_majority"] and row["finished"])
    picks = collect_picks(samples, synthesize(samples, models), **models)
    assert [*zip(picks["prompt"], picks["completion"], strict=True)] == [
        *zip(expected["prompt"], expected["completion"], strict=True)
    ]
    groups = {"cluster_ids": [[0, 0, 1, 2], [-1] * 4, [0, 1, 2, 3], [0] * 4, [-1] * 4]}
    groups["confidence"] = [0.5, 0.0, 0.25, 1.0, 0.0]
    for name, values in groups.items():
        samples = samples.add_column(name, values)
    picks = collect_picks(samples, synthesize(samples, models), **models)
    assert picks["sample_row"][:] == [0]


def test_an_unfinished_choice_is_no_pick(models, caplog):
    row = {"prompt": "Who?", "completions": ["a", "a", "b"], "finished": [False, False, True]}
    samples = Dataset.from_list([row])
    pairs = synthesize(samples, models, allow_unfinished_chosen=True)
    with caplog.at_level(logging.INFO, logger="trl_rlp"):
        picks = collect_picks(samples, pairs, **models)
    assert len(picks) == 0 and picks.column_names[:2] == ["prompt", "completion"]
    assert "0 of 1 prompts have a pick" in caplog.text


def test_a_begun_turn_moves_to_the_completion_and_tools_are_kept(models):
    prompt = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It is "}]
    tools = [[{"name": "f", "strict": True}], None]
    rows = [{"prompt": prompt, "completions": [*texts], "finished": [True] * 3} for texts in ("445", "444")]
    samples = Dataset.from_list([{**row, "tools": tool} for row, tool in zip(rows, tools, strict=True)])
    samples = samples.cast(Features({**samples.features, "tools": List(Json())}))
    picks = collect_picks(samples, synthesize(samples, models), **models)
    assert picks["prompt"][:] == [prompt[:1]] * 2 and picks["tools"][:] == tools
    assert picks["completion"][:] == [[{"role": "assistant", "content": "It is 4"}]] * 2


@pytest.mark.parametrize("form", ["text", "chat"])
def test_picks_and_pairs_train_the_trainers_of_trl(form, models, tmp_path):
    """The rejected completion is unfinished. TRL appends EOS to it."""
    samples, tokenizer = build_samples(form), models["reward_processing_class"]
    samples = samples.map(lambda row: {"finished": [True, True, False, False]})
    pairs = synthesize(samples, models)
    for name, rows in {"pairs": pairs, "picks": collect_picks(samples, pairs, **models)}.items():
        write_rows(tmp_path / f"{name}.jsonl", rows)
    policy = save(tiny_causal_lm(tokenizer), tokenizer, tmp_path / "policy")
    common = {"bf16": False, "use_cpu": True, "report_to": "none", "max_steps": 1, "logging_steps": 1}
    picks, pairs = (load_rows(str(tmp_path / f"{name}.jsonl")) for name in ("picks", "pairs"))
    args = SFTConfig(str(tmp_path / "sft"), **common)
    trainer = SFTTrainer(policy, args=args, train_dataset=picks, processing_class=tokenizer)
    trainer.train()
    ids = trainer.train_dataset[0]["input_ids"]
    assert ids == scoring_ids(tokenizer, samples["prompt"][0], "a") and tokenizer.eos_token_id in ids[-2:]
    assert trainer.state.log_history[0]["loss"] > 0
    args = DPOConfig(str(tmp_path / "dpo"), **common)
    trainer = DPOTrainer(policy, args=args, train_dataset=pairs, processing_class=tokenizer)
    trainer.train()
    assert pairs["rejected_finished"][:] == [False]
    assert tokenizer.eos_token_id in trainer.train_dataset[0]["rejected_ids"][-2:]
    # The loss is ln 2, because policy and reference are equal.
    assert trainer.state.log_history[0]["loss"] == pytest.approx(0.6931, abs=1e-3)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda pairs: pairs.remove_columns("sample_row"), r"`preferences` lacks the columns \['sample_row'\]"),
        (
            lambda pairs: pairs.map(lambda row: {"sample_row": 9}),
            "a pair of row 9 of its samples, but `samples` has 5",
        ),
        (
            lambda pairs: pairs.map(lambda row: {"sample_row": 1}),
            "a pair of row 1 of its .* or another prompt in this",
        ),
        (
            lambda pairs: pairs.map(lambda row: {"sample_row": None}),
            "`sample_row` is None. Pass .* `with_indices=True`",
        ),
        (lambda pairs: pairs.map(lambda row: {"confidence": None}), "`confidence` is None. Its method has no groups"),
    ],
)
@pytest.mark.parametrize("form", ["text", "chat"])
def test_preferences_of_other_samples_raise(form, change, match, models):
    samples = build_samples(form)
    with pytest.raises(ValueError, match=match):
        collect_picks(samples, change(synthesize(samples, models)), **models)


@pytest.mark.parametrize("form", ["text", "chat"])
def test_preferences_from_a_file_have_the_same_picks(form, models, tmp_path):
    """A key that only some messages have is None in the others, and missing in the file."""
    samples = build_samples(form)
    if form == "chat":
        prompts = [{**samples[0]["prompt"][0], "name": None}], [{**samples[1]["prompt"][0], "name": "Kim"}]
        samples = Dataset.from_dict({**samples[:2], "prompt": [*prompts]})
    pairs = synthesize(samples, models)
    write_rows(tmp_path / "pairs.jsonl", pairs)
    files = load_rows(str(tmp_path / "pairs.jsonl"))
    first, second = (collect_picks(samples, rows, **models).remove_columns("reward") for rows in (pairs, files))
    assert first.to_list() == second.to_list() and len(first) == 2
