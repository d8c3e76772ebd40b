"""The checks of rounds, anchors and refinement in the loop, alone."""

import logging

import pytest
from trl import GRPOConfig, RLOOConfig

from tests.ppo_runs import ppo_config, prompts
from trl_rlp.stages.loop_checks import count_rollouts, require_loop_settings, require_refinable, warn_of_long_schedule
from trl_rlp.trainer.ppo.ppo_config import PPOConfig
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


REWARD = {"use_cpu": True, "bf16": False}


@pytest.mark.parametrize(
    ("settings", "name", "match"),
    [
        ((-1.0, None, 1), "anchor_weight", "must be at least 0, got -1.0"),
        ((float("nan"), None, 1), "anchor_weight", "must be at least 0, got nan"),
        ((0.0, 0, 1), "refine_every", "must be at least 1, got 0"),
        ((0.0, None, 0), "rounds", "must be at least 1, got 0"),
    ],
)
def test_ranges_are_checked(settings, name, match):
    require_loop_settings(0.0, None, 1)
    require_loop_settings(3.0, 8, 2)
    for prefix in ("", "rlp_"):
        with pytest.raises(ValueError, match=f"`{prefix}{name}` {match}"):
            require_loop_settings(*settings, prefix=prefix)


@pytest.mark.parametrize(
    ("policy", "reward", "match"),
    [
        (
            {"bf16": True},
            {},
            "`policy_args.bf16` is True and `reward_args.bf16` is False, but with `refine_every` both",
        ),
        ({}, {"method": "uml"}, "`policy_args.num_generations` is 1, but with `refine_every` and the method 'uml'"),
        ({}, {"redraw_rejected": True}, "`reward_args.redraw_rejected` is True, but with `refine_every`"),
        (
            {"restore_callback_states_from_checkpoint": True},
            {},
            "`policy_args.restore_callback_states_from_checkpoint`",
        ),
    ],
)
def test_trainings_that_do_not_fit_together_are_named(tmp_path, policy, reward, match):
    rewards = RLPRewardConfig(str(tmp_path), **{"method": "spg", **REWARD, **reward})
    with pytest.raises(ValueError, match=match):
        require_refinable(ppo_config(tmp_path, **policy), rewards)
    require_refinable(ppo_config(tmp_path), RLPRewardConfig(str(tmp_path), method="spg", **REWARD))


def test_the_sharding_that_the_callback_refuses_is_refused(tmp_path, monkeypatch):
    """FSDP2 is not, see tests/trainer/callbacks/test_refinement_checks.py."""
    config, rewards = ppo_config(tmp_path), RLPRewardConfig(str(tmp_path), method="spg", **REWARD)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    require_refinable(config, rewards)
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(
        ValueError, match="`refine_every` is set under FSDP1, where .* Launch the run with DDP or FSDP2"
    ):
        require_refinable(config, rewards)
    config.deepspeed_plugin = "ZeRO-2"
    with pytest.raises(
        ValueError, match="`refine_every` is set under DeepSpeed, where no reward model can be trained"
    ):
        require_refinable(config, rewards)


def test_rollouts_are_counted_by_hand(tmp_path):
    """
    PPO counts rollouts itself. Of 7 prompts, a batch of 4 completions with 2 a prompt takes 2, so an epoch has 3
    complete batches, and 3 epochs have 9 rollouts. 9 optimizer steps of 2 micro-batches, with 4 micro-batches a
    rollout and 1 pass, begin 5 rollouts.
    """
    shared = {"use_cpu": True, "bf16": False, "per_device_train_batch_size": 4, "num_generations": 2}
    assert count_rollouts(PPOConfig(str(tmp_path), **shared, max_steps=7), prompts()) == 7
    for config_class in (GRPOConfig, RLOOConfig):
        assert count_rollouts(config_class(str(tmp_path), **shared, num_train_epochs=3), prompts(7)) == 9
        steps = {"max_steps": 9, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
        assert count_rollouts(config_class(str(tmp_path), **shared, **steps), prompts()) == 5


def test_a_schedule_longer_than_the_run_is_a_warning(tmp_path, caplog):
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        config = ppo_config(tmp_path, total_episodes=12)  # three rollouts of 4
        warn_of_long_schedule(2, config, prompts())
        assert not caplog.records
        warn_of_long_schedule(3, config, prompts(), "rlp_refine_every")
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert (
        "`rlp_refine_every` is 3, but step 5 has 3 rollouts and no refinement after the last one, so it" in caplog.text
    )
