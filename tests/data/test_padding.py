import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from tests.tiny_models import save, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.padding import ensure_pad_token
from trl_rlp.data.scoring import score


def tokenizer_without_pad_token():
    """A tokenizer like GPT-2's: pad is EOS, and the vocabulary has no pad token."""
    tokenizer = tiny_tokenizer(pad_is_eos=True)
    tokenizer.backend_tokenizer.add_special_tokens(["<|spare|>"])
    state = tokenizer.backend_tokenizer.to_str().replace('"<pad>"', '"<|other|>"')
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(state)
    return tokenizer


def score_finished_and_unfinished(model, tokenizer):
    return score(model, tokenizer, ["Who?"] * 2, ["Ada"] * 2, [True, False])


def test_a_pad_token_without_another_role_is_kept():
    tokenizer = tiny_tokenizer()
    model = tiny_reward_model(tokenizer)
    model.config.pad_token_id = None
    weights = model.get_input_embeddings().weight.detach().clone()
    ensure_pad_token(model, tokenizer)
    assert (tokenizer.pad_token, model.config.pad_token_id) == ("<pad>", 0)
    assert torch.equal(model.get_input_embeddings().weight, weights)


def test_a_pad_token_of_the_vocabulary_replaces_eos():
    tokenizer = tiny_tokenizer(pad_is_eos=True)
    model = tiny_reward_model(tokenizer)
    finished, unfinished = score_finished_and_unfinished(model, tokenizer)
    assert finished == pytest.approx(unfinished, abs=1e-6)
    size = len(tokenizer)
    ensure_pad_token(model, tokenizer)
    assert (tokenizer.pad_token, tokenizer.pad_token_id, model.config.pad_token_id) == ("<pad>", 0, 0)
    assert len(tokenizer) == size == model.get_input_embeddings().num_embeddings
    finished, unfinished = score_finished_and_unfinished(model, tokenizer)
    assert abs(finished - unfinished) > 1e-4


def test_a_pad_token_with_another_role_is_replaced():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "<|assistant|>"  # the chat template uses it
    ensure_pad_token(tiny_reward_model(tokenizer), tokenizer)
    assert tokenizer.pad_token == "<pad>"
    tokenizer.unk_token = tokenizer.pad_token = "<pad>"
    ensure_pad_token(tiny_reward_model(tokenizer), tokenizer)
    assert tokenizer.pad_token == "<|pad|>"


def test_a_new_pad_token_adds_an_embedding_row_and_keeps_the_other_rows(tmp_path):
    tokenizer = tokenizer_without_pad_token()
    model = tiny_reward_model(tokenizer)
    size = len(tokenizer)
    weights = model.get_input_embeddings().weight.detach().clone()
    ensure_pad_token(model, tokenizer)
    assert (tokenizer.pad_token, tokenizer.pad_token_id, model.config.pad_token_id) == ("<|pad|>", size, size)
    grown = model.get_input_embeddings().weight
    assert grown.shape[0] == model.config.vocab_size == size + 1
    assert torch.equal(grown[:size], weights)
    assert not grown[size].any()
    assert tokenizer("<|pad|>")["input_ids"] == [size]
    rewards = score_finished_and_unfinished(model, tokenizer)
    assert abs(rewards[0] - rewards[1]) > 1e-4
    ensure_pad_token(model, tokenizer)  # a second call changes nothing
    assert len(tokenizer) == size + 1
    folder = save(model, tokenizer, tmp_path)
    reloaded = AutoModelForSequenceClassification.from_pretrained(folder)
    assert score_finished_and_unfinished(reloaded, AutoTokenizer.from_pretrained(folder)) == rewards


def test_unused_embedding_rows_are_used_for_the_pad_token():
    tokenizer = tokenizer_without_pad_token()
    model = tiny_reward_model(tokenizer, vocab_size=300)
    ensure_pad_token(model, tokenizer)
    assert model.get_input_embeddings().num_embeddings == 300
    assert model.config.pad_token_id == tokenizer.pad_token_id == 262


def test_eos_gets_a_gradient_after_pad_is_another_token():
    tokenizer = tiny_tokenizer(pad_is_eos=True)
    model = tiny_reward_model(tokenizer)
    eos = tokenizer.eos_token_id
    ensure_pad_token(model, tokenizer)
    model(input_ids=torch.tensor([[7, 8, eos]])).logits.sum().backward()
    assert model.get_input_embeddings().weight.grad[eos].any()


def test_an_adapter_whose_embedding_must_grow_is_an_error_and_changes_nothing():
    tokenizer = tokenizer_without_pad_token()
    model = get_peft_model(tiny_reward_model(tokenizer), LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"needs a new embedding row for its pad token '<\|pad\|>'"):
        ensure_pad_token(model, tokenizer)
    assert (tokenizer.pad_token, model.config.pad_token_id) == ("<eos>", tokenizer.eos_token_id)
    tokenizer = tiny_tokenizer(pad_is_eos=True)
    model = get_peft_model(tiny_reward_model(tokenizer), LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"]))
    ensure_pad_token(model, tokenizer)
    assert model.base_model.model.config.pad_token_id == 0


def test_an_embedding_that_zero_3_has_sharded_is_an_error():
    """Its rows are on no process, so a new one would replace all of them."""
    tokenizer = tiny_tokenizer()
    model = tiny_reward_model(tokenizer)
    model.get_input_embeddings().weight.data = torch.empty(0)
    with pytest.raises(ValueError, match="`model` is sharded by ZeRO-3, so its embedding has no rows here"):
        ensure_pad_token(model, tokenizer)


def test_reward_trainer_of_trl_keeps_the_pad_token(tmp_path):
    tokenizer = tokenizer_without_pad_token()
    model = tiny_reward_model(tokenizer)
    ensure_pad_token(model, tokenizer)
    args = RewardConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none", max_steps=1)
    pairs = Dataset.from_dict({"prompt": ["Who?"], "chosen": ["Ada"], "rejected": ["Nobody"]})
    trainer = RewardTrainer(model, args, train_dataset=pairs, processing_class=tokenizer)
    trainer.train()
    assert trainer.data_collator.pad_token_id == model.config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
