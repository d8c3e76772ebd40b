import logging

import pytest
from datasets import Dataset, concatenate_datasets
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.groups import ExactMatch, cluster
from trl_rlp.data.judges.asked_judge import AskedJudge
from trl_rlp.data.preferences import pairing
from trl_rlp.data.preferences.preferences import GENERATORS, REJECTIONS, synthesize_preferences, tokenize_preferences
from trl_rlp.data.scoring import score, scoring_ids


PROMPTS = ["2 + 2 = ", "Who?", "Why?"]
COMPLETIONS = [["4", "four", "5", "4."], ["Ada", "Bob", "Cyd", "Dan"], ["so", "so.", " so", "so"]]
GROUPS = [[0, 0, 1, 0], [0, 1, 2, 3], [0, 0, 0, 0]]


def build_samples(form="text", finished=None, **overrides):
    prompts = [[{"role": "user", "content": prompt}] for prompt in PROMPTS] if form == "chat" else PROMPTS
    columns = {
        "prompt": prompts,
        "completions": COMPLETIONS,
        "finished": finished or [[True] * 4] * 3,
        "cluster_ids": GROUPS,
        "confidence": [0.75, 0.25, 1.0],
        **overrides,
    }
    return Dataset.from_dict(columns)


def prefer_first(prompts, firsts, seconds):
    return [0.8] * len(prompts)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_reward_model(tokenizer)


@pytest.fixture
def labelers(model, tokenizer):
    return {"reward_model": model, "reward_processing_class": tokenizer, "judge": prefer_first}


def test_spg_labels_with_the_reward_model_and_fills_the_audit_columns(model, tokenizer, labelers):
    pairs, rejections = synthesize_preferences(build_samples(), "spg", **labelers)
    (pair,) = pairs
    rewards = score(model, tokenizer, ["2 + 2 = "] * 4, COMPLETIONS[0])
    best = max((0, 1, 3), key=lambda index: rewards[index])
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == ("2 + 2 = ", COMPLETIONS[0][best], "5")
    audit = {
        "sample_row": 0,
        "confidence": 0.75,
        "group_sizes": [3, 1],
        "chosen_cluster_id": 0,
        "rejected_cluster_id": 1,
        "chosen_finished": True,
        "rejected_finished": True,
        "label_probability": None,
    }
    assert {name: pair[name] for name in audit} == audit
    assert pair["chosen_reward"] == pytest.approx(rewards[best], abs=1e-6)
    assert pair["rejected_reward"] == pytest.approx(rewards[2], abs=1e-6)
    counts = {"below_threshold": 1, "single_member": 0, "all_agree": 1, "nothing_left": 0, "ties": 0, "not_judged": 0}
    assert rejections == counts
    assert "margin" not in pairs.column_names


@pytest.mark.parametrize("method", GENERATORS)
def test_every_prompt_has_a_pair_or_is_counted(method, labelers):
    pairs, rejections = synthesize_preferences(build_samples(), method, **labelers)
    assert set(rejections) == set(REJECTIONS)
    assert len(pairs) + sum(rejections.values()) == 3
    again, _ = synthesize_preferences(build_samples(), method, **labelers)
    assert again.to_list() == pairs.to_list()


def test_reward_labels_agree_with_the_reward_model(labelers):
    pairs, _ = synthesize_preferences(build_samples(), "reward", **labelers)
    assert all(pair["chosen_reward"] > pair["rejected_reward"] for pair in pairs)
    assert all(pair["label_probability"] > 0.5 and pair["confidence"] is None for pair in pairs)


def test_without_a_reward_model_the_reward_columns_are_empty_but_typed(labelers):
    rewarded, _ = synthesize_preferences(build_samples(), "spg", chosen="random", **labelers)
    for method, arguments in (("spg", {"chosen": "random"}), ("rlaif", {"judge": prefer_first})):
        pairs, _ = synthesize_preferences(build_samples(), method, **arguments)
        assert set(pairs["chosen_reward"]) == {None}
        assert pairs.features == rewarded.features
        concatenate_datasets([pairs, rewarded])


@pytest.mark.parametrize("keep_candidates", [False, True])
@pytest.mark.parametrize("form", ["text", "chat"])
def test_the_result_trains_the_trainers_of_trl(form, keep_candidates, tokenizer, model, tmp_path, labelers):
    pairs, _ = synthesize_preferences(build_samples(form), "select_all", keep_candidates=keep_candidates, **labelers)
    assert len(pairs) == 2
    if form == "chat":
        assert pairs[0]["chosen"][0]["role"] == "assistant"
        assert pairs[0]["prompt"] == [{"role": "user", "content": "2 + 2 = "}]
    common = {"bf16": False, "use_cpu": True, "report_to": "none", "max_steps": 1, "logging_steps": 1}
    args = RewardConfig(str(tmp_path / "reward"), **common)
    trainer = RewardTrainer(tiny_reward_model(tokenizer), args, train_dataset=pairs, processing_class=tokenizer)
    trainer.train()
    prompts, sides = [*pairs["prompt"]] * 2, [*pairs["chosen"], *pairs["rejected"]]
    ids = [scoring_ids(tokenizer, *row) for row in zip(prompts, sides, strict=True)]
    assert [*trainer.train_dataset["chosen_ids"], *trainer.train_dataset["rejected_ids"]] == ids
    args = DPOConfig(str(tmp_path / "dpo"), **common)
    policy = save(tiny_causal_lm(tokenizer), tokenizer, tmp_path / "policy")
    trainer = DPOTrainer(policy, args=args, train_dataset=pairs, processing_class=tokenizer)
    trainer.train()
    # The loss is ln 2, because policy and reference are equal.
    assert trainer.state.log_history[0]["loss"] == pytest.approx(0.6931, abs=1e-3)


def test_candidates_are_all_completions_outside_the_group(labelers):
    rows = build_samples(
        finished=[[True, True, False, True]] * 3,
        cluster_ids=[[0, 1, 2, 1], [0, 1, 2, 3], [0] * 4],
        confidence=[0.5, 0.25, 1.0],
    )
    (pair,), _ = synthesize_preferences(rows, "spg", keep_candidates=True, **labelers)
    assert pair["candidates"] == ["4", "5"]
    assert pair["candidates_finished"] == [True, False]
    assert pair["rejected"] in pair["candidates"] and pair["chosen"] in ("four", "4.")


def test_an_unfinished_completion_is_chosen_only_if_allowed(labelers):
    rows = build_samples(finished=[[False, False, True, True]] * 3)
    (pair,), _ = synthesize_preferences(rows, "spg", **labelers)
    assert pair["chosen"] == "4." and pair["chosen_finished"]
    rows = build_samples(finished=[[False, False, True, False]] * 3)
    with pytest.raises(ValueError, match="allow_unfinished_chosen=True"):
        synthesize_preferences(rows.select([0]), "spg", **labelers)
    (pair,), _ = synthesize_preferences(rows, "spg", allow_unfinished_chosen=True, **labelers)
    assert not pair["chosen_finished"] and pair["rejected_finished"]


def test_a_result_without_pairs_raises_with_counts_and_remedy(labelers):
    message = r"None of 3 prompts has a pair. Rejected: \{'below_threshold': 2, 'all_agree': 1\}. Lower `threshold`"
    with pytest.raises(ValueError, match=message):
        synthesize_preferences(build_samples(), "spg", threshold=0.8, **labelers)
    with pytest.raises(ValueError, match="Sample at a higher temperature"):
        synthesize_preferences(build_samples().select([2]), "spg", **labelers)


@pytest.mark.parametrize("method", ["spg", "majority_best"])
def test_a_threshold_of_at_most_one_completion_logs_a_warning(method, labelers, caplog):
    logging.Logger.warning_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        synthesize_preferences(build_samples(), method, threshold=0.5, **labelers)
        assert not caplog.records
        synthesize_preferences(build_samples(), method, threshold=0.25, **labelers)
    assert "A confidence threshold of 0.25 of 4 completions is at most one completion" in caplog.text


def test_many_shards_log_one_warning(caplog):
    """Each shard is grouped on its own. `select_all` has no threshold to warn of."""
    logging.Logger.warning_once.cache_clear()
    rows = [{"prompt": f"q{row}", "completions": ["4", "4", "4", "5"], "finished": [True] * 4} for row in range(20)]
    options = {"equivalence": ExactMatch(), "chosen": "random", "shard_size": 4}
    with caplog.at_level(logging.WARNING):
        synthesize_preferences(Dataset.from_list(rows), "select_all", **options)
        assert not caplog.records
        synthesize_preferences(Dataset.from_list(rows), "spg", threshold=0.2, **options)
    (record,) = caplog.records
    assert "so every prompt with two completions that agree is accepted" in record.getMessage()


@pytest.mark.parametrize(
    ("method", "overrides", "match"),
    [
        (
            "best",
            {},
            r"`method` must be one of \['majority_best', 'reward', 'rlaif', 'select_all', 'spg'\], got 'best'",
        ),
        ("spg", {"chosen": "longest"}, r"`chosen` must be one of \['random', 'reward'\], got 'longest'"),
        ("spg", {"threshold": 1.5}, r"`threshold` is a share of the completions and must be in \[0, 1\], got 1.5"),
        ("spg", {"seed": -1}, "`seed` must be at least 0, got -1"),
        ("reward", {"keep_candidates": True}, "`keep_candidates` must be False with `method`='reward'"),
        ("spg", {"reward_model": None}, "`reward_model` is None, but `method`='spg' with `chosen`='reward' scores"),
        ("reward", {"reward_model": None, "chosen": "random"}, "`reward_model` is None, but `method`='reward'"),
        ("rlaif", {"judge": None}, "`judge` is None"),
        ("majority_best", {"reward_model": None}, "`reward_model` is None, but `method`='majority_best'"),
        ("majority_best", {"chosen": "random"}, "`chosen` must be 'reward' with `method`='majority_best'"),
        ("spg", {"reward_processing_class": None}, "`reward_processing_class` is None. Pass the tokenizer"),
    ],
)
def test_invalid_arguments_raise(method, overrides, match, labelers):
    with pytest.raises(ValueError, match=match):
        synthesize_preferences(build_samples(), method, **{**labelers, **overrides})


@pytest.mark.parametrize(
    ("kind", "missing", "match"),
    [
        ("GROUP_GENERATORS", {"reward_model": None}, "`reward_model` is None, but `method`='new'"),
        ("REWARD_GENERATORS", {"reward_model": None}, "`reward_model` is None, but `method`='new'"),
        ("JUDGE_GENERATORS", {"judge": None}, "`judge` is None, but `method`='new'"),
    ],
)
def test_the_dict_of_a_generator_decides_which_arguments_it_needs(kind, missing, match, labelers, monkeypatch):
    for name in (kind, "GENERATORS"):
        monkeypatch.setitem(vars(pairing)[name], "new", pairing.spg)
    assert len(synthesize_preferences(build_samples(), "new", **labelers)[0]) == 1
    with pytest.raises(ValueError, match=match):
        synthesize_preferences(build_samples(), "new", **{**labelers, **missing})


@pytest.mark.parametrize("method", pairing.GROUP_GENERATORS)
def test_samples_without_groups_are_clustered(method, labelers):
    ungrouped = build_samples().remove_columns(["cluster_ids", "confidence"])
    pairs, rejections = synthesize_preferences(ungrouped, method, equivalence=ExactMatch(), **labelers)
    complete = cluster(ungrouped, ExactMatch(), complete_groups=True)
    expected, expected_rejections = synthesize_preferences(complete, method, **labelers)
    compared = ["prompt", "chosen", "rejected", "confidence", "chosen_reward", "rejected_reward"]
    assert pairs.select_columns(compared).to_list() == expected.select_columns(compared).to_list()
    assert rejections == expected_rejections
    # Row 0: two of four completions are "4", with a confidence of 0.5. Row 1: four different names. Row 2: all agree.
    assert rejections["all_agree"] == 1 and rejections["below_threshold"] == (0 if method == "select_all" else 1)


class StartsAlike(ExactMatch):
    """Compares what the instruction, a number, says is the start."""

    def __init__(self, instruction):
        self.instruction = instruction

    def are_equivalent(self, prompts, firsts, seconds):
        return [a[: int(n)] == b[: int(n)] for n, a, b in zip(prompts, firsts, seconds, strict=True)]


def test_another_function_as_the_instruction_does_not_get_the_pairs_of_the_first_one(tmp_path, labelers):
    samples = build_samples().remove_columns(["cluster_ids", "confidence"])
    first, second = (StartsAlike(instruction) for instruction in (lambda prompt: "1", lambda prompt: "9"))
    assert first.fingerprint == second.fingerprint
    options = {**labelers, "threshold": 0.25, "output_dir": tmp_path / "shards"}
    synthesize_preferences(samples, "spg", equivalence=first, **options)
    with pytest.raises(ValueError, match="holds a run with other settings: `instructions` was"):
        synthesize_preferences(samples, "spg", equivalence=second, **options)


class Picky(AskedJudge):
    """Cannot read two answers about one prompt, and does not accept another one at all."""

    def __call__(self, prompts, firsts, seconds):
        unreadable = [text for prompt in prompts for text in ["Both"] * 2 * (prompt == "last")]
        refused = {pair: "too long" for pair, prompt in enumerate(prompts) if prompt == "long"}
        self._count_refused(refused, prompts)
        if len(refused) < len(prompts):
            self._count_answers(unreadable, 2 * (len(prompts) - len(refused)), "They are ties.")
        verdicts = {"last": 0.5, "long": None}
        return [verdicts.get(prompt, 0.8) for prompt in prompts]


def build_prompts(*prompts):
    rows = {"prompt": prompts, "completions": [["a", "b"]] * len(prompts), "finished": [[True] * 2] * len(prompts)}
    return Dataset.from_dict(rows)


@pytest.mark.parametrize("shard_size", [1, 3])
def test_a_small_shard_of_answers_that_cannot_be_read_does_not_end_a_run(shard_size):
    samples = build_prompts("long", *(f"{row}?" for row in range(61)), "long", "last")
    pairs, counts = synthesize_preferences(samples, "rlaif", judge=Picky(tolerance=0.1), shard_size=shard_size)
    assert len(pairs) == 61 and counts["ties"] == 1 and counts["not_judged"] == 2


@pytest.mark.parametrize("num_good, shard_size", [(5, 300), (80, 16)])
def test_too_many_answers_that_cannot_be_read_end_a_run(num_good, shard_size):
    """In one shard, and in the first shards after 100 answers. Many good answers before the run do not help."""
    judge = Picky(tolerance=0.1)
    synthesize_preferences(build_prompts(*map(str, range(1000))), "rlaif", judge=judge)
    samples = build_prompts(*(f"{row}?" for row in range(num_good)), *["last"] * 40)
    with pytest.raises(ValueError, match="answers of the judge name neither .*: more than `tolerance`=0.1"):
        synthesize_preferences(samples, "rlaif", judge=judge, shard_size=shard_size)


def test_samples_without_groups_need_an_equivalence(labelers):
    with pytest.raises(ValueError, match="`equivalence` is None, but `method`='spg' groups completions by meaning"):
        synthesize_preferences(build_samples().remove_columns(["cluster_ids", "confidence"]), "spg", **labelers)
    with pytest.raises(ValueError, match="`samples` lacks the columns"):
        synthesize_preferences(build_samples().remove_columns("finished"), "spg", **labelers)


@pytest.mark.parametrize("form", ["text", "chat"])
def test_tokenized_pairs_have_eos_for_finished_completions(form, tokenizer, labelers):
    rows = build_samples(form, finished=[[True, True, False, True]] * 3)
    pairs, _ = synthesize_preferences(rows, "spg", keep_candidates=True, **labelers)
    (pair,) = tokenize_preferences(pairs, tokenizer)
    prompt = rows[0]["prompt"]
    text = pair["chosen"] if form == "text" else pair["chosen"][0]["content"]
    assert pair["chosen_ids"] == scoring_ids(tokenizer, prompt, text)
    assert pair["chosen_ids"][-1] == tokenizer.eos_token_id
    assert pair["rejected_ids"] == scoring_ids(tokenizer, prompt, "5", finished=False)
    assert pair["candidate_ids"] == [pair["rejected_ids"]]
    assert pair["rejected_ids"][-1] != tokenizer.eos_token_id


def test_tokenized_pairs_equal_those_of_trl_and_are_not_tokenized_again(tokenizer, tmp_path):
    explicit = {"prompt": PROMPTS, "chosen": ["4", "Ada", "so"], "rejected": ["5", "Bob", ""]}
    implicit = {
        side: [prompt + text for prompt, text in zip(PROMPTS, explicit[side], strict=True)]
        for side in ("chosen", "rejected")
    }
    args = RewardConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none")
    expected = RewardTrainer(
        tiny_reward_model(tokenizer), args, train_dataset=Dataset.from_dict(explicit), processing_class=tokenizer
    ).train_dataset
    for rows in (explicit, implicit):
        pairs = tokenize_preferences(Dataset.from_dict(rows), tokenizer)
        assert pairs.column_names == [*rows, "chosen_ids", "rejected_ids"]
        assert [*pairs["chosen_ids"]] == [*expected["chosen_ids"]]
        assert [*pairs["rejected_ids"]] == [*expected["rejected_ids"]]
        trainer = RewardTrainer(tiny_reward_model(tokenizer), args, train_dataset=pairs, processing_class=tokenizer)
        assert [*trainer.train_dataset["rejected_ids"]] == [*pairs["rejected_ids"]]


def test_chats_with_implicit_prompts_are_tokenized(tokenizer):
    prompt = [{"role": "user", "content": "Who?"}]
    sides = [[{"role": "assistant", "content": text}] for text in ("Ada", "Bob")]
    implicit = Dataset.from_dict({"chosen": [prompt + sides[0]], "rejected": [prompt + sides[1]]})
    explicit = Dataset.from_dict({"prompt": [prompt], "chosen": [sides[0]], "rejected": [sides[1]]})
    ids = [tokenize_preferences(pairs, tokenizer)["chosen_ids"][0] for pairs in (implicit, explicit)]
    assert ids[0] == ids[1] == scoring_ids(tokenizer, prompt, "Ada")


def test_pairs_that_become_equal_by_truncation_are_dropped_and_counted(tokenizer, caplog):
    rows = {"prompt": ["aaaaaa", "b", "c"], "chosen": ["xxxxy", "u", "w"], "rejected": ["zxxxy", "v", "w"]}
    with caplog.at_level(logging.WARNING):
        pairs = tokenize_preferences(Dataset.from_dict(rows), tokenizer, max_length=5)
    assert pairs["prompt"][:] == ["b", "c"]  # The third pair is kept, because its sides were equal before.
    assert "2 of 6 texts are longer than `max_length`=5" in caplog.text
    assert (
        "1 of 3 pairs are equal on both sides after truncation to `max_length`=5 tokens. They are dropped"
        in caplog.text
    )
    assert pairs.column_names == ["prompt", "chosen", "rejected", "chosen_ids", "rejected_ids"]


def test_pairs_with_only_one_side_raise(tokenizer):
    with pytest.raises(ValueError, match=r"`dataset` lacks the columns \['rejected'\]"):
        tokenize_preferences(Dataset.from_dict({"prompt": ["a"], "chosen": ["b"]}), tokenizer)
