import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.tiny_models import tiny_tokenizer
from trl_rlp.data.groups.pair_encoding import PairEncoder


WORDS = ["who", "is", "it", "annie", "henry", "the", "green", "coach", "?"]


def word_tokenizer(template):
    """One id a word; `template` names the special tokens of a pair, as RoBERTa and BERT differ in them."""
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
def test_a_pair_equals_what_the_tokenizer_makes_of_it(template):
    tokenizer = word_tokenizer(template)
    (pair,) = PairEncoder(tokenizer, 64).encode(["who is it ?"], ["annie"], ["the green coach"])
    expected = tokenizer("who is it ? annie", "who is it ? the green coach", return_token_type_ids=True)
    assert list(pair.input_ids) == expected["input_ids"]
    assert list(pair.token_type_ids) == expected["token_type_ids"]
    assert not pair.is_cut


def test_a_byte_level_tokenizer_puts_a_space_between_instruction_and_output():
    tokenizer = tiny_tokenizer()
    (pair,) = PairEncoder(tokenizer, 64).encode(["q?"], ["a"], ["b c"])
    assert tokenizer.decode(pair.input_ids) == "q? aq? b c"


def test_a_long_pair_loses_the_beginning_of_the_instruction_and_then_the_end_of_the_output():
    """BERT's template takes 3 tokens, so 15 leave 12, six a side. The sides have 5 + 6, 5 + 7 and 5 + 13 tokens: only
    the last pair is too long, and its second side keeps six tokens of its nine of output. 14 leave 11, five a side: of
    5 + 7 the second side keeps three of output and two of instruction."""
    tokenizer = word_tokenizer(TEMPLATES["bert"])
    nine = "the green coach henry annie the green coach henry"
    pairs = PairEncoder(tokenizer, 15).encode(
        ["who is it ?"] * 3, ["annie"] * 3, ["the green", "the green coach", nine]
    )
    assert [tokenizer.decode(pair.input_ids) for pair in pairs] == [
        "<s> who is it ? annie </s> who is it ? the green </s>",
        "<s> who is it ? annie </s> who is it ? the green coach </s>",
        "<s> who is it ? annie </s> the green coach henry annie the </s>",
    ]
    assert [pair.is_cut for pair in pairs] == [False, False, True]
    (pair,) = PairEncoder(tokenizer, 14).encode(["who is it ?"], ["annie"], ["the green coach"])
    assert tokenizer.decode(pair.input_ids) == "<s> who is it ? annie </s> it ? the green coach </s>"
    assert pair.is_cut


def test_equal_pairs_are_equal_and_no_pair_is_none():
    encoder = PairEncoder(word_tokenizer(TEMPLATES["bert"]), 64)
    first, second = encoder.encode(["who"] * 2, ["annie"] * 2, ["henry"] * 2)
    assert first == second and hash(first) == hash(second)
    assert encoder.encode([], [], []) == []


def test_no_room_and_slow_tokenizers_are_refused():
    with pytest.raises(ValueError, match="`max_length`=4 tokens leave nothing"):
        PairEncoder(word_tokenizer(TEMPLATES["bert"]), 4)

    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match=r"`processing_class` is a slow tokenizer \(`Slow`\)"):
        PairEncoder(Slow(), 64)
