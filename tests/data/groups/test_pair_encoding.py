import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.tiny_models import tiny_tokenizer
from trl_rlp.data.groups.pair_encoding import PairEncoder


WORDS = ["who", "is", "it", "annie", "henry", "the", "green", "coach", "?"]


def build_word_tokenizer(template):
    """Builds a tokenizer with one id per word. `template` sets the special tokens of a pair."""
    names = ["<pad>", "<s>", "</s>", "<unk>", *WORDS]
    backend = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair=template, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", model_max_length=64)


TEMPLATES = {
    "bert": "<s>:0 $A:0 </s>:0 $B:1 </s>:1",
    "roberta": "<s>:0 $A:0 </s>:0 </s>:0 $B:0 </s>:0",
    "bare": "$A:0 $B:1",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_pair_is_encoded_as_the_tokenizer_encodes_it(template):
    tokenizer = build_word_tokenizer(template)
    (pair,) = PairEncoder(tokenizer, 64).encode(["who is it ?"], ["annie"], ["the green coach"])
    expected = tokenizer("who is it ? annie", "who is it ? the green coach", return_token_type_ids=True)
    assert list(pair.input_ids) == expected["input_ids"]
    assert list(pair.token_type_ids) == expected["token_type_ids"]
    assert not pair.is_truncated


def test_a_byte_level_tokenizer_keeps_the_space_between_prompt_and_completion():
    tokenizer = tiny_tokenizer()
    (pair,) = PairEncoder(tokenizer, 64).encode(["q?"], ["a"], ["b c"])
    assert tokenizer.decode(pair.input_ids) == "q? aq? b c"


def test_a_long_pair_loses_the_start_of_the_prompt_and_then_the_end_of_the_completion():
    """
    BERT's template takes 3 tokens, so a limit of 15 leaves 12 tokens, six per side. The sides have 5 + 6, 5 + 7 and
    5 + 13 tokens. Only the last pair is too long, and its second side keeps six of the nine tokens of its completion.
    A limit of 14 leaves 11 tokens, five per side. Of the pair with 5 + 7 tokens, the second side keeps three tokens of
    the completion and two of the prompt.
    """
    tokenizer = build_word_tokenizer(TEMPLATES["bert"])
    nine = "the green coach henry annie the green coach henry"
    pairs = PairEncoder(tokenizer, 15).encode(
        ["who is it ?"] * 3, ["annie"] * 3, ["the green", "the green coach", nine]
    )
    assert [tokenizer.decode(pair.input_ids) for pair in pairs] == [
        "<s> who is it ? annie </s> who is it ? the green </s>",
        "<s> who is it ? annie </s> who is it ? the green coach </s>",
        "<s> who is it ? annie </s> the green coach henry annie the </s>",
    ]
    assert [pair.is_truncated for pair in pairs] == [False, False, True]
    (pair,) = PairEncoder(tokenizer, 14).encode(["who is it ?"], ["annie"], ["the green coach"])
    assert tokenizer.decode(pair.input_ids) == "<s> who is it ? annie </s> it ? the green coach </s>"
    assert pair.is_truncated


def test_equal_inputs_give_equal_pairs_and_no_input_gives_no_pair():
    encoder = PairEncoder(build_word_tokenizer(TEMPLATES["bert"]), 64)
    first, second = encoder.encode(["who"] * 2, ["annie"] * 2, ["henry"] * 2)
    assert first == second and hash(first) == hash(second)
    assert encoder.encode([], [], []) == []


def test_too_little_room_and_slow_tokenizers_raise():
    with pytest.raises(ValueError, match="`max_length`=4 tokens leaves no room"):
        PairEncoder(build_word_tokenizer(TEMPLATES["bert"]), 4)

    class SlowTokenizer:
        is_fast = False

    with pytest.raises(ValueError, match=r"`processing_class` is a slow tokenizer \(`SlowTokenizer`\)"):
        PairEncoder(SlowTokenizer(), 64)


def test_sides_are_equal_if_they_differ_behind_the_cut_or_in_unknown_words_only():
    tokenizer = build_word_tokenizer(TEMPLATES["bert"])
    long = "the green coach henry annie"
    pairs = PairEncoder(tokenizer, 13).encode(
        ["who"] * 4, ["annie", f"{long} annie", f"{long} annie", "zoe"], ["annie", f"{long} henry", "henry", "max"]
    )
    assert [pair.has_equal_sides for pair in pairs] == [True, True, False, True]
    assert [pair.is_truncated for pair in pairs] == [False, True, False, False]
