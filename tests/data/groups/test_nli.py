import logging
from pathlib import Path

import pytest
import torch
from tokenizers.normalizers import Lowercase
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from tests.tiny_models import save, tiny_nli, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.groups.instruction import find_instruction
from trl_rlp.data.groups.nli import RULES, UNDECIDED, NLIEquivalence, does_not_contradict, entails


LABELS = ("contradiction", "neutral", "entailment")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


class TableEquivalence(NLIEquivalence):
    """An equivalence that reads its labels from a table of (premise, hypothesis), and records all calls."""

    def __init__(self, table, rule):
        self.table, self.rule, self.calls = table, rule, []

    def classify(self, prompts, premises, hypotheses):
        self.calls.append(list(zip(prompts, premises, hypotheses, strict=True)))
        return [self.table[pair] for pair in zip(premises, hypotheses, strict=True)]


@pytest.mark.parametrize(
    ("forward", "backward", "strict", "no_contradiction"),
    [
        ("entailment", "entailment", True, True),
        ("entailment", "neutral", False, True),
        ("neutral", "entailment", False, True),
        ("neutral", "neutral", False, True),
        ("entailment", "contradiction", False, False),
        ("contradiction", "entailment", False, False),
    ],
)
def test_rules(forward, backward, strict, no_contradiction):
    table = {("a", "long"): forward, ("long", "a"): backward}
    for rule, expected in {"strict": strict, "no_contradiction": no_contradiction}.items():
        for pair in (("a", "long"), ("long", "a")):
            assert TableEquivalence(table, rule).are_equivalent(["q"], [pair[0]], [pair[1]]) == [expected]


def test_the_first_hypothesis_is_the_longer_completion_and_backward_runs_only_if_forward_passes():
    table = {("a", "longer"): "entailment", ("longer", "a"): "neutral", ("b", "longest"): "neutral"}
    equivalence = TableEquivalence(table, "strict")
    assert equivalence.are_equivalent(["q1", "q2"], ["longer", "b"], ["a", "longest"]) == [False, False]
    assert equivalence.calls == [[("q1", "a", "longer"), ("q2", "b", "longest")], [("q1", "longer", "a")]]


def test_there_are_two_rules():
    assert RULES == {"strict": entails, "no_contradiction": does_not_contradict}


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_passes_undecided_completions_and_they_are_not_classified_backward(rule):
    assert not RULES[rule](UNDECIDED)
    equivalence = TableEquivalence({("a", "aa"): UNDECIDED}, rule)
    assert equivalence.are_equivalent(["q"], ["aa"], ["a"]) == [False] and equivalence.calls[1:] == [[]]


def test_only_completions_that_differ_can_be_undecided(tokenizer):
    """Two copies of a completion that was cut are classified. Two completions that differ behind the cut are not."""
    model = tiny_nli(tokenizer)
    rows = []
    model.register_forward_pre_hook(lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True)
    equivalence = NLIEquivalence(model, tokenizer, max_length=20)
    labels = equivalence.classify(["q"] * 3, ["a" * 30, "a" * 30, "a"], ["a" * 30, "a" * 31, "a."])
    assert labels[0] in LABELS and labels[1] == UNDECIDED and labels[2] in LABELS
    assert equivalence.undecided_pairs == 1 and equivalence.truncated_pairs == 2 and sum(rows) == 2


def test_labels_match_those_of_one_pair_at_a_time(tokenizer):
    """The completions differ in length, so batches are padded. The tokenizer has no special tokens for a pair."""
    model = tiny_nli(tokenizer, initializer_range=2.0)
    completions = ["a", "bb", "a longer one", "something else", "b", "no", "1", "2, I think", "yes!", "x" * 30]
    prompts, firsts, seconds = zip(*[("q?", a, b) for a in completions for b in completions], strict=True)
    labels = NLIEquivalence(model, tokenizer, tokens_per_batch=100).classify(prompts, firsts, seconds)
    expected = []
    for first, second in zip(firsts, seconds, strict=True):
        inputs = tokenizer(f"q? {first}", f"q? {second}", return_tensors="pt")
        expected.append(LABELS[model(**inputs).logits.argmax()])
    assert labels == expected
    assert set(labels) == set(LABELS), "The random model must use every label. Otherwise this test proves nothing."


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (("ENTAILMENT", "NEUTRAL", "CONTRADICTION"), ["entailment", "neutral", "contradiction"]),
        (("Contradicts", "Entails"), ["contradiction", "entailment"]),
        (("not_entailment", "entailment"), ["neutral", "entailment"]),
    ],
)
def test_label_names_are_read_from_the_config(tokenizer, labels, names):
    model = tiny_nli(tokenizer, labels=labels)
    with torch.no_grad():
        model.classifier.weight.zero_()
    for label_id, name in enumerate(names):
        with torch.no_grad():
            model.classifier.bias.copy_(torch.eye(len(labels))[label_id])
        assert NLIEquivalence(model, tokenizer).classify(["q"], ["a"], ["b"]) == [name]


def test_label_names_in_label2id_only_are_read(tokenizer):
    model = tiny_nli(tokenizer, labels=("LABEL_0", "LABEL_1"))
    model.config.label2id = {"entailment": 1, "contradiction": 0}
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 1.0]))
    assert NLIEquivalence(model, tokenizer).classify(["q"], ["a"], ["b"]) == ["entailment"]


def build_roberta(tokenizer):
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=66,
        pad_token_id=1,
        type_vocab_size=1,
        id2label=dict(enumerate(LABELS)),
    )
    return RobertaForSequenceClassification(config)


def build_deberta(tokenizer):
    config = DebertaV2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        relative_attention=True,
        position_biased_input=False,
        type_vocab_size=0,
        pos_att_type=["p2c", "c2p"],
        id2label=dict(enumerate(LABELS)),
    )
    return DebertaV2ForSequenceClassification(config)


def build_bert(tokenizer):
    return tiny_nli(tokenizer, max_position_embeddings=64)


@pytest.mark.parametrize("build_classifier", [build_bert, build_roberta, build_deberta])
def test_every_architecture_classifies_pairs_that_fill_its_context(tokenizer, build_classifier):
    """RoBERTa's 66 positions hold 64 tokens, because its first token has position 2."""
    equivalence = NLIEquivalence(build_classifier(tokenizer), tokenizer)
    same = equivalence.are_equivalent(["q"] * 2, ["a" * 200, "a"], ["b" * 100, "a"])
    assert len(same) == 2 and equivalence.truncated_pairs in (1, 2)
    assert equivalence.are_equivalent(["q"], ["b" * 100], ["a" * 200]) == same[:1]
    with pytest.raises(ValueError, match="`max_length`=65 tokens is beyond the classifier's context of 64"):
        NLIEquivalence(build_classifier(tokenizer), tokenizer, max_length=65)


def test_truncated_pairs_are_counted_and_logged_once(tokenizer, caplog):
    equivalence = NLIEquivalence(tiny_nli(tokenizer), tokenizer, max_length=20)
    logging.getLogger("transformers").propagate = True
    equivalence.classify(["q"] * 3, ["a" * 30, "a", "b" * 30], ["b", "c", "a"])
    equivalence.classify(["q"], ["a" * 30], ["c"])
    assert equivalence.truncated_pairs == 3
    assert sum("longer than 20 tokens" in record.getMessage() for record in caplog.records) == 1


def test_equal_pairs_are_classified_once(tokenizer):
    model = tiny_nli(tokenizer)
    rows = []
    model.register_forward_pre_hook(lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True)
    NLIEquivalence(model, tokenizer).classify(["q", "q", "q"], ["a", "a", "b"], ["b", "b", "a"])
    assert sum(rows) == 2


def test_the_cache_serves_all_rules_and_separates_models(tokenizer, tmp_path):
    model = tiny_nli(tokenizer, initializer_range=2.0)
    pairs = (["q"] * 4, ["a", "b", "c", "d"], ["b", "c", "d", "a"])
    first = NLIEquivalence(model, tokenizer, cache=tmp_path / "labels.sqlite").classify(*pairs)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    again = NLIEquivalence(model, tokenizer, "no_contradiction", cache=tmp_path / "labels.sqlite")
    assert again.classify(*pairs) == first and not calls
    assert again.classify(["q"], ["a"], ["c"]) and len(calls) == 1
    other = tiny_nli(tokenizer, seed=1, initializer_range=2.0)
    other.register_forward_hook(lambda *_: calls.append(1))
    NLIEquivalence(other, tokenizer, cache=tmp_path / "labels.sqlite").classify(*pairs)
    assert len(calls) == 2


def test_an_interrupted_run_keeps_the_labels_already_computed(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("trl_rlp.data.groups.nli._PAIRS_PER_WRITE", 2)
    model = tiny_nli(tokenizer)
    calls = []

    def interrupt_second_call(*_):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    handle = model.register_forward_pre_hook(interrupt_second_call)
    pairs = (["q"] * 4, ["a", "b", "c", "d"], ["b", "c", "d", "a"])
    with pytest.raises(KeyboardInterrupt):
        NLIEquivalence(model, tokenizer, cache=tmp_path / "labels.sqlite").classify(*pairs)
    handle.remove()
    rows = []
    model.register_forward_pre_hook(lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True)
    NLIEquivalence(model, tokenizer, cache=tmp_path / "labels.sqlite").classify(*pairs)
    assert sum(rows) == 2


def test_the_fingerprint_depends_on_weights_labels_rule_length_and_instruction(tokenizer):
    def compute_fingerprint(seed=0, **settings):
        return NLIEquivalence(tiny_nli(tokenizer, seed=seed), tokenizer, **settings).fingerprint

    others = [compute_fingerprint(1), compute_fingerprint(rule="no_contradiction"), compute_fingerprint(max_length=50)]
    others += [compute_fingerprint(instruction=instruction) for instruction in ("prompt", None, find_instruction, len)]
    swapped = tiny_nli(tokenizer, seed=0)
    swapped.config.id2label = dict(enumerate(reversed(swapped.config.id2label.values())))
    swapped.config.label2id = {label: number for number, label in swapped.config.id2label.items()}
    others.append(NLIEquivalence(swapped, tokenizer).fingerprint)
    assert compute_fingerprint() == compute_fingerprint()
    assert len({compute_fingerprint(), *others}) == 9


def test_the_model_fingerprint_depends_on_weights_and_dtype_only(tokenizer):
    model, same, changed = (tiny_nli(tokenizer) for _ in range(3))
    with torch.no_grad():
        changed.classifier.bias[0] += 1e-6
    other_rule = NLIEquivalence(same, tokenizer, "no_contradiction", max_length=50)
    assert NLIEquivalence(model, tokenizer).model_fingerprint == other_rule.model_fingerprint
    others = [changed, tiny_nli(tokenizer, seed=1), tiny_nli(tokenizer).to(torch.bfloat16)]
    assert len({NLIEquivalence(other, tokenizer).model_fingerprint for other in [model, *others]}) == 4


def test_a_folder_is_enough_and_a_model_in_training_mode_stays_in_training_mode(tokenizer, tmp_path):
    folder = save(tiny_nli(tokenizer), tokenizer, tmp_path)
    equivalence = NLIEquivalence(folder)
    assert equivalence.model.dtype == torch.float32
    model = tiny_nli(tokenizer).train()
    pairs = (["q"], ["some text"], ["another text"])
    assert NLIEquivalence(model, tokenizer).classify(*pairs) == equivalence.classify(*pairs)
    assert model.training


def test_invalid_arguments_raise(tokenizer):
    model = tiny_nli(tokenizer)
    with pytest.raises(ValueError, match=r"`rule` must be one of \['no_contradiction', 'strict'\], got 'loose'"):
        NLIEquivalence(model, tokenizer, "loose")
    with pytest.raises(TypeError, match="`instruction` must be 'auto', a column, a function or None, got 3"):
        NLIEquivalence(model, tokenizer, instruction=3)
    with pytest.raises(ValueError, match=r"one entailment label, but its labels are \['LABEL_0', 'LABEL_1'\]"):
        NLIEquivalence(tiny_nli(tokenizer, labels=("LABEL_0", "LABEL_1")), tokenizer)
    with pytest.raises(ValueError, match="must have one entailment label"):
        NLIEquivalence(tiny_reward_model(tokenizer), tokenizer)
    with pytest.raises(ValueError, match=r"one contradiction label, but its labels are \['not_entailment'"):
        NLIEquivalence(tiny_nli(tokenizer, labels=("not_entailment", "entailment")), tokenizer, "no_contradiction")
    with pytest.raises(TypeError, match="`model` must be a name, a folder or a `transformers` model, got `dict`"):
        NLIEquivalence({}, tokenizer)


def test_nan_logits_raise(tokenizer):
    model = tiny_nli(tokenizer)
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="`model` returns NaN or infinite logits"):
        NLIEquivalence(model, tokenizer).classify(["q"], ["a"], ["b"])


def test_a_real_classifier_separates_a_restatement_from_another_answer():
    folder = Path(__file__).parents[3] / "../shared/models/minilm-nli"
    if not folder.exists():
        pytest.skip("needs the NLI classifier of ../shared/models")
    seconds = ["It is Paris.", "Rome", "Paris, France"]
    same = NLIEquivalence(str(folder)).are_equivalent(["What is the capital of France?"] * 3, ["Paris"] * 3, seconds)
    assert same == [True, False, True]


def test_the_fingerprint_depends_on_how_the_tokenizer_reads_texts(tokenizer):
    lowercase = tiny_tokenizer()
    lowercase.backend_tokenizer.normalizer = Lowercase()
    readers = (tokenizer, tiny_tokenizer(), lowercase)
    fingerprints = [NLIEquivalence(tiny_nli(tokenizer), reader).fingerprint for reader in readers]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
