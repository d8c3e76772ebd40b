"""RLP for TRL: reward learning on policy (Lang, Huang, Li, NAACL 2024, https://arxiv.org/abs/2403.19279)."""

import importlib
from typing import Any


__version__ = "0.1.0.dev0"

_MODULES = {
    "trl_rlp.data.groups.clustering": ["cluster"],
    "trl_rlp.data.preferences.collator": ["SyntheticPreferenceCollator"],
    "trl_rlp.data.groups.equivalence": ["EmbeddingEquivalence", "ExactMatch", "NLIEquivalence"],
    "trl_rlp.data.judges.judge": ["function_judge", "reward_judge", "with_user_turns"],
    "trl_rlp.data.judges.language_model_judge": ["language_model_judge"],
    "trl_rlp.data.preferences.preferences": ["mix_preferences", "synthesize_preferences", "tokenize_preferences"],
    "trl_rlp.data.sampling.in_process": ["sample_completions"],
    "trl_rlp.data.scoring": ["ensure_pad_token", "score", "score_samples", "scoring_ids"],
    "trl_rlp.data.sampling.server": ["sample_from_server"],
    "trl_rlp.data.judges.server_judge": ["ServerJudge"],
    "trl_rlp.data.preferences.views": ["ViewSampler"],
    "trl_rlp.evaluation.alpaca_eval": [
        "annotate",
        "leaderboard_row",
        "preferences_of",
        "read_annotations",
        "read_model_outputs",
        "write_model_outputs",
    ],
    "trl_rlp.evaluation.annotation_report": ["compare_annotations", "describe_annotations"],
    "trl_rlp.evaluation.best_of_n": ["best_of_n", "best_of_n_kl", "best_outputs"],
    "trl_rlp.evaluation.gate": ["GateReport", "RewardModelRegression", "gate"],
    "trl_rlp.evaluation.intervals": ["bootstrap_interval", "seed_interval"],
    "trl_rlp.evaluation.length_control": ["length_controlled_win_rate", "load_anchors"],
    "trl_rlp.evaluation.policy_metrics": ["describe_outputs", "kl_to_reference", "mean_reward"],
    "trl_rlp.evaluation.policy_pairs": ["answer_pairs", "judged_pairs"],
    "trl_rlp.evaluation.reward_bench": ["reward_bench_pairs", "section_scores", "subset_accuracies"],
    "trl_rlp.evaluation.reward_metrics": ["evaluate_reward_model", "pair_metrics"],
    "trl_rlp.evaluation.reward_report": ["describe_reward_model", "describe_rewards"],
    "trl_rlp.evaluation.win_rate": ["compare_win_rates", "win_rate"],
    "trl_rlp.losses.representation": ["RepresentationLoss"],
    "trl_rlp.pipeline": ["RLPResult", "run_rlp"],
    "trl_rlp.pipeline_config": ["RLPConfig"],
    "trl_rlp.rewards.reward_function": ["RewardFunction"],
    "trl_rlp.trainer.ppo.rlp_ppo_config": ["RLPPPOConfig"],
    "trl_rlp.rlp_ppo.rlp_ppo_trainer": ["RLPPPOTrainer"],
    "trl_rlp.trainer.reward.rlp_reward_config": ["RLPRewardConfig"],
    "trl_rlp.trainer.reward.rlp_reward_trainer": ["RLPRewardTrainer"],
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: `import trl_rlp` alone costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'trl_rlp' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
