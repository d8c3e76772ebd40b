import pytest
from tokenizers.processors import TemplateProcessing

from tests.tiny_models import tiny_tokenizer
from trl_rlp.data.special_tokens import (
    adds_special_tokens,
    appends_eos,
    drop_repeated,
    require_plain_prompts,
    tokenize_texts,
)


def tokenizer_that_adds(pattern):
    """Builds a tokenizer that writes `<|system|>` as BOS and `<eos>` as EOS where the pattern has them."""
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<|system|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=pattern,
        special_tokens=[("<|system|>", tokenizer.bos_token_id), ("<eos>", tokenizer.eos_token_id)],
    )
    return tokenizer


PLAIN, BOS, EOS, BOTH = "$A", "<|system|> $A", "$A <eos>", "<|system|> $A <eos>"


@pytest.mark.parametrize(("pattern", "appends", "adds"), [(PLAIN, 0, 0), (BOS, 0, 1), (EOS, 1, 1), (BOTH, 1, 1)])
def test_tokenizers_are_told_apart_by_what_they_add(pattern, appends, adds):
    tokenizer = tokenizer_that_adds(pattern)
    assert (appends_eos(tokenizer), adds_special_tokens(tokenizer)) == (bool(appends), bool(adds))


def test_a_tokenizer_without_eos_appends_none():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    assert not appends_eos(tokenizer)


@pytest.mark.parametrize("pattern", [PLAIN, BOS, EOS, BOTH])
def test_a_text_has_eos_only_where_it_is_written_and_bos_once(pattern):
    tokenizer = tokenizer_that_adds(pattern)
    a, eos, bos = tokenizer.convert_tokens_to_ids("a"), tokenizer.eos_token_id, tokenizer.bos_token_id
    start = [bos] if "system" in pattern else []
    rows = tokenize_texts(tokenizer, ["a", "a<eos>", "<|system|>a", ""])
    assert rows == [[*start, a], [*start, a, eos], [bos, a], start]


def test_two_tokens_that_are_bos_and_eos_at_once_stay():
    """OPT writes `</s>` before a text and after it, so an empty finished text has two of them."""
    tokenizer = tokenizer_that_adds(BOS)
    tokenizer.eos_token = "<|system|>"
    assert tokenize_texts(tokenizer, ["<|system|>"]) == [[tokenizer.bos_token_id] * 2]


@pytest.mark.parametrize("pattern", [BOS, EOS, BOTH])
def test_repeated_tokens_of_a_finished_text_are_dropped(pattern):
    tokenizer = tokenizer_that_adds(pattern)
    for text in ("a<eos>", "<|system|>a<eos>"):
        ids = drop_repeated(tokenizer(text)["input_ids"], tokenizer)
        assert ids == tokenize_texts(tokenizer, [text])[0]


def test_prompts_that_would_get_a_second_bos_or_an_eos_are_an_error():
    messages = [{"role": "user", "content": "a"}]
    require_plain_prompts(["a", "b"], tokenizer_that_adds(BOS), "grpo")
    require_plain_prompts([messages], tokenizer_that_adds(BOTH), "grpo")
    with pytest.raises(ValueError, match="`prompt_dataset` row 1: the tokenizer of `sft_model` adds a second BOS"):
        require_plain_prompts(["a", "<|system|>b"], tokenizer_that_adds(BOS), "grpo")
    with pytest.raises(ValueError, match="`prompt_dataset` row 0"):
        require_plain_prompts(["a"], tokenizer_that_adds(EOS), "rloo")
