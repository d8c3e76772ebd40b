"""Model cards are valid, say what is true of the run, and their snippets load the model."""

import json

import pytest
from datasets import Dataset, DatasetInfo
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id

from tests.ppo_runs import SETTINGS as PPO_SETTINGS
from tests.ppo_runs import ppo_trainer, prompts
from tests.reward_runs import SETTINGS, policy_samples, preferences, rlp_trainer, synthetic_preferences
from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.stages.policy import train_policy
from trl_rlp.stages.reward_model import train_reward_model
from trl_rlp.trainer.model_card import SETTINGS as LISTED
from trl_rlp.trainer.model_card import add_to_model_card, count_rows, describe_prompts, find_hub_datasets
from trl_rlp.trainer.ppo.ppo_config import PPOConfig
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("models"), tiny_tokenizer()
    save(tiny_causal_lm(tokenizer), tokenizer, folder / "sft")
    save(tiny_reward_model(tokenizer, seed=3), tokenizer, folder / "reward")
    return folder


def read_card(folder) -> ModelCard:
    """Loads a card and checks everything about it that needs no network."""
    card = ModelCard.load(folder / "README.md")
    assert {"trl", "trl-rlp", "generated_from_trainer"} <= set(card.data.tags)
    assert card.data.library_name == "transformers" and card.data.metrics
    assert card.data.pipeline_tag in ("text-classification", "text-generation")
    if card.data.base_model is not None:
        validate_repo_id(card.data.base_model)
    assert json.dumps(card.data.to_dict()) and "None" not in card.content.replace("None yet", "")
    assert "2403.19279" in card.text and "@software{trl_rlp" in card.text and "@software{vonwerra2020trl" in card.text
    assert "\n\n\n" not in card.text
    for heading in ("Quick start", "Training", "Metrics", "Limits", "Framework versions", "Citations"):
        assert f"\n## {heading}\n\n" in card.text
    return card


def run_snippet(card: ModelCard, folder, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    exec(compile(card.text.split("```python\n")[1].split("```")[0], "card", "exec"), {})


def test_the_card_of_a_stage_is_next_to_the_model_and_its_snippet_loads_it(tmp_path, models, monkeypatch, capsys):
    folder = tmp_path / "refined_reward_model"
    arguments = {"policy_samples": policy_samples(), "synthetic_dataset": synthetic_preferences()}
    args = {**SETTINGS, "method": "uml+spg"}
    metrics = train_reward_model(folder, models / "sft", preferences(), args, **arguments)
    card = read_card(folder)
    assert card.data.pipeline_tag == "text-classification" and card.data.metrics == ["accuracy"]
    assert card.text.strip().startswith("# Model Card for refined_reward_model\n")
    assert "RLP-UML and RLP-SPG" in card.text and "the model in the local folder `sft`" in card.text
    for line in (
        "Human preferences: 8 pairs",
        "Synthetic preferences: 3 pairs of",
        "Views: two completions of each of 6",
    ):
        assert f"\n- {line}" in card.text
    assert f"| `accuracy` | {metrics['accuracy']:.4g} |" in card.text and "| `optimizer steps` | 4 |" in card.text
    assert "Where the policy is mostly wrong, so are they." in card.text
    assert str(models) not in card.content and "## Eval" not in card.text
    run_snippet(card, tmp_path, monkeypatch)
    assert capsys.readouterr().out.splitlines()[-1].startswith("[")


@pytest.mark.parametrize("name", ["ppo", "rloo"])
def test_the_card_of_a_policy_names_its_trainer(tmp_path, models, monkeypatch, name):
    args = {**PPO_SETTINGS}
    if name == "rloo":
        args = {"max_steps": 1, "per_device_train_batch_size": 2, "num_generations": 2, "max_completion_length": 4}
        args |= {
            name: PPO_SETTINGS[name] for name in ("report_to", "use_cpu", "bf16", "disable_tqdm", "save_strategy")
        }
    train_policy(tmp_path / "policy", models / "sft", models / "reward", prompts(), args, policy_trainer=name)
    card = read_card(tmp_path / "policy")
    assert card.data.pipeline_tag == "text-generation" and name in " ".join(card.data.tags)
    assert (
        "A policy: a causal LM that was trained with " + {"ppo": "PPO", "rloo": "TRL's RLOOTrainer"}[name] in card.text
    )
    assert "- Prompts: 8, without labels" in card.text and "High rewards" not in card.text
    run_snippet(card, tmp_path, monkeypatch)


def test_the_card_before_training_has_no_metrics_and_names_given_datasets(tmp_path):
    trainer = rlp_trainer(tmp_path / "mine", method="none", data=preferences(chat=True))
    trainer.create_model_card(dataset_name="org/pairs", tags="math")
    card = read_card(tmp_path / "mine")
    assert card.data.datasets == ["org/pairs"] and "math" in card.data.tags
    assert "with the loss of `trl.RewardTrainer`" in card.text and "The run has logged no metric yet." in card.text
    assert "# Model Card for mine" in card.text and "Synthetic" not in card.text


def test_the_name_on_the_hub_is_in_the_snippet_and_trackers_keep_their_links(tmp_path, monkeypatch):
    trainer = ppo_trainer(tmp_path)
    trainer.hub_model_id = "org/policy"
    monkeypatch.setattr("trl.trainer.base_trainer.get_trackio_space_url", lambda: "https://huggingface.co/spaces/o/t")
    trainer.create_model_card(model_name="policy")
    card = read_card(tmp_path)
    assert 'model="org/policy"' in card.text
    assert "](https://huggingface.co/spaces/o/t)" in card.text
    assert "trackio:https://huggingface.co/spaces/o/t" in card.data.tags


def test_later_measurements_are_added_once_and_only_to_a_card(tmp_path):
    rlp_trainer(tmp_path / "mine", method="none").create_model_card()
    metrics = {"passed": True, "human": {"before": {"accuracy": 0.51234}, "note": "text"}, "missing": None}
    for value in (metrics, {"passed": False}):
        add_to_model_card(tmp_path / "mine", "Gate", "It compares.", value)
    card = read_card(tmp_path / "mine")
    section = "## Gate\n\nIt compares.\n\n| metric | value |\n| --- | --- |\n"
    section += "| `passed` | True |\n| `human/before/accuracy` | 0.5123 |\n\n## Limits\n"
    assert section in card.text and card.text.count("## Gate") == 1
    add_to_model_card(tmp_path, "Gate", "It compares.", metrics)
    assert not (tmp_path / "README.md").exists()


def test_datasets_of_the_hub_are_found_in_the_addresses_of_their_files():
    files = ["hf://datasets/org/pairs@abc/train.parquet", "hf://datasets/org/pairs@abc/b.parquet", "/tmp/x.jsonl"]
    info = DatasetInfo(download_checksums={file: {} for file in [*files, "hf://datasets/squad@1/a.parquet"]})
    dataset = Dataset.from_dict({"prompt": ["a"]}, info=info)
    assert find_hub_datasets(dataset) == ["org/pairs", "squad"]
    assert find_hub_datasets(dataset.select([0]).map(lambda row: {"more": 1})) == ["org/pairs", "squad"]
    assert find_hub_datasets(prompts()) == find_hub_datasets(None) == []


def test_streams_have_no_size_and_no_prompts_no_line():
    assert count_rows(prompts().to_iterable_dataset()) == "a stream" and describe_prompts(None) == []


def test_the_listed_settings_are_fields_of_a_configuration():
    """`rlp_method` is a field of RLPPPOConfig, `beta` and `loss_type` of GRPO's and RLOO's configurations."""
    fields = {*RLPRewardConfig.__dataclass_fields__, *PPOConfig.__dataclass_fields__, "rlp_method"}
    assert set(LISTED) <= fields
