from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn
from transformers import BitsAndBytesConfig
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from tests.ppo_runs import prompts
from tests.programs import require_agreement
from tests.tiny_models import tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.anchors.semantic_anchors import SemanticAnchors
from trl_rlp.data.token_prompts import TokenPrompt
from trl_rlp.rewards.refinable_reward import RefinableReward
from trl_rlp.rewards.reward_function import RewardFunction
from trl_rlp.rewards.semantic_anchor_reward import SemanticAnchorReward
from trl_rlp.storage.precision import cast_weights


SETTINGS = {
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "num_generations": 4,
    "num_generations_eval": 2,
    "max_completion_length": 6,
    "max_steps": 2,
    "learning_rate": 1e-2,
    "beta": 0.0,
    "logging_steps": 1,
    "save_strategy": "no",
    "eval_strategy": "steps",
    "eval_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
}
EOS = tiny_tokenizer().eos_token_id


def refinable(**options) -> RefinableReward:
    tokenizer = tiny_tokenizer()
    return RefinableReward(tiny_reward_model(tokenizer, seed=3), tokenizer, [tokenizer.eos_token_id], **options)


def scored(reward, prompts=("a",), completions=("b",), ids=((5, EOS),), **columns):
    return reward(list(prompts), list(completions), completion_ids=[list(row) for row in ids], **columns)


def records(reward) -> list[dict]:
    reward.collect()
    return reward.buffer.rows().to_list()


class SameLength:
    """Two completions mean the same if their numbers of characters are both even or both odd."""

    fingerprint = "same length"

    def normalize(self, text):
        return text

    def are_equivalent(self, prompts, firsts, seconds):
        return [len(first) % 2 == len(second) % 2 for first, second in zip(firsts, seconds, strict=True)]


def anchors(data, completions=("two!", "four", "odd")) -> SemanticAnchors:
    """Two of three completions have an even number of characters. The first prompt has no majority."""
    rows = [list(completions)] * len(data)
    rows[0] = ["", "", "odd"]
    samples = data.add_column("completions", rows).add_column("finished", [[True] * 3] * len(data))
    return SemanticAnchors.from_samples(samples, SameLength())


@pytest.mark.parametrize(
    ("trainer_class", "config_class", "kind"), [(GRPOTrainer, GRPOConfig, "text"), (RLOOTrainer, RLOOConfig, "chat")]
)
def test_both_rewards_in_an_unmodified_trainer(tmp_path, trainer_class, config_class, kind):
    """
    The anchor reward is 1 for completions with an even number of characters, and nothing for the first prompt. The
    trainer's reward of a completion is r + 3 a, or r without an anchor. What was recorded gives the same logs.
    """
    data, tokenizer, reward = prompts(4, kind), tiny_tokenizer(), refinable()
    anchor_reward = SemanticAnchorReward(anchors(data), SameLength())
    trainer = trainer_class(
        model=tiny_causal_lm(tokenizer),
        reward_funcs=[reward, anchor_reward],
        args=config_class(str(tmp_path), reward_weights=[1.0, 3.0], **SETTINGS),
        train_dataset=data,
        eval_dataset=data.select([1, 2]),
        processing_class=tokenizer,
    )
    reward.follow(trainer.model)
    reward.report({"refinement/shift": 0.25})
    trainer.train()
    assert reward.num_rollouts == 2 and reward.pending_metrics == {}
    logs = [row for row in trainer.state.log_history if "reward" in row]
    assert [row.get("refinement/shift") for row in logs] == [0.25, None]
    reward.collect()
    assert len(reward.buffer) == 16  # two rollouts of eight, without those of the evaluation
    for number, log in enumerate(logs):
        rows = reward.buffer.rows(last=2 - number).to_list() if number == 1 else first_rollout(reward)
        r = [value for row in rows for value in row["rewards"]]
        anchored = [row["prompt"] != data[0]["prompt"] for row in rows for _ in row["rewards"]]
        even = [bool(text) and len(text) % 2 == 0 for row in rows for text in row["completions"]]
        same = [float(value) for value, has_anchor in zip(even, anchored, strict=True) if has_anchor]
        assert log["rewards/reward_model/mean"] == pytest.approx(sum(r) / 8, abs=1e-5)
        assert log["rewards/semantic_anchor/mean"] == pytest.approx(sum(same) / len(same))
        assert log["semantic_anchor/same_share"] == pytest.approx(sum(same) / len(same))
        assert log["semantic_anchor/anchored_share"] == pytest.approx(len(same) / 8)
        assert log["reward"] == pytest.approx((sum(r) + 3 * sum(same)) / 8, abs=1e-5)
    evaluations = [row for row in trainer.state.log_history if "eval_reward" in row]
    assert len(evaluations) == 2 and "eval_semantic_anchor/same_share" in evaluations[0]


def first_rollout(reward: RefinableReward) -> list[dict]:
    last = RefinableReward(reward.model, reward.processing_class, reward.eos_token_ids)
    last.buffer.restore({"rollouts": reward.buffer.state()["rollouts"][:1], "num_dropped": 0})
    return last.buffer.rows().to_list()


def test_nothing_is_recorded_unless_a_followed_policy_trains():
    reward, policy = refinable(), nn.Linear(1, 1)
    plain = RewardFunction(reward.model, reward.processing_class, [EOS])
    assert scored(reward) == scored(plain) and records(reward) == [] and reward.num_rollouts == 0
    reward.follow(policy.eval())
    assert scored(reward) == scored(plain) and records(reward) == []
    policy.train()
    rewards = scored(reward, completions=("b", "c"), prompts=("a", "a"), ids=((5, EOS), (5, 6)))
    expected = {"prompt": "a", "completions": ["b", "c"], "finished": [True, False], "rewards": rewards}
    assert records(reward) == [expected] and reward.num_rollouts == 1
    reward.collect()  # nothing new
    assert len(reward.buffer) == 2


def test_a_wrapped_policy_is_followed_by_its_own_mode():
    """TRL puts the model itself into evaluation mode. The wrapper stays in training mode."""
    reward, policy = refinable(), nn.Linear(1, 1)
    reward.follow(nn.DataParallel(policy).train())
    policy.eval()
    scored(reward)
    assert reward.num_rollouts == 0


def test_text_columns_are_recorded_and_other_arguments_are_not():
    reward = refinable()
    reward.follow(nn.Linear(1, 1))
    columns = {"question": ["Why?", None], "rewards": ["x", "y"], "answers": [["x"], ["y"]], "number": [1, 2]}
    prompt = TokenPrompt("a", [5, 6])
    scored(reward, [prompt, "c"], "bd", ((5, EOS),) * 2, **columns, trainer_state=None, log_metric=print)
    rows = records(reward)
    assert [list(row) for row in rows] == [["prompt", "completions", "finished", "rewards", "question"]] * 2
    assert [row["question"] for row in rows] == ["Why?", None]
    assert type(reward.buffer.state()["rollouts"][0][0]["prompt"]) is str


def test_completions_of_more_than_one_text_are_scored_but_not_recorded(caplog):
    reward = refinable(name="unrecorded")
    reward.follow(nn.Linear(1, 1))
    said, thought = (
        [{"role": "assistant", "content": "b", "tool_calls": None}],
        [{"role": "assistant", "content": "b"}],
    )
    thought[0]["reasoning_content"] = "Hm."
    chat = [{"role": "user", "content": "a"}]
    rewards = scored(reward, [chat, chat], [said, thought], ((5, EOS),) * 2)
    assert len(rewards) == 2
    (row,) = records(reward)
    assert row["completions"] == ["b"]
    assert "1 of 2 completions have tool calls, thoughts or several messages" in caplog.text


def test_reported_metrics_are_logged_by_the_next_rollout_of_training():
    reward, policy, logged = refinable(), nn.Linear(1, 1), []
    reward.follow(policy.eval())
    reward.report({"refinement/shift": 1.0, "refinement/count": 1.0})
    reward.report({"refinement/count": 2.0})
    scored(reward, log_metric=lambda *entry: logged.append(entry))
    assert logged == []
    policy.train()
    for _ in range(2):
        scored(reward, log_metric=lambda *entry: logged.append(entry))
    assert logged == [("refinement/shift", 1.0), ("refinement/count", 2.0)]


def test_weights_are_replaced_in_place_and_keep_their_dtypes():
    """A new model of rewards (r - 1) / 2, and r2 = 0 everywhere, since its head is 0: -0.5."""
    reward, shifts = refinable(), []
    cast_weights(reward.model, "bfloat16")
    reward.subscribe(shifts.append)
    new = tiny_reward_model(tiny_tokenizer(), seed=8)
    new.score.weight.data.zero_()
    places = {name: (weight.data_ptr(), weight.dtype) for name, weight in reward.model.state_dict().items()}
    reward.replace_weights(new.state_dict(), 1.0, 2.0, shift=-0.75)
    state = reward.model.state_dict()
    assert {name: (weight.data_ptr(), weight.dtype) for name, weight in state.items()} == places
    assert {weight.dtype for weight in state.values()} == {torch.bfloat16, torch.float32}
    assert all(torch.equal(weight, new.state_dict()[name].to(weight.dtype)) for name, weight in state.items())
    assert scored(reward) == [-0.5] and shifts == [-0.75]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda state: state.pop("score.weight"), r"'score.weight' has the shape \(1, 16\) in the model and None"),
        (lambda state: state.update(more=torch.zeros(2)), r"'more' has the shape None in the model and \(2,\) in"),
        (lambda state: state.update({"score.weight": torch.zeros(2, 16)}), r"\(1, 16\) in the model and \(2, 16\)"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(change, match):
    reward = refinable()
    before = scored(reward)
    state = {name: torch.zeros_like(weight) for name, weight in reward.model.state_dict().items()}
    change(state)
    with pytest.raises(ValueError, match=f"`state_dict` does not fit the reward model: .*{match}"):
        reward.replace_weights(state, 1.0, 2.0, 0.0)
    with pytest.raises(ValueError, match="`standard_deviation` must be positive, got 0"):
        reward.replace_weights({name: weight * 0 for name, weight in reward.model.state_dict().items()}, 1.0, 0, 0.0)
    assert scored(reward) == before


def test_bad_input_is_an_error():
    tokenizer = tiny_tokenizer()
    model = tiny_reward_model(tokenizer)
    with pytest.raises(ValueError, match="`buffer_size` must be at least 1 completion, got 0"):
        refinable(buffer_size=0)
    adapted = get_peft_model(tiny_reward_model(tokenizer), LoraConfig(task_type="SEQ_CLS"))
    with pytest.raises(TypeError, match="`model` has adapters of peft, .* Pass `model.merge_and_unload"):
        RefinableReward(adapted, tokenizer, [EOS])
    injected = inject_adapter_in_model(LoraConfig(target_modules=["q_proj"]), tiny_reward_model(tokenizer))
    with pytest.raises(TypeError, match="`model` has adapters of peft"):
        RefinableReward(injected, tokenizer, [EOS])
    with pytest.raises(ValueError, match="a language model, but a reward comes from a sequence classifier"):
        RefinableReward(tiny_causal_lm(tokenizer), tokenizer, [EOS])
    model.config.quantization_config = BitsAndBytesConfig(load_in_8bit=True)
    with pytest.raises(ValueError, match="`model` is quantized, but a refinement replaces plain weights"):
        RefinableReward(model, tokenizer, [EOS])


def test_two_processes_have_one_buffer(tmp_path):
    require_agreement(Path(__file__).with_name("two_process_rewards.py"), tmp_path)
