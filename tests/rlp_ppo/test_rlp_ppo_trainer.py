"""Algorithm 1 inside the PPO trainer."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import trl_rlp.rlp_ppo.rlp_ppo_trainer as module
from tests.ppo_runs import SETTINGS, logged, ppo_config, ppo_trainer, prompts
from tests.reward_runs import preferences
from tests.tiny_models import tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.normalization import normalize_text
from trl_rlp.rlp_ppo.rlp_ppo_config import RLPPPOConfig
from trl_rlp.storage.artifacts import load_data, save_model
from trl_rlp.storage.json_files import read_json
from trl_rlp.storage.run_folder import RunFolder


REWARD = {"max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True, "report_to": "none", "logging_steps": 1}
RLP = {"rlp_num_generations": 6, "rlp_reward_args": {**REWARD, "view_prompts_per_device": 2}, "rlp_heldout_share": 0.2}


class SameParity:
    """Two completions mean the same if the codes of their first characters are both even or both odd."""

    fingerprint = "same parity"

    def normalize(self, text):
        return normalize_text(text)

    def are_equivalent(self, prompts, firsts, seconds):
        return [ord(first[0]) % 2 == ord(second[0]) % 2 for first, second in zip(firsts, seconds, strict=True)]


def rlp_trainer(folder, method="spg", data=None, **arguments):
    arguments = {"preference_dataset": preferences(10), "equivalence": SameParity(), **RLP, **arguments}
    classes = {"trainer_class": module.RLPPPOTrainer, "config_class": RLPPPOConfig}
    return ppo_trainer(folder, data, rlp_method=method, **classes, **arguments)


@pytest.mark.parametrize(
    "method, arguments",
    [
        ("spg", {}),
        ("uml", {"data": prompts(kind="chat"), "preference_dataset": preferences(10, chat=True), "equivalence": None}),
        ("uml+spg", {"data": prompts(kind="ids"), "peft_config": LoraConfig(r=2, target_modules=["q_proj"])}),
    ],
)
def test_it_trains_refines_and_trains_again(tmp_path, method, arguments):
    trainer = rlp_trainer(tmp_path, method, **arguments)
    reward_model = trainer.reward_model
    trainer.train()
    stages = {path.parent.name for path in (tmp_path / "rlp").glob("*/stage.json")}
    expected = {"initial_policy", "policy", "policy_samples", "reward_model", "refined_reward_model", "gate"}
    assert stages - {"groups", "synthetic_preferences"} == expected
    assert (
        ("synthetic_preferences" in stages)
        == ("spg" in method)
        == (trainer.refinement.synthetic_preferences is not None)
    )
    samples = load_data(trainer.refinement.samples)
    assert len(samples) == 8 and len(samples[0]["completions"]) == 6
    assert trainer.reward_model is not reward_model
    refined = AutoModelForSequenceClassification.from_pretrained(trainer.refinement.reward_model)
    assert all(torch.equal(a, b) for a, b in zip(trainer.reward_model.parameters(), refined.parameters(), strict=True))


def test_the_last_policy_starts_from_the_initial_weights(tmp_path, monkeypatch):
    """With a learning rate of 0, the last policy, the first policy and the initial policy are the same."""
    trainer = rlp_trainer(tmp_path, learning_rate=0.0)
    initial = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    for folder in ("initial_policy", "policy"):
        saved = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "rlp" / folder).named_parameters())
        assert all(torch.equal(weight, saved[name]) for name, weight in initial.items())
    assert all(torch.equal(weight, initial[name]) for name, weight in trainer.model.named_parameters())


def test_the_last_critic_starts_from_the_refined_reward_model(tmp_path):
    trainer = rlp_trainer(tmp_path)
    before = trainer.value_model
    trainer.train()
    assert trainer.value_model is not before
    fresh = ppo_trainer(tmp_path / "other", reward_model=trainer.reward_model).value_model
    assert fresh.config.hidden_size == trainer.value_model.config.hidden_size


def test_a_second_call_runs_only_the_unfinished_stages(tmp_path, monkeypatch):
    first = rlp_trainer(tmp_path)
    first.train()
    runs = []
    train_first = module.RLPPPOTrainer._train_first_policy
    monkeypatch.setattr(
        module.RLPPPOTrainer,
        "_train_first_policy",
        lambda self, folder: runs.append(folder) or train_first(self, folder),
    )
    second = rlp_trainer(tmp_path)
    second.train()
    assert not runs
    assert logged(second)[:-1] == logged(first)[:-1]


def test_the_folder_of_another_run_is_refused(tmp_path):
    rlp_trainer(tmp_path).train()
    with pytest.raises(ValueError, match="holds a run with other settings"):
        rlp_trainer(tmp_path, model=tiny_causal_lm(tiny_tokenizer(), seed=9))
    with pytest.raises(ValueError, match="holds a run with other settings"):
        rlp_trainer(tmp_path, reward_model=tiny_reward_model(tiny_tokenizer(), seed=9))
    with pytest.raises(ValueError, match="holds a run with other settings"):
        rlp_trainer(tmp_path, peft_config=LoraConfig(r=2, target_modules=["q_proj"]))


def test_plain_ppo_writes_no_rlp_folder(tmp_path):
    trainer = ppo_trainer(tmp_path, trainer_class=module.RLPPPOTrainer, config_class=RLPPPOConfig)
    trainer.train()
    assert trainer.refinement is None and not (tmp_path / "rlp").exists()


ERRORS = {
    "no preferences": ({"preference_dataset": None}, "`preference_dataset` is None, but `rlp_method`='spg' needs it"),
    "no equivalence": ({"equivalence": None}, "`equivalence` is None, but `rlp_method`='spg' groups completions"),
    "no reward model": (
        {"reward_model": None, "reward_funcs": [lambda completions, **kwargs: [0.0] * len(completions)]},
        "`reward_model` is None, but `rlp_method`='spg' refines it",
    ),
    "adapted policy": (
        {"model": get_peft_model(tiny_causal_lm(tiny_tokenizer()), LoraConfig(target_modules=["q_proj"]))},
        "`model` is a `PeftModel`. Its training cannot start again",
    ),
    "stream": (
        {"data": IterableDataset.from_generator(lambda: iter([{"prompt": "a"}]))},
        "`train_dataset` is a stream. Its prompts cannot be sampled again",
    ),
}


@pytest.mark.parametrize("arguments, match", ERRORS.values(), ids=ERRORS)
def test_invalid_arguments_are_named_before_any_work(tmp_path, arguments, match):
    with pytest.raises(ValueError, match=match):
        rlp_trainer(tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_an_optimizer_is_refused_because_there_are_two_policies(tmp_path):
    model = tiny_causal_lm(tiny_tokenizer())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="`optimizers` belong to one policy"):
        module.RLPPPOTrainer(
            ppo_config(tmp_path / "run", RLPPPOConfig, rlp_method="uml"),
            tiny_tokenizer(),
            model,
            reward_model=tiny_reward_model(tiny_tokenizer()),
            train_dataset=prompts(),
            preference_dataset=preferences(4),
            optimizers=(optimizer, None),
        )


def test_fields_of_the_refinement_may_be_json(tmp_path):
    args = ppo_config(tmp_path, RLPPPOConfig, rlp_reward_args=json.dumps({"max_steps": 3}))
    assert args.rlp_reward_args == {"max_steps": 3}
    assert "rlp_method" not in SETTINGS and args.rlp_method == "none"


def test_one_configuration_can_be_used_twice(tmp_path):
    args = ppo_config(tmp_path / "run", RLPPPOConfig, rlp_method="uml")
    models = {"model": tiny_causal_lm(tiny_tokenizer()), "reward_model": tiny_reward_model(tiny_tokenizer())}
    for _ in range(2):
        module.RLPPPOTrainer(
            args, tiny_tokenizer(), **models, train_dataset=prompts(), preference_dataset=preferences(4)
        )
    args.resume_from_checkpoint, args.dataloader_num_workers, args.eval_steps = "checkpoint-2", 1, 3
    module.RLPPPOTrainer(args, tiny_tokenizer(), **models, train_dataset=prompts(), preference_dataset=preferences(4))
    args.kl_coef = 0.2
    with pytest.raises(ValueError, match=r"with other settings: `args.kl_coef` was [0-9.]+ and is 0\.2\. "):
        module.RLPPPOTrainer(
            args, tiny_tokenizer(), **models, train_dataset=prompts(), preference_dataset=preferences(4)
        )


def test_only_the_last_policy_is_pushed_to_the_hub(tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr(
        module.PPOTrainer, "init_hf_repo", lambda self, *args, **kwargs: pushed.append(self.args.output_dir)
    )
    monkeypatch.setattr(module.PPOTrainer, "push_to_hub", lambda self, *args, **kwargs: None)
    monkeypatch.setattr(module.PPOTrainer, "_push_from_checkpoint", lambda self, folder: None)
    rlp_trainer(tmp_path, push_to_hub=True).train()
    assert set(pushed) == {str(tmp_path)}


def test_the_adapter_configurations_of_the_user_do_not_change(tmp_path):
    configs = {
        "peft_config": LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        "value_peft_config": LoraConfig(r=2, target_modules=["q_proj"]),
    }
    rlp_trainer(tmp_path, **configs).train()
    assert all(config.base_model_name_or_path is None for config in configs.values())
    rlp_trainer(tmp_path, **configs)


def test_the_model_card_names_the_paper(tmp_path):
    rlp_trainer(tmp_path, "uml").create_model_card(model_name="policy")
    card = (tmp_path / "README.md").read_text()
    assert "trained with RLP-PPO" in card and "- Method: [Fine-Tuning Language Models with Reward Learning" in card


def test_refined_reward_model_is_standardized_and_the_first_arguments_are_released(tmp_path):
    trainer = rlp_trainer(tmp_path, standardize_rewards=True)
    first = trainer.reward_funcs[0]
    trainer.train()
    refined = trainer.reward_funcs[0]
    assert refined is not first and (refined.mean, refined.standard_deviation) != (0.0, 1.0)
    assert trainer._first_arguments is None


def test_arguments_of_ppo_are_checked_before_the_folder_is_claimed(tmp_path):
    with pytest.raises(ValueError, match="`train_dataset` lacks a column `prompt`"):
        rlp_trainer(tmp_path / "run", data=Dataset.from_dict({"text": ["a"] * 8}))
    assert not (tmp_path / "run").exists()


def test_all_policies_are_trained_with_the_same_pad_and_stop_tokens(tmp_path):
    """The pad token is outside the embedding, and the prompts are padded with it."""
    tokenizer = tiny_tokenizer()
    models = {"model": tiny_causal_lm(tokenizer), "reward_model": tiny_reward_model(tokenizer, seed=3)}
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    data = Dataset.from_dict(
        {"input_ids": [[tokenizer.pad_token_id, *ids] for ids in prompts(kind="ids")["input_ids"]]}
    )
    trainer = rlp_trainer(tmp_path, data=data, processing_class=tokenizer, **models)
    first = trainer._build_stage_trainer(tmp_path / "first")
    assert first._pad_token_id == trainer._pad_token_id == tokenizer.pad_token_id
    assert first._finish_token_ids == trainer._finish_token_ids == [tokenizer.eos_token_id]


def record_moves(reward_model) -> list[str]:
    moves, move = [], reward_model.to
    reward_model.to = lambda device: moves.append(str(device)) or move(device)
    return moves


@pytest.mark.parametrize("has_value_model", [False, True])
def test_step_5_has_the_refined_reward_model_and_leaves_the_first_one_on_the_cpu(
    tmp_path, monkeypatch, recwarn, has_value_model
):
    """The refined one scores with the maximum length that it was trained with."""
    tokenizer = tiny_tokenizer()
    save_model(tmp_path / "refined", tiny_reward_model(tokenizer, seed=9), tokenizer)
    value = {"value_model": tiny_reward_model(tokenizer, seed=5)} if has_value_model else {}
    value["value_peft_config"] = LoraConfig(r=2, target_modules=["q_proj"])
    trainer = rlp_trainer(tmp_path / "run", rlp_reward_args={"max_steps": 1, "max_length": 16}, **value)
    first, value_model, moves = trainer.reward_model, trainer.value_model, record_moves(trainer.reward_model)
    refinement = SimpleNamespace(reward_model=tmp_path / "refined")
    monkeypatch.setattr(trainer, "_refine_reward_model", lambda: refinement)
    monkeypatch.setattr(module.PPOTrainer, "train", lambda *args: None)
    trainer.train()
    assert trainer.refinement is refinement and moves == ["cpu"]
    assert trainer.reward_model is trainer.reward_funcs[0].model is not first
    assert trainer.reward_funcs[0].max_length == 16
    assert (trainer.value_model is value_model) == has_value_model
    assert not [warning for warning in recwarn if "with PEFT for a second time" in str(warning.message)]


def test_after_an_error_all_models_are_on_the_device_again(tmp_path, monkeypatch):
    def fail():
        raise RuntimeError("no memory")

    trainer = rlp_trainer(tmp_path)
    moves = record_moves(trainer.reward_model)
    monkeypatch.setattr(trainer, "_refine_reward_model", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        trainer.train()
    assert moves == ["cpu", str(trainer.args.device)] and trainer.refinement is None


# Rounds, anchors and refinement in the loop


LOOP = {"rlp_anchor_weight": 3.0, "rlp_refine_every": 1, "rlp_rounds": 2}


def constant_reward(completions, **kwargs):
    return [0.5] * len(completions)


def test_every_round_has_anchors_and_refinement_and_a_killed_run_resumes(tmp_path):
    """Three rollouts of two optimizer steps in each training. The user's function and weights stay as they are."""
    arguments = {**LOOP, "reward_funcs": [constant_reward], "reward_weights": [1.0, 2.0], "save_strategy": "steps"}
    arguments |= {"save_steps": 1, "num_ppo_epochs": 1}
    straight = rlp_trainer(tmp_path / "run", reward_model=tiny_reward_model(tiny_tokenizer(), seed=3), **arguments)
    replaced = {}
    with RunFolder.on_start(lambda run, name, values: replaced.update({name: values.get("before")})):
        straight.train()
    rlp = tmp_path / "run" / "rlp"
    assert replaced["gate"] == rlp / "reward_model"
    assert replaced["gate_2"] == rlp / "retrained_policy" / "last_reward_model"
    stages = {path.parent.name for path in (tmp_path / "run" / "rlp").glob("*/stage.json")}
    assert {"anchors", "retrained_policy", "refined_reward_model", "refined_reward_model_2", "gate_2"} <= stages
    assert "retrained_policy_2" not in stages  # the training of the trainer itself
    metrics = read_json(tmp_path / "run" / "rlp" / "retrained_policy" / "stage.json")["metrics"]
    for values in (metrics, {name: value for row in straight.state.log_history for name, value in row.items()}):
        assert values["refinement/count"] + values["refinement/skipped"] == 2
        assert values["semantic_anchor/anchored_share"] > 0
    assert straight.reward_func_names == ["reward_model", "constant_reward", "semantic_anchor"]
    assert straight.reward_weights.tolist() == [1.0, 2.0, 3.0]
    assert straight.reward_model is straight.reward_funcs[0].model

    shutil.copytree(tmp_path / "run", tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "checkpoint-3")
    resumed = rlp_trainer(tmp_path / "other", reward_model=tiny_reward_model(tiny_tokenizer(), seed=3), **arguments)
    resumed.train(resume_from_checkpoint=True)
    assert all(torch.equal(a, b) for a, b in zip(resumed.model.parameters(), straight.model.parameters(), strict=True))
    last = (resumed.reward_model.state_dict(), straight.reward_model.state_dict())
    assert all(torch.equal(weight, last[1][name]) for name, weight in last[0].items())
    assert logged(resumed)[:-1] == logged(straight)[:-1]


def test_a_value_model_starts_from_its_first_weights_in_every_round(tmp_path, monkeypatch):
    """Three trainings: that of the first policy, and those of both rounds."""
    starts, tokenizer = [], tiny_tokenizer()
    train = module.PPOTrainer.train

    def record(self, *args, **kwargs):
        starts.append({name: weight.clone() for name, weight in self.value_model.state_dict().items()})
        return train(self, *args, **kwargs)

    monkeypatch.setattr(module.PPOTrainer, "train", record)
    rlp_trainer(tmp_path, rlp_rounds=2, value_model=tiny_reward_model(tokenizer, seed=5)).train()
    assert len(starts) == 3
    assert all(torch.equal(weight, start[name]) for start in starts[1:] for name, weight in starts[0].items())
