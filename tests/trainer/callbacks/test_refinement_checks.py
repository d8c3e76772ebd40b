"""What is checked before a run whose reward model is refined."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from trl import GRPOConfig, SFTConfig

import trl_rlp.trainer.callbacks.refinement_checks as module
from tests.ppo_runs import ppo_config, prompts
from tests.refinement_runs import SETTINGS, SameParity, anchors, refinable_reward
from tests.reward_runs import SETTINGS as REWARD_SETTINGS
from tests.reward_runs import SameText
from tests.tiny_models import tiny_reward_model, tiny_tokenizer
from trl_rlp.data.anchors.comparison import AnchorComparison
from trl_rlp.rewards.reward_function import RewardFunction
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


def reward_config(method="spg", **settings) -> RLPRewardConfig:
    return RLPRewardConfig("reward", method=method, **{**REWARD_SETTINGS, **settings})


def policy_config(folder, **settings) -> GRPOConfig:
    return GRPOConfig(str(folder), **{**SETTINGS, **settings})


def test_reward_and_configuration_have_the_right_types():
    function = RewardFunction(tiny_reward_model(tiny_tokenizer()), tiny_tokenizer(), [1])
    with pytest.raises(TypeError, match="`reward` must be a `RefinableReward`, got `RewardFunction`"):
        module.require_refinement_config(function, reward_config())
    with pytest.raises(TypeError, match="`args` must be an `RLPRewardConfig`, got `dict`"):
        module.require_refinement_config(refinable_reward(), {})
    with pytest.raises(ValueError, match="`args.method` is 'none', which learns nothing"):
        module.require_refinement_config(refinable_reward(), reward_config("none"))
    module.require_refinement_config(refinable_reward(), reward_config())


@pytest.mark.parametrize(
    "given, settings, error, message",
    [
        ({}, {}, ValueError, "`equivalence` is None, but `args.method`='spg' groups completions by meaning"),
        ({"anchors": anchors}, {}, ValueError, "compares completions with `anchors`"),
        (
            {"anchors": {}, "equivalence": SameParity()},
            {},
            TypeError,
            "`anchors` must be `SemanticAnchors`, got `dict`",
        ),
        ({"comparison": SameParity()}, {}, TypeError, "`comparison` must be an `AnchorComparison`, got `SameParity`"),
        ({"equivalence": "nli"}, {}, TypeError, "`equivalence` must be an object, got 'nli'"),
        (
            {"anchors": anchors, "comparison": "own", "equivalence": SameParity()},
            {},
            ValueError,
            "`anchors` and `comparison` are both given",
        ),
        (
            {"comparison": "own", "equivalence": SameParity()},
            {},
            ValueError,
            "`equivalence` is not used with `args.method`='spg' and `comparison`, which has its own",
        ),
        (
            {"equivalence": SameParity()},
            {"method": "uml"},
            ValueError,
            "`equivalence` is not used with `args.method`='uml'",
        ),
        (
            {"anchors": anchors, "equivalence": SameParity()},
            {"method": "uml"},
            ValueError,
            "`anchors` is not used with `args.method`='uml', which makes no pairs",
        ),
        ({"comparison": "own"}, {"method": "uml"}, ValueError, "`comparison` is not used with `args.method`='uml'"),
        ({}, {"method": "uml", "views_from": "group"}, ValueError, "`equivalence` is None"),
        ({"comparison": "own"}, {"method": "uml+spg", "views_from": "group"}, ValueError, "`equivalence` is None"),
        (
            {"anchors": anchors, "equivalence": SameParity()},
            {"redraw_rejected": True},
            ValueError,
            "`args.redraw_rejected` is True, but pairs against anchors keep one rejected completion",
        ),
    ],
)
def test_anchors_and_equivalence_that_do_not_fit_the_method(given, settings, error, message):
    given = {"anchors": None, "equivalence": None, "comparison": None, **given}
    given["anchors"] = anchors() if given["anchors"] is anchors else given["anchors"]
    if given["comparison"] == "own":
        given["comparison"] = AnchorComparison(anchors(), SameParity())
    with pytest.raises(error, match=message):
        module.resolve_comparison(*given.values(), reward_config(**settings))


def test_a_comparison_is_made_or_taken_as_it_is():
    comparison = module.resolve_comparison(anchors(), SameText(), None, reward_config())
    assert isinstance(comparison, AnchorComparison)
    assert module.resolve_comparison(None, None, comparison, reward_config()) is comparison
    assert module.resolve_comparison(None, SameText(), None, reward_config()) is None
    assert module.resolve_comparison(None, None, None, reward_config("uml")) is None


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("every", 0, "at least 1 rollout"),
        ("drift_threshold", 0.0, "above 0 standard deviations"),
        ("num_windows", 0, "at least 1, or None for all"),
        ("seed", -1, "at least 0"),
    ],
)
def test_numbers_out_of_range(name, value, expected):
    values = {"every": 8, "drift_threshold": None, "num_windows": None, "seed": 42}
    module.require_schedule(**values)
    with pytest.raises(ValueError, match=f"`{name}` must be {expected}.*got {value}"):
        module.require_schedule(**{**values, name: value})
    for other in ("8", True):
        with pytest.raises(TypeError, match=f"`{name}` must be an? (number|integer), got {other!r}"):
            module.require_schedule(**{**values, name: other})


def test_a_start_is_a_folder_or_a_function():
    for start in (None, "folder", Path("folder"), lambda: None):
        module.require_start(start, LoraConfig())
    with pytest.raises(TypeError, match="`base_model` must be a folder.*got `LlamaForSequenceClassification`. Pass"):
        module.require_start(tiny_reward_model(tiny_tokenizer()), None)
    with pytest.raises(TypeError, match="`base_model` must be a folder, .*, got `int`"):
        module.require_start(3, None)
    with pytest.raises(TypeError, match="`peft_config` must be a `PeftConfig`, got `str`"):
        module.require_start(None, "lora")


@pytest.mark.parametrize(
    "method, has_anchors, settings, message",
    [
        (
            "spg",
            False,
            {"num_generations": 1},
            "`num_generations` is 1, but `args.method`='spg' without anchors groups",
        ),
        ("uml", False, {"num_generations": 1}, "`num_generations` is 1, but `args.method`='uml' draws two views"),
        (
            "uml+spg",
            True,
            {"num_generations": 1},
            "`num_generations` is 1, but `args.method`='uml\\+spg' draws two views",
        ),
        ("spg", True, {"buffer_size": 3}, "`buffer_size` of the `RefinableReward` is 3, but one rollout has 4"),
        ("spg", True, {"restore_callback_states_from_checkpoint": True}, "restores itself"),
    ],
)
def test_a_run_that_cannot_be_refined(tmp_path, method, has_anchors, settings, message):
    reward = refinable_reward(buffer_size=settings.pop("buffer_size", 64))
    comparison = AnchorComparison(anchors(), SameParity()) if has_anchors else None
    generations = settings.pop("num_generations", 2)
    run = policy_config(tmp_path, **settings)
    run.num_generations = generations  # PPO and RLOO accept 1
    with pytest.raises(ValueError, match=message):
        module.check_policy_run(run, reward_config(method), reward, comparison)


def test_one_generation_is_enough_with_anchors(tmp_path):
    comparison = AnchorComparison(anchors(), SameParity())
    run = ppo_config(tmp_path, num_generations=1)
    module.check_policy_run(run, reward_config(), refinable_reward(), comparison)


def test_a_trainer_without_reward_functions(tmp_path):
    run = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    with pytest.raises(
        ValueError, match="`args` are a `SFTConfig` without `num_generations`, so it has no reward func"
    ):
        module.check_policy_run(run, reward_config(), refinable_reward(), None)


def test_precision_and_device_are_those_of_one_process_state(tmp_path):
    run, args = policy_config(tmp_path), reward_config()
    comparison = AnchorComparison(anchors(), SameParity())
    args.mixed_precision = "bf16"
    remedy = "Pass `bf16=False, fp16=False` to the `RLPRewardConfig`, or `bf16=True, fp16=False` to the `GRPOConfig`."
    args.bf16 = True
    with pytest.raises(ValueError, match=f"'bf16', but the policy's run has 'no'. {remedy}"):
        module.check_policy_run(run, args, refinable_reward(), comparison)
    args.mixed_precision = "no"
    other = SimpleNamespace(**{name: getattr(args, name) for name in ("method", "uses_views", "mixed_precision")})
    other.device = "cuda:0"
    with pytest.raises(
        ValueError, match="the reward model on 'cuda:0', but the policy's run is on 'cpu'. Pass `use_cpu=True`"
    ):
        module.check_policy_run(run, other, refinable_reward(), comparison)


SHARDING = [
    ({"ACCELERATE_USE_FSDP": "true"}, "FSDP1"),  # accelerate's default version is 1
    ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "FSDP1"),
    ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, None),
    ({"ACCELERATE_USE_FSDP": "false", "FSDP_VERSION": "1"}, None),
    ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"),
]


@pytest.mark.parametrize(("variables", "name"), SHARDING)
def test_sharding_of_the_launcher_that_is_refused(tmp_path, monkeypatch, variables, name):
    """tests/trainer/callbacks/two_process_refinement.py refines under FSDP2."""
    run, comparison = policy_config(tmp_path), AnchorComparison(anchors(), SameParity())
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert module.find_unsupported_sharding(run) == name
    message = f"The policy's run uses {name}, under which no reward model"
    with pytest.raises(ValueError, match=message) if name else nullcontext():
        module.check_policy_run(run, reward_config(), refinable_reward(), comparison)


@pytest.mark.parametrize(("version", "name"), [(1, "FSDP1"), (2, None)])
def test_sharding_of_the_configuration_that_is_refused(tmp_path, version, name):
    run = policy_config(tmp_path, fsdp=True, fsdp_config={"version": version})
    assert module.find_unsupported_sharding(run) == name
    run.deepspeed_plugin = "ZeRO-2"
    assert module.find_unsupported_sharding(run) == "DeepSpeed"


@pytest.mark.parametrize("kind", ["text", "chat", "ids"])
def test_anchors_know_the_prompts_of_the_run(kind):
    data, tokenizer = prompts(kind=kind), tiny_tokenizer()
    comparison = AnchorComparison(anchors(prompts(kind="chat" if kind == "chat" else "text")), SameParity())
    module.require_known_prompts(data, comparison, tokenizer, len(tokenizer))
    other = {"text": "other", "chat": [{"role": "user", "content": "other"}], "ids": tokenizer("other")["input_ids"]}
    others = Dataset.from_dict({"input_ids" if kind == "ids" else "prompt": [other[kind]]})
    with pytest.raises(
        ValueError, match="None of the 1 prompts of `train_dataset` has a row in `anchors`, which has 8"
    ):
        module.require_known_prompts(others, comparison, tokenizer, len(tokenizer))


def test_prompts_of_a_stream_are_not_checked():
    read = []
    stream = IterableDataset.from_generator(lambda: iter([{"prompt": read.append(1) or "other"}]))
    module.require_known_prompts(stream, AnchorComparison(anchors(), SameParity()), tiny_tokenizer(), 300)
    assert not read


def test_weights_of_a_start_model_that_do_not_fit():
    tokenizer = tiny_tokenizer()
    model = tiny_reward_model(tokenizer)
    module.require_equal_shapes(tiny_reward_model(tokenizer, seed=4), model)
    message = "`base_model` do not fit the reward model: .* has the shape .* instead of"
    with pytest.raises(ValueError, match=message):
        module.require_equal_shapes(tiny_reward_model(tokenizer, hidden_size=8), model)
    with pytest.raises(ValueError, match=r"'model.layers.2.*instead of None"):
        module.require_equal_shapes(tiny_reward_model(tokenizer, num_hidden_layers=3), model)
    with pytest.raises(ValueError, match="returns the model of `reward`, or one that shares weights"):
        module.require_equal_shapes(model, model)


def test_rewards_of_several_callbacks_have_different_names():
    first, second, slash, underscore = ({"folder": None, "reward": name} for name in ("a", "b", "org/a", "org_a"))
    for states in (first, [first, second], [first, slash]):
        module.require_different_names(states)
    for states in ([first, second, first], [slash, underscore]):
        with pytest.raises(ValueError, match="`RefinableReward`s of . callbacks have the names .*Set `name`"):
            module.require_different_names(states)
