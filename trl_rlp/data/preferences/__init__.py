"""Preferences for reward model training: human pairs, synthetic pairs and their mixture, views for UML, and picks."""

from trl_rlp.data.preferences.anchor_pairs import pair_with_anchors
from trl_rlp.data.preferences.collator import SyntheticPreferenceCollator
from trl_rlp.data.preferences.holdout import hold_out
from trl_rlp.data.preferences.labeling import Label
from trl_rlp.data.preferences.mixing import mix_preferences
from trl_rlp.data.preferences.picks import collect_picks
from trl_rlp.data.preferences.preferences import synthesize_preferences, tokenize_preferences
from trl_rlp.data.preferences.views import ViewSampler


__all__ = [
    "Label",
    "SyntheticPreferenceCollator",
    "ViewSampler",
    "collect_picks",
    "hold_out",
    "mix_preferences",
    "pair_with_anchors",
    "synthesize_preferences",
    "tokenize_preferences",
]
