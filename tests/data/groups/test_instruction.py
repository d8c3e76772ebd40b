from pathlib import Path

import pytest
import trl
from datasets import Dataset

from tests.tiny_models import tiny_tokenizer
from trl_rlp.data.groups import ExactMatch
from trl_rlp.data.groups.instruction import (
    find_instruction,
    list_instruction_columns,
    read_instructions,
    require_instruction_column,
)


QUESTION = "Who wrote Emma?"
READ_PARTS = ["idefics3", "llava_next", "smolvlm"]
"""Templates of TRL that read lists of parts only."""

SHIPPED = ["cohere", "cohere2", "deepseekv3", "gemma", "gemma3", "gemma4", "glm4moe", "gptoss", "lfm2", "llama3"]
SHIPPED += ["muse_glimmer", "nemotron_3_nano", "phi3", "qwen2_5", "qwen3", *READ_PARTS]

TEMPLATES = {
    "alpaca": "Below is an instruction.\n\n### Instruction:\n{}\n\n### Response:\n",
    "chatml": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    "llama 2": "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\n{} [/INST]",
    "mistral": "<s>[INST] Hello [/INST] Hi.</s>[INST] {} [/INST]",
    "llama 3": "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>",
    "gemma": "<bos><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
    "zephyr": "<|system|>\nBe kind.</s>\n<|user|>\n{}</s>\n<|assistant|>\n",
    "phi": "<|user|>\n{}<|end|>\n<|assistant|>\n",
    "gemma 4": "<bos><|turn>user\n{}<turn|>\n<|turn>model\n",
    "gpt-oss": "<|start|>system<|message|>Be kind.<|end|><|start|>user<|message|>{}<|end|><|start|>assistant",
    "cohere": "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{}<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    "deepseek": "Be kind.<｜User｜>Hello<｜Assistant｜>Hi.<｜User｜>{}<｜Assistant｜><think>\n",
    "openchat": "<s>GPT4 Correct User: {}<|end_of_turn|>GPT4 Correct Assistant:",
    "idefics": "<|begin_of_text|>User: {}<end_of_utterance>\nAssistant:",
    "guanaco": "### Human: Hello### Assistant: Hi.### Human: {}### Assistant:",
    "hh": "\n\nHuman: Hello\n\nAssistant: Hi.\n\nHuman: {}\n\nAssistant:",
    "user": "User: {}\nAssistant:",
    "vicuna": "A chat. USER: Hello ASSISTANT: Hi.</s>USER: {} ASSISTANT:",
    "examples": "Q: Who wrote Ulysses?\nA: James Joyce\n\nQ: {}\nA:",
    "long examples": "Question: Who wrote Ulysses?\nAnswer: James Joyce\n\nQuestion: {}\nAnswer: ",
    "examples in one line": "Q: Who wrote Ulysses? A: James Joyce Q: {} A:",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_instruction_is_found_in_a_template(name):
    assert find_instruction(TEMPLATES[name].replace("{}", QUESTION)) == QUESTION


@pytest.mark.parametrize(
    "prompt",
    [
        QUESTION,
        "Explain 'Q: hi' to me.",
        "Sum up:\nUser: a\nAssistant: b\nEnd",
        "FAQ: who?\nA:",
        "Q:\nA:",
        "What does [INST] mean?",
        "What does <|user|> do?",
    ],
)
def test_a_prompt_without_a_template_is_the_instruction(prompt):
    assert find_instruction(prompt) == prompt


@pytest.mark.parametrize("name", SHIPPED)
def test_the_instruction_is_found_in_the_templates_of_trl(name):
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<|system|>"
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()
    content = [{"type": "text", "text": QUESTION}] if name in READ_PARTS else QUESTION
    chat = [{"role": "user", "content": content}]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert find_instruction(prompt) == QUESTION


@pytest.mark.parametrize(
    "text",
    [
        "What does the label Question: mean?",
        "Explain 'User: x', ### Instruction: and Q: to me.",
        "What does [INST] mean?",
        "What does <|user|> do?",
    ],
)
def test_words_of_templates_in_the_text_of_a_user_are_part_of_the_instruction(text):
    """A user asked about templates, and the text before the word was cut off."""
    templates = [TEMPLATES[name] for name in ("alpaca", "chatml", "hh", "user", "long examples")]
    for prompt in [*(template.replace("{}", text) for template in templates), [{"role": "user", "content": text}]]:
        assert find_instruction(prompt) == text


def test_the_input_of_alpaca_is_part_of_the_instruction():
    prompt = "### Instruction:\nTranslate.\n\n### Input:\nrot\n\n### Response:"
    assert find_instruction(prompt) == "Translate.\n\n### Input:\nrot"


def test_the_last_user_message_is_the_instruction_of_a_chat():
    turns = [("system", "Be kind."), ("user", "Hello"), ("assistant", "Hi."), ("user", QUESTION), ("assistant", "It")]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert find_instruction(messages) == QUESTION
    assert find_instruction(messages[:1]) == "Be kind."


class Reader(ExactMatch):
    def __init__(self, instruction):
        self.instruction = instruction


SAMPLES = Dataset.from_dict({"prompt": [f"Q: 1?\nA: 2\n\nQ: {QUESTION}\nA:"], "question": ["Emma?"], "number": [1]})


@pytest.mark.parametrize(
    ("instruction", "text"),
    [
        ("auto", QUESTION),
        ("prompt", SAMPLES[0]["prompt"]),
        ("question", "Emma?"),
        (lambda prompt: prompt[:4], "Q: 1"),
        (None, ""),
    ],
)
def test_an_equivalence_decides_what_it_gets_as_the_prompt(instruction, text):
    assert read_instructions(SAMPLES, Reader(instruction)) == [text]


def test_an_equivalence_without_the_attribute_gets_the_whole_prompt():
    assert read_instructions(SAMPLES, ExactMatch()) == SAMPLES["prompt"][:]
    assert list_instruction_columns(ExactMatch()) == list_instruction_columns(None) == []


def test_only_a_column_besides_the_prompt_must_be_kept():
    sources = ["auto", "prompt", "question", len, None]
    assert [list_instruction_columns(Reader(source)) for source in sources] == [[], [], ["question"], [], []]


def test_a_missing_column_and_values_that_are_not_text_raise():
    with pytest.raises(
        ValueError, match=r"`instruction`='topic' names no column of `prompts`, which has \['prompt', "
    ):
        require_instruction_column(SAMPLES, Reader("topic"), "prompts")
    with pytest.raises(
        TypeError, match="`instruction` must give text for each prompt, got None for row 0 of `prompts`"
    ):
        read_instructions(SAMPLES, Reader(lambda prompt: None), "prompts")
    with pytest.raises(TypeError, match="Correct the function or the column 'number'"):
        read_instructions(SAMPLES, Reader("number"), "prompts")
