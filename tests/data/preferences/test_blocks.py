import json
from collections import Counter

import pytest
from datasets import Dataset

from trl_rlp.data.preferences.blocks import make_pairs
from trl_rlp.data.preferences.completion_rewards import CompletionRewards
from trl_rlp.data.preferences.pairing import Pair, PairingSettings


SAMPLES = Dataset.from_dict(
    {"prompt": [f"{row}?" for row in range(5)], "completions": [["a", "bb"]] * 5, "finished": [[True, True]] * 5}
)


class PairGenerator:
    """Pairs each row but row 3. It may be interrupted at a prompt."""

    def __init__(self, stop_at=None):
        self.stop_at = stop_at
        self.blocks = []

    def __call__(self, samples, settings):
        prompts = samples["prompt"][:]
        if self.stop_at in prompts:
            raise KeyboardInterrupt
        self.blocks.append(prompts)
        rows = [row for row, prompt in enumerate(prompts) if prompt != "3?"]
        pairs = [Pair(row, 1, 0, [0], confidence=0.1) for row in rows]
        return pairs, Counter(ties=len(prompts) - len(pairs))


def build_settings(with_rewards):
    def score_rows(prompts, completions, finished, **_):
        return [float(prompt[0]) + len(text) for prompt, text in zip(prompts, completions, strict=True)]

    rewards = CompletionRewards(SAMPLES, score_rows) if with_rewards else None
    return PairingSettings(None, rewards, None, 0.5, "reward", False, 0)


def run(generator, folder, with_rewards=True, **fingerprint):
    settings = build_settings(with_rewards)
    fingerprint = {"seed": 0, "method": "new", **fingerprint}
    return make_pairs(SAMPLES, generator, settings, output_dir=folder, shard_size=2, fingerprint=fingerprint)


EXPECTED = [
    Pair(row, 1, 0, [0], confidence=0.1, chosen_reward=row + 2.0, rejected_reward=row + 1.0) for row in (0, 1, 2, 4)
]


def test_blocks_give_the_pairs_of_one_block(tmp_path):
    one, many = PairGenerator(), PairGenerator()
    assert run(one, None) == run(many, tmp_path) == (EXPECTED, Counter(ties=1))
    assert one.blocks == [["0?", "1?", "2?", "3?", "4?"]]
    assert many.blocks == [["0?", "1?"], ["2?", "3?"], ["4?"]]


def test_pairs_have_no_rewards_without_a_reward_model(tmp_path):
    pairs, _ = run(PairGenerator(), tmp_path, with_rewards=False)
    assert {(pair.chosen_reward, pair.rejected_reward) for pair in pairs} == {(None, None)}


def test_an_interrupted_call_resumes_after_the_last_finished_block(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(PairGenerator(stop_at="2?"), tmp_path)
    second = PairGenerator()
    assert run(second, tmp_path) == (EXPECTED, Counter(ties=1))
    assert second.blocks == [["2?", "3?"], ["4?"]]
    third = PairGenerator()
    assert run(third, tmp_path) == (EXPECTED, Counter(ties=1)) and third.blocks == []


def test_blocks_of_another_call_are_refused(tmp_path):
    run(PairGenerator(), tmp_path)
    generator = PairGenerator()
    with pytest.raises(ValueError, match="`seed` was 0 and is 1"):
        run(generator, tmp_path, seed=1)
    assert generator.blocks == []


def test_shards_are_json_lines(tmp_path):
    run(PairGenerator(), tmp_path)
    (line,) = (tmp_path / "shard-00001.jsonl").read_text().splitlines()
    shard = json.loads(line)
    assert shard["rejections"] == {"ties": 1} and [pair["row"] for pair in shard["pairs"]] == [2]
