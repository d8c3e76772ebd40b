"""Log-probabilities and values of tokens, and the models that compute them."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from tests.ppo_runs import ppo_trainer, weights
from tests.tiny_models import tiny_causal_lm, tiny_nli, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.score_inputs import find_score_layers
from trl_rlp.trainer.ppo.token_models import (
    Critic,
    TokenModels,
    Tokens,
    accepts_position_ids,
    completion_log_probs,
    position_ids_from_mask,
)
from trl_rlp.trainer.score_head import keep_trained_head_in_fp32


# Log-probabilities


FAMILIES = {
    "rotary": LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    ),
    "absolute": GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=1),
}
PROMPTS = [[5, 6, 7, 8], [9, 10]]
COMPLETIONS = [[11, 12], [13, 14, 15]]
PADDED_IDS = torch.tensor([[5, 6, 7, 8, 11, 12, 0], [0, 0, 9, 10, 13, 14, 15]])
PADDED_MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1, 1]])


def build_causal_lm(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_does_not_change_log_probs_and_entropies(family):
    model = build_causal_lm(FAMILIES[family])
    with torch.no_grad():
        log_probs, entropies = completion_log_probs(model, PADDED_IDS, PADDED_MASK, 3, temperature=0.7)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / 0.7
        expected = logits.log_softmax(-1)
        chosen = expected[range(len(completion)), completion]
        assert torch.allclose(log_probs[row, : len(completion)], chosen, atol=1e-5)
        entropy = -(expected.exp() * expected).sum(-1)
        assert torch.allclose(entropies[row, : len(completion)], entropy, atol=1e-5)


def test_gradient_of_log_probs_reaches_all_parameters():
    model = build_causal_lm(FAMILIES["rotary"])
    log_probs, _ = completion_log_probs(model, PADDED_IDS, PADDED_MASK, 3, temperature=1.0)
    log_probs.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_positions_start_at_the_first_token():
    assert position_ids_from_mask(torch.tensor([[0, 0, 1, 1, 0]])).tolist() == [[0, 0, 0, 1, 1]]


def test_models_that_accept_position_ids_are_recognized():
    model = build_causal_lm(FAMILIES["rotary"])
    assert accepts_position_ids(model)
    assert accepts_position_ids(get_peft_model(model, LoraConfig(target_modules=["q_proj"])))
    assert not accepts_position_ids(torch.nn.Linear(1, 1))


# The critic


TOKENIZER = tiny_tokenizer()
IDS = torch.tensor([[0, 0, 20, 21, 30, 31], [22, 23, 24, 25, 32, 0]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])


def test_values_are_the_scores_before_each_token():
    model = tiny_reward_model(TOKENIZER)
    values = Critic(model)(IDS, MASK, position_ids_from_mask(MASK), 2)
    assert values.shape == (2, 2)
    for row, ids in enumerate(([20, 21, 30, 31], [22, 23, 24, 25, 32])):
        scores = model.score(model.model(torch.tensor([ids])).last_hidden_state)[0, :, 0]
        first = 1 if row == 0 else 3
        expected = scores[first : len(ids) - 1]
        assert torch.allclose(values[row, : len(expected)], expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_adapter", [False, True])
def test_values_are_not_rounded_in_mixed_precision(dtype, has_adapter):
    """The score head is computed in fp32 from hidden states in bf16. Near 100, values of bf16 are 0.5 apart."""
    model = tiny_reward_model(tiny_tokenizer()).to(dtype)
    if has_adapter:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS"))
        keep_trained_head_in_fp32(model)
    critic = Critic(model)
    with torch.no_grad():
        for layer in find_score_layers(model):
            layer.weight.mul_(1000)
    hidden = []
    for layer in find_score_layers(model):
        layer.register_forward_hook(lambda layer, inputs, output: hidden.append((layer, inputs[0])))
    with torch.autocast("cpu", torch.bfloat16):
        values = critic(PADDED_IDS, PADDED_MASK, position_ids_from_mask(PADDED_MASK), 3)
    layer, states = hidden[-1]
    expected = (states.double() @ layer.weight.double().T)[:, -4:-1, 0]
    assert values.dtype == torch.float32 and not values.bfloat16().float().equal(values)
    torch.testing.assert_close(values.double(), expected, atol=1e-3, rtol=1e-5)
    values.sum().backward()
    assert layer.weight.grad.norm() > 0


def test_gradient_of_values_reaches_all_parameters():
    model = tiny_reward_model(TOKENIZER)
    Critic(model)(IDS, MASK, position_ids_from_mask(MASK), 2).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_classifier_that_pools_before_it_scores_is_refused():
    critic = Critic(tiny_nli(TOKENIZER, labels=("value",)))
    with pytest.raises(ValueError, match="`BertForSequenceClassification`. It pools before it scores"):
        critic(IDS, MASK, position_ids_from_mask(MASK), 2)


def test_classifier_with_two_labels_is_refused():
    with pytest.raises(ValueError, match="`value_model` has `num_labels`=2, but a value is one number"):
        Critic(tiny_reward_model(TOKENIZER, num_labels=2))


def test_critic_needs_no_pad_token():
    model = tiny_reward_model(TOKENIZER)
    model.config.pad_token_id = None
    assert Critic(model)(IDS, MASK, position_ids_from_mask(MASK), 2).isfinite().all()


def test_values_of_a_sharded_critic_are_computed_with_in_full_precision(tmp_path):
    """With `bf16`, FSDP casts what a model returns. The value loss and the returns would be rounded again."""
    trainer = ppo_trainer(tmp_path)
    models, critic = trainer._models, trainer._models.critic
    models.critic = lambda *args: critic(*args).bfloat16()
    assert models.values(Tokens(IDS, MASK, 2)).dtype == torch.float32


# Forward passes without gradients


def test_processes_split_a_rollout_into_the_same_number_of_passes():
    """The longest rows of another process decide, because sharded models need the same number of passes everywhere."""
    tokens = Tokens(torch.zeros(64, 300, dtype=torch.long), torch.ones(64, 300, dtype=torch.long), 200)
    everywhere = torch.tensor([[300, 200], [1024, 512]])
    models = SimpleNamespace(
        args=SimpleNamespace(local_rollout_forward_batch_size=64),
        accelerator=SimpleNamespace(device=torch.device("meta"), gather=lambda sizes: everywhere),
        reference=None,
        _is_policy_fused=True,
        _vocabulary_size=2**17,
    )
    assert TokenModels._count_rows(models, tokens) == 16
    models._is_policy_fused = False
    assert TokenModels._count_rows(models, tokens) == 8
    models.accelerator.device = torch.device("cpu")
    assert TokenModels._count_rows(models, tokens) == 64


# The reference policy


def test_kl_is_zero_in_the_first_rollout_and_not_in_the_last(tmp_path):
    trainer = ppo_trainer(tmp_path)
    trainer.train()
    kl = [row["objective/kl"] for row in trainer.state.log_history if "objective/kl" in row]
    assert kl[0] == pytest.approx(0, abs=1e-5) and abs(kl[-1]) > 1e-4


def test_reference_of_an_adapter_is_the_policy_without_it(tmp_path):
    peft_config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = ppo_trainer(tmp_path, peft_config=peft_config)
    assert trainer.ref_model is None
    before = weights(trainer.model)
    trainer.train()
    changed = {
        name for name, parameter in trainer.model.named_parameters() if not torch.equal(parameter, before[name])
    }
    assert changed and all("lora" in name for name in changed)
    kl = [row["objective/kl"] for row in trainer.state.log_history if "objective/kl" in row]
    assert kl[0] == pytest.approx(0, abs=1e-5) and kl[-1] != pytest.approx(0, abs=1e-6)


def test_one_named_adapter_is_trained_and_another_one_is_the_reference(tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(tiny_causal_lm(tiny_tokenizer()), config, adapter_name="one")
    model.add_adapter("two", config)
    before = weights(model)
    with pytest.raises(ValueError, match="`ref_model` and `ref_adapter_name`='one' both define the reference policy"):
        ppo_trainer(tmp_path, model=model, ref_model=tiny_causal_lm(tiny_tokenizer()), ref_adapter_name="one")
    trainer = ppo_trainer(tmp_path, model=model, model_adapter_name="two", ref_adapter_name="one")
    trainer.train()
    changed = {name for name, weight in weights(model).items() if not torch.equal(weight, before[name])}
    assert changed and all(".two." in name for name in changed)
