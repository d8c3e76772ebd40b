from pathlib import Path

import pytest
import trl

from tests.tiny_models import tiny_tokenizer
from trl_rlp.data.rendering import render_chat, render_text


QUESTION = [{"role": "user", "content": "3 * 4?"}]
CALL = {"type": "function", "function": {"name": "multiply", "arguments": {"a": 3, "b": 4}}}
CALLING = {"role": "assistant", "content": "I look it up", "tool_calls": [CALL]}
RESULT = {"role": "tool", "name": "multiply", "content": "12"}
HEAD = "<|im_start|>user\n3 * 4?<|im_end|>\n<|im_start|>assistant\n"
TOOL_OUTPUT = "<|im_start|>user\n<tool_response>\n12\n</tool_response><|im_end|>\n"
NO_THOUGHT = "<think>\n\n</think>\n\n"
TOOL_CALL = '<tool_call>\n{"name": "multiply", "arguments": {"a": 3, "b": 4}}\n</tool_call>'


@pytest.fixture
def qwen3():
    """Builds a tokenizer with the chat template of Qwen3, which writes thoughts and tool calls."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    return tokenizer


def thinking(thought, content, key="reasoning_content"):
    return [{"role": "assistant", key: thought, "content": content}]


@pytest.mark.parametrize(
    ("completion", "finished", "expected"),
    [
        (thinking("3 fours", "12"), True, "<think>\n3 fours\n</think>\n\n12<|im_end|>\n"),
        (thinking("3 fours", "1"), False, "<think>\n3 fours\n</think>\n\n1"),
        (thinking("3 fo", ""), False, "<think>\n3 fo"),
        (thinking("3 fo ", None), False, "<think>\n3 fo "),
        ([CALLING], True, f"{NO_THOUGHT}I look it up\n{TOOL_CALL}<|im_end|>\n"),
        ([CALLING], False, f"{NO_THOUGHT}I look it up\n{TOOL_CALL}"),
        ([{**CALLING, "content": None}], True, f"{NO_THOUGHT}{TOOL_CALL}<|im_end|>\n"),
        (
            [CALLING, RESULT],
            False,
            f"I look it up\n{TOOL_CALL}<|im_end|>\n{TOOL_OUTPUT}",
        ),
        (
            [CALLING, RESULT, {"role": "assistant", "content": "1"}],
            False,
            f"I look it up\n{TOOL_CALL}<|im_end|>\n{TOOL_OUTPUT}<|im_start|>assistant\n{NO_THOUGHT}1",
        ),
    ],
    ids=[
        "thought",
        "cut answer",
        "cut thought",
        "cut thought without content",
        "call",
        "cut call",
        "call without content",
        "cut after a tool's output",
        "cut after a tool's output and a word",
    ],
)
def test_a_chat_is_rendered_up_to_the_last_word_that_the_policy_wrote(qwen3, completion, finished, expected):
    assert render_chat(qwen3, QUESTION, completion, finished, {}) == HEAD + expected


def test_an_open_thought_that_a_template_leaves_out_leaves_an_open_turn():
    assert render_chat(tiny_tokenizer(), QUESTION, thinking("3 fo", ""), False, {}) == "<|user|>3 * 4?<|assistant|>"


def test_a_template_that_does_not_render_text_leaves_what_it_renders():
    """SmolVLM's template reads lists of parts only. The whole chat was removed as if it were the end of a turn."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "smolvlm.jinja").read_text()
    finished, unfinished = (render_chat(tokenizer, QUESTION, "12", flag, {}) for flag in (True, False))
    assert finished == unfinished != ""


@pytest.mark.parametrize("finished", [True, False])
def test_keys_without_a_value_count_as_missing(qwen3, finished):
    plain = [{"role": "assistant", "content": "12"}]
    filled = [{**plain[0], "name": None, "tool_calls": None, "reasoning_content": None}]
    question = [{**QUESTION[0], "tool_calls": None}]
    assert render_chat(qwen3, question, filled, finished, {}) == render_chat(qwen3, QUESTION, plain, finished, {})


@pytest.mark.parametrize("finished", [True, False])
def test_template_options_reach_the_template(qwen3, finished):
    tool = {"type": "function", "function": {"name": "multiply", "description": "", "parameters": {}}}
    text = render_chat(qwen3, QUESTION, "12", finished, {"tools": [tool]})
    assert '"name": "multiply"' in text and text.endswith("12<|im_end|>\n" if finished else "12")


def test_text_gets_eos_if_it_is_finished_and_has_none():
    tokenizer = tiny_tokenizer()
    assert render_text(tokenizer, "a", "b", True) == render_text(tokenizer, "a", "b<eos>", True) == "ab<eos>"
    assert render_text(tokenizer, "a", "b", False) == "ab"
