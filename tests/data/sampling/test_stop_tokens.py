import numpy as np
import pytest

from tests.tiny_models import tiny_causal_lm, tiny_tokenizer
from trl_rlp.data.sampling.stop_tokens import get_eos_token_ids, require_stop_token_ids


@pytest.mark.parametrize(("configured", "others"), [(None, []), (42, [42]), ([42, 43], [42, 43])])
def test_the_eos_of_the_tokenizer_comes_first(configured, others):
    tokenizer = tiny_tokenizer()
    model = tiny_causal_lm(tokenizer)
    model.generation_config.eos_token_id = configured
    assert get_eos_token_ids(model, tokenizer) == [tokenizer.eos_token_id, *others]


def test_stop_tokens_are_integers_of_the_vocabulary():
    model = tiny_causal_lm(tiny_tokenizer())
    assert require_stop_token_ids((5, np.int64(6)), model) == [5, 6] and require_stop_token_ids([], model) == []
    for wrong in (5, "ab", [5.0]):
        with pytest.raises(TypeError, match="`stop_token_ids` must be a list of integers, got"):
            require_stop_token_ids(wrong, model)
    for outside in (-1, model.config.vocab_size):
        with pytest.raises(ValueError, match=rf"`stop_token_ids` has \[{outside}\], but the policy's vocabulary has"):
            require_stop_token_ids([3, outside], model)
