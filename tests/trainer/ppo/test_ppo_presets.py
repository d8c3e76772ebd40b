"""The presets have the values of the code that they are named after. The values are repeated here."""

import pytest

from tests.ppo_runs import SETTINGS, logged, ppo_trainer
from trl_rlp.trainer.ppo.ppo_config import PPOConfig
from trl_rlp.trainer.ppo.ppo_presets import PRESETS


MACHINE = {name: SETTINGS[name] for name in ("use_cpu", "report_to")}


def test_alpacafarm_preset_has_the_values_of_alpacafarm(tmp_path):
    """On 8 devices, a rollout has 8 x 2 x 32 = 512 completions and a step has 256. Two epochs are four steps."""
    args = PPOConfig.from_preset("alpacafarm", str(tmp_path), **MACHINE)
    assert 8 * args.per_device_train_batch_size * args.steps_per_generation == 512
    assert 8 * args.per_device_train_batch_size * args.gradient_accumulation_steps == 256
    assert args.steps_per_rollout == 4
    assert (args.kl_coef, args.kl_estimator, args.adaptive_kl) == (0.0067, "clamped", False)
    assert (args.gamma, args.lam, args.vf_coef, args.cliprange, args.cliprange_value) == (1.0, 1.0, 0.1, 0.2, 0.2)
    assert (args.whiten_rewards, args.unbiased_whitening, args.missing_eos_penalty) == (True, False, None)
    assert (args.adam_epsilon, args.adam_beta1, args.adam_beta2, args.weight_decay) == (1e-5, 0.9, 0.999, 0.0)
    assert (args.learning_rate, args.warmup_steps, args.lr_scheduler_type, args.max_grad_norm) == (
        1e-5,
        5,
        "linear",
        1,
    )
    assert (args.response_length, args.temperature, args.top_p, args.top_k) == (300, 1.0, 1.0, 0)
    assert (args.score_position, args.value_model_init, args.disable_dropout) == ("last_token", "reward", True)


def test_trl_1_12_preset_has_the_values_of_trl_1_12(tmp_path):
    args = PPOConfig.from_preset("trl-1.12", str(tmp_path), **MACHINE)
    assert (args.num_ppo_epochs, args.num_mini_batches, args.response_length) == (4, 1, 53)
    assert (args.kl_coef, args.kl_estimator, args.gamma, args.lam) == (0.05, "k1", 1.0, 0.95)
    assert (args.vf_coef, args.cliprange, args.cliprange_value, args.learning_rate) == (0.1, 0.2, 0.2, 3e-6)
    assert (args.temperature, args.stop_token, args.max_grad_norm, args.adam_epsilon) == (0.7, None, 0.0, 1e-8)
    assert (args.score_position, args.loss_normalization) == ("after_last_token", "micro_batch")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains(tmp_path, name):
    small = {"response_length": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = ppo_trainer(tmp_path, **{**PRESETS[name], **small, "total_episodes": 4})
    trainer.train()
    assert logged(trainer)[0]["objective/kl"] == pytest.approx(0, abs=1e-4)


def test_values_can_be_overridden_and_unknown_names_are_refused(tmp_path):
    assert PPOConfig.from_preset("alpacafarm", str(tmp_path), kl_coef=0.02, **MACHINE).kl_coef == 0.02
    with pytest.raises(ValueError, match=r"`name` must be one of \['alpacafarm', 'trl-1.12'\], got 'ppo'"):
        PPOConfig.from_preset("ppo", str(tmp_path))
