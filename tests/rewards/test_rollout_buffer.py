import json

import pytest

from trl_rlp.rewards.rollout_buffer import RolloutBuffer


CHAT = [{"role": "user", "content": "Who?"}]
CHAT_ROW = [{"content": "Who?", "role": "user", "name": None}]
"""The same prompt as a dataset returns it."""


def rollout(*completions, **values):
    """Builds rows from (prompt, completion) pairs, with the position as the reward."""
    return [
        {"prompt": prompt, "completion": text, "finished": text != "", "reward": float(number), **values}
        for number, (prompt, text) in enumerate(completions)
    ]


def test_completions_are_grouped_by_prompt_in_the_order_of_their_first_appearance():
    buffer = RolloutBuffer(10)
    buffer.add(rollout(("b", "1"), ("a", "2"), ("b", "3")))
    buffer.add(rollout(("c", ""), ("a", "4")))
    assert buffer.rows().to_list() == [
        {"prompt": "b", "completions": ["1", "3"], "finished": [True, True], "rewards": [0.0, 2.0]},
        {"prompt": "a", "completions": ["2", "4"], "finished": [True, True], "rewards": [1.0, 1.0]},
        {"prompt": "c", "completions": [""], "finished": [False], "rewards": [0.0]},
    ]
    assert buffer.rows(last=1)["prompt"][:] == ["c", "a"] and buffer.rows(last=3).to_list() == buffer.rows().to_list()
    assert len(buffer) == 5 and buffer.num_dropped == 0


def test_chat_prompts_are_one_prompt_with_and_without_missing_keys():
    buffer = RolloutBuffer(10)
    buffer.add(rollout((CHAT, "Ada"), (CHAT_ROW, "Bob")))
    assert buffer.rows()["completions"][:] == [["Ada", "Bob"]]


def test_further_texts_are_columns_of_the_prompt():
    buffer = RolloutBuffer(10)
    buffer.add(rollout(("a", "1")))
    buffer.add(rollout(("b", "2"), ("b", "3"), question="Why?"))
    assert buffer.rows()["question"][:] == [None, "Why?"]


def test_the_oldest_rollouts_are_dropped_as_a_whole():
    """Three rollouts of two in a buffer of five: the first is dropped, because six do not fit."""
    buffer = RolloutBuffer(5)
    for number in range(3):
        buffer.add(rollout(("a", f"{number}"), ("b", f"{number}")))
    assert buffer.rows()["completions"][:] == [["1", "2"], ["1", "2"]]
    assert (len(buffer), buffer.num_dropped) == (4, 2)
    buffer.clear()
    assert len(buffer) == 0
    assert buffer.rows().column_names == ["prompt", "completions", "finished", "rewards"]


def test_a_rollout_that_does_not_fit_is_an_error():
    buffer = RolloutBuffer(2)
    buffer.add(rollout(("a", "1")))
    with pytest.raises(ValueError, match="`buffer_size`=2 is too small for one rollout of 3 comp.* to at least 3"):
        buffer.add(rollout(("a", "1"), ("a", "2"), ("a", "3")))
    assert len(buffer) == 1
    with pytest.raises(ValueError, match="`buffer_size` must be at least 1 completion, got 0"):
        RolloutBuffer(0)
    with pytest.raises(TypeError, match="`buffer_size` must be an integer, got '4'"):
        RolloutBuffer("4")


def test_the_contents_are_restored_from_json():
    buffer, other = RolloutBuffer(4), RolloutBuffer(4)
    for _ in range(3):
        buffer.add(rollout((CHAT, "Ada"), (CHAT * 2, "1")))
    other.add(rollout((CHAT * 3, "1")))
    other.restore(json.loads(json.dumps(buffer.state())))
    assert (len(other), other.num_dropped) == (4, 2)
    for last in (1, None):
        assert other.rows(last).to_list() == buffer.rows(last).to_list()
    other.add(rollout((CHAT, "2")))
    assert len(other) == 3  # the oldest of the restored rollouts has made room
