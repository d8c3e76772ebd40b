"""The critic's optimizer."""

from tests.ppo_runs import has_changed, ppo_trainer, weights


def test_only_the_critic_learns_in_the_warmup(tmp_path):
    trainer = ppo_trainer(tmp_path, value_warmup_rollouts=3)
    policy, critic = weights(trainer.model), weights(trainer.value_model)
    trainer.train()
    assert not has_changed(trainer.model, policy) and has_changed(trainer.value_model, critic)


def test_biases_and_norms_of_the_critic_have_no_weight_decay(tmp_path):
    trainer = ppo_trainer(tmp_path, weight_decay=0.1)
    decayed, others = trainer._critic_optimizer.optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert all(parameter.ndim == 1 for parameter in others["params"]) and others["params"]
    assert all(parameter.ndim == 2 for parameter in decayed["params"])
