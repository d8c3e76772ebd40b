"""The sections about training: curves of policies (gold, proxy, KL), of reward models, and of other trainings."""

from collections.abc import Mapping

from trl_rlp.report.elements import Element, Figure, Image, Section, Text
from trl_rlp.report.plots import plot_curves
from trl_rlp.report.training_log import TrainingLog


KL_KEYS = {"objective/kl": "KL to the reference policy, nats per completion", "kl": "KL as the trainer logs it"}
REWARD_MODEL_KEYS = {
    "loss": "loss",
    "accuracy": "accuracy on the training pairs",
    "margin": "mean margin between chosen and rejected",
    "representation_loss": "multi-view loss L_M",
}
LENGTH_KEY = "completions/mean_length"
OTHER_KEYS = {
    "loss": "loss",
    "accuracy": "accuracy",
    "mean_token_accuracy": "accuracy of the next token",
    "rewards/accuracies": "accuracy of the implicit reward",
    "rewards/margins": "mean margin of the implicit reward",
    "rewards/chosen": "implicit reward of the chosen sides",
    "rewards/rejected": "implicit reward of the rejected sides",
    "entropy": "entropy of the next token, nats",
    "grad_norm": "norm of the gradient",
}
"""Metrics of trainers that train neither a policy by its rewards nor a reward model, such as those of SFT and DPO."""


def build_policy_curve_section(logs: Mapping[str, TrainingLog]) -> Section | None:
    """
    Builds the curves of policies in training: every reward function, KL and length.

    Args:
        logs (`Mapping[str, TrainingLog]`):
            All logs, by name of the training.

    Returns:
        [`Section`] or `None`: `None` if no policy was trained.
    """
    logs = {name: log for name, log in logs.items() if _is_policy(log)}
    if not logs:
        return None
    keys = sorted({key for log in logs.values() for key in log.keys() if _is_reward(key)})
    titles = {key: f"reward function {key.split('/')[1]}" for key in keys}
    titles |= {"reward": "sum of the rewards"} if len(keys) > 1 else {}
    titles |= {**KL_KEYS, LENGTH_KEY: "mean length of completions, tokens"}
    images = _plot_keys(logs, titles)
    figure = Figure(
        images,
        "What the trainer logged: the mean reward of each reward function, the KL divergence and the length. The "
        "reward that the policy maximizes is a proxy. A reward function with the weight 0 is a gold measure.",
        "The log does not hold the weights. A rising proxy does not say that the policy gets better, and rewards "
        "before and after a refinement have two scales.",
    )
    elements: list[Element] = [figure]
    if not any(key in log.keys() for log in logs.values() for key in KL_KEYS):
        elements.append(Text("The trainer logged no KL divergence, as TRL does at β = 0."))
    if len(keys) < 2:
        elements.append(
            Text("There is one reward function, so no curve of these is a gold measure. The evaluation may have one.")
        )
    return Section("Training of the policies", elements)


def _is_reward(key: str) -> bool:
    return key.startswith("rewards/") and key.endswith("/mean")


def build_reward_curve_section(logs: Mapping[str, TrainingLog]) -> Section | None:
    """
    Builds the curves of reward models in training: loss, accuracy and margin.

    Args:
        logs (`Mapping[str, TrainingLog]`):
            All logs, by name of the training.

    Returns:
        [`Section`] or `None`: `None` if no reward model was trained.
    """
    logs = {name: log for name, log in logs.items() if _is_reward_model(log)}
    if not logs:
        return None
    figure = Figure(
        _plot_keys(logs, REWARD_MODEL_KEYS),
        "What the reward trainers logged. Dashed curves are on evaluation pairs.",
        "Accuracy on pairs that the model is trained on does not show how it does on others. The gate has held-out "
        "pairs.",
    )
    return Section("Training of the reward models", [figure])


def build_other_curve_section(logs: Mapping[str, TrainingLog]) -> Section | None:
    """
    Builds the curves of all other trainings, such as those of `trl.SFTTrainer` and `trl.DPOTrainer`.

    Args:
        logs (`Mapping[str, TrainingLog]`):
            All logs, by name of the training.

    Returns:
        [`Section`] or `None`: `None` if there is no other training, or it logged no known metric.
    """
    logs = {name: log for name, log in logs.items() if not _is_policy(log) and not _is_reward_model(log)}
    images = _plot_keys(logs, OTHER_KEYS)
    if not images:
        return None
    figure = Figure(
        images,
        "What the trainer logged. Dashed curves are on evaluation data.",
        "A low loss does not say that the completions are good. Only curves on evaluation data show how the model "
        "does on data that it was not trained on.",
    )
    return Section("Training curves", [figure])


def _is_policy(log: TrainingLog) -> bool:
    return LENGTH_KEY in log.keys()


def _is_reward_model(log: TrainingLog) -> bool:
    return {"margin", "mean_reward"} <= log.keys()


def _plot_keys(logs: Mapping[str, TrainingLog], titles: Mapping[str, str]) -> list[Image]:
    images = []
    for key, title in titles.items():
        curves = {name: log.curve(key) for name, log in logs.items() if log.curve(key)}
        eval_curves = {name: log.curve(f"eval_{key}") for name, log in logs.items() if log.curve(f"eval_{key}")}
        if curves or eval_curves:
            images.append(plot_curves(title, curves, eval_curves))
    return images
