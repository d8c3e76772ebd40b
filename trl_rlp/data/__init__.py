"""The data stages of RLP: prompts in, policy samples, synthetic preferences and rewards out."""

from trl_rlp.data.padding import ensure_pad_token
from trl_rlp.data.scoring import Score, score, score_samples, scoring_ids


__all__ = ["Score", "ensure_pad_token", "score", "score_samples", "scoring_ids"]
