"""The critic's optimizer."""

from accelerate.utils.deepspeed import DeepSpeedSchedulerWrapper

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


def test_the_schedule_is_found_inside_the_wrapper_of_deepspeed(tmp_path):
    trainer = ppo_trainer(tmp_path, value_learning_rate=0.5, learning_rate=0.1)
    trainer.create_optimizer_and_scheduler(num_training_steps=4)
    schedule = trainer.lr_scheduler
    for _ in range(trainer.args.steps_per_rollout):
        schedule.step()
    optimizer = trainer._critic_optimizer
    rates = []
    wrapped = DeepSpeedSchedulerWrapper(schedule, [])
    for scheduler in (schedule, wrapped, DeepSpeedSchedulerWrapper(wrapped, [])):
        optimizer._step(trainer.args, scheduler)
        rates.append(optimizer.optimizer.param_groups[0]["lr"])
    assert rates == [5 * schedule.get_last_lr()[0]] * 3 and 0 < rates[0] < 0.5
