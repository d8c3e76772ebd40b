"""One refinement: what is trained on, and whether the new model replaces the old one."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value
from peft import LoraConfig
from transformers.utils import logging

import trl_rlp.trainer.callbacks.reward_refinement as module
from tests.refinement_runs import SameParity, refinable_reward, refinement
from tests.reward_runs import synthetic_preferences
from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.preferences.pairing import NoPairsError
from trl_rlp.data.scoring import score
from trl_rlp.storage.precision import cast_weights
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


TEXTS = ["2", "2!", "1", "1 of them", "two", "none"]


def reference(size: int = 6) -> Dataset:
    return Dataset.from_dict({"prompt": ["ab0:"], "completions": [TEXTS[:size]], "finished": [[True] * size]})


def record(reward, *completions: str, prompt: str = "ab0:") -> None:
    """Records a rollout of one prompt, as a trainer would."""
    row = {"prompt": prompt, "finished": True, "reward": 0.0}
    reward.buffer.add([{**row, "completion": completion} for completion in completions])
    reward.num_rollouts += 1


def weights_of(reward) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in reward.model.state_dict().items()}


def build(folder, reward, method="spg", **arguments) -> module.RewardRefinement:
    return refinement(folder, reward, method, **arguments)._refinement


def self_labeled(reward, size: int = 12) -> Dataset:
    """Builds held-out pairs that the reward model orders correctly."""
    prompts, texts = [f"q{i}:" for i in range(size)], ("yes", "no")
    rewards = [score(reward.model, reward.processing_class, prompts, [text] * size) for text in texts]
    sides = [texts if first > second else texts[::-1] for first, second in zip(*rewards, strict=True)]
    return Dataset.from_dict({"prompt": prompts, "chosen": [a for a, _ in sides], "rejected": [b for _, b in sides]})


def test_the_new_scale_by_hand():
    """Old: 1 and 3, so mean 2 and sd 1. New: 10 and 14, so mean 12 and sd 2. sd' = 2 / 1, mean' = 12 - 2 * 2 = 8."""
    scale = module.rescale(np.array([1.0, 3.0]), np.array([10.0, 14.0]))
    assert scale == (8.0, 2.0)
    assert [(raw - scale.mean) / scale.standard_deviation for raw in (10, 14)] == [1, 3]


@pytest.mark.parametrize(
    "old, new, expected",
    [([1, 2, 3], [1, 3, 2], 1 / 3), ([1, 2, 3], [3, 2, 1], 1.0), ([1, 2], [5, 5], 0.0), ([1], [2], 0.0)],
)
def test_disagreement_is_the_share_of_pairs_in_another_order(old, new, expected):
    assert module.disagreement(np.array(old), np.array(new)) == expected


def test_a_refinement_starts_from_a_folder_a_function_or_the_current_model(tmp_path):
    reward, tokenizer = refinable_reward(), tiny_tokenizer()
    args = RLPRewardConfig(str(tmp_path), method="spg", use_cpu=True)
    folder = save(tiny_causal_lm(tokenizer), tokenizer, tmp_path / "sft")
    first, second = (module.build_start_model(folder, reward, args).score.weight for _ in range(2))
    assert torch.equal(first, second) and not torch.equal(first, reward.model.score.weight)
    own = tiny_reward_model(tokenizer, seed=8)
    own.get_input_embeddings().requires_grad_(False)
    assert module.build_start_model(lambda: own, reward, args) is own
    assert not own.get_input_embeddings().weight.requires_grad and own.score.weight.requires_grad
    with pytest.raises(TypeError, match="`base_model` must return a reward model, got `str`. Load one"):
        module.build_start_model(lambda: "folder", reward, args)
    reward.model.bfloat16().requires_grad_(False)
    warm = module.build_start_model(None, reward, args)
    assert warm.dtype == torch.float32 and all(weight.requires_grad for weight in warm.parameters())
    assert torch.equal(warm.score.weight, reward.model.score.weight.float())
    assert reward.model.dtype == torch.bfloat16


@pytest.mark.parametrize("mean, standard_deviation", [(0.0, 1.0), (0.5, 2.0)])
def test_twice_the_rewards_are_the_same_rewards_after_scaling(tmp_path, mean, standard_deviation):
    """
    Old rewards (r - M) / S with mean m of r and sd s. New raw rewards 2r. sd' = 2s / (s / S) = 2S.
    mean' = 2m - (m - M) / S * 2S = 2M. So new rewards are (2r - 2M) / 2S, the old ones.
    """
    reward = refinable_reward(mean=mean, standard_deviation=standard_deviation)
    record(reward, "2", "1 of them", "none")
    weights, shifts = weights_of(reward), []
    reward.subscribe(shifts.append)
    weights["score.weight"] *= 2
    outcome = build(tmp_path, reward).replace_unless_worse(weights, reference())
    assert outcome.problem is None
    assert (reward.mean, reward.standard_deviation) == pytest.approx((2 * mean, 2 * standard_deviation), abs=1e-5)
    assert torch.equal(reward.model.score.weight, weights["score.weight"])
    assert shifts == [outcome.metrics["shift"]] and shifts[0] == pytest.approx(0, abs=1e-5)
    assert outcome.metrics["disagreement"] == 0
    assert outcome.metrics["heldout_accuracy_before"] == outcome.metrics["heldout_accuracy_after"]


def test_the_shift_is_measured_on_the_last_rollout(tmp_path):
    """The fixed samples keep their mean. What the last rollout gains or loses is the shift of the policy's reward."""
    reward = refinable_reward()
    record(reward, "another")
    record(reward, "2", "none")
    old, fixed = (score(reward.model, reward.processing_class, ["ab0:"] * len(t), t) for t in (["2", "none"], TEXTS))
    new_model = tiny_reward_model(tiny_tokenizer(), seed=11)
    new, new_fixed = (score(new_model, tiny_tokenizer(), ["ab0:"] * len(t), t) for t in (["2", "none"], TEXTS))
    refined = build(tmp_path, reward, eval_preference_dataset=self_labeled(reward, 1))
    outcome = refined.replace_unless_worse(new_model.state_dict(), reference())
    ratio = np.std(new_fixed) / np.std(fixed)
    expected = (np.mean(new) - np.mean(new_fixed)) / ratio + np.mean(fixed) - np.mean(old)
    assert outcome.problem is None and outcome.metrics["shift"] == pytest.approx(expected, abs=1e-5)
    scaled = [(raw - reward.mean) / reward.standard_deviation for raw in new_fixed]
    assert np.mean(scaled) == pytest.approx(np.mean(fixed), abs=1e-6)
    assert np.std(scaled) == pytest.approx(np.std(fixed), abs=1e-6)


def test_a_model_in_bf16_keeps_its_dtypes(tmp_path):
    """It is compared as it will be used, with its head in fp32."""
    reward = refinable_reward()
    cast_weights(reward.model, "bfloat16")
    dtypes = {name: tensor.dtype for name, tensor in reward.model.state_dict().items()}
    record(reward, "2", "1")
    refined = build(tmp_path, reward)
    refined.add_window(0)
    weights = refined.train(None)
    assert {name: tensor.dtype for name, tensor in weights.items()} == dtypes and len(set(dtypes.values())) == 2
    assert refined.replace_unless_worse(weights, reference()).problem is None
    assert {name: tensor.dtype for name, tensor in reward.model.state_dict().items()} == dtypes
    assert all(torch.equal(tensor, weights[name]) for name, tensor in reward.model.state_dict().items())


@pytest.mark.parametrize(
    "factor, problem",
    [
        (float("nan"), "its weights are NaN or infinite"),
        (1e39, "its weights are NaN or infinite"),
        (0.0, "the rewards of all fixed samples are equal"),
        (-1.0, "its accuracy on held-out pairs fell from 1.000 to 0.000, more than chance explains"),
    ],
)
def test_a_bad_model_is_refused(tmp_path, factor, problem):
    reward = refinable_reward()
    record(reward, "2", "none")
    before, weights, shifts = weights_of(reward), weights_of(reward), []
    reward.subscribe(shifts.append)
    weights["score.weight"] *= factor
    outcome = build(tmp_path, reward, eval_preference_dataset=self_labeled(reward)).replace_unless_worse(
        weights, reference()
    )
    assert outcome.problem == problem and not shifts
    assert (reward.mean, reward.standard_deviation) == (0.0, 1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in reward.model.state_dict().items())


def test_infinite_rewards_of_finite_weights_are_refused(tmp_path):
    reward = refinable_reward()
    record(reward, "2", "none")
    weights = weights_of(reward)
    weights["score.weight"] = torch.full_like(weights["score.weight"], 3e38) * weights["score.weight"].sign()
    assert (
        build(tmp_path, reward).replace_unless_worse(weights, reference()).problem == "its rewards are NaN or infinite"
    )


def test_a_model_scores_the_fixed_samples_once(tmp_path, monkeypatch):
    """Until it is replaced. A refused model is scored, and so is the current one if the fixed samples are others."""
    reward, calls = refinable_reward(), []
    record(reward, "2", "none")
    refined = build(tmp_path, reward, eval_preference_dataset=self_labeled(reward))
    samples, other, score_rows = reference(), reference(3), module.score_rows

    def count(model, rows, **options):
        calls.append(("current" if model is reward.model else "new", len(rows)))
        return score_rows(model, rows, **options)

    def replace(factor, samples=samples):
        calls.clear()
        weights = weights_of(reward)
        weights["score.weight"] *= factor
        outcome = refined.replace_unless_worse(weights, samples)
        return outcome.problem is None, [call for call in calls if call[1] != 2]

    monkeypatch.setattr(module, "score_rows", count)
    assert replace(-1.0) == (False, [("current", 6), ("new", 6)])
    assert replace(2.0) == (True, [("new", 6)])
    mean, standard_deviation = reward.mean, reward.standard_deviation
    assert replace(2.0) == (True, [("new", 6)])
    assert (reward.mean, reward.standard_deviation) == pytest.approx((2 * mean, 2 * standard_deviation), abs=1e-5)
    assert replace(2.0, other) == (True, [("current", 3), ("new", 3)])
    reward.replace_weights(weights_of(reward), 0.0, 1.0, 0.0)
    assert replace(2.0, other) == (True, [("current", 3), ("new", 3)])


def test_human_pairs_are_tokenized_once(tmp_path):
    """The next refinement trains on the same ids."""
    reward, trained = refinable_reward(), []
    refined = build(tmp_path, reward)
    record(reward, "2", "1")
    refined.add_window(0)
    for _ in range(2):
        trained.append(refined.train(None))
        assert refined.human_pairs.column_names == ["chosen_ids", "rejected_ids"]
    assert all(torch.equal(weight, trained[1][name]) for name, weight in trained[0].items())


def test_nothing_is_evaluated_or_saved_or_reported_by_itself(tmp_path, monkeypatch):
    reward, build_start_model = refinable_reward(), module.build_start_model

    def start(*arguments):
        assert logging.get_verbosity() == logging.ERROR
        return build_start_model(*arguments)

    monkeypatch.setattr(module, "build_start_model", start)
    refined = build(tmp_path, reward, eval_on_start=True, save_strategy="steps", save_steps=1)
    record(reward, "2", "1")
    refined.add_window(0)
    refined.train(None)
    assert not list(tmp_path.rglob("checkpoint-*"))


@pytest.mark.parametrize("place", ["fixed samples", "last rollout"])
def test_infinite_rewards_of_the_old_model_have_no_scale(tmp_path, monkeypatch, place):
    """A reward function with `require_finite=False` may use such a model. The critic must not be told NaN."""
    reward, shifts = refinable_reward(require_finite=False), []
    record(reward, "2", "none")
    reward.subscribe(shifts.append)
    refined, fixed = build(tmp_path, reward), reference(2)

    def compare(candidate, samples, known=None):
        is_infinite = (samples is fixed) == (place == "fixed samples")
        return np.array([np.inf if is_infinite else 1.0, 2.0]), np.array([1.0, 2.0])

    monkeypatch.setattr(refined, "_compare", compare)
    outcome = refined.replace_unless_worse(weights_of(reward), fixed)
    assert outcome.problem == "the rewards of the old model are NaN or infinite, so they have no scale" and not shifts
    assert (reward.mean, reward.standard_deviation) == (0.0, 1.0)


def test_rewards_of_heldout_pairs_that_are_infinite_are_refused(tmp_path, monkeypatch):
    reward = refinable_reward()
    record(reward, "2", "none")

    def fail(*arguments):
        raise ValueError("The reward of row 0 is nan.")

    monkeypatch.setattr(module, "compare_on_sets", fail)
    outcome = build(tmp_path, reward).replace_unless_worse(weights_of(reward), reference())
    assert outcome.problem == "its rewards of held-out pairs cannot be compared (The reward of row 0 is nan.)"


def test_pairs_against_anchors_of_all_windows_or_the_last_ones(tmp_path):
    reward, counts = refinable_reward(), {}
    for num_windows in (None, 1):
        refined = build(tmp_path, reward, num_windows=num_windows, synthetic_dataset=synthetic_preferences(3))
        for number in range(2):
            reward.buffer.clear()
            record(reward, "2", "1", prompt="ab0:")
            record(reward, "2 x", "3", prompt="abab1:")
            assert refined.add_window(number) == (2, None)
        counts[num_windows] = refined.num_pairs
        assert len(refined.gather_pairs()) == refined.num_pairs
    assert counts == {None: 3 + 4, 1: 3 + 2}
    tokenizer = tiny_tokenizer()
    chosen = [tokenizer.decode(ids, skip_special_tokens=True) for ids in refined.pair_windows[0]["chosen_ids"]]
    rejected = [tokenizer.decode(ids, skip_special_tokens=True) for ids in refined.pair_windows[0]["rejected_ids"]]
    assert rejected == ["ab0:1", "abab1:3"] and all(text.split(":")[1][0] == "2" for text in chosen)


def test_synthetic_pairs_of_ids_with_32_bits_join_those_of_the_windows(tmp_path):
    ids = Dataset.from_dict(
        {"chosen_ids": [[5, 6]], "rejected_ids": [[7]]},
        features=Features({name: List(Value("int32")) for name in ("chosen_ids", "rejected_ids")}),
    )
    reward = refinable_reward()
    refined = build(tmp_path, reward, synthetic_dataset=ids)
    record(reward, "2", "1", prompt="ab0:")
    refined.add_window(0)
    assert len(refined.gather_pairs()) == 2 and refined.gather_pairs()["chosen_ids"][0] == [5, 6]


def test_groups_of_the_recorded_completions_without_anchors(tmp_path):
    reward = refinable_reward()
    refined = build(tmp_path, reward, equivalence=SameParity(), redraw_rejected=True, confidence_threshold=0.6)
    record(reward, "1", "3", "2")
    assert refined.add_window(0) == (1, None)
    assert set(refined.pair_windows[0].column_names) == {"chosen_ids", "rejected_ids", "candidate_ids"}


@pytest.mark.parametrize("method", ["uml", "uml+spg"])
def test_samples_for_views_are_those_of_all_windows(tmp_path, method):
    reward = refinable_reward()
    refined = build(tmp_path, reward, method)
    for number in range(2):
        reward.buffer.clear()
        record(reward, "2", "1", prompt="ab0:")
        record(reward, "2 x", "3", prompt="abab1:")
        num_pairs, samples = refined.add_window(number)
        assert num_pairs == (2 if "spg" in method else 0)
        assert samples["completions"][:] == [["2", "1"] * (number + 1), ["2 x", "3"] * (number + 1)]
    assert len(refined.sample_windows) == 2


def test_views_of_one_group(tmp_path):
    reward = refinable_reward()
    refined = build(tmp_path, reward, "uml", equivalence=SameParity(), views_from="group")
    record(reward, "1", "3", prompt="a")
    record(reward, "2", "4", "5", "6", prompt="b")
    record(reward, "1", "7", prompt="a")
    _, samples = refined.add_window(0)
    assert samples["cluster_ids"][:] == [[0, 0, 0, 0], [0, 0, 1, 0]]


@pytest.mark.parametrize(
    "method, completions, message",
    [
        ("spg", [], "No completion was recorded"),
        ("spg", ["2", "2!"], "None of 1 .* has a pair"),
        ("uml", ["2", "3"], "Fewer than two prompts have two different completions"),
        ("uml+spg", ["2", "3"], "Fewer than two prompts have two different completions"),
    ],
)
def test_a_window_without_pairs_changes_nothing(tmp_path, method, completions, message):
    reward = refinable_reward()
    refined = build(tmp_path, reward, method)
    if completions:
        record(reward, *completions)
    with pytest.raises(NoPairsError, match=message):
        refined.add_window(0)
    assert not refined.pair_windows and not refined.sample_windows
    assert len(reward.buffer) == len(completions)


def test_an_adapter_is_trained_and_merged(tmp_path):
    reward = refinable_reward()
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="gaussian")
    refined = build(tmp_path, reward, peft_config=config)
    record(reward, "2", "1")
    refined.add_window(0)
    trained = refined.train(None)
    assert trained.keys() == reward.model.state_dict().keys()
    name = "model.layers.0.self_attn.{}.weight"
    before = reward.model.state_dict()
    assert not torch.equal(trained[name.format("q_proj")], before[name.format("q_proj")])
    assert torch.equal(trained[name.format("k_proj")], before[name.format("k_proj")])
    assert config.modules_to_save is None and reward.processing_class.eos_token == "<eos>"
