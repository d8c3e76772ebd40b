from tests.tiny_models import tiny_tokenizer
from trl_rlp.data.sampling.completion_text import CompletionReader


def test_texts_end_before_eos_and_after_other_stop_tokens():
    tokenizer = tiny_tokenizer()
    a, b, stop = tokenizer("abE")["input_ids"]
    eos = tokenizer.eos_token_id
    reader = CompletionReader(tokenizer, stop_token_ids=[eos, stop], eos_token_ids=[eos])
    samples = [[a, b, eos, a], [a, stop, b], [a, b], [eos], [a, tokenizer.bos_token_id or eos]]
    texts, finished = reader.read(samples[:4], "a", [a])
    assert texts == ["ab", "aE", "ab", ""]
    assert finished == [True, True, False, True]
