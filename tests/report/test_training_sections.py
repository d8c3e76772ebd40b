from pathlib import Path

from tests.report.run_folders import log_policy, log_reward_model
from trl_rlp.report.training_log import TrainingLog
from trl_rlp.report.training_sections import (
    build_other_curve_section,
    build_policy_curve_section,
    build_reward_curve_section,
)


def build_log(entries):
    return TrainingLog(Path("trainer_state.json"), entries, {})


LOGS = {"policy": build_log(log_policy()), "reward_model": build_log(log_reward_model())}


def list_titles(section):
    return [image.title.removesuffix(" against the optimizer step") for image in section.elements[0].images]


def test_policies_have_curves_of_every_reward_function_kl_and_length():
    section = build_policy_curve_section(LOGS)
    assert list_titles(section) == [
        "reward function gold",
        "reward function reward_model",
        "sum of the rewards",
        "KL to the reference policy, nats per completion",
        "mean length of completions, tokens",
    ]
    assert len(section.elements) == 1 and "gold" in section.elements[0].shows


def test_a_missing_kl_and_a_missing_gold_measure_are_named():
    log = build_log([{"step": 1, "rewards/r/mean": 0.5, "reward": 0.5, "completions/mean_length": 2.0}])
    section = build_policy_curve_section({"trainer": log})
    assert list_titles(section) == ["reward function r", "mean length of completions, tokens"]
    texts = [element.text for element in section.elements[1:]]
    assert "no KL divergence" in texts[0] and "no curve of these is a gold measure" in texts[1]


def test_reward_models_have_loss_accuracy_and_margin():
    section = build_reward_curve_section(LOGS)
    assert list_titles(section) == [
        "loss",
        "accuracy on the training pairs",
        "mean margin between chosen and rejected",
    ]
    assert "loss, evaluation" not in section.elements[0].images[1].svg
    assert "reward_model, evaluation" in section.elements[0].images[0].svg


SFT = [{"step": 1, "loss": 2.0, "mean_token_accuracy": 0.4, "learning_rate": 0.1}, {"step": 1, "eval_loss": 2.5}]
DPO = [{"step": 1, "loss": 0.7, "rewards/accuracies": 0.6, "rewards/margins": 0.1}]


def test_other_trainings_have_curves_of_what_they_logged():
    section = build_other_curve_section({**LOGS, "trainer": build_log(SFT)})
    assert list_titles(section) == ["loss", "accuracy of the next token"]
    assert "trainer, evaluation" in section.elements[0].images[0].svg
    assert "reward_model" not in section.elements[0].images[0].svg
    assert list_titles(build_other_curve_section({"trainer": build_log(DPO)})) == [
        "loss",
        "accuracy of the implicit reward",
        "mean margin of the implicit reward",
    ]


def test_other_logs_have_no_section():
    assert build_other_curve_section(LOGS) is None
    assert build_other_curve_section({"trainer": build_log([{"step": 1, "own metric": 1.0}])}) is None
    assert build_policy_curve_section({"reward_model": LOGS["reward_model"]}) is None
    assert build_reward_curve_section({"policy": LOGS["policy"]}) is None
    assert build_policy_curve_section({}) is None and build_reward_curve_section({}) is None
