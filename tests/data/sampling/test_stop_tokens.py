import pytest

from tests.tiny_models import tiny_causal_lm, tiny_tokenizer
from trl_rlp.data.sampling.stop_tokens import get_eos_token_ids


@pytest.mark.parametrize(("configured", "others"), [(None, []), (42, [42]), ([42, 43], [42, 43])])
def test_the_eos_of_the_tokenizer_comes_first(configured, others):
    tokenizer = tiny_tokenizer()
    model = tiny_causal_lm(tokenizer)
    model.generation_config.eos_token_id = configured
    assert get_eos_token_ids(model, tokenizer) == [tokenizer.eos_token_id, *others]
