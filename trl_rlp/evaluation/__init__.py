"""Evaluation of policies and reward models: win rates, best-of-n, labeled pairs, the gate and AlpacaEval's files."""

from trl_rlp.evaluation.alpaca_eval import (
    annotate,
    get_preferences,
    leaderboard_row,
    read_annotations,
    read_model_outputs,
    write_model_outputs,
)
from trl_rlp.evaluation.annotation_report import compare_annotations, describe_annotations
from trl_rlp.evaluation.best_of_n_sampling import best_of_n, best_of_n_kl, best_outputs
from trl_rlp.evaluation.gate_report import GateReport, RewardModelRegression, gate
from trl_rlp.evaluation.intervals import bootstrap_interval, seed_interval
from trl_rlp.evaluation.length_control import length_controlled_win_rate, load_anchors
from trl_rlp.evaluation.metrics import metric_path
from trl_rlp.evaluation.outliers import MahalanobisOutliers, represent, represent_pairs
from trl_rlp.evaluation.policy_metrics import describe_outputs, kl_to_reference, mean_reward
from trl_rlp.evaluation.policy_pairs import answer_pairs, judged_pairs
from trl_rlp.evaluation.reward_bench import reward_bench_pairs, section_scores, subset_accuracies
from trl_rlp.evaluation.reward_metrics import evaluate_reward_model, pair_metrics
from trl_rlp.evaluation.reward_report import describe_reward_model, describe_rewards
from trl_rlp.evaluation.win_rates import compare_win_rates, win_rate


__all__ = [
    "GateReport",
    "MahalanobisOutliers",
    "RewardModelRegression",
    "annotate",
    "answer_pairs",
    "best_of_n",
    "best_of_n_kl",
    "best_outputs",
    "bootstrap_interval",
    "compare_annotations",
    "compare_win_rates",
    "describe_annotations",
    "describe_outputs",
    "describe_reward_model",
    "describe_rewards",
    "evaluate_reward_model",
    "gate",
    "get_preferences",
    "judged_pairs",
    "kl_to_reference",
    "leaderboard_row",
    "length_controlled_win_rate",
    "load_anchors",
    "mean_reward",
    "metric_path",
    "pair_metrics",
    "read_annotations",
    "read_model_outputs",
    "represent",
    "represent_pairs",
    "reward_bench_pairs",
    "section_scores",
    "seed_interval",
    "subset_accuracies",
    "win_rate",
    "write_model_outputs",
]
