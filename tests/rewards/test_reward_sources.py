import copy
import functools

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.ppo_runs import has_changed, ppo_trainer, prompts, weights
from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.scoring import score
from trl_rlp.rewards.refinable_reward import RefinableReward
from trl_rlp.rewards.reward_function import RewardFunction


def test_rewards_equal_scores(tmp_path):
    """The reward model reads EOS only if the completion has one."""
    tokenizer = tiny_tokenizer()
    reward_model = tiny_reward_model(tokenizer, seed=3)
    trainer = ppo_trainer(tmp_path, reward_model=reward_model, num_generations=4)
    function, calls = trainer.reward_funcs[0], []
    trainer.reward_funcs[0] = lambda **kwargs: calls.append((kwargs, function(**kwargs))) or calls[-1][1]
    trainer.train()
    assert calls
    for kwargs, rewards in calls:
        finished = [ids[-1] == tokenizer.eos_token_id for ids in kwargs["completion_ids"]]
        expected = score(reward_model, tokenizer, kwargs["prompts"], kwargs["completions"], finished)
        assert rewards == pytest.approx(expected, abs=1e-5)


def test_rewards_of_several_sources_are_weighted(tmp_path):
    """The sources are a model with another tokenizer, a folder and a function, with weights 0, 0 and 2."""
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
def test_a_reward_model_can_be_an_adapter(tmp_path, argument):
    model = get_peft_model(
        tiny_reward_model(tiny_tokenizer(), seed=3), LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS")
    )
    before = weights(model)
    trainer = ppo_trainer(tmp_path, **{argument: [model] if argument == "reward_funcs" else model})
    trainer.train()
    assert not has_changed(model, before)
    assert not any("lora" in name for name, _ in trainer.value_model.named_parameters())


def nan_once(completions, **kwargs):
    return [float("nan"), *[1.0] * (len(completions) - 1)]


async def nan_once_async(completions, **kwargs):
    return nan_once(completions)


class NanOnce:
    def __call__(self, completions, **kwargs):
        return nan_once(completions)


SOURCES = {
    "function": (nan_once, "nan_once"),
    "async": (nan_once_async, "nan_once_async"),
    "partial": (functools.partial(nan_once, unused=0), "nan_once"),
    "object": (NanOnce(), "NanOnce"),
}


@pytest.mark.parametrize("reward_clip", [None, 5.0])
@pytest.mark.parametrize("source, name", SOURCES.values(), ids=SOURCES)
def test_nan_skips_the_step(tmp_path, source, name, reward_clip):
    """Neither another source nor clipping hides NaN. The rollout has no optimizer step."""
    finite = [lambda completions, **kwargs: [1.0] * len(completions)]
    trainer = ppo_trainer(tmp_path, reward_funcs=[*finite, source], total_episodes=4, reward_clip=reward_clip)
    before = weights(trainer.model)
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["skipped_steps"] == 2 and not has_changed(trainer.model, before)
    assert f"rewards/{name}/mean" in row


def test_nan_of_a_reward_model_skips_the_step(tmp_path):
    broken = tiny_reward_model(tiny_tokenizer(), seed=3)
    torch.nn.init.constant_(broken.score.weight, torch.nan)
    finite = [lambda completions, **kwargs: [1.0] * len(completions)]
    trainer = ppo_trainer(
        tmp_path, reward_model=broken, reward_funcs=finite, total_episodes=4, value_model_init="policy"
    )
    trainer.train()
    assert trainer.state.log_history[0]["skipped_steps"] == 2


def test_none_is_ignored(tmp_path):
    sources = [lambda completions, **kwargs: [2.0] * len(completions), lambda **kwargs: [None] * 2 + [1.0] * 2]
    trainer = ppo_trainer(tmp_path, reward_funcs=sources, total_episodes=4)
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["skipped_steps"] == 0 and row["objective/scores"] == 2.5


def test_a_single_tokenizer_belongs_to_the_first_model(tmp_path):
    other = tiny_tokenizer(offset=7)
    sources = [lambda completions, **kwargs: [1.0] * len(completions), tiny_reward_model(other)]
    trainer = ppo_trainer(tmp_path, reward_funcs=sources, reward_processing_class=other)
    assert trainer.reward_funcs[1].processing_class is other


def reward_function(seed: int = 5, function_class=RewardFunction, **options) -> RewardFunction:
    tokenizer = tiny_tokenizer()
    return function_class(tiny_reward_model(tokenizer, seed=seed), tokenizer, [tokenizer.eos_token_id], **options)


@pytest.mark.parametrize("function_class", [RewardFunction, RefinableReward])
def test_a_reward_function_of_ours_stays_the_same_object(tmp_path, function_class):
    """Standardization sets its scale, and the critic starts from its model, which reads the policy's tokens."""
    function = reward_function(function_class=function_class, name="mine", reads_policy_tokens=True)
    trainer = ppo_trainer(tmp_path, reward_funcs=[function], standardize_rewards=True, total_episodes=4)
    assert trainer.reward_funcs[0] is function
    trunk = weights(function.model.model)
    assert not has_changed(trainer.value_model.model, trunk) and (trainer.value_model.score.weight == 0).all()
    trainer.train()
    assert function.standard_deviation not in (0.0, 1.0) and not has_changed(function.model.model, trunk)
    assert "rewards/mine/mean" in trainer.state.log_history[0]


def test_critic_starts_from_the_policy_if_the_reward_function_reads_text(tmp_path):
    trainer = ppo_trainer(tmp_path, reward_funcs=[reward_function()])
    assert not has_changed(trainer.value_model.model, weights(trainer.model.model))


@pytest.mark.parametrize("require_finite", [True, False])
def test_nan_of_a_reward_function_of_ours_is_an_error_or_skips_the_step(tmp_path, require_finite):
    """The function's own setting decides."""
    function = reward_function(require_finite=require_finite)
    torch.nn.init.constant_(function.model.score.weight, torch.nan)
    finite = [lambda completions, **kwargs: [1.0] * len(completions)]
    trainer = ppo_trainer(tmp_path, reward_funcs=[function, *finite], total_episodes=4)
    if require_finite:
        with pytest.raises(ValueError, match="The reward of row 0 is nan"):
            trainer.train()
    else:
        trainer.train()
        assert trainer.state.log_history[0]["skipped_steps"] == 2


INVALID = {
    "other tokens": (
        {
            "reward_funcs": [
                RewardFunction(
                    tiny_reward_model(tiny_tokenizer(offset=7)),
                    tiny_tokenizer(offset=7),
                    [1],
                    reads_policy_tokens=True,
                )
            ]
        },
        "The reward function 'reward_model' has `reads_policy_tokens`=True, but its tokenizer has other token ids",
    ),
    "small reward function": (
        {
            "reward_funcs": [
                RewardFunction(
                    tiny_reward_model(tiny_tokenizer(), vocab_size=100),
                    tiny_tokenizer(),
                    [1],
                    reads_policy_tokens=True,
                )
            ]
        },
        "The reward function 'reward_model' has an embedding of 100 rows",
    ),
    "entries": ({"reward_processing_class": [tiny_tokenizer(), None]}, "has 2 entries for 1 sources"),
    "no model": (
        {"reward_funcs": [nan_once], "reward_processing_class": tiny_tokenizer()},
        "`reward_processing_class` is set, but no source of rewards is a model",
    ),
    "for a function": (
        {"reward_funcs": [nan_once], "reward_processing_class": [tiny_tokenizer()]},
        "`reward_processing_class` entry 0 belongs to a function",
    ),
    "small reward model": (
        {"reward_model": tiny_reward_model(tiny_tokenizer(), vocab_size=100)},
        "`reward_model` has an embedding of 100 rows, but the policy's tokens go up to 260",
    ),
    "small source": (
        {"reward_funcs": [tiny_reward_model(tiny_tokenizer(), vocab_size=100)]},
        "A model of `reward_funcs` has an embedding of 100 rows",
    ),
    "small value model": (
        {"value_model": tiny_reward_model(tiny_tokenizer(), vocab_size=100)},
        "`value_model` has an embedding of 100 rows",
    ),
}


@pytest.mark.parametrize("arguments, match", INVALID.values(), ids=INVALID)
def test_mismatched_sources_and_tokenizers_raise_an_error(tmp_path, arguments, match):
    with pytest.raises(ValueError, match=match):
        ppo_trainer(tmp_path, **arguments)


def test_a_model_without_a_saved_tokenizer_raises_an_error(tmp_path):
    model = tiny_reward_model(tiny_tokenizer())
    model.save_pretrained(tmp_path / "reward")
    model = type(model).from_pretrained(tmp_path / "reward")
    with pytest.raises(ValueError, match="`reward_processing_class` is None for a model of `reward_funcs`"):
        ppo_trainer(tmp_path, reward_funcs=[model])


def test_a_number_as_reward_model_raises_an_error(tmp_path):
    with pytest.raises(TypeError, match="`reward_model` must be a sequence classifier"):
        ppo_trainer(tmp_path, reward_model=5)


@pytest.mark.parametrize(
    "arguments",
    [{"reward_model": torch.nn.Linear(1, 1)}, {"reward_funcs": (torch.nn.Linear(1, 1),)}],
    ids=["module", "module among sources"],
)
def test_other_reward_models_raise_an_error(tmp_path, arguments):
    with pytest.raises(TypeError, match="must be a sequence classifier of transformers or peft"):
        ppo_trainer(tmp_path, **arguments)


def test_a_reward_model_without_a_pad_token_reads_one_row_at_a_time(tmp_path):
    """Scripts for TRL 1.12 load models such as Pythia, which have no pad token in their config."""
    rewards = []
    for has_padding in (True, False):
        model = tiny_reward_model(tiny_tokenizer(), seed=3)
        model.config.pad_token_id = model.config.pad_token_id if has_padding else None
        trainer = ppo_trainer(tmp_path / str(has_padding), reward_model=model, total_episodes=4)
        trainer.train()
        rewards.append(trainer.state.log_history[0]["objective/scores"])
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-5)


@pytest.mark.parametrize("resized", [(), ("reward_model",), ("ref_model", "value_model")], ids=["none", "one", "two"])
def test_some_models_can_lack_the_pad_token(tmp_path, resized):
    """Scripts add [PAD] and resize only some embeddings. Models read [PAD] only if the policy samples it."""
    tokenizer = tiny_tokenizer()
    models = {
        "model": tiny_causal_lm(tokenizer),
        "ref_model": tiny_causal_lm(tokenizer),
        "reward_model": tiny_reward_model(tokenizer, seed=3),
        "value_model": tiny_reward_model(tokenizer, seed=4),
    }
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    for name in ("model", *resized):
        models[name].resize_token_embeddings(len(tokenizer))
    settings = {"processing_class": tokenizer, "total_episodes": 4, "response_length": 3}
    trainer = ppo_trainer(tmp_path, **settings, **models)
    trainer.train()
    assert trainer.reward_funcs[0].reads_policy_tokens and trainer.state.global_step == 2


@pytest.mark.parametrize("kind", ["text", "ids"])
def test_models_without_the_pad_token_do_not_read_a_sampled_one(tmp_path, kind):
    tokenizer = tiny_tokenizer()
    models = {
        "ref_model": tiny_causal_lm(tokenizer),
        "reward_model": tiny_reward_model(tokenizer, seed=3),
        "value_model": tiny_reward_model(tokenizer, seed=4),
    }
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    policy, before = tiny_causal_lm(tokenizer), copy.deepcopy(models["value_model"])
    trainer = ppo_trainer(
        tmp_path, prompts(kind=kind), processing_class=tokenizer, model=policy, total_episodes=8, **models
    )
    pad = tokenizer.pad_token_id
    generate, rewards, evaluations = trainer._generate_single_turn, [], []

    def generate_with_padding(prompt_ids, *args, **kwargs):
        """Replaces the first completion with a pad token between two letters."""
        completions, *rest = generate(prompt_ids, *args, **kwargs)
        return [[60, pad, 61], *completions[1:]], *rest

    def record_evaluation(tokens, evaluate=trainer._models.evaluate_rollout):
        evaluations.append((tokens, evaluate(tokens)))
        return evaluations[-1][1]

    def record_rewards(*args, function=trainer.reward_funcs[0], **kwargs):
        rewards.append((kwargs["prompts"][0], function(*args, **kwargs)[0]))
        return function(*args, **kwargs)

    trainer._generate_single_turn, trainer._models.evaluate_rollout = generate_with_padding, record_evaluation
    trainer.reward_funcs[0] = record_rewards
    trainer.train()
    tokens, (log_probs, ref_log_probs, values) = evaluations[0]
    position = tokens.ids[0].tolist().index(pad) - tokens.ids.shape[1]
    assert ref_log_probs[0, position] == log_probs[0, position]
    assert ref_log_probs[0, position - 1] != log_probs[0, position - 1]
    without_padding = tokens.ids[:1][:, (tokens.mask[0] == 1) & (tokens.ids[0] != pad)]
    with torch.no_grad():
        logits = models["ref_model"](without_padding).logits[0, -2]
        next_log_probs = (logits / trainer.args.temperature).log_softmax(-1)
        value = before.score(before.model(without_padding).last_hidden_state[0, -2])
    expected = next_log_probs[without_padding[0, -1]].item()
    assert ref_log_probs[0, position + 1].item() == pytest.approx(expected, abs=1e-5)
    assert values[0, position + 1].item() == pytest.approx(value.item(), abs=1e-5)
    prompt, reward = rewards[0]
    text = prompt if kind == "text" else tokenizer.decode(prompt.ids)
    letters = tokenizer.decode([60, 61])
    assert reward == pytest.approx(score(models["reward_model"], tokenizer, [text], [letters], [False])[0], abs=1e-5)
    assert trainer.state.global_step == 4 and trainer.ppo_state.skipped_steps == 0
