import pytest
import torch
from torch import nn

from tests.tiny_models import tiny_causal_lm, tiny_tokenizer
from trl_rlp.data.batching import eval_mode, limit_rows, pad_right, require_context, split_by_token_budget


def test_batches_stay_within_the_budget_and_start_with_the_longest_rows():
    # 9 is alone, because 2 x 9 > 16. 5, 5 and 4 make 3 x 5 = 15. 2 and 1 make 2 x 2 = 4.
    assert split_by_token_budget([5, 9, 2, 5, 4, 1], 16) == [[1], [0, 3, 4], [2, 5]]
    assert split_by_token_budget([30, 3], 16) == [[0], [1]]
    assert split_by_token_budget([], 16) == []
    with pytest.raises(ValueError, match="`tokens_per_batch` must be at least 1, got 0"):
        split_by_token_budget([1], 0)


def test_a_forward_pass_keeps_few_logits_on_an_accelerator():
    """64 rows of 512 tokens and a vocabulary of 128k would have 25 GB of logits in fp32. 8 rows have 2 GiB."""
    accelerator, cpu = torch.device("meta"), torch.device("cpu")
    assert limit_rows(64, 1024, 512 * 2**17, accelerator) == 8
    assert limit_rows(64, 1024, 0, accelerator) == 16
    assert limit_rows(64, 100, 0, accelerator) == 64
    assert limit_rows(64, 2**20, 2**40, accelerator) == 1
    assert limit_rows(64, 2**20, 2**40, cpu) == 64


def test_rows_are_padded_on_the_right():
    input_ids, attention_mask = pad_right([[5], [6, 7, 8]], pad_token_id=9)
    assert input_ids.tolist() == [[5, 9, 9], [6, 7, 8]]
    assert attention_mask.tolist() == [[1, 0, 0], [1, 1, 1]]
    assert input_ids.dtype == torch.long


def test_eval_mode_restores_the_mode_of_each_submodule_even_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.Dropout())
    model[1].eval()
    with pytest.raises(ZeroDivisionError), eval_mode(model):
        assert not model.training and not model[0].training and not torch.is_grad_enabled()
        raise ZeroDivisionError
    assert model.training and model[0].training and not model[1].training and torch.is_grad_enabled()


def test_a_row_longer_than_the_context_is_an_error_that_names_the_longest_row():
    model = tiny_causal_lm(tiny_tokenizer(), max_position_embeddings=4)
    require_context(model, [4, 1])
    with pytest.raises(ValueError, match="Row 1 has 6 tokens, more than the model's context of 4"):
        require_context(model, [5, 6])
