import pytest
from peft import LoraConfig, get_peft_model
from transformers import (
    TrainerCallback,
)

from tests.ppo_runs import has_changed, ppo_trainer, weights
from tests.tiny_models import save, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.scoring import score


def test_scores_are_those_of_the_one_scoring_function(tmp_path):
    """EOS reaches the reward model where a completion has one, and only there."""
    tokenizer, seen = tiny_tokenizer(), []
    reward_model = tiny_reward_model(tokenizer, seed=3)

    class Seen(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(None)

    trainer = ppo_trainer(tmp_path, reward_model=reward_model, num_generations=4, callbacks=[Seen()])
    function, calls = trainer.reward_funcs[0], []
    trainer.reward_funcs[0] = lambda **kwargs: calls.append((kwargs, function(**kwargs))) or calls[-1][1]
    trainer.train()
    assert calls
    for kwargs, rewards in calls:
        finished = [ids[-1] == tokenizer.eos_token_id for ids in kwargs["completion_ids"]]
        expected = score(reward_model, tokenizer, kwargs["prompts"], kwargs["completions"], finished)
        assert rewards == pytest.approx(expected, abs=1e-5)


def test_rewards_of_several_sources_are_weighed(tmp_path):
    """A reward model with another tokenizer, one in a folder, and a function; the weights are 0, 0 and 2."""
    other = tiny_tokenizer(offset=7)
    folder = save(tiny_reward_model(tiny_tokenizer(), seed=5), tiny_tokenizer(), tmp_path / "reward")
    trainer = ppo_trainer(
        tmp_path / "run",
        reward_model=tiny_reward_model(other, seed=3),
        reward_funcs=[folder, lambda completions, **kwargs: [3.0] * len(completions)],
        reward_processing_class=[other, None, None],
        reward_weights=[0.0, 0.0, 2.0],
    )
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["objective/scores"] == 6.0
    assert {"rewards/reward_model/mean", "rewards/reward/mean"} <= set(row)
    assert trainer.value_model.config.vocab_size == len(tiny_tokenizer())


@pytest.mark.parametrize("argument", ["reward_model", "reward_funcs"])
def test_a_reward_model_may_be_an_adapter(tmp_path, argument):
    model = get_peft_model(
        tiny_reward_model(tiny_tokenizer(), seed=3), LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS")
    )
    before = weights(model)
    trainer = ppo_trainer(tmp_path, **{argument: [model] if argument == "reward_funcs" else model})
    trainer.train()
    assert not has_changed(model, before)
    assert not any("lora" in name for name, _ in trainer.value_model.named_parameters())
