import pytest
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.scoring import score
from trl_rlp.data.token_prompts import TokenPrompt
from trl_rlp.rewards.reward_function import RewardFunction


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


@pytest.mark.parametrize("chat", [False, True])
def test_only_finished_completions_are_scored_with_eos(tokenizer, chat):
    model = tiny_reward_model(tokenizer)
    prompt = [{"role": "user", "content": "Who?"}] if chat else "Who?"
    completions = [[{"role": "assistant", "content": "Ada"}]] * 2 if chat else ["Ada"] * 2
    ids = tokenizer("Ada")["input_ids"]
    reward = RewardFunction(model, tokenizer, [tokenizer.eos_token_id])
    rewards = reward(
        [prompt] * 2, completions, completion_ids=[[*ids, tokenizer.eos_token_id], ids], trainer_state=None
    )
    expected = score(model, tokenizer, [prompt] * 2, ["Ada"] * 2, [True, False])
    assert rewards == pytest.approx(expected, abs=1e-6) and rewards[0] != rewards[1]


def test_an_empty_completion_is_scored(tokenizer):
    reward = RewardFunction(tiny_reward_model(tokenizer), tokenizer, [tokenizer.eos_token_id])
    assert len(reward(["Who?"], [""], completion_ids=[[]])) == 1


def test_rewards_are_standardized(tokenizer):
    model = tiny_reward_model(tokenizer)
    reward = RewardFunction(model, tokenizer, [1])(["a"], ["b"], completion_ids=[[5]])[0]
    function = RewardFunction(model, tokenizer, [1], mean=2.0, standard_deviation=4.0)
    standardized = function(["a"], ["b"], completion_ids=[[5]])[0]
    assert standardized == pytest.approx((reward - 2) / 4, abs=1e-6)
    with pytest.raises(ValueError, match="`standard_deviation` must be positive, got 0"):
        RewardFunction(model, tokenizer, [1], standard_deviation=0.0)


@pytest.mark.parametrize("model", ["folder", ("model", "tokenizer")])
def test_a_model_that_is_not_loaded_is_an_error(tokenizer, model):
    match = f"`model` must be a reward model, got `{type(model).__name__}`. .*`load_reward_model`"
    with pytest.raises(TypeError, match=match):
        RewardFunction(model, tokenizer, [1])


def test_a_missing_tokenizer_and_a_single_id_are_errors(tokenizer):
    model = tiny_reward_model(tokenizer)
    for missing in (None, "folder"):
        with pytest.raises(TypeError, match="`processing_class` must be the tokenizer of `model`, got"):
            RewardFunction(model, missing, [1])
    for ids in (1, None, "<eos>"):
        with pytest.raises(TypeError, match=r"`eos_token_ids` must be a list .*`\[tokenizer.eos_token_id\]`"):
            RewardFunction(model, tokenizer, ids)


def test_truncated_token_prompts_are_not_logged(tokenizer, caplog):
    """A trainer calls the function in each step, so it would log in each step."""
    prompt = TokenPrompt("Who was it?", tokenizer("Who was it?")["input_ids"])
    ids = [*tokenizer("Ada")["input_ids"], tokenizer.eos_token_id]
    model = tiny_reward_model(tokenizer)
    function = RewardFunction(model, tokenizer, [tokenizer.eos_token_id], max_length=6, reads_policy_tokens=True)
    rewards = function([prompt], ["Ada"], completion_ids=[ids])
    assert not caplog.records
    # Two bytes of the prompt, three of the completion, and EOS.
    assert rewards == pytest.approx(score(model, tokenizer, ["t?"], ["Ada"]), abs=1e-6)


@pytest.mark.parametrize(("trainer_class", "config_class"), [(RLOOTrainer, RLOOConfig), (GRPOTrainer, GRPOConfig)])
def test_trl_trainers_pass_completion_ids_with_eos(tmp_path, tokenizer, trainer_class, config_class):
    policy = save(tiny_causal_lm(tokenizer), tokenizer, tmp_path / "policy")
    all_ids = []

    class RecordingFunction(RewardFunction):
        def __call__(self, prompts, completions, completion_ids, **kwargs):
            all_ids.extend(completion_ids)
            return super().__call__(prompts, completions, completion_ids, **kwargs)

    trainer = trainer_class(
        model=policy,
        reward_funcs=RecordingFunction(tiny_reward_model(tokenizer), tokenizer, [tokenizer.eos_token_id]),
        args=config_class(
            output_dir=str(tmp_path / "out"),
            bf16=False,
            use_cpu=True,
            report_to="none",
            per_device_train_batch_size=64,
            num_generations=32,
            max_completion_length=24,
            max_steps=1,
            learning_rate=1e-2,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["a", "b"] * 4}),
        processing_class=tokenizer,
    )
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    assert any(not parameter.equal(before[name]) for name, parameter in trainer.model.named_parameters())
    assert len(all_ids) == 64
    assert {bool(ids) and ids[-1] == tokenizer.eos_token_id for ids in all_ids} == {True, False}
