"""Two completions are the same only where that is sure: equal text, or a model that has seen their difference."""

import errno
import logging
import sqlite3
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors import SafetensorError
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.tiny_models import save, tiny_causal_lm, tiny_nli, tiny_tokenizer
from trl_rlp import RLPConfig, run_rlp
from trl_rlp.cli import main
from trl_rlp.data.groups import RULES, EmbeddingEquivalence, ExactMatch, NLIEquivalence, cluster
from trl_rlp.data.groups.instruction import require_instruction_column
from trl_rlp.evaluation.policy_pairs import is_correct
from trl_rlp.pipeline import refine_reward_model
from trl_rlp.pipeline_config import RefinementSettings
from trl_rlp.stages.samples import sample_policy
from trl_rlp.storage.artifacts import load_data, save_data
from trl_rlp.storage.json_files import write_json
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


WITH_ANOTHER_MEANING = [
    ("x = y", "x != y"),
    ("(0, 1)", "[0, 1]"),
    ("5 MW", "5 mW"),
    ("ready", "!ready"),
    ("f", "f'"),
    ("5", "+5"),
    ("5", "-5"),
    ("5%", "5\u2030"),
    ("5", "5\u00b0"),
    ("$5", "5"),
    ("\u20ac5", "$5"),
    ("1,5", "1.5"),
    ("1,000", "1000"),
    ("x\u00b2", "x2"),
    ("H\u2082O", "H2O"),
    ("\u00bd", "12"),
    ("5", "5!"),
    ("a-b", "a\u2212b"),
    ("print('a')", "print(a)"),
    ("if x:\n    y()\nz()", "if x:\n    y()\n    z()"),
    ("    return x", "return x"),
    ("['a  b']", "['a b']"),
    ("yes \U0001f44d", "yes \U0001f44e"),
    ("US", "us"),
    ("Yes.", "Yes?"),
]


class Recorder(ExactMatch):
    """An equivalence that calls everything the same, and records what it is asked."""

    def __init__(self, instruction="auto"):
        self.instruction, self.calls = instruction, []

    def are_equivalent(self, prompts, firsts, seconds):
        self.calls += zip(prompts, firsts, seconds, strict=True)
        return [True] * len(firsts)


def build_samples(*completions, prompt="q?", **columns):
    row = {"prompt": prompt, "completions": list(completions), "finished": [True] * len(completions)}
    return Dataset.from_list([{**row, **columns}])


@pytest.mark.parametrize(("first", "second"), WITH_ANOTHER_MEANING)
def test_texts_that_may_differ_in_meaning_are_never_merged_without_asking(first, second):
    """A user's policy answered `5 mW` and `5 MW`, and both were one group. Right: the equivalence is asked."""
    samples = build_samples(first, second)
    assert cluster(samples, ExactMatch(), complete_groups=True)[0]["cluster_ids"] == [0, 1]
    equivalence = Recorder()
    cluster(samples, equivalence, complete_groups=True)
    assert [{first, second} for _, first, second in equivalence.calls] == [{first, second}]


@pytest.mark.parametrize(
    ("first", "second"), [(first, second) for first, second in WITH_ANOTHER_MEANING if first.strip() != second]
)
def test_an_answer_with_another_meaning_is_not_right(first, second):
    """Known answers were compared in the same way, so wrong answers counted as right. Only indentation may differ."""
    assert not is_correct(first, second) and not is_correct(second, first)


def build_tokenizer(lowercase=False):
    names = ["<pad>", "<s>", "</s>", "<unk>", "who", "is", "it", "annie", "henry", "the", "coach"]
    backend = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase() if lowercase else normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", model_max_length=32)


def build_yes_sayer(tokenizer):
    """Builds a classifier that says entailment about every pair."""
    model = tiny_nli(tokenizer)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 0.0, 1.0]))
    return model


UNSEEN = {
    "behind the cut": ("annie the coach " * 20 + "henry", "annie the coach " * 20 + "it", False),
    "in unknown words": ("it is \u4e1c\u4eac", "it is \u5927\u962a", False),
    "in case": ("annie", "Annie", True),
    "in a dropped space": ("it  is", "it is", False),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("first", "second", "lowercase"), UNSEEN.values(), ids=UNSEEN)
def test_a_difference_that_the_classifier_does_not_see_is_undecided(first, second, lowercase, rule, caplog):
    """Two long outputs that differ at their ends were the same, because both were cut. Right: counted, never same."""
    logging.getLogger("transformers").propagate = True
    tokenizer = build_tokenizer(lowercase)
    equivalence = NLIEquivalence(build_yes_sayer(tokenizer), tokenizer, rule)
    asked = (["who"] * 3, [first, second, "annie"], [second, first, "henry"])
    assert equivalence.are_equivalent(*asked) == [False, False, True]
    assert equivalence.undecided_pairs == 2
    assert cluster(build_samples(first, second), equivalence, complete_groups=True)[0]["cluster_ids"] == [0, 1]
    assert sum("sees no difference" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize(("first", "second", "lowercase"), UNSEEN.values(), ids=UNSEEN)
def test_a_difference_that_the_embedding_does_not_see_is_undecided(first, second, lowercase, caplog):
    """The embeddings of two outputs that were cut are equal, so their similarity was 1. Right: never the same."""
    logging.getLogger("transformers").propagate = True
    tokenizer = build_tokenizer(lowercase)
    equivalence = EmbeddingEquivalence(tiny_nli(tokenizer).bert, tokenizer, threshold=-1.0)
    asked = (["who"] * 3, [first, "annie", "annie"], [second, "annie.", "henry"])
    assert equivalence.are_equivalent(*asked) == [False, True, True]
    assert equivalence.undecided_pairs == 1
    equivalence.are_equivalent(*asked)
    assert sum("sees no difference" in record.getMessage() for record in caplog.records) == 1


EXAMPLES = "Q: Who wrote Ulysses?\nA: James Joyce\n\nQ: Who wrote Emma?\nA:"


@pytest.mark.parametrize(
    ("instruction", "text"),
    [
        ("auto", "Who wrote Emma?"),
        ("prompt", EXAMPLES),
        ("question", "Emma?"),
        (lambda prompt: prompt[:2], "Q:"),
        (None, ""),
    ],
)
def test_the_text_before_both_completions_can_be_chosen(instruction, text):
    """With examples or a template in the prompt, the whole prompt stood before both sides and hid the difference."""
    equivalence = Recorder(instruction)
    cluster(build_samples("Austen", "Joyce", prompt=EXAMPLES, question="Emma?"), equivalence)
    assert [prompt for prompt, _, _ in equivalence.calls] == [text]


def test_the_classifier_of_the_default_gets_the_instruction_only():
    tokenizer = tiny_tokenizer()
    model = tiny_nli(tokenizer)
    seen = []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.extend(kwargs["input_ids"]), with_kwargs=True)
    cluster(build_samples("Austen", "Joyce", prompt=EXAMPLES), NLIEquivalence(model, tokenizer))
    assert tokenizer.decode(seen[0], skip_special_tokens=True).count("Emma") == 2
    assert "Ulysses" not in tokenizer.decode(seen[0])


@pytest.fixture
def sft_model(tmp_path):
    tokenizer = tiny_tokenizer()
    return save(tiny_causal_lm(tokenizer), tokenizer, tmp_path / "sft")


def test_the_column_of_the_instruction_reaches_the_groups_of_a_pipeline(tmp_path, sft_model):
    """The stages keep only the prompts of U, so the column of the instruction must be kept on purpose."""
    prompts = Dataset.from_dict({"prompt": ["a?", "b?"], "question": ["A", "B"], "answers": [["x"]] * 2})

    class Run:
        def stage(self, name, work, **arguments):
            if name == "policy_samples":
                work(tmp_path / "samples", **arguments)
                raise InterruptedError

    settings = RefinementSettings(
        base_model=sft_model,
        config=RLPRewardConfig(output_dir=str(tmp_path), method="spg", use_cpu=True, bf16=False),
        args={},
        sampling={"num_generations": 2, "max_new_tokens": 2},
        seed=0,
    )
    data = {"prompt_dataset": prompts, "preference_dataset": None, "heldout_preferences": None}
    with pytest.raises(InterruptedError):
        refine_reward_model(
            Run(), settings, policy=sft_model, reward_model=None, equivalence=Recorder("question"), **data
        )
    samples = load_data(tmp_path / "samples")
    assert samples.column_names == ["prompt", "question", "completions", "finished"]
    equivalence = Recorder("question")
    cluster(samples, equivalence, complete_groups=True)
    assert {prompt for prompt, _, _ in equivalence.calls} <= {"A", "B"}
    sample_policy(tmp_path / "others", sft_model, prompts, settings.sampling)
    assert load_data(tmp_path / "others").column_names == ["prompt", "completions", "finished"]


def test_a_missing_column_of_the_instruction_is_found_before_any_work(tmp_path, sft_model):
    """A name with a typing error would otherwise stop the run after two trainings."""
    config = RLPConfig(
        output_dir=str(tmp_path / "run"),
        sft_model=sft_model,
        method="spg",
        reward_args={"use_cpu": True, "bf16": False},
        policy_args={"use_cpu": True, "bf16": False},
    )
    preferences = Dataset.from_dict({"prompt": ["a"] * 4, "chosen": ["b"] * 4, "rejected": ["c"] * 4})
    prompts = Dataset.from_dict({"prompt": ["a?", "b?"] * 4})
    with pytest.raises(ValueError, match="`instruction`='question' names no column of `prompt_dataset`"):
        run_rlp(config, preferences, prompts, Recorder("question"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="`instruction`='question' names no column of `train_dataset`"):
        require_instruction_column(prompts, Recorder("question"), "train_dataset")


@pytest.fixture
def classifier():
    tokenizer = tiny_tokenizer()
    return tiny_nli(tokenizer, initializer_range=2.0), tokenizer


PAIRS = (["q"] * 60, [f"answer {row}" for row in range(60)], [f"word {row}" for row in range(60)])


def test_a_full_disk_under_the_label_cache_does_not_stop_the_run(tmp_path, classifier, caplog):
    """A disk was full after hours of labeling, and the run ended in a traceback. Right: a warning, and it goes on."""
    logging.getLogger("transformers").propagate = True
    expected = NLIEquivalence(*classifier).classify(*PAIRS)
    equivalence = NLIEquivalence(*classifier, cache=tmp_path / "labels.sqlite")
    first = tuple(column[:1] for column in PAIRS)
    assert equivalence.classify(*first) == expected[:1]
    equivalence._cache._connection.execute("PRAGMA max_page_count = 2")
    assert equivalence.classify(*PAIRS) == expected
    equivalence._cache.store({number.to_bytes(16): 0 for number in range(10_000)})
    equivalence._cache.store({b"x": 0})
    assert equivalence.classify(*first) == expected[:1]
    (warning,) = [record.getMessage() for record in caplog.records if "label cache" in record.getMessage()]
    assert "labels.sqlite' cannot be written (database or disk is full)" in warning and "\n" not in warning


def test_a_label_cache_that_breaks_or_is_locked_later_does_not_stop_the_run(tmp_path, classifier, caplog, monkeypatch):
    logging.getLogger("transformers").propagate = True
    monkeypatch.setattr("trl_rlp.data.groups.label_cache._LOCK_SECONDS", 0.05)
    expected = NLIEquivalence(*classifier).classify(*PAIRS)
    equivalence = NLIEquivalence(*classifier, cache=tmp_path / "labels.sqlite")
    other = sqlite3.connect(tmp_path / "labels.sqlite")
    other.execute("BEGIN EXCLUSIVE")
    assert equivalence.classify(*PAIRS) == expected == equivalence.classify(*PAIRS)
    assert sum("cannot be read (database is locked)" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("problem", ["locked", "no folder", "not a cache"])
def test_a_label_cache_that_cannot_be_used_at_all_is_one_line_before_any_work(
    tmp_path, classifier, problem, capsys, monkeypatch
):
    monkeypatch.setattr("trl_rlp.data.groups.label_cache._LOCK_SECONDS", 0.05)
    path = tmp_path / "file" / "labels.sqlite" if problem == "no folder" else tmp_path / "file"
    if problem == "locked":
        other = sqlite3.connect(path)
        other.execute("BEGIN EXCLUSIVE")
    else:
        (tmp_path / "file").write_text("text " * 100)
    (tmp_path / "samples.jsonl").write_text('{"prompt": "a", "completions": ["x", "y"], "finished": [true, true]}\n')
    options = ["--samples", str(tmp_path / "samples.jsonl"), "--output_dir", str(tmp_path / "out")]
    options += ["--chosen", "random", "--equivalence_model", save(*classifier, tmp_path / "nli")]
    assert main(["prefer", *options, "--equivalence_cache", str(path)]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("trl-rlp prefer: ") and str(tmp_path / "file") in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("write", ["write_json", "save_data"])
def test_a_full_disk_under_another_file_names_the_file(tmp_path, monkeypatch, write):
    """`[Errno 28] No space left on device` does not say which of a run's disks is full."""

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    if write == "write_json":
        original = Path.write_text

        def fill_disk(path, text, **options):
            original(path, text[:1], **options)
            fail()

        monkeypatch.setattr(Path, "write_text", fill_disk)
        with pytest.raises(OSError, match=r"No space left on device: '.*/result.json'"):
            write_json(tmp_path / "result.json", [1, 2])
    else:
        monkeypatch.setattr(Dataset, "save_to_disk", fail)
        with pytest.raises(OSError, match=r"No space left on device: '.*/data'"):
            save_data(Dataset.from_dict({"a": [1]}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_under_a_checkpoint_is_one_line(tmp_path, capsys, monkeypatch):
    """The weights of a trainer's checkpoint are written by safetensors, whose error is no `OSError`."""

    def fail(options):
        raise SafetensorError("Error while serializing: No space left on device (os error 28)")

    monkeypatch.setattr("trl_rlp.cli.reward.main", fail)
    assert main(["reward"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "No space left on device" in error
