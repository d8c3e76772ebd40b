"""Model cards are valid, say what is true of the run, and their snippets load the model."""

import json
import re

import pytest
from datasets import Dataset, DatasetInfo
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id
from trl import GRPOConfig, RLOOConfig

from tests.ppo_runs import SETTINGS as PPO_SETTINGS
from tests.ppo_runs import ppo_trainer, prompts
from tests.reward_runs import SETTINGS, SameText, policy_samples, preferences, rlp_trainer, synthetic_preferences
from tests.stages.test_in_loop import in_loop
from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.rlp_ppo.rlp_ppo_config import RLPPPOConfig
from trl_rlp.rlp_ppo.rlp_ppo_trainer import RLPPPOTrainer
from trl_rlp.stages.policy import train_policy
from trl_rlp.stages.reward_model import train_reward_model
from trl_rlp.trainer.citation import HOMEPAGE, PACKAGE, PAPER
from trl_rlp.trainer.model_card import (
    METHOD_TAG,
    POLICY_SETTINGS,
    TRAINING_SETTINGS,
    add_to_model_card,
    count_rows,
    describe_model,
    describe_policy,
    find_hub_datasets,
    has_messages,
)
from trl_rlp.trainer.ppo.ppo_config import REPLACED, UNUSED, PPOConfig
from trl_rlp.trainer.ppo.ppo_trainer import CARD_SETTINGS as PPO_CARD_SETTINGS
from trl_rlp.trainer.ppo.ppo_trainer import PPOTrainer
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig
from trl_rlp.trainer.reward.rlp_reward_trainer import CARD_SETTINGS as REWARD_CARD_SETTINGS


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("models"), tiny_tokenizer()
    save(tiny_causal_lm(tokenizer), tokenizer, folder / "sft")
    save(tiny_reward_model(tokenizer, seed=3), tokenizer, folder / "reward")
    return folder


def read_card(folder, has_method: bool = True) -> ModelCard:
    """Loads a card and checks everything about it that needs no network. Only a model of RLP names its paper."""
    card = ModelCard.load(folder / "README.md")
    assert {"trl", "trl-rlp", "generated_from_trainer"} <= set(card.data.tags)
    assert card.data.library_name == "transformers" and card.data.metrics
    assert card.data.pipeline_tag in ("text-classification", "text-generation")
    if card.data.base_model is not None:
        validate_repo_id(card.data.base_model)
    assert json.dumps(card.data.to_dict()) and "None" not in card.content.replace("None yet", "")
    assert "@software{trl_rlp" in card.text and "@software{vonwerra2020trl" in card.text
    assert f"and [trl_rlp]({HOMEPAGE})" in card.text
    assert ("rlp" in card.data.tags) == has_method
    for text in ("papers/2403.19279", "arxiv.org/abs/2403.19279", "@inproceedings{lang2024fine"):
        assert (text in card.content) == has_method
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
    card = read_card(tmp_path / "policy", has_method=False)
    assert card.data.pipeline_tag == "text-generation" and name in " ".join(card.data.tags)
    assert (
        "A policy: a causal LM that was trained with " + {"ppo": "PPO", "rloo": "TRL's RLOOTrainer"}[name] in card.text
    )
    assert "- Prompts: 8, without labels" in card.text and "High rewards" not in card.text
    run_snippet(card, tmp_path, monkeypatch)


def test_a_reward_model_that_was_refined_in_the_loop_has_a_card_of_its_own(tmp_path, models, monkeypatch, capsys):
    """The policy is trained by RLOO, whose card cites RLOO's paper."""
    args = {name: PPO_SETTINGS[name] for name in ("report_to", "use_cpu", "bf16", "disable_tqdm", "save_strategy")}
    args |= {"per_device_train_batch_size": 2, "num_generations": 2, "max_completion_length": 4, "max_steps": 2}
    args["logging_steps"] = 1
    folder, loop = tmp_path / "policy", in_loop(tmp_path, models / "sft")
    folder.mkdir()
    train_policy(folder, models / "sft", models / "reward", prompts(), args, "rloo", in_loop=loop)
    card = read_card(folder / "last_reward_model")
    assert card.data.pipeline_tag == "text-classification" and {"reward-model", "rlp"} <= set(card.data.tags)
    assert card.text.strip().startswith("# Model Card for last_reward_model\n")
    for text in (
        "and not the paper's. Number of refinements that replaced the reward model: ",
        "- Base model: the model in the local folder `sft`\n- Human preferences: 6 pairs, without those above ",
        "- Synthetic preferences: pairs of policy samples, also of those from the policy's training",
        "| `method` | spg |",
        "| `refinement/count` | ",
        "@inproceedings{lang2024fine",
        "Where the policy is mostly wrong, so are they.",
    ):
        assert text in card.text
    assert card.text.count("```bibtex") == 3 and "rewards/" not in card.text and str(models) not in card.content
    run_snippet(card, folder, monkeypatch)
    assert capsys.readouterr().out.splitlines()[-1].startswith("[")


def test_the_card_before_training_has_no_metrics_and_names_given_datasets(tmp_path):
    trainer = rlp_trainer(tmp_path / "mine", method="none", data=preferences(chat=True))
    trainer.create_model_card(dataset_name="org/pairs", tags="math")
    card = read_card(tmp_path / "mine", has_method=False)
    assert card.data.datasets == ["org/pairs"] and "math" in card.data.tags
    assert "with the loss of `trl.RewardTrainer`" in card.text and "The run has logged no metric yet." in card.text
    assert "# Model Card for mine" in card.text and "Synthetic" not in card.text


def test_the_name_on_the_hub_is_in_the_snippet_and_trackers_keep_their_links(tmp_path, monkeypatch):
    trainer = ppo_trainer(tmp_path)
    trainer.hub_model_id = "org/policy"
    monkeypatch.setattr("trl.trainer.base_trainer.get_trackio_space_url", lambda: "https://huggingface.co/spaces/o/t")
    trainer.create_model_card(model_name="policy")
    card = read_card(tmp_path, has_method=False)
    assert 'model="org/policy"' in card.text
    assert "](https://huggingface.co/spaces/o/t)" in card.text
    assert "trackio:https://huggingface.co/spaces/o/t" in card.data.tags


def test_later_measurements_are_added_once_and_only_to_a_card(tmp_path):
    rlp_trainer(tmp_path / "mine", method="none").create_model_card()
    metrics = {"passed": True, "human": {"before": {"accuracy": 0.51234}, "note": "text"}, "missing": None}
    for value in (metrics, {"passed": False}):
        add_to_model_card(tmp_path / "mine", "Gate", "It compares.", value)
    card = read_card(tmp_path / "mine", has_method=False)
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
    assert count_rows(prompts().to_iterable_dataset()) == "a stream"
    assert describe_policy("It is one.", None, ()) == ("It is one.", [], (), [], False)


def test_messages_are_seen_in_the_first_row():
    for dataset in (preferences(chat=True), preferences(chat=True).to_iterable_dataset()):
        assert has_messages(dataset)
    for dataset in (preferences(), preferences().select([]), Dataset.from_dict({"chosen_ids": [[1]]}), None):
        assert not has_messages(dataset)


def test_only_models_of_the_hub_have_a_link(tmp_path):
    assert describe_model("org/model") == "[org/model](https://huggingface.co/org/model)"
    assert describe_model(str(tmp_path / "mine")) == "the model in the local folder `mine`"
    assert describe_model("") == "a model without a name"


@pytest.mark.parametrize("chat", [False, True])
def test_the_code_in_a_card_has_messages_only_if_the_data_have(tmp_path, chat):
    """The tokenizer has a chat template with both data."""
    trainer = rlp_trainer(tmp_path, "none", data=preferences(chat=chat))
    assert trainer.processing_class.chat_template is not None
    trainer.create_model_card()
    snippet = read_card(tmp_path, has_method=False).text.split("```python\n")[1].split("```")[0]
    assert ('"role": "user"' in snippet) == chat and ('prompts=["What is 2 + 2?"]' in snippet) != chat


def test_a_card_names_the_datasets_of_a_mixture_and_how_its_pairs_were_made(tmp_path):
    """A mixture of datasets has lost their addresses."""

    def on_hub(dataset, name):
        dataset.info.download_checksums = {f"hf://datasets/{name}@1/a.parquet": {}}
        return dataset

    labeler = tiny_reward_model(tiny_tokenizer(), seed=2)
    labeler.config.name_or_path = labeler.name_or_path = "org/labeler"
    trainer = rlp_trainer(
        tmp_path,
        "spg",
        data=on_hub(preferences(), "org/pairs"),
        policy_samples=on_hub(policy_samples(), "org/samples"),
        equivalence=SameText(),
        labeling_reward_model=labeler,
        labeling_processing_class=tiny_tokenizer(),
        confidence_threshold=0.6,
    )
    trainer.create_model_card()
    card = read_card(tmp_path)
    assert card.data.datasets == ["org/pairs", "org/samples"]
    assert (
        "\n- Synthetic preferences: 6 pairs of policy samples (SPG), 4 completions of each prompt, γ = 0.6, groups by "
        "`SameText`, the member with the highest reward is chosen, by [org/labeler](https://huggingface.co/org/labeler)\n"
    ) in card.text


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        (0, "has logged no metric yet."),
        (1, "logged no metric in its 1 optimizer step."),
        (2, "in its 2 optimizer steps."),
    ],
)
def test_a_run_without_metrics_says_whether_it_has_begun(tmp_path, steps, text):
    """The card of the last checkpoint is written before the trainer logs its summary."""
    trainer = rlp_trainer(tmp_path, "none")
    trainer.state.global_step = steps
    trainer.create_model_card()
    assert (
        f"## Metrics\n\nThe run {'' if steps else 'has logged no metric yet.'}"
        in read_card(tmp_path, has_method=False).text
    )
    assert text in read_card(tmp_path, has_method=False).text


@pytest.mark.parametrize(
    ("names", "configs"),
    [
        (TRAINING_SETTINGS, (RLPRewardConfig, RLPPPOConfig, GRPOConfig, RLOOConfig)),
        (POLICY_SETTINGS, (GRPOConfig,)),
        (set(POLICY_SETTINGS) - {"loss_type"}, (RLOOConfig,)),
        (PPO_CARD_SETTINGS, (RLPPPOConfig,)),
        (set(PPO_CARD_SETTINGS) - {"rlp_method"}, (PPOConfig,)),
        (REWARD_CARD_SETTINGS, (RLPRewardConfig,)),
    ],
)
def test_the_listed_settings_are_fields_of_a_configuration(names, configs):
    for config in configs:
        assert set(names) <= set(config.__dataclass_fields__)


def test_no_field_that_ppo_refuses_is_listed():
    assert not {*REPLACED, *UNUSED} & {*PPO_CARD_SETTINGS, *TRAINING_SETTINGS}


def list_settings(folder) -> dict[str, str]:
    """Reads the table of settings of a card."""
    table = ModelCard.load(folder / "README.md").text.split("| setting | value |")[1].split("\n\n")[0]
    return dict(re.findall(r"^\| `(.+)` \| (.*) \|$", table, flags=re.M))


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("none", {}),
        ("spg", {"synthetic_share": "0.5"}),
        ("uml", {"representation_loss": "mib", "representation_coef": "0.5"}),
    ],
)
def test_a_reward_model_lists_only_settings_that_had_an_effect(tmp_path, method, settings):
    arguments = {"synthetic_share": 0.5} if method == "spg" else {}
    rlp_trainer(tmp_path, method, **arguments).create_model_card()
    expected = {"method": method, **settings, "max_length": "1024", "learning_rate": "0.01"}
    expected |= {"per_device_train_batch_size": "2", "gradient_accumulation_steps": "1", "seed": "42"}
    assert list_settings(tmp_path) == {**expected, "optimizer steps": "0"}  # SETTINGS has `max_steps`


def test_epochs_are_listed_if_they_decided(tmp_path):
    rlp_trainer(tmp_path, "none", max_steps=-1, num_train_epochs=2).create_model_card()
    assert list_settings(tmp_path)["num_train_epochs"] == "2"


def test_a_policy_of_ppo_lists_no_setting_of_grpo(tmp_path):
    ppo_trainer(tmp_path, kl_coef=0.0, missing_eos_penalty=1.0).create_model_card()
    settings = list_settings(tmp_path)
    assert settings["kl_coef"] == "0.0" and settings["total_episodes"] == "12" and settings["response_length"] == "6"
    assert settings["missing_eos_penalty"] == "1.0" and settings["num_generations"] == "1"
    assert not {"beta", "loss_type", "kl_estimator", "num_train_epochs", "max_completion_length"} & settings.keys()
    ppo_trainer(tmp_path).create_model_card()
    assert list_settings(tmp_path)["kl_estimator"] == "k1"


def test_the_ppo_trainer_names_the_paper_only_with_a_method(tmp_path):
    trainer = ppo_trainer(tmp_path, trainer_class=RLPPPOTrainer, config_class=RLPPPOConfig)
    assert "rlp" not in trainer.model.model_tags
    trainer.create_model_card()
    card = read_card(tmp_path, has_method=False)
    assert "with PPO against" in card.text and "- Method: [Proximal Policy Optimization Algorithms](" in card.text
    assert list_settings(tmp_path)["rlp_method"] == "none"


def test_the_retrained_policy_names_both_papers(tmp_path, models):
    arguments = models / "sft", models / "reward", prompts(), {**PPO_SETTINGS, "total_episodes": 4}
    train_policy(tmp_path / "policy", *arguments, tags=[METHOD_TAG])
    card = read_card(tmp_path / "policy")
    assert card.text.index("papers/1707.06347") < card.text.index("papers/2403.19279")
    assert "an\nimplementation of [reward learning on policy](" in card.text


def test_metrics_of_an_evaluation_come_first(tmp_path):
    trainer = rlp_trainer(tmp_path, "none", eval_dataset=preferences(2), max_steps=1)
    trainer.train()
    trainer.evaluate()
    trainer.create_model_card()
    card = read_card(tmp_path, has_method=False)
    assert card.text.index("| `eval_accuracy` |") < card.text.index("| `accuracy` |")
    assert "which may be a few batches" in card.text


def test_latex_can_set_the_citations():
    """An underscore outside of a key needs a backslash."""
    for citation in (PACKAGE, PAPER["citation"], PPOTrainer._paper["citation"]):
        fields = citation.split(",", 1)[1]
        assert not re.search(r"(?<!\\)[_%&#]", fields)
