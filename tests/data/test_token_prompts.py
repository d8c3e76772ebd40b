import copy
import pickle

import numpy as np
import pytest
from datasets import Dataset

from tests.tiny_models import tiny_tokenizer
from trl_rlp.data.token_prompts import TokenPrompt, add_prompts, decode_ids, decode_prompts, require_token_ids


def test_a_token_prompt_keeps_its_ids_when_copied_or_pickled():
    prompt = TokenPrompt("abc", [7, 8])
    for copied in (prompt, copy.deepcopy([prompt])[0], pickle.loads(pickle.dumps(prompt))):
        assert copied == "abc" and copied.ids == [7, 8]


def test_rows_with_input_ids_get_prompts_and_other_rows_do_not_change():
    tokenizer = tiny_tokenizer()
    ids = tokenizer("ab")["input_ids"]
    rows = add_prompts([{"input_ids": [tokenizer.eos_token_id, *ids], "answer": "x"}], tokenizer, len(tokenizer))
    assert rows == [{"prompt": f"{tokenizer.eos_token}ab", "answer": "x"}]
    assert rows[0]["prompt"].ids == [tokenizer.eos_token_id, *ids]
    assert add_prompts([{"prompt": "ab", "input_ids": [1]}], tokenizer, 10) == [{"prompt": "ab", "input_ids": [1]}]


def test_pad_tokens_outside_the_embedding_are_removed_and_those_inside_are_kept():
    tokenizer = tiny_tokenizer()
    ids = [tokenizer.pad_token_id, *tokenizer("ab")["input_ids"]]
    assert add_prompts([{"input_ids": ids}], tokenizer, len(tokenizer))[0]["prompt"].ids == ids
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    foreign = [tokenizer.pad_token_id, *ids[1:]]
    assert add_prompts([{"input_ids": foreign}], tokenizer, len(tokenizer) - 1)[0]["prompt"].ids == ids[1:]


@pytest.mark.parametrize(
    "rows, match",
    [
        ([[1, 2], []], "`data` row 1 has no tokens"),
        ([[1, 12]], "`data` row 0 contains token id 12, outside the policy's embedding of 10 rows"),
        ([[1, -1]], "`data` row 0 contains token id -1"),
        ([[1] * 6], "`data` row 0 has 6 tokens, but the policy's context leaves only 5"),
        ([[1] * 6], "lower the maximum length of a completion .`response_length`, or `max_completion_length`."),
    ],
)
def test_ids_that_the_policy_cannot_read_are_errors(rows, match):
    with pytest.raises(ValueError, match=match):
        require_token_ids(Dataset.from_dict({"input_ids": rows}), "data", None, 10, 5)


def test_an_id_outside_the_embedding_is_accepted_as_padding_only():
    data = Dataset.from_dict({"input_ids": [[10, 10, 1]]})
    require_token_ids(data, "data", 10, 10, 5)
    with pytest.raises(ValueError, match="contains token id 10, outside"):
        require_token_ids(data, "data", None, 10, 5)


def test_masked_ids_are_not_part_of_the_prompt():
    tokenizer = tiny_tokenizer()
    hidden, visible = tokenizer("x")["input_ids"], tokenizer("ab")["input_ids"]
    row = {"input_ids": [*hidden, *visible], "attention_mask": [0, 1, 1]}
    assert add_prompts([row], tokenizer, len(tokenizer))[0]["prompt"].ids == visible
    assert decode_prompts(Dataset.from_list([row]), tokenizer).to_list() == [{"prompt": "ab"}]


def test_tokens_of_a_chat_template_stay_in_the_text():
    """Without them, the policy would be sampled on other prompts than it is trained on."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    ids = tokenizer("<|turn|>ab<|turn|>")["input_ids"]
    assert len(ids) == 4
    rows = [{"input_ids": [*[tokenizer.pad_token_id] * 2, *ids]}, {"input_ids": tokenizer("ab")["input_ids"]}]
    texts = ["<|turn|>ab<|turn|>", "ab"]
    assert decode_prompts(Dataset.from_list(rows), tokenizer)["prompt"][:] == texts
    assert [row["prompt"] for row in add_prompts(rows, tokenizer, len(tokenizer))] == texts


@pytest.mark.parametrize("pad_is_eos", [True, False])
def test_eos_of_a_prompt_stays_in_the_text_unless_it_is_the_padding(pad_is_eos):
    tokenizer = tiny_tokenizer()
    if pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
    ids = [*tokenizer("ab")["input_ids"], tokenizer.eos_token_id]
    assert decode_ids([ids], tokenizer) == ["ab" if pad_is_eos else f"ab{tokenizer.eos_token}"]


def test_padding_outside_the_embedding_is_no_text_whatever_the_pad_token_is():
    """PPO replaces a pad token that the policy cannot read by EOS, but the rows still have the old one."""
    tokenizer = tiny_tokenizer()
    vocabulary_size = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    rows = Dataset.from_dict({"input_ids": [[tokenizer.pad_token_id, *tokenizer("ab")["input_ids"]]]})
    tokenizer.pad_token = tokenizer.eos_token
    assert decode_prompts(rows, tokenizer, vocabulary_size=vocabulary_size)["prompt"][:] == ["ab"]
    assert decode_prompts(rows, tokenizer)["prompt"][:] == ["[PAD]ab"]


def test_ids_that_are_no_text_are_a_warning(caplog):
    """The tokenizer reads bytes, and "é" has two."""
    tokenizer = tiny_tokenizer()
    with caplog.at_level("WARNING"):
        assert decode_ids([tokenizer("aé")["input_ids"][:2]], tokenizer) == ["a\ufffd"]
    assert "Some prompts in `input_ids` have other tokens when they are decoded and tokenized again" in caplog.text


def test_text_prompts_are_not_decoded():
    data = Dataset.from_list([{"prompt": "ab", "input_ids": [1], "answers": ["c"], "more": 1}])
    assert decode_prompts(data, tiny_tokenizer()).to_list() == [{"prompt": "ab", "answers": ["c"]}]
    assert decode_prompts(data, tiny_tokenizer(), ["more"]).column_names == ["prompt", "answers", "more"]


def test_columns_that_reward_functions_get_from_the_trainer_are_dropped():
    rows = [{"prompt": "a", "completions": ["old"], "prompts": "b", "answers": ["c"]}]
    assert add_prompts(rows, tiny_tokenizer(), 300) == [{"prompt": "a", "answers": ["c"]}]


def test_messages_in_an_array_become_a_list():
    messages = [{"role": "user", "content": "Hi"}]
    [row] = add_prompts([{"prompt": np.array(messages, dtype=object)}], tiny_tokenizer(), 300)
    assert row["prompt"] == messages and isinstance(row["prompt"], list)


@pytest.mark.parametrize("kind", ["torch", "numpy", "pandas"])
def test_ids_with_a_format_are_decoded_and_checked(kind):
    tokenizer = tiny_tokenizer()
    dataset = Dataset.from_dict(tokenizer(["ab", "abc"])).with_format(kind)
    require_token_ids(dataset, "train_dataset", tokenizer.pad_token_id, 300, None)
    assert decode_prompts(dataset, tokenizer)["prompt"][:] == ["ab", "abc"]
