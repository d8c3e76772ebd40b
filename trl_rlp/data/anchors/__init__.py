"""Semantic anchors: the majority answers of the initial policy, and the comparison of later completions with them."""

from trl_rlp.data.anchors.comparison import AnchorComparison
from trl_rlp.data.anchors.semantic_anchors import Anchor, SemanticAnchors, prompt_key


__all__ = ["Anchor", "AnchorComparison", "SemanticAnchors", "prompt_key"]
