"""An equivalence for tests of anchors, which records its questions."""

from trl_rlp.data.normalization import normalize_text


class FirstLetter:
    """Two completions mean the same if they begin with the same letter."""

    fingerprint = "first letter"

    def __init__(self, **attributes):
        self.calls = []
        vars(self).update(attributes)

    def normalize(self, text):
        return normalize_text(text)

    def are_equivalent(self, prompts, firsts, seconds):
        self.calls.append(list(zip(prompts, firsts, seconds, strict=True)))
        return [first[0] == second[0] for first, second in zip(firsts, seconds, strict=True)]
