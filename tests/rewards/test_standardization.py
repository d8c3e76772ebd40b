import numpy as np
import pytest
import torch
from datasets import Dataset

from tests.tiny_models import tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.sampling.engines import sample_completions
from trl_rlp.data.scoring import score
from trl_rlp.rewards.reward_function import RewardFunction
from trl_rlp.rewards.standardization import select_fixed_rows, standardize


PROMPTS = Dataset.from_dict({"prompt": [f"{i}?" for i in range(6)]})
SAMPLING = {"num_generations": 3, "max_new_tokens": 4, "seed": 7}


@pytest.mark.parametrize("max_length", [None, 3])
def test_rewards_have_mean_0_and_standard_deviation_1_on_the_samples(max_length):
    tokenizer = tiny_tokenizer()
    policy, model = tiny_causal_lm(tokenizer), tiny_reward_model(tokenizer)
    function = RewardFunction(model, tokenizer, [tokenizer.eos_token_id], mean=5.0, max_length=max_length)
    standardize([function], policy, tokenizer, PROMPTS, SAMPLING)
    samples = sample_completions(PROMPTS, policy, tokenizer, **SAMPLING)
    rewards = score(
        model,
        tokenizer,
        [prompt for prompt in samples["prompt"] for _ in range(3)],
        [completion for row in samples["completions"] for completion in row],
        [is_finished for row in samples["finished"] for is_finished in row],
        max_length=max_length,
    )
    standardized = (np.array(rewards) - function.mean) / function.standard_deviation
    assert (standardized.mean(), standardized.std()) == pytest.approx((0, 1), abs=1e-5)


def test_equal_rewards_raise_an_error():
    tokenizer = tiny_tokenizer()
    model = tiny_reward_model(tokenizer)
    torch.nn.init.zeros_(model.score.weight)
    function = RewardFunction(model, tokenizer, [tokenizer.eos_token_id])
    with pytest.raises(ValueError, match="`standard_deviation` must be positive, got 0"):
        standardize([function], tiny_causal_lm(tokenizer), tokenizer, PROMPTS, SAMPLING)


def test_the_fixed_rows_are_the_first_256():
    rows = Dataset.from_dict({"prompt": [str(i) for i in range(300)]})
    assert select_fixed_rows(rows)["prompt"] == [str(i) for i in range(256)]
    assert len(select_fixed_rows(PROMPTS)) == 6
