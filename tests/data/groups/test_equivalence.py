import contextlib

import pytest

from tests.tiny_models import tiny_nli, tiny_tokenizer
from trl_rlp.data import normalization
from trl_rlp.data.groups import embedding, nli
from trl_rlp.data.groups.equivalence import (
    EQUIVALENCES,
    RULES,
    EmbeddingEquivalence,
    ExactMatch,
    NLIEquivalence,
    normalize_text,
    release_after,
)


def test_exact_match_compares_normalized_texts():
    assert ExactMatch().are_equivalent(["q"] * 3, ["four.", "4", "-5"], ["four", "four", "5"]) == [True, False, False]


def test_the_module_exports_all_equivalences():
    assert EQUIVALENCES == {"nli": NLIEquivalence, "embedding": EmbeddingEquivalence, "exact": ExactMatch}
    assert RULES is nli.RULES and normalize_text is normalization.normalize_text
    assert EmbeddingEquivalence is embedding.EmbeddingEquivalence


@pytest.mark.parametrize("name", EQUIVALENCES)
def test_every_equivalence_follows_the_protocol(name):
    tokenizer = tiny_tokenizer()
    model = tiny_nli(tokenizer)
    args = {"nli": (model, tokenizer), "embedding": (model.bert, tokenizer), "exact": ()}[name]
    kwargs = {"threshold": 0.9} if name == "embedding" else {}
    equivalence = EQUIVALENCES[name](*args, **kwargs)
    assert isinstance(equivalence.fingerprint, str) and equivalence.fingerprint
    assert equivalence.normalize(" Paris. ") == "Paris"
    forward = equivalence.are_equivalent(["q", "q"], ["a", "b c"], ["c", "d"])
    assert [type(same) for same in forward] == [bool, bool]
    assert equivalence.are_equivalent(["q", "q"], ["c", "d"], ["a", "b c"]) == forward
    assert equivalence.are_equivalent([], [], []) == []


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_of_an_equivalence_is_released_after_a_block(fails):
    class Releasing(ExactMatch):
        def release(self):
            calls.append("released")

    calls = []
    with contextlib.suppress(KeyError), release_after(Releasing()):
        calls.append("used")
        if fails:
            raise KeyError
    assert calls == ["used", "released"]
    with release_after(ExactMatch()), release_after(None):
        pass
