import pytest
from datasets import Dataset
from transformers import TrainerState

from trl_rlp.data.anchors.semantic_anchors import SemanticAnchors
from trl_rlp.data.groups.equivalence import ExactMatch
from trl_rlp.rewards.semantic_anchor_reward import SemanticAnchorReward


CHAT = [{"role": "user", "content": "5 - 1?"}]


class SameLetter:
    """Two completions mean the same if they begin with the same letter. It can fail, and reads a column."""

    fingerprint = "same letter"

    def __init__(self, **attributes):
        self.calls, self.failures = [], []
        vars(self).update(attributes)

    def normalize(self, text):
        return text.strip()

    def are_equivalent(self, prompts, firsts, seconds):
        self.calls.append(list(zip(prompts, firsts, seconds, strict=True)))
        if self.failures and self.failures.pop(0):
            raise ConnectionError("The judge is gone.")
        return [first[0] == second[0] for first, second in zip(firsts, seconds, strict=True)]


def anchors(**columns) -> SemanticAnchors:
    """ "2 + 2?" has the anchor "four" with a confidence of 3/4, the chat one of 1, and "Why?" has none."""
    samples = Dataset.from_list(
        [
            {"prompt": "2 + 2?", "completions": ["four", "five", "fo", "2"], "finished": [True] * 4},
            {"prompt": "Why?", "completions": ["a", "b", "c", "d"], "finished": [True] * 4},
        ]
    )
    chat = Dataset.from_list([{"prompt": CHAT, "completions": ["four"] * 4, "finished": [True] * 4}])
    for name, values in columns.items():
        samples = samples.add_column(name, values)
        chat = chat.add_column(name, values[:1])
    equivalence = SameLetter(**({"instruction": next(iter(columns))} if columns else {}))
    made = [SemanticAnchors.from_samples(part, equivalence) for part in (samples, chat)]
    return made if columns else {"text": made[0], "chat": made[1]}


@pytest.mark.parametrize(("subtract", "expected"), [(False, [1.0, 0.0, None]), (True, [0.25, -0.75, None])])
def test_rewards_by_hand(subtract, expected):
    """A confidence of 3/4: 1 - 3/4 for the same meaning, and 0 - 3/4 for another one."""
    equivalence, logged = SameLetter(), []
    reward = SemanticAnchorReward(anchors()["text"], equivalence, subtract_confidence=subtract)
    asked = {"prompts": ["2 + 2?", "2 + 2?", "Why?"], "completions": ["full", "three", "a"]}
    assert reward(**asked, completion_ids=None, log_metric=lambda *entry: logged.append(entry)) == expected
    assert equivalence.calls == [[("2 + 2?", "four", "full"), ("2 + 2?", "four", "three")]]
    values = {name: [value for other, value in logged if other == name] for name, _ in logged}
    names = [f"semantic_anchor/{name}" for name in ("failed_share", "anchored_share", "same_share")]
    assert values == dict(zip(names, ([0], [1, 1, 0], [1, 0]), strict=True))
    assert reward(**asked) == expected and len(equivalence.calls) == 1  # all of it is remembered
    assert reward.__name__ == "semantic_anchor" and reward.comparison.num_questions == 2


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"role": "assistant", "content": "four"}], 1.0),
        ([{"role": "assistant", "content": "two"}], 0.0),
        ([{"role": "assistant", "content": "four", "reasoning_content": "Two?"}], 1.0),
        ([{"role": "assistant", "content": "I ask.", "tool_calls": [{"name": "sum"}]}, {"role": "tool"}], 0.0),
        ([{"role": "assistant"}, {"role": "tool", "content": "4"}, {"role": "assistant", "content": "four"}], 1.0),
        ([{"role": "assistant", "content": None, "tool_calls": [{"name": "four"}]}], 0.0),
    ],
)
def test_chats_are_compared_by_the_content_of_the_last_message(messages, expected):
    reward = SemanticAnchorReward(anchors()["chat"], SameLetter())
    prompt = [{**CHAT[0], "name": None}]  # as a dataset returns it
    assert reward([prompt], [messages]) == [expected]


def test_the_equivalence_reads_a_column_of_the_trainers_dataset():
    made, _ = anchors(question=["Sum?", "Reason?"])
    equivalence = SameLetter(instruction="question")
    reward = SemanticAnchorReward(made, equivalence)
    assert reward(["2 + 2?"], ["full"], question=["Sum?"]) == [1.0]
    assert equivalence.calls == [[("Sum?", "four", "full")]]
    with pytest.raises(ValueError, match="`instruction`='question' names no column of `train_dataset`"):
        reward(["2 + 2?"], ["full"])


def test_a_failing_equivalence_gives_no_reward_and_ends_the_run_after_three_failures(caplog):
    """Failures 1 and 2, a success, then failures 3 to 5: the last is the third in a row."""
    equivalence = SameLetter(failures=[True, True, False, True, True, True])
    reward, logged = SemanticAnchorReward(anchors()["text"], equivalence), []

    def ask(text):
        return reward(["2 + 2?", "Why?"], [text, text], log_metric=lambda *entry: logged.append(entry))

    assert ask("full") == ask("full") == [None, None]
    assert "failed, so the completions of this rollout get no reward from it. (ConnectionError: The" in caplog.text
    # The share of prompts with an anchor stays 1/2.
    share, anchored = "semantic_anchor/failed_share", "semantic_anchor/anchored_share"
    assert logged == [(share, 1.0), (anchored, 1.0), (anchored, 0.0)] * 2
    assert ask("full") == [1.0, None] and logged[6] == (share, 0.0)
    assert ask("x") == ask("x") == [None, None]
    with pytest.raises(RuntimeError, match="of `semantic_anchor` failed 3 times in a row. .*ConnectionError"):
        ask("x")


def test_anchors_that_know_none_of_many_prompts_are_an_error(caplog):
    """A rollout has 64 prompts. Steps 0 and 1 have 128 unknown ones, which is noticed at step 2."""
    reward, state = SemanticAnchorReward(anchors()["text"], SameLetter()), TrainerState()
    for state.global_step in range(2):
        prompts = [f"Q{state.global_step} {number}" for number in range(64)]
        assert reward(prompts, ["x"] * 64, trainer_state=state) == [None] * 64
    assert caplog.text.count("`anchors` know 0 of the 64 prompts of a rollout") == 1
    state.global_step = 2
    with pytest.raises(ValueError, match=r"`anchors` know none of the first 128 prompts, for example 'Q1 0'. Make"):
        reward(["Q"], ["x"], trainer_state=state)


def test_one_known_prompt_is_enough():
    reward = SemanticAnchorReward(anchors()["text"], SameLetter())
    for prompts in (["Q"], ["Why?"], *([f"Q{number}"] for number in range(200))):
        assert reward(prompts, ["x"]) == [None]


def test_prompts_of_evaluation_need_no_anchors():
    """An evaluation has many calls before the rollout of its step. Of the calls at a step, the last one counts."""
    reward, state = SemanticAnchorReward(anchors()["text"], SameLetter()), TrainerState()
    for state.global_step in range(5):
        for number in range(200):
            assert reward([f"evaluation {number}"], ["x"], trainer_state=state) == [None]
        assert reward([f"Q{state.global_step}"], ["x"], trainer_state=state) == [None]


def test_some_unknown_prompts_are_a_warning_with_their_count(caplog):
    reward = SemanticAnchorReward(anchors()["text"], SameLetter())
    assert reward(["Why?", "Who?"], ["a", "Ada"]) == [None, None]
    assert reward(["Who?"], ["Ada"]) == [None]
    assert caplog.text.count("`anchors` know 1 of the 2 prompts of a rollout") == 1
    assert len(caplog.records) == 1


def test_bad_input_is_an_error():
    with pytest.raises(TypeError, match="`anchors` must be `SemanticAnchors`, got `dict`. Make them with"):
        SemanticAnchorReward({"2 + 2?": "four"}, ExactMatch())
    with pytest.raises(TypeError, match="`equivalence` must be an object, got the class `ExactMatch`"):
        SemanticAnchorReward(anchors()["text"], ExactMatch)
