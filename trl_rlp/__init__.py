"""RLP for TRL: reward learning on policy (Lang, Huang and Li, NAACL 2024, https://arxiv.org/abs/2403.19279)."""

import importlib
from typing import TYPE_CHECKING, Any


__version__ = "0.1.0"

if TYPE_CHECKING:
    from trl_rlp.data.anchors import SemanticAnchors
    from trl_rlp.data.groups import EmbeddingEquivalence, ExactMatch, Group, NLIEquivalence, cluster
    from trl_rlp.data.padding import ensure_pad_token
    from trl_rlp.data.preferences import (
        Label,
        SyntheticPreferenceCollator,
        mix_preferences,
        synthesize_preferences,
        tokenize_preferences,
    )
    from trl_rlp.data.sampling import sample_completions, sample_from_server
    from trl_rlp.data.scoring import Score, score, score_samples
    from trl_rlp.evaluation import GateReport, RewardModelRegression, gate
    from trl_rlp.pipeline import RLPResult, run_rlp
    from trl_rlp.pipeline_config import RLPConfig
    from trl_rlp.report import write_report
    from trl_rlp.rewards import RefinableReward, RewardFunction, SemanticAnchorReward
    from trl_rlp.rlp_ppo import RLPPPOConfig, RLPPPOTrainer
    from trl_rlp.storage import load_data, load_policy, load_reward_model, save_data
    from trl_rlp.trainer.callbacks import PolicyMonitorCallback, RewardRefinementCallback
    from trl_rlp.trainer.ppo import PPOConfig, PPOTrainer
    from trl_rlp.trainer.reward import RLPRewardConfig, RLPRewardTrainer

_MODULES = {
    "trl_rlp.data.anchors": ["SemanticAnchors"],
    "trl_rlp.data.groups": ["EmbeddingEquivalence", "ExactMatch", "Group", "NLIEquivalence", "cluster"],
    "trl_rlp.data.padding": ["ensure_pad_token"],
    "trl_rlp.data.preferences": [
        "Label",
        "SyntheticPreferenceCollator",
        "mix_preferences",
        "synthesize_preferences",
        "tokenize_preferences",
    ],
    "trl_rlp.data.sampling": ["sample_completions", "sample_from_server"],
    "trl_rlp.data.scoring": ["Score", "score", "score_samples"],
    "trl_rlp.evaluation": ["GateReport", "RewardModelRegression", "gate"],
    "trl_rlp.pipeline": ["RLPResult", "run_rlp"],
    "trl_rlp.pipeline_config": ["RLPConfig"],
    "trl_rlp.report": ["write_report"],
    "trl_rlp.rewards": ["RefinableReward", "RewardFunction", "SemanticAnchorReward"],
    "trl_rlp.rlp_ppo": ["RLPPPOConfig", "RLPPPOTrainer"],
    "trl_rlp.storage": ["load_data", "load_policy", "load_reward_model", "save_data"],
    "trl_rlp.trainer.callbacks": ["PolicyMonitorCallback", "RewardRefinementCallback"],
    "trl_rlp.trainer.ppo": ["PPOConfig", "PPOTrainer"],
    "trl_rlp.trainer.reward": ["RLPRewardConfig", "RLPRewardTrainer"],
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "EmbeddingEquivalence",
    "ExactMatch",
    "GateReport",
    "Group",
    "Label",
    "NLIEquivalence",
    "PPOConfig",
    "PPOTrainer",
    "PolicyMonitorCallback",
    "RLPConfig",
    "RLPPPOConfig",
    "RLPPPOTrainer",
    "RLPResult",
    "RLPRewardConfig",
    "RLPRewardTrainer",
    "RefinableReward",
    "RewardFunction",
    "RewardModelRegression",
    "RewardRefinementCallback",
    "Score",
    "SemanticAnchorReward",
    "SemanticAnchors",
    "SyntheticPreferenceCollator",
    "cluster",
    "ensure_pad_token",
    "gate",
    "load_data",
    "load_policy",
    "load_reward_model",
    "mix_preferences",
    "run_rlp",
    "sample_completions",
    "sample_from_server",
    "save_data",
    "score",
    "score_samples",
    "synthesize_preferences",
    "tokenize_preferences",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `import trl_rlp` alone is fast."""
    if name not in _HOME:
        raise AttributeError(f"module 'trl_rlp' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
