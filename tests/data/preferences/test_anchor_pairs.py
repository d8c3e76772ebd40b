import pytest
from datasets import Dataset

from tests.data.anchors.fakes import FirstLetter
from tests.tiny_models import tiny_reward_model, tiny_tokenizer
from trl_rlp.data.anchors import AnchorComparison, SemanticAnchors
from trl_rlp.data.groups import ExactMatch
from trl_rlp.data.preferences import anchor_pairs, pair_with_anchors, synthesize_preferences
from trl_rlp.data.scoring import score


TOKENIZER = tiny_tokenizer()


@pytest.fixture(scope="module")
def reward_model():
    return tiny_reward_model(TOKENIZER)


def build(rows):
    """Each row has a prompt, its completions, and whether they are finished (all are, if this is missing)."""
    rows = [(prompt, texts, *(finished or [[True] * len(texts)])) for prompt, texts, *finished in rows]
    return Dataset.from_dict(dict(zip(["prompt", "completions", "finished"], zip(*rows, strict=True), strict=True)))


SAMPLES = [
    ("a", ["x1", "x2", "y"], [True, False, True]),
    ("b", ["x", "y", "z"]),
    ("c", ["x", "x", "y"], [False, False, True]),
]
"""Of the members of prompt a, x1 is finished. Prompt b has no anchor. No member of prompt c is finished."""


def make_comparison(samples=SAMPLES):
    return AnchorComparison(SemanticAnchors.from_samples(build(samples), FirstLetter()), FirstLetter())


def get_pairs(preferences):
    return list(zip(preferences["prompt"], preferences["chosen"], preferences["rejected"], strict=True))


def test_a_pair_is_a_text_that_means_the_anchor_and_one_that_does_not():
    """
    Row 0: y_w is the only finished member, and y_l the only text that means something else. Row 1: all mean the same.
    Row 2: no anchor. Row 3: neither a member nor x3 is finished. Row 4: x4 is finished, and the empty text is y_l.
    Row 5: the prompt is unknown.
    """
    rollouts = build(
        [
            ("a", ["x2", "z"], [False, False]),
            ("a", ["x1", "x3"]),
            ("b", ["x", "y"]),
            ("c", ["x3", "y"], [False, True]),
            ("c", ["x4", "", "x5"], [True, True, False]),
            ("d", ["x"]),
        ]
    )
    comparison = make_comparison()
    preferences, counts = pair_with_anchors(rollouts, comparison, chosen="random")
    assert get_pairs(preferences) == [("a", "x1", "z"), ("c", "x4", "")]
    assert counts == {"no_anchor": 2, "all_agree": 1, "nothing_left": 1}
    assert preferences["sample_row"][:] == [0, 4]
    assert preferences["confidence"][:] == [2 / 3, 2 / 3]
    assert preferences["chosen_finished"][:] == [True, True] and preferences["rejected_finished"][:] == [False, True]
    assert preferences["group_sizes"][:] == preferences["chosen_reward"][:] == [None, None]
    # Members, empty texts and prompts without an anchor need no question, and all others are in one call.
    (call,) = comparison.equivalence.calls
    assert [(prompt, text) for prompt, _, text in call] == [
        ("a", "z"),
        ("a", "x3"),
        ("c", "x3"),
        ("c", "y"),
        ("c", "x4"),
        ("c", "x5"),
    ]


def test_the_reward_picks_among_members_and_completions(reward_model):
    samples = [("a", ["x1", "x22", "y"])]
    rollouts = build([("a", ["x333", "x4444", "x1", "z"], [True, False, True, True])])
    candidates = ["x333", "x1", "x22"]
    rewards = score(reward_model, TOKENIZER, ["a"] * 4, [*candidates, "z"])
    preferences, _ = pair_with_anchors(
        rollouts, make_comparison(samples), reward_model=reward_model, reward_processing_class=TOKENIZER
    )
    (row,) = preferences.to_list()
    assert row["chosen"] == candidates[rewards.index(max(rewards[:3]))] and row["rejected"] == "z"
    assert row["chosen_reward"] == pytest.approx(max(rewards[:3]), abs=1e-5)
    assert row["rejected_reward"] == pytest.approx(rewards[3], abs=1e-5)


def test_everything_is_scored_in_one_call(reward_model, monkeypatch):
    calls = []

    def count(model, processing_class, prompts, completions, finished, **options):
        calls.append((completions, options))
        return [float(len(text)) for text in completions]

    monkeypatch.setattr(anchor_pairs, "score", count)
    rollouts = build([("a", ["x3", "z"]), ("b", ["x", "y"]), ("c", ["x", "y"])])
    preferences, _ = pair_with_anchors(
        rollouts, make_comparison(), reward_model=reward_model, reward_processing_class=TOKENIZER, max_length=9
    )
    calls = [call for call in calls if call[0]]
    assert calls == [(["x3", "x1", "z", "x", "y"], {"max_length": 9, "share_batches": True})]
    assert get_pairs(preferences) == [("a", "x3", "z"), ("c", "x", "y")]


def test_the_pairs_of_the_first_samples_are_those_of_spg(reward_model):
    texts = [["x", "x", "y", "z", "x"], ["y", "x", "y", "", "y"], ["z", "w", "x", "y", "z"], ["x"] * 5]
    samples = build([(name, row) for name, row in zip("abcd", texts, strict=True)])
    options = {"reward_model": reward_model, "reward_processing_class": TOKENIZER, "seed": 3}
    expected, _ = synthesize_preferences(samples, "spg", equivalence=ExactMatch(), **options)
    anchors = SemanticAnchors.from_samples(samples, ExactMatch())
    preferences, counts = pair_with_anchors(samples, AnchorComparison(anchors, ExactMatch()), **options)
    assert preferences.features == expected.features
    assert get_pairs(preferences) == get_pairs(expected) and len(expected) == 2
    assert counts == {"no_anchor": 1, "all_agree": 1, "nothing_left": 0}
    assert preferences["chosen_reward"][:] == pytest.approx(expected["chosen_reward"][:], abs=1e-5)


def test_draws_depend_on_the_seed_and_the_row_alone():
    samples = [(name, ["x1", "x2", "x3", "y"]) for name in "abcdefgh"]
    rollouts = build([(name, ["y", "z", "w", "v", "u"]) for name in "abcdefgh"])
    comparison = make_comparison(samples)
    draws = [get_pairs(pair_with_anchors(rollouts, comparison, chosen="random", seed=seed)[0]) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert len({chosen for _, chosen, _ in draws[0]}) > 1 and len({rejected for _, _, rejected in draws[0]}) > 1
    part, _ = pair_with_anchors(rollouts.select([5, 2]), comparison, chosen="random")
    assert get_pairs(part) == [draws[0][5], draws[0][2]]


def test_chat_prompts_keep_their_template_options_and_whole_turns(reward_model):
    prompt = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It is "}]
    samples = [(prompt, ["x1", "x1", "y"])]
    columns = {"prompt": [prompt], "completions": [["x2", "z"]], "finished": [[False, True]]}
    columns["chat_template_kwargs"] = [{"enable_thinking": False}]
    rollouts = Dataset.from_dict(columns)
    preferences, _ = pair_with_anchors(
        rollouts, make_comparison(samples), reward_model=reward_model, reward_processing_class=TOKENIZER
    )
    (row,) = preferences.to_list()
    assert row["prompt"] == prompt[:1] and row["chat_template_kwargs"] == {"enable_thinking": False}
    assert row["chosen"] == [{"role": "assistant", "content": "It is x1"}]
    assert row["rejected"] == [{"role": "assistant", "content": "It is z"}]


def test_the_instruction_of_a_column_reaches_the_equivalence():
    equivalence = FirstLetter(instruction="question")
    samples = build([("a", ["x", "x"])]).add_column("question", ["What?"])
    comparison = AnchorComparison(SemanticAnchors.from_samples(samples, equivalence), equivalence)
    rollouts = build([("a", ["y", "x2"])])
    with pytest.raises(ValueError, match="`instruction`='question' names no column of `rollouts`"):
        pair_with_anchors(rollouts, comparison, chosen="random")
    pair_with_anchors(rollouts.add_column("question", ["Why?"]), comparison, chosen="random")
    assert equivalence.calls == [[("Why?", "x", "y"), ("Why?", "x", "x2")]]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "`reward_model` is None, but `chosen`='reward' scores completions"),
        ({"chosen": "best"}, r"`chosen` must be one of \['random', 'reward'\], got 'best'"),
        ({"chosen": "random", "seed": -1}, "`seed` must be at least 0, got -1"),
        ({"reward_model": object()}, "`reward_processing_class` is None"),
    ],
)
def test_wrong_arguments_are_one_line(options, match):
    comparison = make_comparison()
    with pytest.raises(ValueError, match=match):
        pair_with_anchors(build([("a", ["x", "y"])]), comparison, **options)
    assert comparison.equivalence.calls == []


def test_wrong_rollouts_are_one_line():
    comparison = make_comparison()
    with pytest.raises(ValueError, match="`rollouts` lacks the columns"):
        pair_with_anchors(Dataset.from_dict({"prompt": ["a"]}), comparison, chosen="random")
    with pytest.raises(ValueError, match="None of 1 rows has a pair. Rejected: {'no_anchor': 1}. Use prompts of the"):
        pair_with_anchors(build([("b", ["x", "y"])]), comparison, chosen="random")
