"""Two processes share the questions about anchors, and end with the same anchors, verdicts and pairs."""

import sys
from pathlib import Path

import torch
from datasets import Dataset

from tests.data.anchors.fakes import FirstLetter
from tests.tiny_models import tiny_reward_model, tiny_tokenizer
from trl_rlp.data.anchors import AnchorComparison, SemanticAnchors
from trl_rlp.data.preferences import pair_with_anchors
from trl_rlp.storage.processes import leave_process_group, process_state, share_work


NAMES = "abcdefgh"


def build(texts):
    columns = {"prompt": list(NAMES), "completions": [texts] * 8, "finished": [[True] * len(texts)] * 8}
    return Dataset.from_dict(columns)


def gather(value):
    return share_work(range(process_state().num_processes), lambda own: [value for _ in own])


def require_equal(value):
    first, second = gather(value)
    assert first == second


def make_anchors(folder):
    first = SemanticAnchors.from_samples(build(["x1", "x2", "y"]), FirstLetter())
    second = SemanticAnchors.from_samples(build(["x3", "x1", "x3"]), FirstLetter())
    anchors = first.merge(second, equivalence=FirstLetter())
    anchors.save(folder / "anchors")
    assert SemanticAnchors.load(folder / "anchors").fingerprint == anchors.fingerprint
    assert anchors.find("a").members == ["x1", "x2", "x3"] and anchors.find("a").confidence == 5 / 6
    require_equal(anchors.fingerprint)
    return anchors


def share_questions(comparison, process):
    """Process 0 remembers z of prompt a, and process 1 x4 of prompt b. Of 16 texts, 14 are new: 7 for each process."""
    equivalence = comparison.equivalence
    comparison.compare({"prompt": ["ab"[process]], "completion": [["z", "x4"][process]]})
    rollouts = build(["z", "x4", "x1"])
    model, tokenizer = tiny_reward_model(tiny_tokenizer()), tiny_tokenizer()
    options = {"reward_model": model, "reward_processing_class": tokenizer}
    pairs, counts = pair_with_anchors(rollouts, comparison, **options)
    assert len(pairs) == 8 and set(pairs["rejected"]) == {"z"} and counts == dict.fromkeys(counts, 0)
    assert comparison.num_questions == 8 and len(equivalence.calls) == 2
    asked = [
        (prompt, text) for questions in gather(equivalence.calls) for call in questions for prompt, _, text in call
    ]
    assert sorted(asked) == sorted((name, text) for name in NAMES for text in ("z", "x4"))
    require_equal(pairs.to_list())
    # Each process now remembers all answers.
    again, _ = pair_with_anchors(rollouts, comparison, **options)
    assert again.to_list() == pairs.to_list() and len(equivalence.calls) == 2


def fail_on_one_process(comparison, process):
    ask = comparison.equivalence.are_equivalent
    if process == 1:
        comparison.equivalence.are_equivalent = lambda *pairs: 1 / 0
    try:
        comparison.compare({"prompt": ["a", "b"], "completion": ["u", "v"]}, share_questions=True)
    except ZeroDivisionError:
        comparison.equivalence.are_equivalent = ask
    verdicts = comparison.compare({"prompt": ["a", "b"], "completion": ["u", "v"]}, share_questions=True)
    assert verdicts == [False, False]
    assert [prompt for prompt, _, _ in comparison.equivalence.calls[-1]] == ["ab"[process]]


if __name__ == "__main__":
    torch.set_num_threads(1)
    process = process_state().process_index
    assert torch.distributed.get_world_size() == process_state().num_processes == 2
    comparison = AnchorComparison(make_anchors(Path(sys.argv[1])), FirstLetter())
    share_questions(comparison, process)
    fail_on_one_process(comparison, process)
    sys.stdout.write("both processes agree\n")
    leave_process_group()
