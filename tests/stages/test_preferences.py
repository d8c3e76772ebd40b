import pytest
from datasets import Dataset

from tests.reward_runs import SETTINGS, SameText
from trl_rlp.data.groups.clustering import cluster
from trl_rlp.data.preferences.preferences import synthesize_preferences
from trl_rlp.stages.preferences import make_synthetic_preferences
from trl_rlp.storage.artifacts import load_data, load_reward_model, save_data
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


SAMPLES = Dataset.from_dict(
    {
        "prompt": ["1?", "2?", "3?", "4?"],
        "completions": [
            ["red", "red.", "red ", "gray", "black", "white"],
            ["blue", "blue.", "blue ", "gray", "black", "white"],
            ["red", "blue", "green", "pink", "gray", "black"],  # below the threshold
            ["red", "red.", "red ", " red", "red. ", " red."],  # all agree
        ],
        "finished": [[True] * 6] * 4,
    }
)


@pytest.fixture
def groups(tmp_path):
    save_data(cluster(SAMPLES, SameText(), threshold=0.5), tmp_path / "groups")
    return tmp_path / "groups"


def build_config(folder, **settings):
    return RLPRewardConfig(str(folder), method="spg", **{**SETTINGS, **settings})


@pytest.mark.parametrize(
    "settings",
    [{}, {"chosen": "random"}, {"redraw_rejected": True}, {"max_length": 3}, {"confidence_threshold": 0.4}],
    ids=str,
)
def test_the_stage_saves_the_pairs_of_synthesize_preferences(tmp_path, groups, reward_model, settings):
    config = build_config(tmp_path, **settings)
    counts = make_synthetic_preferences(tmp_path / "out", groups, reward_model, config, seed=5)
    model, tokenizer = load_reward_model(reward_model)
    expected, reasons = synthesize_preferences(
        load_data(groups),
        "spg",
        reward_model=model,
        reward_processing_class=tokenizer,
        threshold=config.confidence_threshold,
        chosen=config.chosen,
        keep_candidates=config.redraw_rejected,
        max_length=config.max_length,
        seed=5,
    )
    assert load_data(tmp_path / "out").to_list() == expected.to_list()
    assert counts == {"accepted": 2, **reasons}


def test_rejected_prompts_are_counted_by_reason(tmp_path, groups, reward_model):
    counts = make_synthetic_preferences(tmp_path / "out", groups, reward_model, build_config(tmp_path), seed=5)
    assert counts["accepted"] == 2 and counts["below_threshold"] == 1
    assert sum(counts.values()) == len(SAMPLES)


def test_the_seed_draws_the_rejected_completion(tmp_path, groups, reward_model):
    """The seed of the configuration has no effect, because it belongs to the training."""

    def make(name, seed, config_seed):
        config = build_config(tmp_path, seed=config_seed)
        make_synthetic_preferences(tmp_path / name, groups, reward_model, config, seed=seed)
        return load_data(tmp_path / name)

    first = make("first", 0, config_seed=1)
    assert make("same", 0, config_seed=2).to_list() == first.to_list()
    rejected = {tuple(make(str(seed), seed, config_seed=1)["rejected"]) for seed in range(6)}
    assert len(rejected) > 1
