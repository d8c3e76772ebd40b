"""The refinement of a reward model: what it trains, logs and saves, and what is an error."""

import json
import math

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForSequenceClassification, LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig

from tests.reward_runs import (
    SameText,
    get_logged,
    policy_samples,
    preferences,
    rlp_trainer,
    trl_trainer,
)
from tests.tiny_models import save, tiny_causal_lm, tiny_nli, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.preferences.collator import RECORD, SyntheticPreferenceCollator
from trl_rlp.data.preferences.preferences import synthesize_preferences
from trl_rlp.data.preferences.views import ViewSampler
from trl_rlp.data.scoring import score
from trl_rlp.losses.mutual_information import LOWER_BOUNDS
from trl_rlp.losses.representation import LOSSES, RECIPES
from trl_rlp.trainer.reward.representation_log import MI_PATIENCE
from trl_rlp.trainer.reward.rlp_reward_trainer import RLPRewardTrainer


TERMS = {
    "mib": {"mi", "mi_zero", "kl_12", "kl_21", "mean_spread", "deviation"},
    "mvi": {"mi", "mi_zero", "mean_spread", "deviation"},
    "infomax": {"mi", "mi_zero", "mean_spread", "deviation"},
    "cl": {"mi", "mi_zero", "mean_spread"},
}
TEXTS = (["Colour? ", "Colour? "], ["red", "no idea"])


def copy_weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in module.named_parameters()}


def find_unchanged(before: dict[str, torch.Tensor], module: torch.nn.Module) -> list[str]:
    return [name for name, weight in module.named_parameters() if torch.equal(weight, before[name])]


# Training and logging


@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_trains_model_and_heads_and_logs_its_terms(tmp_path, loss):
    trainer = rlp_trainer(tmp_path, representation_loss=loss)
    heads = trainer.representation_term.heads_callback.heads
    model_before, heads_before = copy_weights(trainer.model), copy_weights(heads)
    trainer.train()
    assert find_unchanged(model_before, trainer.model) == []
    assert find_unchanged(heads_before, heads) == []
    first = trainer.state.log_history[0]
    common = {"preference_loss", "representation_loss", "skipped_view_batches", "accuracy", "margin"}
    assert TERMS[loss] | common <= set(first)
    assert not (set().union(*TERMS.values()) - TERMS[loss]) & set(first)
    assert first["loss"] == pytest.approx(first["preference_loss"] + 0.5 * first["representation_loss"], abs=1e-5)
    assert first["skipped_view_batches"] == 0


@pytest.mark.parametrize("estimator", LOWER_BOUNDS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_logged_loss_is_the_sum_of_its_terms(tmp_path, estimator, recipe):
    """For mib, the loss is -mi + weight * (kl_12 + kl_21) / 2."""
    trainer = rlp_trainer(tmp_path, mi_estimator=estimator, representation_recipe=recipe, max_steps=2)
    trainer.train()
    for entry in trainer.state.log_history[:2]:
        weight = RECIPES[recipe].kl_weight
        expected = -entry["mi"] + weight * (entry["kl_12"] + entry["kl_21"]) / 2
        assert entry["representation_loss"] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_gradients_of_the_representation_loss_reach_the_trunk(tmp_path):
    """Both sides of each pair are equal, so the preference loss has no gradient. Only the views can move weights."""
    pairs = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "b"}] * 4)
    for coef in (0.0, 0.5):
        settings = {"representation_coef": coef, "max_steps": 1, "optim": "sgd", "learning_rate": 1.0}
        trainer = rlp_trainer(tmp_path / str(coef), data=pairs, **settings)
        before = copy_weights(trainer.model)
        trainer.train()
        moved = {name: (weight - before[name]).abs().max().item() for name, weight in trainer.model.named_parameters()}
        is_moved = {name for name, largest in moved.items() if largest > 1e-6}
        assert is_moved == (set(before) - {"score.weight"} if coef else set())


def test_the_kl_weight_rises_over_the_ramp(tmp_path):
    """The weight is 2 and the ramp has 4 steps: 0, 0.5, 1, 1.5 at optimizer steps 0 to 3."""
    trainer = rlp_trainer(tmp_path, kl_weight=2.0, kl_ramp_steps=4)
    trainer.train()
    for step, entry in enumerate(trainer.state.log_history[:4]):
        expected = -entry["mi"] + step / 2 * (entry["kl_12"] + entry["kl_21"]) / 2
        assert entry["representation_loss"] == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    "settings",
    [{"joint_forward": False}, {"gradient_checkpointing": False}, {"dataloader_num_workers": 2}],
    ids=str,
)
def test_execution_settings_do_not_change_the_losses(tmp_path, settings):
    runs = []
    for name, extra in (("default", {}), ("other", settings)):
        runs.append(rlp_trainer(tmp_path / name, **extra))
        runs[-1].train()
    for key in ("preference_loss", "representation_loss", "mi"):
        assert get_logged(runs[0], key) == pytest.approx(get_logged(runs[1], key), abs=1e-4), key


@pytest.mark.parametrize("dtype, settings", [("float32", {"bf16": True}), ("bfloat16", {})], ids=["autocast", "pure"])
def test_heads_stay_in_fp32_with_a_model_in_bf16(tmp_path, dtype, settings):
    model = tiny_reward_model(tiny_tokenizer()).to(getattr(torch, dtype))
    trainer = rlp_trainer(tmp_path, model=model, **settings)
    trainer.train()
    heads = trainer.representation_term.heads_callback.heads
    assert {weight.dtype for weight in heads.parameters()} == {torch.float32}
    assert all(math.isfinite(value) for value in get_logged(trainer, "loss") + get_logged(trainer, "kl_12"))


def test_accumulation_averages_the_gradients_of_the_heads(tmp_path):
    trainer = rlp_trainer(
        tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=1, max_grad_norm=0, max_steps=1
    )
    callback = trainer.representation_term.heads_callback
    parameters = list(callback.heads.parameters())
    by_batch, stepped = [], []

    def record(module, inputs, output):
        by_batch.append(torch.autograd.grad(output["loss"], parameters, retain_graph=True))

    callback.heads.register_forward_hook(record)
    step = callback.optimizer.step
    callback.optimizer.step = lambda: (stepped.extend(p.grad.clone() for p in parameters), step())
    trainer.train()
    assert len(by_batch) == 2
    for got, first, second in zip(stepped, *by_batch, strict=True):
        assert torch.allclose(got, 0.5 * (first + second) / 2, atol=1e-7)
    assert all(parameter.grad is None for parameter in parameters)


def test_gradients_of_the_heads_are_clipped(tmp_path):
    trainer = rlp_trainer(tmp_path, max_grad_norm=1e-3, max_steps=1)
    callback = trainer.representation_term.heads_callback
    norms = []
    step = callback.optimizer.step

    def record():
        norms.append(torch.cat([p.grad.flatten() for p in callback.heads.parameters()]).norm().item())
        step()

    callback.optimizer.step = record
    trainer.train()
    assert norms == [pytest.approx(1e-3, rel=1e-3)]


def test_the_heads_use_heads_learning_rate(tmp_path):
    """AdamW's first step moves each weight by the learning rate, for any gradient."""
    trainer = rlp_trainer(tmp_path, heads_learning_rate=3e-3, max_steps=1)
    heads = trainer.representation_term.heads_callback.heads
    before = copy_weights(heads)
    trainer.train()
    largest = max((weight - before[name]).abs().max().item() for name, weight in heads.named_parameters())
    assert largest == pytest.approx(3e-3, rel=1e-3)


class OnePromptCollator(SyntheticPreferenceCollator):
    """Returns views of a single prompt, as can happen by chance."""

    def __call__(self, examples):
        batch = super().__call__(examples)
        return {**batch, "view_prompt_indices": torch.zeros_like(batch["view_prompt_indices"])}


def test_a_batch_with_one_prompt_is_skipped_and_counted(tmp_path):
    tokenizer = tiny_tokenizer()
    views = ViewSampler(policy_samples(), tokenizer)
    collator = OnePromptCollator(tokenizer.pad_token_id, views=views, records_per_batch=2)
    trainer = rlp_trainer(tmp_path, tokenizer=tokenizer, data_collator=collator, gradient_accumulation_steps=2)
    trainer.train()
    assert get_logged(trainer, "skipped_view_batches") == [2.0] * 4
    assert get_logged(trainer, "representation_loss") == []
    assert get_logged(trainer, "loss") == pytest.approx(get_logged(trainer, "preference_loss"))


def test_one_warning_is_logged_if_mi_stays_at_its_zero_information_value(tmp_path, caplog):
    """With a tiny learning rate, the JSD estimate stays at its initial value, -2 ln 2."""
    settings = {"learning_rate": 1e-9, "heads_learning_rate": 1e-9, "max_steps": MI_PATIENCE + 2}
    trainer = rlp_trainer(tmp_path, **settings)
    trainer.train()
    messages = [record.message for record in caplog.records if "zero-information" in record.message]
    assert len(messages) == 1
    assert 'representation_recipe="cosine"' in messages[0]
    assert get_logged(trainer, "mi") == pytest.approx(get_logged(trainer, "mi_zero"), abs=0.01)


def test_evaluation_measures_only_pairs(tmp_path):
    ours = rlp_trainer(tmp_path / "ours", eval_dataset=preferences(5))
    theirs = trl_trainer(tmp_path / "theirs", eval_dataset=preferences(5))
    metrics, expected = ours.evaluate(), theirs.evaluate()
    assert metrics["eval_loss"] == expected["eval_loss"]
    assert metrics["eval_accuracy"] == expected["eval_accuracy"]
    assert "eval_representation_loss" not in metrics


def test_evaluation_ignores_views(tmp_path):
    """A column named `rlp_record` makes the collator add views."""
    data = preferences(4).add_column(RECORD, [0, 1, 2, 3])
    ours = rlp_trainer(tmp_path / "ours", eval_dataset=data)
    assert ours.evaluate()["eval_loss"] == trl_trainer(tmp_path / "theirs", eval_dataset=data).evaluate()["eval_loss"]


@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
def test_both_terms_together_in_each_format(tmp_path, chat):
    trainer = rlp_trainer(
        tmp_path,
        method="uml+spg",
        data=preferences(chat=chat),
        policy_samples=policy_samples(chat=chat),
        equivalence=SameText(),
        chosen="random",
    )
    assert len(trainer.train_dataset) == 8 + 6
    trainer.train()
    assert len(get_logged(trainer, "representation_loss")) == 4


def test_a_stream_of_human_pairs_works_with_views(tmp_path):
    trainer = rlp_trainer(tmp_path, data=preferences().to_iterable_dataset())
    trainer.train()
    assert len(get_logged(trainer, "mi")) == 4


class AllButDull(SameText):
    """All completions have the same meaning, except the dull one."""

    def are_equivalent(self, prompts, firsts, seconds):
        return [("dull" in first) == ("dull" in second) for first, second in zip(firsts, seconds, strict=True)]


def test_samples_without_groups_are_grouped_for_views_from_one_group(tmp_path):
    samples = Dataset.from_dict(
        {
            "prompt": ["A red: ", "A blue: "],
            "completions": [["ruby", "a dull one", "wine", "rose"], ["sky", "sea", "a dull one", "ink"]],
            "finished": [[True] * 4] * 2,
        }
    )
    trainer = rlp_trainer(tmp_path, policy_samples=samples, views_from="group", equivalence=AllButDull(), max_steps=1)
    views = trainer.data_collator.views.views(0, list(range(40)))
    texts = {trainer.processing_class.decode(ids) for view in views for ids in (view.first, view.second)}
    assert texts == {f"A red: {word}<eos>" for word in ("ruby", "wine", "rose")} | {
        f"A blue: {word}<eos>" for word in ("sky", "sea", "ink")
    }
    trainer.train()
    assert len(get_logged(trainer, "mi")) == 1


@pytest.mark.parametrize("joint_forward", [True, False])
def test_a_classifier_that_pools_can_be_trained(tmp_path, joint_forward):
    tokenizer = tiny_tokenizer()
    model = tiny_nli(tokenizer, labels=("score",))
    trainer = rlp_trainer(tmp_path, model=model, tokenizer=tokenizer, joint_forward=joint_forward, max_steps=2)
    trainer.train()
    assert len(get_logged(trainer, "mi")) == 2


# Synthetic pairs


def decode(trainer, column: str) -> list[str]:
    return [trainer.processing_class.decode(ids) for ids in trainer.train_dataset[column]]


def test_a_ready_dataset_is_added_to_the_human_pairs(tmp_path):
    trainer = rlp_trainer(tmp_path, method="spg", data=preferences(margin=True))
    assert decode(trainer, "chosen_ids")[8:] == [
        f"Name colour {i}: {word}<eos>" for i, word in enumerate(["red", "blue", "green"])
    ]
    assert trainer.train_dataset["margin"][8:] == [0.0, 0.0, 0.0]
    assert trainer.train_dataset["margin"][:2] == [0.0, 0.1]
    trainer.train()
    assert trainer.representation_term is None
    assert len(get_logged(trainer, "loss")) == 4


def test_synthetic_pairs_are_labeled_by_the_frozen_model(tmp_path):
    tokenizer, labeler = tiny_tokenizer(), tiny_reward_model(tiny_tokenizer(), seed=3)
    samples = policy_samples()
    trainer = rlp_trainer(
        tmp_path,
        method="spg",
        policy_samples=samples,
        equivalence=SameText(),
        labeling_reward_model=labeler,
        labeling_processing_class=tokenizer,
    )
    expected, _ = synthesize_preferences(
        samples,
        "spg",
        equivalence=SameText(),
        reward_model=labeler,
        reward_processing_class=tokenizer,
        max_length=1024,
        seed=42,
    )
    pairs = [row["prompt"] + row["chosen"] + "<eos>" for row in expected]
    assert decode(trainer, "chosen_ids")[8:] == pairs
    assert len(pairs) == 6


def test_rejected_completions_are_redrawn_in_each_epoch(tmp_path):
    samples = Dataset.from_dict(
        {
            "prompt": [f"Name colour {i}: " for i in range(4)],
            "completions": [["red", "red", "red", "bad", "worse", "worst", "awful", "dire"]] * 4,
            "finished": [[True] * 8] * 4,
        }
    )
    settings = {"policy_samples": samples, "equivalence": SameText(), "chosen": "random", "confidence_threshold": 0.3}
    frozen = rlp_trainer(tmp_path / "frozen", method="spg", **settings)
    assert "candidate_ids" not in frozen.train_dataset.column_names
    trainer = rlp_trainer(tmp_path / "redrawn", method="spg", redraw_rejected=True, **settings)
    rows = [trainer.train_dataset[i] for i in range(8, 12)]
    draws = []
    for epoch in range(6):
        trainer.state.epoch = float(epoch)
        trainer.callback_handler.on_epoch_begin(trainer.args, trainer.state, trainer.control)
        draws.append(trainer.data_collator(rows)["input_ids"][4:].tolist())
    assert len({json.dumps(draw) for draw in draws}) > 1
    trainer.state.epoch = 0.0  # a second run
    for event in ("on_train_begin", "on_epoch_begin"):
        getattr(trainer.data_collator.epoch_callback, event)(trainer.args, trainer.state, trainer.control)
    assert trainer.data_collator(rows)["input_ids"][4:].tolist() == draws[0]


# Saving


def test_the_saved_model_is_a_plain_classifier_with_identical_scores(tmp_path):
    trainer = rlp_trainer(tmp_path, method="uml+spg")
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "final")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "final")
    assert model.config.architectures == ["LlamaForSequenceClassification"]
    assert set(model.state_dict()) == set(tiny_reward_model(tokenizer).state_dict())
    assert score(model, tokenizer, *TEXTS) == score(trainer.model, trainer.processing_class, *TEXTS)
    assert not any("head" in path.name for path in (tmp_path / "final").iterdir())


@pytest.mark.parametrize("settings", [{"task_type": "SEQ_CLS"}, {}, {"modules_to_save": ["score"]}], ids=str)
def test_an_adapter_keeps_its_score_head(tmp_path, settings):
    tokenizer = tiny_tokenizer()
    base = save(tiny_causal_lm(tokenizer), tokenizer, tmp_path / "sft")
    trainer = rlp_trainer(
        tmp_path / "run", model=base, peft_config=LoraConfig(r=2, target_modules=["q_proj"], **settings)
    )
    before = copy_weights(trainer.model)
    trainer.train()
    trained = set(before) - set(find_unchanged(before, trainer.model))
    assert any("score" in name for name in trained)
    assert all("lora" in name or "score" in name for name in trained)
    trainer.save_model(str(tmp_path / "final"))
    expected = score(trainer.model, tokenizer, *TEXTS)
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "final", num_labels=1, dtype="float32")
    loaded.config.pad_token_id = tokenizer.pad_token_id
    assert score(loaded, tokenizer, *TEXTS) == expected
    merged = loaded.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert score(plain, tokenizer, *TEXTS) == pytest.approx(expected, abs=1e-6)


# Warnings and errors


def test_pairs_that_are_too_long_are_counted_once(tmp_path, caplog):
    """
    The prompt has 10 bytes, and the rejected completions of the 8 pairs have 8, 16, 24, 8, 16, 24, 8 and 16. With EOS,
    two texts have more than 30 tokens. Of the first 4, it is one.
    """
    for _ in range(2):
        trainer = rlp_trainer(tmp_path, method="spg", eval_dataset=preferences(4), max_length=30)
    messages = [record.message for record in caplog.records if "longer than `max_length`=30 tokens" in record.message]
    assert "2 of 8 pairs of `train_dataset`" in messages[0] and "1 of 4 pairs of `eval_dataset`" in messages[1]
    assert len(messages) == 2
    assert trainer._data_lines[0] == "Human preferences: 6 pairs"
    caplog.clear()
    rlp_trainer(tmp_path, max_length=35)
    assert "longer than `max_length`" not in caplog.text


@pytest.mark.parametrize("method", ["none", "uml", "spg"])
def test_too_short_a_limit_for_all_pairs_is_an_error(tmp_path, method):
    match = r"All pairs of `train_dataset` \(8\) are longer than `max_length`=3 tokens.*Raise `max_length`"
    with pytest.raises(ValueError, match=match):
        rlp_trainer(tmp_path, method, max_length=3)
    with pytest.raises(ValueError, match=r"All pairs of `eval_dataset` \(2\)"):
        rlp_trainer(tmp_path, method, max_length=20, eval_dataset=preferences(6).select([1, 2]))


def test_a_frozen_score_head_logs_a_warning(tmp_path, caplog):
    trainer = rlp_trainer(tmp_path, method="none", peft_config=LoraConfig(r=2, target_modules=["q_proj"]))
    assert any("score head is frozen" in record.message for record in caplog.records)
    assert not any(weight.requires_grad for name, weight in trainer.model.named_parameters() if "score" in name)


def test_a_pad_token_that_equals_eos_logs_a_warning(tmp_path, caplog):
    rlp_trainer(tmp_path / "different", method="none")
    assert not any("pad token is the EOS" in record.message for record in caplog.records)
    rlp_trainer(tmp_path / "equal", method="none", tokenizer=tiny_tokenizer(pad_is_eos=True))
    assert any("ensure_pad_token" in record.message for record in caplog.records)


def test_another_configuration_class_is_an_error(tmp_path):
    tokenizer = tiny_tokenizer()
    with pytest.raises(TypeError, match="`args` must be an `RLPRewardConfig`, got `RewardConfig`"):
        RLPRewardTrainer(
            tiny_reward_model(tokenizer),
            RewardConfig(str(tmp_path), bf16=False),
            train_dataset=preferences(),
            processing_class=tokenizer,
        )


def test_the_default_configuration_is_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer()
    folder = save(tiny_reward_model(tokenizer), tokenizer, tmp_path / "some" / "model")
    trainer = RLPRewardTrainer(folder, train_dataset=preferences())
    assert type(trainer.args).__name__ == "RLPRewardConfig"
    assert trainer.args.output_dir == "model-Reward"
    assert trainer.model.model_tags == ["trl", "reward-trainer"]  # as the default method is "none"
    assert "rlp" in rlp_trainer(tmp_path, "uml").model.model_tags


def test_the_score_head_of_a_bf16_model_with_an_adapter_is_trained_in_fp32(tmp_path):
    model = tiny_reward_model(tiny_tokenizer()).bfloat16()
    peft_config = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS")
    trainer = rlp_trainer(tmp_path, "uml", model, peft_config=peft_config, max_steps=1)
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    assert len(trained) == 5 and {parameter.dtype for parameter in trained} == {torch.float32}
    trainer.train()
    assert all(math.isfinite(loss) for loss in get_logged(trainer, "loss"))
