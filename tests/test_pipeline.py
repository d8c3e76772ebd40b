import shutil

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import trl_rlp.pipeline as pipeline
import trl_rlp.pipeline_checks as pipeline_checks
import trl_rlp.stages.gate as gate_stage
import trl_rlp.stages.policy as policy_stage
import trl_rlp.stages.preferences as preference_stage
from tests.data.sampling.fakes import FakeVLLM
from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.anchors.semantic_anchors import SemanticAnchors
from trl_rlp.data.normalization import normalize_text
from trl_rlp.data.scoring import score
from trl_rlp.evaluation.gate_report import RewardModelRegression
from trl_rlp.memory_estimate import RunShape, estimate_memory
from trl_rlp.pipeline import run_rlp
from trl_rlp.pipeline_config import RLPConfig
from trl_rlp.report.contents_reader import read_contents
from trl_rlp.stages.in_loop import LAST_REWARD_MODEL
from trl_rlp.stages.reward_model import train_reward_model
from trl_rlp.storage import artifacts
from trl_rlp.storage.artifacts import load_data
from trl_rlp.storage.run_folder import RunFolder


TRAINING = {"per_device_train_batch_size": 4, "max_steps": 2, "report_to": "none", "logging_steps": 1, "use_cpu": True}


class SameParity:
    """Two completions mean the same if the codes of their first characters are both even or both odd."""

    fingerprint = "same parity"

    def normalize(self, text):
        return normalize_text(text)

    def are_equivalent(self, prompts, firsts, seconds):
        return [ord(first[0]) % 2 == ord(second[0]) % 2 for first, second in zip(firsts, seconds, strict=True)]


def save_finishing_policy(folder):
    """Saves a policy with many EOS tokens, so that many of its completions are finished. SPG prefers only those."""
    tokenizer = tiny_tokenizer()
    model = tiny_causal_lm(tokenizer)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(40, 60)]
    return save(model, tokenizer, folder)


@pytest.fixture(scope="module")
def sft_model(tmp_path_factory):
    return save_finishing_policy(tmp_path_factory.mktemp("sft"))


def prompt(text, chat):
    return [{"role": "user", "content": text}] if chat else text


def completion(text, chat):
    return [{"role": "assistant", "content": text}] if chat else text


def data(chat):
    preferences = Dataset.from_list(
        [
            {"prompt": prompt(f"{i}?", chat), "chosen": completion("yes", chat), "rejected": completion("no!", chat)}
            for i in range(12)
        ]
    )
    prompts = Dataset.from_dict({"prompt": [prompt(f"question {i}", chat) for i in range(8)], "answers": [["a"]] * 8})
    return preferences, prompts


def config(tmp_path, sft_model, **overrides):
    settings = {
        "output_dir": str(tmp_path / "run"),
        "sft_model": sft_model,
        "num_generations": 6,
        "max_new_tokens": 4,
        "heldout_share": 0.25,
        "reward_args": {**TRAINING, "view_prompts_per_device": 2},
        "policy_args": {**TRAINING, "num_generations": 2, "max_completion_length": 4, "learning_rate": 1e-2},
    }
    return RLPConfig(**{**settings, **overrides})


@pytest.mark.parametrize(
    ("method", "chat", "overrides"),
    [
        ("spg", False, {}),
        ("spg", True, {"policy_trainer": "rloo"}),
        ("uml", True, {"policy_trainer": "grpo", "standardize_rewards": True}),
        ("uml+spg", False, {"reward_peft": {"r": 2}, "policy_peft": {"r": 2, "target_modules": ["q_proj"]}}),
    ],
)
def test_algorithm_1_saves_plain_models_data_and_metrics(tmp_path, sft_model, method, chat, overrides):
    preferences, prompts = data(chat)
    settings = config(tmp_path, sft_model, method=method, **overrides)
    result = run_rlp(settings, preferences, prompts, SameParity(), eval_prompt_dataset=prompts.select(range(2)))

    for path in (result.policy, result.retrained_policy):
        assert not (path / "adapter_config.json").exists()
        policy = AutoModelForCausalLM.from_pretrained(path)
        start = AutoModelForCausalLM.from_pretrained(sft_model)
        differences = [not a.equal(b) for a, b in zip(policy.parameters(), start.parameters(), strict=True)]
        assert any(differences)
    rewards = []
    for path in (result.reward_model, result.refined_reward_model):
        model = AutoModelForSequenceClassification.from_pretrained(path)
        rewards += score(model, AutoTokenizer.from_pretrained(path), ["a"], ["b"])
    assert rewards[0] != rewards[1]

    samples = load_data(result.policy_samples)
    assert [len(row) for row in samples["completions"]] == [6] * 8
    assert ("cluster_ids" in samples.column_names) == ("spg" in method)
    stages = result.stages
    assert set(stages["gate"]["metrics"]["comparisons"]) == ({"human", "synthetic"} if "spg" in method else {"human"})
    assert stages["gate"]["metrics"]["comparisons"]["human"]["before"]["pairs"] == 3
    assert set(stages["evaluation"]["metrics"]) == {"sft", "policy", "retrained_policy"}
    assert stages["evaluation"]["metrics"]["sft"]["kl"] == pytest.approx(0, abs=1e-6)
    assert stages["evaluation"]["metrics"]["policy"]["kl"] > 0
    contents = read_contents(tmp_path / "run")  # what the report of the run shows
    assert contents.missing == [] and list(contents.stages)[-1] == "evaluation" and set(contents.stages) == set(stages)
    assert {"reward_model", "policy", "refined_reward_model", "retrained_policy"} == set(contents.logs)
    assert contents.rounds[0].answers == prompts["answers"][:] and set(contents.rewards) == set(contents.policies)
    if "spg" in method:
        assert contents.rounds[0].threshold == 0.5 and len(contents.rounds[0].pairs) > 0
        synthetic = load_data(result.synthetic_preferences)
        assert len(synthetic) == stages["synthetic_preferences"]["metrics"]["accepted"] > 0
        assert {"prompt", "chosen", "rejected", "confidence"} <= set(synthetic.column_names)
        card = (result.refined_reward_model / "README.md").read_text(encoding="utf-8")
        assert (
            "## Synthetic preferences\n\n6 completions of a policy for each prompt were grouped with `SameParity`."
            in card
        )
        assert "| `confidence_threshold` | 0.5 |" in card and f"| `accepted` | {len(synthetic)} |" in card
    else:
        assert result.synthetic_preferences is None


@pytest.fixture
def untrained(monkeypatch, sft_model):
    """Replaces both kinds of training: copies the models that training starts from. Returns the calls, in order."""
    calls = []

    def copy_policy(folder, **arguments):
        calls.append(folder.name)
        shutil.copytree(sft_model, folder, dirs_exist_ok=True)

    def copy_reward_model(folder, **arguments):
        calls.append(folder.name)
        tokenizer = tiny_tokenizer()
        save(tiny_reward_model(tokenizer), tokenizer, folder)

    monkeypatch.setattr(pipeline, "train_policy", copy_policy)
    monkeypatch.setattr(pipeline, "train_reward_model", copy_reward_model)
    monkeypatch.setattr(pipeline, "train_reward_model", copy_reward_model)
    return calls


def test_every_model_that_only_infers_has_the_dtype_and_the_options_of_the_run(tmp_path, sft_model, monkeypatch):
    """Policy and reward model of two trainings, sampling, labels, two of the gate, and the evaluation."""
    preferences, _ = data(False)
    prompts = Dataset.from_dict({"prompt": [f"question {i}" for i in range(64)]})  # some of them have a pair
    load, loaded = artifacts._load_for_inference, []

    def record(*arguments):
        model, processing_class = load(*arguments)
        loaded.append(model)
        return model, processing_class

    monkeypatch.setattr(artifacts, "_load_for_inference", record)
    settings = config(tmp_path, sft_model, inference_dtype="bfloat16", model_args={"attn_implementation": "eager"})
    result = run_rlp(settings, preferences, prompts, SameParity(), eval_prompt_dataset=prompts.select(range(2)))
    assert len(loaded) >= 4 + 1 + 1 + 2 + 3 + 2
    assert {(model.dtype, model.config._attn_implementation) for model in loaded} == {(torch.bfloat16, "eager")}
    for path in (result.policy, result.reward_model):
        assert AutoModelForCausalLM.from_pretrained(path).dtype == torch.float32  # the trained models
    settings.model_args = {"attn_implementation": "sdpa"}  # does not decide the results
    monkeypatch.setattr(artifacts, "_load_for_inference", lambda *_: pytest.fail("a stage ran again"))
    run_rlp(settings, preferences, prompts, SameParity(), eval_prompt_dataset=prompts.select(range(2)))
    settings.inference_dtype = "float32"
    with pytest.raises(ValueError, match="`inference_dtype` was 'bfloat16' and is 'float32'"):
        run_rlp(settings, preferences, prompts, SameParity(), eval_prompt_dataset=prompts.select(range(2)))


def test_a_second_run_resumes_after_the_last_finished_stage(tmp_path, sft_model, untrained, monkeypatch):
    preferences, prompts = data(chat=False)
    settings = config(tmp_path, sft_model)
    copy_policy = pipeline.train_policy

    def interrupted(folder, **arguments):
        copy_policy(folder, **arguments)
        if untrained.count("retrained_policy.partial") == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "train_policy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_rlp(settings, preferences, prompts, SameParity())
    first = run_rlp(settings, preferences, prompts, SameParity())
    stages = ["reward_model", "policy", "refined_reward_model", "retrained_policy", "retrained_policy"]
    assert untrained == [f"{stage}.partial" for stage in stages]
    assert run_rlp(settings, preferences, prompts, SameParity()) == first
    assert len(untrained) == 5


def test_the_folder_of_another_run_is_refused_before_any_work(tmp_path, sft_model, monkeypatch):
    preferences, prompts = data(chat=False)
    monkeypatch.setattr(pipeline, "train_reward_model", lambda folder, **arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_rlp(config(tmp_path, sft_model), preferences, prompts, SameParity())
    with pytest.raises(ValueError, match=r"other settings: `prompt_dataset` was .*, `seed` was 42 and is 1"):
        run_rlp(config(tmp_path, sft_model, seed=1), preferences, prompts.select([0, 1]), SameParity())


@pytest.mark.parametrize("name", ["sft_model", "reward_base_model"])
def test_a_model_that_was_trained_again_into_the_same_folder_is_another_run(tmp_path, sft_model, monkeypatch, name):
    preferences, prompts = data(chat=False)
    monkeypatch.setattr(pipeline, "train_reward_model", lambda folder, **arguments: 1 / 0)
    models = {key: shutil.copytree(sft_model, tmp_path / key) for key in ("sft_model", "reward_base_model")}
    for _ in range(2):  # the second call finds the same models
        with pytest.raises(ZeroDivisionError):
            run_rlp(config(tmp_path, **models), preferences, prompts, SameParity())
    model = AutoModelForCausalLM.from_pretrained(models[name])
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    model.save_pretrained(models[name])
    with pytest.raises(ValueError, match=rf"other settings: `{name}_files` was '\w+' and is '\w+'\. Choose another"):
        run_rlp(config(tmp_path, **models), preferences, prompts, SameParity())


# TRL's trainer reads such messages, but the gate does not, and it comes after hours of training.
NO_TEXT = Dataset.from_dict({"chosen": [completion("yes", True)], "rejected": [completion(None, True)]})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"equivalence": None}, "`equivalence` is None, but `method`='spg' groups completions"),
        ({"prompt_dataset": Dataset.from_dict({"prompt": ["a", ""]})}, "`prompt_dataset` row 1 has an empty prompt"),
        ({"preference_dataset": Dataset.from_dict({"text": ["a"]})}, "`preference_dataset` lacks the columns"),
        ({"preference_dataset": NO_TEXT}, "`preference_dataset` row 0: `rejected` must be text"),
        ({"eval_preference_dataset": NO_TEXT}, "`eval_preference_dataset` row 0: `rejected` must be text"),
        ({"eval_prompt_dataset": Dataset.from_dict({"prompt": []})}, "`eval_prompt_dataset` is empty"),
    ],
)
def test_bad_inputs_are_named_before_the_folder_is_created(tmp_path, sft_model, change, match):
    preferences, prompts = data(chat=False)
    arguments = {"preference_dataset": preferences, "prompt_dataset": prompts, "equivalence": SameParity()}
    with pytest.raises((TypeError, ValueError), match=match):
        run_rlp(config(tmp_path, sft_model), **{**arguments, **change})
    assert not (tmp_path / "run").exists()


def test_a_trainer_that_cannot_continue_a_turn_refuses_assistant_prefills(tmp_path, sft_model):
    preferences, prompts = data(chat=True)
    begun = prompts.map(lambda row: {"prompt": [*row["prompt"], *completion("It is", chat=True)]})
    with pytest.raises(ValueError, match="`prompt_dataset` row 0 ends with an assistant message"):
        run_rlp(config(tmp_path, sft_model, policy_trainer="rloo"), preferences, begun, SameParity())
    assert not (tmp_path / "run").exists()


def test_both_reward_models_start_from_the_same_weights(tmp_path, sft_model, untrained, monkeypatch):
    """With a learning rate of 0, r and r̂ are the same model, because they have the same start and the same head."""
    monkeypatch.setattr(pipeline, "train_reward_model", train_reward_model)
    monkeypatch.setattr(pipeline, "train_reward_model", train_reward_model)
    preferences, prompts = data(chat=False)
    frozen = {**TRAINING, "learning_rate": 0.0}
    result = run_rlp(config(tmp_path, sft_model, reward_args=frozen), preferences, prompts, SameParity())
    first, second = (
        AutoModelForSequenceClassification.from_pretrained(path).state_dict()
        for path in (result.reward_model, result.refined_reward_model)
    )
    assert all(first[name].equal(second[name]) for name in first)


def test_all_reward_models_use_the_maximum_length_of_their_training(tmp_path, sft_model, monkeypatch):
    seen = {}

    def spy(module, name):
        original = getattr(module, name)

        def spied(*args, **kwargs):
            seen[name] = kwargs["max_length"]
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, spied)

    for module, name in (
        (preference_stage, "synthesize_preferences"),
        (gate_stage, "gate"),
        (policy_stage, "RewardFunction"),
    ):
        spy(module, name)
    preferences, prompts = data(chat=False)
    settings = config(tmp_path, sft_model, method="spg", reward_args={**TRAINING, "max_length": 50})
    run_rlp(settings, preferences, prompts, SameParity())
    assert seen == {"synthesize_preferences": 50, "gate": 50, "RewardFunction": 50}


def test_answers_of_the_wrong_type_are_named_before_any_work(tmp_path, sft_model):
    preferences, prompts = data(chat=False)
    prompts = prompts.remove_columns("answers").add_column("answers", list(range(8)))
    with pytest.raises(TypeError, match="`prompt_dataset` row 0: `answers` must be an accepted answer"):
        run_rlp(config(tmp_path, sft_model, method="uml"), preferences, prompts)
    assert not (tmp_path / "run").exists()


def test_on_regression_may_change_from_call_to_call(tmp_path, sft_model, monkeypatch):
    preferences, prompts = data(chat=False)
    worse = lambda *args, **kwargs: ["policy pairs: accuracy fell"]  # noqa: E731
    monkeypatch.setattr("trl_rlp.evaluation.gate_report._find_regressions", worse)
    settings = config(tmp_path, sft_model, method="uml", on_regression="raise")
    with pytest.raises(RewardModelRegression):
        run_rlp(settings, preferences, prompts)
    settings.on_regression = "warn"
    assert run_rlp(settings, preferences, prompts).retrained_policy.is_dir()
    settings.on_regression = "raise"
    with pytest.raises(RewardModelRegression, match="policy pairs: accuracy fell"):
        run_rlp(settings, preferences, prompts)


def test_the_gate_names_the_reward_model_of_the_round(tmp_path, sft_model, untrained, monkeypatch):
    preferences, prompts = data(chat=False)

    def refuse_the_second(folder, **compared):
        is_second = "_2" in folder.name
        return {"passed": not is_second, "problems": ["accuracy fell"] * is_second, "comparisons": {}}

    monkeypatch.setattr(pipeline, "compare_reward_models", refuse_the_second)
    settings = config(tmp_path, sft_model, method="uml", rounds=2, on_regression="raise")
    with pytest.raises(RewardModelRegression, match="The gate refused .*/run/refined_reward_model_2: accuracy fell"):
        run_rlp(settings, preferences, prompts)
    assert untrained[-1] == "refined_reward_model_2.partial"


def test_wrong_policies_and_equivalences_are_named_before_the_folder_is_made(tmp_path, sft_model):
    preferences, prompts = data(chat=False)
    save(tiny_reward_model(tiny_tokenizer()), tiny_tokenizer(), tmp_path / "classifier")
    wrong = config(tmp_path, str(tmp_path / "classifier"), method="uml")
    with pytest.raises(ValueError, match="classifier' is not a causal LM, but a `LlamaForSequenceClassification`"):
        run_rlp(wrong, preferences, prompts)
    with pytest.raises(OSError, match="No model could be loaded from 'nothing'"):
        run_rlp(config(tmp_path, "nothing", method="uml"), preferences, prompts)
    for equivalence, what in ((SameParity, "got the class `SameParity`"), ("exact", "got 'exact'")):
        with pytest.raises(TypeError, match=f"`equivalence` must be an object, {what}"):
            run_rlp(config(tmp_path, sft_model, method="spg"), preferences, prompts, equivalence)
    assert not (tmp_path / "run").exists()


def test_too_few_prompts_for_a_rollout_are_an_error_before_any_work(tmp_path, sft_model):
    preferences, prompts = data(chat=False)
    with pytest.raises(ValueError, match="`prompt_dataset` has 1 prompts, but a rollout needs"):
        run_rlp(config(tmp_path, sft_model, method="uml"), preferences, prompts.select([0]))
    assert not (tmp_path / "run").exists()


def test_a_full_value_model_under_deepspeed_is_an_error_before_any_work(tmp_path, sft_model, monkeypatch):
    preferences, prompts = data(chat=False)
    monkeypatch.setattr(
        pipeline_checks, "require_rollout", lambda config, *_: setattr(config, "deepspeed_plugin", "ZeRO-2")
    )
    with pytest.raises(ValueError, match="`policy_peft` of a pipeline.*is None under DeepSpeed"):
        run_rlp(config(tmp_path, sft_model, policy_trainer="ppo"), preferences, prompts, SameParity())
    assert not (tmp_path / "run").exists()


def ready_samples(prompts):
    texts = ["aa", "bb", "ab", "ba", "cc", "dd"]
    return Dataset.from_dict(
        {"prompt": prompts, "completions": [texts] * len(prompts), "finished": [[True] * 6] * len(prompts)}
    )


def make_samples(prompts):
    return ready_samples(prompts["prompt"][1:])


@pytest.mark.parametrize("kind", ["dataset", "file", "function"])
def test_ready_samples_and_functions_replace_sampling(tmp_path, sft_model, untrained, monkeypatch, kind):
    """Samples of one prompt are missing, as if a server had left it out. The gate reads the answers of the others."""
    preferences, prompts = data(chat=False)
    ready = ready_samples(prompts["prompt"][1:])
    file = tmp_path / "samples.jsonl"
    ready.to_json(file)
    source = {
        "dataset": ready,
        "file": str(file),
        "function": make_samples,
    }
    monkeypatch.setattr("trl_rlp.stages.samples.sample_completions", lambda *_, **__: pytest.fail("sampled"))
    answers = []
    compare = pipeline.compare_reward_models
    monkeypatch.setattr(
        pipeline, "compare_reward_models", lambda *args, **kw: answers.append(kw["answers"]) or compare(*args, **kw)
    )
    settings = config(tmp_path, sft_model)
    result = run_rlp(settings, preferences, prompts, SameParity(), policy_samples=source[kind])
    assert load_data(result.policy_samples)["completions"][:] == ready["completions"][:]
    assert answers == [[["a"]] * 7]
    with pytest.raises(ValueError, match="`policy_samples` was .* and is None"):
        run_rlp(settings, preferences, prompts, SameParity())


def test_ready_samples_of_other_prompts_are_named_before_the_folder_is_created(tmp_path, sft_model):
    preferences, prompts = data(chat=False)
    with pytest.raises(ValueError, match="`policy_samples` row 0 has a prompt that is not among the prompts U: 'x'"):
        run_rlp(config(tmp_path, sft_model), preferences, prompts, SameParity(), policy_samples=ready_samples(["x"]))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [{}, {"anchor_weight": 1.0, "sample_from": "sft"}], ids=["pairs", "anchors"])
def test_errors_of_a_stage_name_the_settings_of_the_run(tmp_path, sft_model, untrained, options):
    """The stages pass `confidence_threshold` of the reward trainer as `threshold`, which is no setting of a run."""
    preferences, prompts = data(chat=False)
    reward_args = {**TRAINING, "confidence_threshold": 0.9}
    settings = config(tmp_path, sft_model, reward_args=reward_args, **options)
    with pytest.raises(
        ValueError, match=r"Rejected: .* Lower `confidence_threshold` in `reward_args` .*, or check that"
    ):
        run_rlp(settings, preferences, prompts, SameParity(), policy_samples=ready_samples(prompts["prompt"]))


def test_an_engine_samples_and_a_resumed_run_may_change_it(tmp_path, sft_model, untrained, monkeypatch):
    """vLLM is a stand-in. The run stops after sampling, and goes on with another engine."""
    preferences, prompts = data(chat=False)
    fake_vllm = FakeVLLM(monkeypatch, tmp_path)
    arguments = {"gpu_memory_utilization": 0.5}
    settings = config(tmp_path, sft_model, method="uml", engine="vllm", engine_args=arguments)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(pipeline, "compare_reward_models", lambda *_, **__: 1 / 0)
        run_rlp(settings, preferences, prompts)
    (given,) = fake_vllm.read("llm")
    assert given["gpu_memory_utilization"] == 0.5 and given["model"].endswith("/run/policy")
    settings = config(tmp_path, sft_model, method="uml", tokens_per_batch=50)
    assert run_rlp(settings, preferences, prompts).retrained_policy.exists()
    assert len(fake_vllm.read("llm")) == 1


# Rounds, anchors and refinement in the loop


def test_a_round_goes_on_from_the_policy_and_the_reward_model_of_the_last_one(
    tmp_path, sft_model, untrained, monkeypatch
):
    """Only round 1 takes the ready samples. The preferences of all rounds train the reward model of the last one."""
    preferences, prompts = data(chat=False)
    calls = {name: [] for name in ("sample_policy", "make_synthetic_preferences", "compare_reward_models")}
    for name, seen in calls.items():
        work = getattr(pipeline, name)
        monkeypatch.setattr(
            pipeline, name, lambda *args, work=work, seen=seen, **kw: seen.append(kw) or work(*args, **kw)
        )
    trained = []
    copy_reward_model = pipeline.train_reward_model
    monkeypatch.setattr(
        pipeline, "train_reward_model", lambda folder, **kw: trained.append(kw) or copy_reward_model(folder, **kw)
    )
    ready = ready_samples(prompts["prompt"])
    settings = config(tmp_path, sft_model, rounds=2)
    result = run_rlp(
        settings, preferences, prompts, SameParity(), None, prompts.select(range(2)), policy_samples=ready
    )
    first, second = result.rounds
    run = tmp_path / "run"
    assert first == (
        run / "groups",
        run / "synthetic_preferences",
        run / "refined_reward_model",
        run / "retrained_policy",
    )
    assert second == tuple(folder.with_name(f"{folder.name}_2") for folder in first)
    assert (result.refined_reward_model, result.retrained_policy) == (
        run / "refined_reward_model_2",
        run / "retrained_policy_2",
    )

    assert [call["policy"] for call in calls["sample_policy"]] == [result.policy, first.retrained_policy]
    assert [call["policy_samples"] is None for call in calls["sample_policy"]] == [False, True]
    replaced = [result.reward_model, first.refined_reward_model]
    assert [call["reward_model"] for call in calls["make_synthetic_preferences"]] == replaced
    assert [call["before"] for call in calls["compare_reward_models"]] == replaced
    sizes = [len(load_data(entry.synthetic_preferences)) for entry in result.rounds]
    assert [len(call["synthetic_dataset"]) for call in trained[1:]] == [sizes[0], sum(sizes)]
    assert {call["base_model"] for call in trained} == {sft_model}

    evaluation = result.stages["evaluation"]["metrics"]
    assert list(evaluation) == ["sft", "policy", "retrained_policy", "retrained_policy_2"]
    assert {"reward/reward_model", "reward/refined_reward_model", "reward/refined_reward_model_2"} <= set(
        evaluation["sft"]
    )
    assert {"gate", "gate_2"} <= set(result.stages)


def test_views_of_a_round_are_samples_of_the_last_policy(tmp_path, sft_model, untrained, monkeypatch):
    preferences, prompts = data(chat=False)
    trained = []
    copy_reward_model = pipeline.train_reward_model
    monkeypatch.setattr(
        pipeline, "train_reward_model", lambda folder, **kw: trained.append(kw) or copy_reward_model(folder, **kw)
    )
    result = run_rlp(config(tmp_path, sft_model, method="uml", rounds=2), preferences, prompts)
    for call, entry in zip(trained[1:], result.rounds, strict=True):
        assert call["policy_samples"]["completions"][:] == load_data(entry.policy_samples)["completions"][:]
        assert call["synthetic_dataset"] is None and entry.synthetic_preferences is None


def test_two_rounds_with_anchors_and_refinement_resume_after_a_kill(tmp_path, sft_model, monkeypatch):
    """Three rollouts of four optimizer steps in step 5 of round 2, with a refinement after each of the first two."""
    preferences, prompts = data(chat=False)
    policy_args = {**TRAINING, "num_generations": 2, "max_completion_length": 4, "learning_rate": 1e-2, "max_steps": 3}
    policy_args |= {"save_strategy": "steps", "save_steps": 1, "num_ppo_epochs": 1}
    loop = {"anchor_weight": 3.0, "refine_every": 1, "rounds": 2, "policy_args": policy_args}
    reward_models = {}

    def record(run, name, arguments):
        reward_models[name] = arguments.get("reward_model", arguments.get("before"))

    with RunFolder.on_start(record):
        expected = run_rlp(config(tmp_path, sft_model, **loop), preferences, prompts, SameParity())
    # Round 2 goes on from the reward model that step 5 of round 1 has refined.
    last = expected.rounds[0].retrained_policy / LAST_REWARD_MODEL
    assert [reward_models[name] for name in ("synthetic_preferences_2", "gate_2")] == [last, last]
    assert reward_models["retrained_policy_2"] == expected.rounds[1].refined_reward_model
    names = {"anchor_samples", "anchors"}
    assert names <= set(expected.stages) and expected.stages["anchors"]["metrics"]["anchors"] > 0
    for number in ("", "_2"):
        metrics = expected.stages[f"retrained_policy{number}"]["metrics"]
        assert metrics["refinement/count"] + metrics["refinement/skipped"] == 2
        assert metrics["semantic_anchor/anchored_share"] > 0
    assert not any(name.startswith("refinement/") for name in expected.stages["policy"]["metrics"])

    other = tmp_path / "other"
    shutil.copytree(tmp_path / "run", other / "run")
    shutil.rmtree(other / "run" / "retrained_policy_2")
    trainer_class = policy_stage.POLICY_TRAINERS["ppo"][0]
    training_step, calls = trainer_class.training_step, []

    def interrupted(self, *batch, **kwargs):
        calls.append(self.state.global_step)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return training_step(self, *batch, **kwargs)

    monkeypatch.setattr(trainer_class, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_rlp(config(other, sft_model, **loop), preferences, prompts, SameParity())
    resumed = run_rlp(config(other, sft_model, **loop), preferences, prompts, SameParity())
    assert calls == [0, 1, 2, 2]
    for folder in (".", LAST_REWARD_MODEL):
        first, second = (load_file(run.retrained_policy / folder / "model.safetensors") for run in (expected, resumed))
        assert all(weight.equal(second[name]) for name, weight in first.items())


@pytest.mark.parametrize("method", ["spg", "uml"])
def test_anchors_are_made_only_if_they_are_used(tmp_path, sft_model, untrained, monkeypatch, method):
    """Views need no anchors, and no equivalence. The reward model keeps its scale on samples of a few prompts."""
    monkeypatch.setattr("trl_rlp.rewards.standardization.NUM_PROMPTS", 3)
    preferences, prompts = data(chat=False)
    policy_args = {**TRAINING, "num_generations": 2, "max_completion_length": 4}
    settings = config(tmp_path, sft_model, method=method, refine_every=1, policy_args=policy_args)
    result = run_rlp(settings, preferences, prompts, SameParity() if method == "spg" else None)
    assert len(load_data(tmp_path / "run" / "anchor_samples")) == (8 if method == "spg" else 3)
    assert ("anchors" in result.stages) == (method == "spg")


def test_grpo_on_chats_has_anchors_and_refinement(tmp_path, sft_model, untrained, monkeypatch):
    """Only step 5 trains, with two rollouts and a refinement between them. The sum of the rewards is r + 3 a."""
    preferences, prompts = data(chat=True)
    copy_policy = pipeline.train_policy
    monkeypatch.setattr(
        pipeline,
        "train_policy",
        lambda folder, **kw: (policy_stage.train_policy if kw.get("in_loop") else copy_policy)(folder, **kw),
    )
    policy_args = {**TRAINING, "num_generations": 2, "max_completion_length": 4, "scale_rewards": "none"}
    loop = {"policy_trainer": "grpo", "anchor_weight": 3.0, "refine_every": 1, "policy_args": policy_args}
    result = run_rlp(config(tmp_path, sft_model, **loop), preferences, prompts, SameParity())
    metrics = result.stages["retrained_policy"]["metrics"]
    assert metrics["refinement/count"] + metrics["refinement/skipped"] == 1
    total = metrics["rewards/reward_model/mean"] + 3 * metrics["rewards/semantic_anchor/mean"]
    assert metrics["reward"] == pytest.approx(total, abs=1e-5)
    assert (result.retrained_policy / LAST_REWARD_MODEL / "config.json").is_file()


# Samples of π_SFT instead of the policy of step 3


def run_recorded(settings, *arguments, **options):
    """Returns the result, and the names of the stages in the order in which they start."""
    started = []
    with RunFolder.on_start(lambda run, name, arguments: started.append(name)):
        return run_rlp(settings, *arguments, **options), started


def test_samples_of_the_sft_policy_make_anchors_and_pairs_and_no_first_policy_is_trained(
    tmp_path, sft_model, untrained, monkeypatch
):
    """π_SFT is sampled once and grouped once. Round 2 samples the policy of round 1. A second run starts no stage."""
    preferences, prompts = data(chat=False)
    sampled = []
    sample_policy = pipeline.sample_policy
    monkeypatch.setattr(
        pipeline, "sample_policy", lambda folder, **kw: sampled.append(kw["policy"]) or sample_policy(folder, **kw)
    )
    settings = config(tmp_path, sft_model, sample_from="sft", anchor_weight=3.0, refine_every=1, rounds=2)
    result, started = run_recorded(settings, preferences, prompts, SameParity(), eval_prompt_dataset=prompts)
    steps = ["synthetic_preferences", "refined_reward_model", "gate", "retrained_policy"]
    second = [f"{name}_2" for name in ("policy_samples", "groups", *steps)]
    assert started == ["policy_samples", "groups", "anchors", "reward_model", *steps, *second, "evaluation"]
    shape = RunShape(*[AutoConfig.from_pretrained(sft_model)] * 2, 8, has_evaluation=True, device=torch.device("cpu"))
    assert list(estimate_memory(settings, shape)) == started
    assert sampled == [sft_model, result.rounds[0].retrained_policy]
    assert result.policy is None and result.rounds[0].policy_samples == tmp_path / "run" / "groups"
    evaluation = result.stages["evaluation"]["metrics"]
    assert list(evaluation) == ["sft", "retrained_policy", "retrained_policy_2"]
    assert "human" in result.stages["gate"]["metrics"]["comparisons"]
    again, started = run_recorded(settings, preferences, prompts, SameParity(), eval_prompt_dataset=prompts)
    assert again == result and not started


def test_the_anchors_are_those_of_a_run_that_also_trains_the_first_policy(tmp_path, sft_model, untrained):
    preferences, prompts = data(chat=False)
    anchors = []
    for name in ("policy", "sft"):
        settings = config(tmp_path / name, sft_model, sample_from=name, anchor_weight=3.0)
        run_rlp(settings, preferences, prompts, SameParity())
        anchors.append(SemanticAnchors.load(tmp_path / name / "run" / "anchors").dataset.to_list())
    names = ("prompt", "anchor", "members", "confidence", "reason")
    first, second = ([{name: row[name] for name in names} for row in rows] for rows in anchors)
    assert first == second


@pytest.mark.parametrize("refine_every", [None, 1])
def test_views_of_the_sft_policy_need_no_groups(tmp_path, sft_model, untrained, refine_every):
    """All prompts are sampled, not only the first 256, because the views come from these samples."""
    preferences, prompts = data(chat=False)
    settings = config(tmp_path, sft_model, method="uml", sample_from="sft", refine_every=refine_every)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trl_rlp.rewards.standardization.NUM_PROMPTS", 3)
        result, started = run_recorded(settings, preferences, prompts)
    order = ["policy_samples", "reward_model"] if refine_every else ["reward_model", "policy_samples"]
    assert started == [*order, "refined_reward_model", "gate", "retrained_policy"]
    assert len(load_data(result.policy_samples)) == 8


def test_ready_samples_of_the_sft_policy_make_the_anchors(tmp_path, sft_model, untrained):
    """Half of the six texts begin with a or c and half with b or d, so the confidence is .5."""
    preferences, prompts = data(chat=False)
    settings = config(tmp_path, sft_model, sample_from="sft", anchor_weight=3.0)
    run_rlp(settings, preferences, prompts, SameParity(), policy_samples=ready_samples(prompts["prompt"]))
    anchors = SemanticAnchors.load(tmp_path / "run" / "anchors")
    assert anchors.find("question 0").text == "aa" and anchors.mean_confidence == 0.5 and len(anchors) == 8


def test_the_preset_of_ours_runs(tmp_path, sft_model):
    """Two rollouts with a refinement between them."""
    preferences, prompts = data(chat=False)
    reward_args, policy_args = {**TRAINING}, {**TRAINING, "num_generations": 2}
    small = {"refine_every": 1, "num_generations": 6, "max_new_tokens": 4, "heldout_share": 0.25}
    settings = RLPConfig.from_preset(
        "anchored", str(tmp_path / "run"), sft_model, reward_args=reward_args, policy_args=policy_args, **small
    )
    result, started = run_recorded(settings, preferences, prompts, SameParity())
    assert "policy" not in started and result.policy is None
    metrics = result.stages["retrained_policy"]["metrics"]
    assert metrics["refinement/count"] + metrics["refinement/skipped"] == 1
    assert metrics["semantic_anchor/anchored_share"] > 0
    assert (result.retrained_policy / LAST_REWARD_MODEL / "config.json").is_file()
