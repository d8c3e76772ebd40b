import math

import pytest
import torch
from datasets import Dataset

from tests.tiny_models import tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.scoring import score
from trl_rlp.evaluation import policy_metrics
from trl_rlp.evaluation.policy_metrics import (
    _prompt_kl,
    describe_outputs,
    kl_to_reference,
    mean_reward,
    require_same_ids,
    token_kl,
)


SAMPLES = Dataset.from_dict(
    {
        "prompt": ["Who?", "2 + 2 ="],
        "completions": [["Ada", "Bob B"], ["4", ""]],
        "finished": [[True, False], [True, True]],
    }
)


def test_token_kl_computed_by_hand():
    """π = (3/4, 1/4) and π_ref = (1/2, 1/2) give 3/4 ln(3/2) + 1/4 ln(1/2). An additional token is ignored."""
    policy, reference = torch.tensor([3.0, 1.0]).log(), torch.tensor([1.0, 1.0, 5.0]).log()
    assert token_kl(policy, reference).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert token_kl(policy, policy).item() == pytest.approx(0, abs=1e-7)


def test_kl_to_reference_sums_over_the_completion():
    tokenizer = tiny_tokenizer()
    policy, reference = tiny_causal_lm(tokenizer, seed=1), tiny_causal_lm(tokenizer, seed=2)
    assert kl_to_reference(policy, policy, tokenizer, SAMPLES) == pytest.approx(0, abs=1e-6)

    expected = []
    for prompt, text, finished in [("Who?", "Ada", True), ("Who?", "Bob B", False), ("2 + 2 =", "4", True)] + [
        ("2 + 2 =", "", True)
    ]:
        ids = tokenizer(prompt)["input_ids"]
        output = tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] * finished
        tokens = torch.tensor([ids + output])
        logits = [model(tokens).logits[0, len(ids) - 1 : -1] for model in (policy, reference)]
        expected.append(token_kl(*logits).sum().item())
    assert kl_to_reference(policy, reference, tokenizer, SAMPLES) == pytest.approx(sum(expected) / 4, rel=1e-4)


def test_completions_split_by_the_memory_of_their_logits_have_the_same_kl(monkeypatch):
    tokenizer = tiny_tokenizer()
    policy, reference = tiny_causal_lm(tokenizer), tiny_causal_lm(tokenizer, seed=1)
    completions = [[20, 21, 22], [23], [24, 25, 26, 27], [28, 29]]
    with torch.no_grad():
        expected = _prompt_kl(policy, reference, [5, 6], completions)
        monkeypatch.setattr(policy_metrics, "limit_rows", lambda rows, *sizes: min(rows, 3))
        assert _prompt_kl(policy, reference, [5, 6], completions) == pytest.approx(expected, abs=1e-5)


def test_metrics_that_need_no_model():
    assert describe_outputs(SAMPLES) == {"outputs": 4, "characters": (3 + 5 + 1 + 0) / 4, "finished": 0.75}


def test_the_standard_error_of_the_accuracy_is_over_prompts():
    """Shares 1/2 and 1/2 of two prompts have mean 1/2 and no spread. Shares 1 and 0 have standard error 1/2."""
    assert describe_outputs(SAMPLES, ["ada", "4"])["accuracy_standard_error"] == 0
    metrics = describe_outputs(SAMPLES, [["Ada", "bob B"], "5"])
    assert metrics["accuracy"] == 0.5 and metrics["accuracy_standard_error"] == pytest.approx(0.5)


def test_mean_reward_is_the_mean_of_all_scores():
    tokenizer = tiny_tokenizer()
    model = tiny_reward_model(tokenizer)
    prompts = ["Who?", "Who?", "2 + 2 =", "2 + 2 ="]
    rewards = score(model, tokenizer, prompts, ["Ada", "Bob B", "4", ""], [True, False, True, True])
    assert mean_reward(model, tokenizer, SAMPLES) == pytest.approx(sum(rewards) / 4, rel=1e-5)


def test_another_number_of_answers_raises_an_error():
    with pytest.raises(ValueError, match="`answers` has 1 entries for 2 samples"):
        describe_outputs(SAMPLES, ["ada"])


def test_tokenizers_with_other_ids_are_an_error():
    """Tokens that only one of them has do not matter."""
    larger = tiny_tokenizer()
    larger.add_tokens(["<think>"])
    require_same_ids(larger, tiny_tokenizer())
    require_same_ids(tiny_tokenizer(), larger)
    with pytest.raises(
        ValueError, match=r"of the policy and of its reference differ: '!' has the ids .* as reference"
    ):
        require_same_ids(tiny_tokenizer(), tiny_tokenizer(offset=3))


@pytest.mark.parametrize("name", ["policy", "reference"])
def test_a_token_that_a_model_does_not_know_is_an_error(name):
    smaller, larger = tiny_tokenizer(), tiny_tokenizer()
    larger.add_tokens(["<think>"])
    models = {"policy": tiny_causal_lm(larger), "reference": tiny_causal_lm(larger)}
    samples = SAMPLES.map(lambda row: {"completions": ["<think>", ""]})
    assert kl_to_reference(*models.values(), larger, samples) == pytest.approx(0, abs=1e-6)
    models[name] = tiny_causal_lm(smaller)
    match = f"`{name}` has 261 tokens, but a sample has a token with the id 261. Choose a model with the tokenizer"
    with pytest.raises(ValueError, match=match):
        kl_to_reference(*models.values(), larger, samples)
