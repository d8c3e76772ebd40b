import pytest
from datasets import Dataset

from trl_rlp.data.groups import ExactMatch
from trl_rlp.data.groups.instruction import (
    find_instruction,
    list_instruction_columns,
    read_instructions,
    require_instruction_column,
    require_instructions,
)


QUESTION = "Who wrote Emma?"

TEMPLATES = {
    "alpaca": "Below is an instruction.\n\n### Instruction:\n{}\n\n### Response:\n",
    "chatml": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    "llama 2": "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\n{} [/INST]",
    "mistral": "<s>[INST] Hello [/INST] Hi.</s>[INST] {} [/INST]",
    "llama 3": "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>",
    "gemma": "<bos><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
    "zephyr": "<|system|>\nBe kind.</s>\n<|user|>\n{}</s>\n<|assistant|>\n",
    "phi": "<|user|>\n{}<|end|>\n<|assistant|>\n",
    "hh": "\n\nHuman: Hello\n\nAssistant: Hi.\n\nHuman: {}\n\nAssistant:",
    "user": "User: {}\nAssistant:",
    "vicuna": "A chat. USER: Hello ASSISTANT: Hi.</s>USER: {} ASSISTANT:",
    "examples": "Q: Who wrote Ulysses?\nA: James Joyce\n\nQ: {}\nA:",
    "long examples": "Question: Who wrote Ulysses?\nAnswer: James Joyce\n\nQuestion: {}\nAnswer: ",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_instruction_is_found_in_a_template(name):
    assert find_instruction(TEMPLATES[name].replace("{}", QUESTION)) == QUESTION


@pytest.mark.parametrize(
    "prompt", [QUESTION, "Explain 'Q: hi' to me.", "Sum up:\nUser: a\nAssistant: b\nEnd", "FAQ: who?\nA:", "Q:\nA:"]
)
def test_a_prompt_without_a_template_is_the_instruction(prompt):
    assert find_instruction(prompt) == prompt


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
        require_instructions(SAMPLES, Reader(lambda prompt: None), "prompts")
    with pytest.raises(TypeError, match="Correct the function or the column 'number'"):
        require_instructions(SAMPLES, Reader("number"), "prompts")
