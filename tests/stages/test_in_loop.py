"""What step 5 adds to the policy's training."""

import pytest
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

from tests.ppo_runs import SETTINGS, prompts
from tests.reward_runs import SameText, preferences, synthetic_preferences
from tests.tiny_models import tiny_reward_model, tiny_tokenizer
from trl_rlp.data.anchors.semantic_anchors import SemanticAnchors
from trl_rlp.rewards.refinable_reward import DEFAULT_BUFFER_SIZE, RefinableReward
from trl_rlp.rewards.reward_function import RewardFunction
from trl_rlp.rewards.semantic_anchor_reward import SemanticAnchorReward
from trl_rlp.stages.in_loop import LAST_REWARD_MODEL, InLoop, make_refinable
from trl_rlp.stages.loop_checks import count_rollouts
from trl_rlp.stages.policy import POLICY_TRAINERS, train_policy
from trl_rlp.storage.artifacts import save_data
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


REWARD = {"max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True, "bf16": False, "report_to": "none"}


class SameParity(SameText):
    """Two completions mean the same if the codes of their first characters are both even or both odd."""

    fingerprint = "same parity"

    def are_equivalent(self, prompts, firsts, seconds):
        return [ord(first[0]) % 2 == ord(second[0]) % 2 for first, second in zip(firsts, seconds, strict=True)]


def in_loop(folder, base_model, method="spg", **changes) -> InLoop:
    """Builds the additions. Of the samples of each prompt, three of four have an even first character."""
    texts, count = prompts()["prompt"], len(prompts())
    samples = {"prompt": texts, "completions": [["bb", "db", "fb", "a"]] * count, "finished": [[True] * 4] * count}
    save_data(Dataset.from_dict(samples), folder / "samples")
    SemanticAnchors.from_samples(Dataset.from_dict(samples), SameParity()).save(folder / "anchors")
    save_data(synthetic_preferences(), folder / "synthetic")
    arguments = {
        "anchor_weight": 3.0,
        "refine_every": 1,
        "anchors": folder / "anchors",
        "samples": folder / "samples",
        "equivalence": SameParity(),
        "base_model": base_model,
        "config": RLPRewardConfig(str(folder / "unused"), method=method, **REWARD),
        "preference_dataset": preferences(6),
        "heldout_preferences": preferences(4),
        "synthetic": [folder / "synthetic"],
    }
    return InLoop(**{**arguments, **changes})


def reward_function() -> RewardFunction:
    tokenizer = tiny_tokenizer()
    return RewardFunction(tiny_reward_model(tokenizer), tokenizer, [tokenizer.eos_token_id], 0.5, 2.0, max_length=30)


# Reward functions, weights and callbacks


def test_a_refinable_reward_has_everything_of_the_reward_function():
    function = reward_function()
    refinable = make_refinable(function, 7)
    assert isinstance(refinable, RefinableReward) and refinable.buffer.size == 7
    assert vars(function).items() <= vars(refinable).items()


@pytest.mark.parametrize(
    ("anchor_weight", "refine_every", "types"),
    [
        (3.0, None, [RewardFunction, SemanticAnchorReward]),
        (0.0, 4, [RefinableReward]),
        (3.0, 4, [RefinableReward, SemanticAnchorReward]),
    ],
)
def test_the_additions_are_those_that_are_asked_for(tmp_path, anchor_weight, refine_every, types):
    additions = in_loop(tmp_path, "base", anchor_weight=anchor_weight, refine_every=refine_every)
    functions, callbacks = additions.extend_rewards(reward_function(), 4, tmp_path)
    assert [type(function) for function in functions] == types
    assert additions.extend_weights([1.0, 0.5]) == ([1.0, 0.5, 3.0] if anchor_weight else [1.0, 0.5])
    assert len(callbacks) == (refine_every is not None)
    if callbacks:
        assert callbacks[0].every == 4 and callbacks[0].reward is functions[0]
        assert functions[0].buffer.size == DEFAULT_BUFFER_SIZE
    if len(types) == 2 and callbacks:
        assert callbacks[0].comparison is functions[1].comparison  # no text is asked about twice


def test_the_buffer_holds_all_rollouts_between_two_refinements(tmp_path):
    """A rollout has 4 completions."""
    functions, _ = in_loop(tmp_path, "base", refine_every=5000).extend_rewards(reward_function(), 4, tmp_path)
    assert functions[0].buffer.size == 20_000


def test_the_scale_is_that_of_the_first_prompts(tmp_path, monkeypatch):
    """Scores of all samples of a large U would cost more than the training of the reward model."""
    monkeypatch.setattr("trl_rlp.rewards.standardization.NUM_PROMPTS", 3)
    _, (callback,) = in_loop(tmp_path, "base").extend_rewards(reward_function(), 4, tmp_path)
    assert callback._given_reference["prompt"] == prompts()["prompt"][:3]


def test_views_need_no_anchors(tmp_path):
    """The anchor reward alone compares completions with them."""
    (reward, anchor_reward), (callback,) = in_loop(tmp_path, "base", "uml", synthetic=()).extend_rewards(
        reward_function(), 4, tmp_path
    )
    assert callback.comparison is None and isinstance(anchor_reward, SemanticAnchorReward)
    additions = in_loop(tmp_path / "b", "base", "uml", synthetic=(), anchor_weight=0.0, anchors=None, equivalence=None)
    functions, _ = additions.extend_rewards(reward_function(), 4, tmp_path)
    assert [type(function) for function in functions] == [RefinableReward]


@pytest.mark.parametrize("policy_trainer", POLICY_TRAINERS)
def test_every_trainer_gets_the_anchor_reward_and_refines(tmp_path, sft_model, reward_model, policy_trainer):
    """Three rollouts, with refinements after the first two. The sum of the rewards is r + 3 a."""
    args = {
        **{name: SETTINGS[name] for name in ("report_to", "disable_tqdm", "use_cpu", "bf16", "save_strategy")},
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 4,
        "max_steps": 3,
        "logging_steps": 1,
    }
    additions = in_loop(tmp_path, sft_model)
    config = POLICY_TRAINERS[policy_trainer][1](str(tmp_path), **args)
    assert count_rollouts(config, prompts()) == 3
    folder = tmp_path / "policy"
    folder.mkdir()
    metrics = train_policy(folder, sft_model, reward_model, prompts(), args, policy_trainer, in_loop=additions)
    assert metrics["refinement/count"] + metrics["refinement/skipped"] == 2
    assert metrics["semantic_anchor/anchored_share"] == 1
    if policy_trainer != "ppo":
        total = metrics["rewards/reward_model/mean"] + 3 * metrics["rewards/semantic_anchor/mean"]
        assert metrics["reward"] == pytest.approx(total, abs=1e-5)
    card = (folder / LAST_REWARD_MODEL / "README.md").read_text()
    assert f"replaced the reward model: {metrics['refinement/count']:.0f}." in card
    assert "Human preferences: 6 pairs, without those above `max_length`" in card
    last, first = (
        AutoModelForSequenceClassification.from_pretrained(path).state_dict()
        for path in (folder / LAST_REWARD_MODEL, reward_model)
    )
    assert any(not weight.equal(first[name]) for name, weight in last.items()) == (metrics["refinement/count"] > 0)
