"""Groups of completions with the same meaning: the equivalences that compare completions, and the clustering."""

from trl_rlp.data.groups.clustering import Group, cluster, find_largest_group
from trl_rlp.data.groups.equivalence import (
    EQUIVALENCES,
    RULES,
    EmbeddingEquivalence,
    Equivalence,
    ExactMatch,
    NLIEquivalence,
)


__all__ = [
    "EQUIVALENCES",
    "RULES",
    "EmbeddingEquivalence",
    "Equivalence",
    "ExactMatch",
    "Group",
    "NLIEquivalence",
    "cluster",
    "find_largest_group",
]
