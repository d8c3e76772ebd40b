"""The rewards of token id rows. The text that becomes such rows is tested in test_scoring.py."""

import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.tiny_models import tiny_reward_model, tiny_tokenizer
from trl_rlp.data.row_scores import require_reward_model, score_rows


ROWS = [[20, 21, 22], [30, 31, 32, 33, 34, 35, 1], [40]]


@pytest.fixture
def model():
    return tiny_reward_model(tiny_tokenizer())


def score_one_by_one(model, rows=ROWS) -> list[float]:
    with torch.no_grad():
        return [model(input_ids=torch.tensor([ids])).logits.item() for ids in rows]


@pytest.mark.parametrize("tokens_per_batch", [1, 6, 14, 8192])
def test_rewards_equal_those_of_single_rows_for_every_batch_size(model, tokens_per_batch):
    expected = score_one_by_one(model)
    assert len(set(expected)) == 3
    assert score_rows(model, ROWS, tokens_per_batch=tokens_per_batch) == pytest.approx(expected, abs=1e-6)
    reversed_rewards = score_rows(model, ROWS[::-1], tokens_per_batch=tokens_per_batch)
    assert reversed_rewards == pytest.approx(expected[::-1], abs=1e-6)


def test_batches_stay_within_the_token_budget(model):
    """Rows of 3, 7 and 1 tokens: with a budget of 6, the row of 7 is alone, and the others are padded to 3."""
    shapes = []
    model.register_forward_pre_hook(lambda _, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True)
    score_rows(model, ROWS, tokens_per_batch=6)
    assert sorted(tuple(shape) for shape in shapes) == [(1, 7), (2, 3)]


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_shared_batches_give_the_rewards_of_one_process(model, monkeypatch, processes):
    """Processes deal whole batches, so the rewards are equal to the last bit. Some have no batch."""
    rows = [[20 + row, 5] * (1 + row % 5) for row in range(12)]
    expected = score_rows(model, rows, tokens_per_batch=20)
    dealt = []

    def share_work(items, work):
        results = [None] * len(items)
        for process in range(processes):
            dealt.append(list(items[process::processes]))
            results[process::processes] = work(dealt[-1])
        return results

    monkeypatch.setattr("trl_rlp.data.row_scores.share_work", share_work)
    assert score_rows(model, rows, tokens_per_batch=20, share_batches=True) == expected
    assert sorted(row for batches in dealt for batch in batches for row in batch) == list(range(12))
    assert len(dealt) == processes
    assert score_rows(model, rows, tokens_per_batch=20) == expected and len(dealt) == processes


def test_a_token_outside_the_embedding_is_an_error():
    model = tiny_reward_model(tiny_tokenizer(), vocab_size=251)
    assert len(score_rows(model, [[20], [250]])) == 2
    with pytest.raises(ValueError, match=r"Row 1 contains token id 251, outside the reward model's embedding of 251"):
        score_rows(model, [[20], [5, 251, 3]])


def test_modes_gradients_and_random_state_do_not_change():
    model = tiny_reward_model(tiny_tokenizer(), attention_dropout=0.5).train()
    model.score.eval()
    state = torch.get_rng_state()
    first = score_rows(model, ROWS)
    assert first == score_rows(model, ROWS)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training and model.model.layers[0].self_attn.training and not model.score.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_modes_are_restored_when_scoring_fails(model):
    model.train()
    model.score.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        score_rows(model, ROWS)
    assert model.training and model.model.training


def test_a_peft_reward_model_scores_with_its_adapter(model):
    base = score_rows(model, ROWS)
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], modules_to_save=["score"])
    adapted = get_peft_model(model, config)
    assert score_rows(adapted, ROWS) == pytest.approx(base, abs=1e-6)
    torch.nn.init.ones_(adapted.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight)
    assert score_rows(adapted, ROWS) != pytest.approx(base, abs=1e-6)


def test_half_precision_rewards_are_returned_as_floats(model):
    expected = score_rows(model, ROWS)
    rewards = score_rows(model.to(torch.bfloat16), ROWS)
    assert rewards == pytest.approx(expected, abs=0.02) and all(isinstance(reward, float) for reward in rewards)


def test_an_empty_list_has_no_rewards(model):
    assert score_rows(model, []) == []


def test_a_row_without_tokens_is_an_error(model):
    with pytest.raises(ValueError, match="Row 8 has no tokens. Drop it, or give it a prompt."):
        score_rows(model, [[5, 6], []], first_row=7)


def test_models_without_exactly_one_output_are_errors(model):
    require_reward_model(model)
    two = tiny_reward_model(tiny_tokenizer(), num_labels=2)
    for check in (require_reward_model, lambda model: score_rows(model, [])):
        with pytest.raises(ValueError, match=r"`model` has `num_labels`=2, but a reward is one number"):
            check(two)
        with pytest.raises(TypeError, match="got `Linear`. Load it with"):
            check(torch.nn.Linear(2, 1))


def test_a_missing_pad_token_is_an_error_only_for_several_rows(model):
    expected = score_rows(model, ROWS[:1])
    model.config.pad_token_id = None
    assert score_rows(model, ROWS[:1]) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match=r"`model` has no pad token .* Call `ensure_pad_token"):
        score_rows(model, ROWS)


def test_rows_that_end_with_the_pad_token_log_one_warning(model, caplog):
    logging.Logger.warning_once.cache_clear()
    score_rows(model, ROWS)
    assert not caplog.records
    for _ in range(2):
        score_rows(model, [[20, 0], [21]])
    (record,) = caplog.records
    assert "Texts end with the pad token (id 0)" in record.message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinite_rewards_are_errors_that_name_the_row(model, value):
    """Only rows with token 50 have a reward of NaN. The second weight is that of every row."""
    with torch.no_grad():
        model.model.embed_tokens.weight[50] = float("nan")
    rows = [[20], [30, 31, 32, 33], [50]]
    with pytest.raises(ValueError, match="The reward of row 2 is nan"):
        score_rows(model, rows)
    rewards = score_rows(model, rows, require_finite=False)
    assert torch.tensor(rewards).isnan().tolist() == [False, False, True]
    torch.nn.init.constant_(model.score.weight, value)
    with pytest.raises(ValueError, match="The reward of row 0 is (nan|inf|-inf)"):
        score_rows(model, rows[:1])


def test_a_row_longer_than_the_context_is_an_error():
    model = tiny_reward_model(tiny_tokenizer(), max_position_embeddings=16)
    assert len(score_rows(model, [[20] * 16])) == 1
    with pytest.raises(ValueError, match="Row 1 has 17 tokens, more than the model's context of 16"):
        score_rows(model, [[20], [20] * 17])
