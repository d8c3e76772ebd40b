import numpy as np
import pytest
from datasets import Dataset

from tests.tiny_models import tiny_tokenizer
from trl_rlp.data.sampling.policy_prompts import PolicyPrompts, add_template_options


def test_prompts_keep_lengths_only_and_are_tokenized_again_for_their_shard():
    tokenizer = tiny_tokenizer()
    data = Dataset.from_dict({"prompt": ["ab", "abcd", "a", "abc"], "answer": list("wxyz")})
    prompts = PolicyPrompts(data, tokenizer, max_new_tokens=3, context=7)
    assert prompts.lengths.tolist() == [2, 4, 1, 3] and prompts.lengths.dtype == np.int64
    assert prompts.rows.column_names == ["prompt", "row"]
    shards = prompts.cut_shards(3)
    assert shards == [[1, 3, 0], [2]]
    batch = prompts.rows[shards[0]]
    assert batch["row"] == [1, 3, 0]
    assert prompts.tokenize(batch) == [tokenizer(text)["input_ids"] for text in ("abcd", "abc", "ab")]
    with pytest.raises(ValueError, match="`prompts` row 1 has 4 tokens. With `max_new_tokens`=4 this is more than"):
        PolicyPrompts(data, tokenizer, max_new_tokens=4, context=7)


def test_a_prompt_without_tokens_is_an_error():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    data = Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in ("a", "")]})
    with pytest.raises(ValueError, match="`prompts` row 1 has no tokens"):
        PolicyPrompts(data, tokenizer, max_new_tokens=4, context=None)


def test_template_options_are_added_to_messages_only():
    texts = Dataset.from_dict({"prompt": ["a"]})
    chats = Dataset.from_dict({"prompt": [[{"role": "user", "content": "a"}]]})
    assert add_template_options(texts, {"style": "b"}).column_names == ["prompt"]
    assert add_template_options(chats, {"style": "b"})["chat_template_kwargs"][:] == [{"style": "b"}]
    assert add_template_options(chats, None).column_names == ["prompt"]


def test_keys_that_only_other_rows_have_do_not_hide_the_options_of_all_prompts():
    """A dataset gives the second row `{"style": None, "other": "x"}`."""
    chats = [[{"role": "user", "content": text}] for text in "ab"]
    data = Dataset.from_dict({"prompt": chats, "chat_template_kwargs": [{"style": "a"}, {"other": "x"}]})
    options = add_template_options(data, {"style": "s", "other": "o"})["chat_template_kwargs"][:]
    assert options == [{"style": "a", "other": "o"}, {"style": "s", "other": "x"}]
