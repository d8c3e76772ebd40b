import copy
import functools

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

from tests.ppo_runs import has_changed, ppo_trainer, prompts, weights
from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
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


def nan_once(completions, **kwargs):
    return [float("nan"), *[1.0] * (len(completions) - 1)]


async def nan_once_later(completions, **kwargs):
    return nan_once(completions)


class NanOnce:
    def __call__(self, completions, **kwargs):
        return nan_once(completions)


SOURCES = {
    "function": (nan_once, "nan_once"),
    "async": (nan_once_later, "nan_once_later"),
    "partial": (functools.partial(nan_once, unused=0), "nan_once"),
    "object": (NanOnce(), "NanOnce"),
}


@pytest.mark.parametrize("reward_clip", [None, 5.0])
@pytest.mark.parametrize("source, name", SOURCES.values(), ids=SOURCES)
def test_nan_is_no_lack_of_opinion(tmp_path, source, name, reward_clip):
    """Neither a sound source beside it nor clipping hides it: the rollout takes no step. `None` is left out."""
    sound = [lambda completions, **kwargs: [1.0] * len(completions)]
    trainer = ppo_trainer(tmp_path, reward_funcs=[*sound, source], total_episodes=4, reward_clip=reward_clip)
    before = weights(trainer.model)
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["skipped_steps"] == 2 and not has_changed(trainer.model, before)
    assert f"rewards/{name}/mean" in row


def test_a_reward_model_that_says_nan_stops_the_step_too(tmp_path):
    broken = tiny_reward_model(tiny_tokenizer(), seed=3)
    torch.nn.init.constant_(broken.score.weight, torch.nan)
    sound = [lambda completions, **kwargs: [1.0] * len(completions)]
    trainer = ppo_trainer(
        tmp_path, reward_model=broken, reward_funcs=sound, total_episodes=4, value_model_init="policy"
    )
    trainer.train()
    assert trainer.state.log_history[0]["skipped_steps"] == 2


def test_none_is_a_lack_of_opinion(tmp_path):
    sources = [lambda completions, **kwargs: [2.0] * len(completions), lambda **kwargs: [None] * 2 + [1.0] * 2]
    trainer = ppo_trainer(tmp_path, reward_funcs=sources, total_episodes=4)
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["skipped_steps"] == 0 and row["objective/scores"] == 2.5


def test_a_single_tokenizer_is_the_first_model_s(tmp_path):
    other = tiny_tokenizer(offset=7)
    sources = [lambda completions, **kwargs: [1.0] * len(completions), tiny_reward_model(other)]
    trainer = ppo_trainer(tmp_path, reward_funcs=sources, reward_processing_class=other)
    assert trainer.reward_funcs[1].processing_class is other


UNFIT = {
    "entries": ({"reward_processing_class": [tiny_tokenizer(), None]}, "has 2 entries for 1 sources"),
    "no model": (
        {"reward_funcs": [nan_once], "reward_processing_class": tiny_tokenizer()},
        "`reward_processing_class` is given, but no source of rewards is a model",
    ),
    "for a function": (
        {"reward_funcs": [nan_once], "reward_processing_class": [tiny_tokenizer()]},
        "`reward_processing_class` entry 0 is for a function",
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


@pytest.mark.parametrize("arguments, match", UNFIT.values(), ids=UNFIT)
def test_sources_and_tokenizers_that_do_not_fit_are_named(tmp_path, arguments, match):
    with pytest.raises(ValueError, match=match):
        ppo_trainer(tmp_path, **arguments)


def test_a_model_without_a_tokenizer_of_its_own_is_named(tmp_path):
    model = tiny_reward_model(tiny_tokenizer())
    model.save_pretrained(tmp_path / "reward")
    model = type(model).from_pretrained(tmp_path / "reward")
    with pytest.raises(ValueError, match="`reward_processing_class` is None for a model of `reward_funcs`"):
        ppo_trainer(tmp_path, reward_funcs=[model])


def test_what_is_no_classifier_is_named(tmp_path):
    with pytest.raises(TypeError, match="`reward_model` must be a sequence classifier"):
        ppo_trainer(tmp_path, reward_model=5)


@pytest.mark.parametrize(
    "arguments",
    [{"reward_model": len}, {"reward_model": torch.nn.Linear(1, 1)}, {"reward_funcs": (torch.nn.Linear(1, 1),)}],
    ids=["function", "module", "module among sources"],
)
def test_a_reward_model_is_a_classifier(tmp_path, arguments):
    with pytest.raises(TypeError, match="must be a sequence classifier of transformers or peft"):
        ppo_trainer(tmp_path, **arguments)


def test_a_reward_model_without_a_pad_token_reads_one_row_at_a_time(tmp_path):
    """Scripts of the former trainer load plain models such as Pythia, whose config has none."""
    rewards = []
    for has_padding in (True, False):
        model = tiny_reward_model(tiny_tokenizer(), seed=3)
        model.config.pad_token_id = model.config.pad_token_id if has_padding else None
        trainer = ppo_trainer(tmp_path / str(has_padding), reward_model=model, total_episodes=4)
        trainer.train()
        rewards.append(trainer.state.log_history[0]["objective/scores"])
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-5)


@pytest.mark.parametrize("resized", [(), ("reward_model",), ("ref_model", "value_model")], ids=["none", "one", "two"])
def test_a_pad_token_need_not_be_known_to_all_models(tmp_path, resized):
    """Scripts add [PAD] and resize the embeddings of some models; none is shown it unless the policy draws it."""
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
def test_a_pad_token_that_is_drawn_is_not_seen_by_models_that_lack_it(tmp_path, kind):
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
    generate, scores, judged = trainer._generate_single_turn, [], []

    def with_padding(prompt_ids, *args, **kwargs):
        """The first completion is a pad token between two letters, the others what the policy drew."""
        completions, *rest = generate(prompt_ids, *args, **kwargs)
        return [[60, pad, 61], *completions[1:]], *rest

    def judge(tokens, whole=trainer._models.judge):
        judged.append((tokens, whole(tokens)))
        return judged[-1][1]

    def note(*args, function=trainer.reward_funcs[0], **kwargs):
        scores.append((kwargs["prompts"][0], function(*args, **kwargs)[0]))
        return function(*args, **kwargs)

    trainer._generate_single_turn, trainer._models.judge, trainer.reward_funcs[0] = with_padding, judge, note
    trainer.train()
    tokens, said = judged[0]
    place = tokens.ids[0].tolist().index(pad) - tokens.ids.shape[1]
    assert said["ref_log_probs"][0, place] == said["old_log_probs"][0, place]
    assert said["ref_log_probs"][0, place - 1] != said["old_log_probs"][0, place - 1]
    seen = tokens.ids[:1][:, (tokens.mask[0] == 1) & (tokens.ids[0] != pad)]  # what stands there without it
    with torch.no_grad():
        next_log_probs = (models["ref_model"](seen).logits[0, -2] / trainer.args.temperature).log_softmax(-1)
        value = before.score(before.model(seen).last_hidden_state[0, -2])
    assert said["ref_log_probs"][0, place + 1].item() == pytest.approx(next_log_probs[seen[0, -1]].item(), abs=1e-5)
    assert said["old_values"][0, place + 1].item() == pytest.approx(value.item(), abs=1e-5)
    prompt, reward = scores[0]
    text = prompt if kind == "text" else tokenizer.decode(prompt.ids)
    letters = tokenizer.decode([60, 61])
    assert reward == pytest.approx(score(models["reward_model"], tokenizer, [text], [letters], [False])[0], abs=1e-5)
    assert trainer.state.global_step == 4 and trainer._ppo.ppo_state.skipped_steps == 0
