"""Models, trainers and optimizers of a stage leave the memory at its end, and none is loaded before it is needed."""

import signal

import pytest
from torch.optim import Optimizer
from transformers import PreTrainedModel

import trl_rlp.evaluation.gate_report as gate_report
import trl_rlp.evaluation.policy_report as policy_report
import trl_rlp.stages.evaluation as evaluation_stage
from tests.live_models import LiveModels
from tests.ppo_runs import prompts as ppo_prompts
from tests.rlp_ppo.test_rlp_ppo_trainer import rlp_trainer
from tests.test_pipeline import TRAINING, SameParity, config, data
from tests.tiny_models import save, tiny_causal_lm, tiny_nli, tiny_tokenizer
from trl_rlp.data.groups.nli import NLIEquivalence
from trl_rlp.pipeline import run_rlp
from trl_rlp.storage.device_memory import release_at_end
from trl_rlp.storage.run_folder import RunFolder
from trl_rlp.trainer.ppo.ppo_trainer import PPOTrainer


CAUSAL, CLASSIFIER = "LlamaForCausalLM", "LlamaForSequenceClassification"


class Parity(NLIEquivalence):
    """Uses an NLI model, but decides as `SameParity`, because a model with random weights finds no groups."""

    def are_equivalent(self, prompts, firsts, seconds):
        assert super().are_equivalent(prompts, firsts, seconds)
        return SameParity().are_equivalent(prompts, firsts, seconds)


@pytest.fixture
def sft_model(tmp_path):
    tokenizer = tiny_tokenizer()
    return save(tiny_causal_lm(tokenizer), tokenizer, tmp_path / "sft")


def spy(monkeypatch, owner, name, record):
    """Calls `record` before a function."""
    original = getattr(owner, name)

    def spied(*arguments, **options):
        record(name)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, spied)


def test_a_stage_of_a_run_starts_with_nothing_and_holds_no_model_that_it_does_not_need(
    tmp_path, sft_model, monkeypatch
):
    """
    The policy stage held a third causal LM, π_SFT. The gate held two reward models. The evaluation held each policy
    while it loaded the next. Every stage after a policy stage held its five models and two optimizers.
    """
    live, starts, seen = LiveModels(), {}, {}
    record = lambda name: seen.setdefault(name, []).append(live.names(PreTrainedModel))  # noqa: E731
    spy(monkeypatch, PPOTrainer, "train", record)
    spy(monkeypatch, gate_report, "reward_margins", record)
    spy(monkeypatch, policy_report, "sample_completions", record)
    spy(monkeypatch, policy_report, "kl_to_reference", record)
    spy(monkeypatch, evaluation_stage, "score_samples", record)
    tokenizer = tiny_tokenizer()
    equivalence = Parity(save(tiny_nli(tokenizer), tokenizer, tmp_path / "nli"))
    spy(monkeypatch, Parity, "are_equivalent", record)

    preferences, prompts = data(chat=False)
    settings = config(tmp_path, sft_model, method="uml+spg", max_new_tokens=64)
    with RunFolder.on_start(lambda run, name, arguments: starts.update({name: live.names()})):
        run_rlp(settings, preferences, prompts, equivalence, eval_prompt_dataset=prompts.select(range(2)))
    assert len(starts) == 9 and set(map(tuple, starts.values())) == {()}
    assert seen.pop("train") == [[CAUSAL] * 2 + [CLASSIFIER] * 2] * 2  # policy, reference, critic, reward model
    assert seen.pop("kl_to_reference") == [[CAUSAL] * 2] * 2
    assert seen.pop("sample_completions") == [[]] * 3  # it loads the policy itself
    assert {name: set(map(tuple, models)) for name, models in seen.items()} == {
        "reward_margins": {(CLASSIFIER,)},
        "score_samples": {(CLASSIFIER,)},
        "are_equivalent": {(), ("BertForSequenceClassification",)},  # the first call loads it
    }
    assert live.names() == []


def test_a_stage_that_fails_leaves_nothing_in_memory_although_its_error_is_kept(tmp_path, sft_model, monkeypatch):
    live = LiveModels()
    preferences, prompts = data(chat=False)
    settings = config(tmp_path, sft_model, method="uml", policy_args={**TRAINING, "enable_jit_checkpoint": True})
    monkeypatch.setattr(PPOTrainer, "compute_loss", lambda self, *arguments, **options: 1 / 0)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError) as caught:
        run_rlp(settings, preferences, prompts)
    assert caught.value.__traceback__ is not None and live.names() == []
    assert signal.getsignal(signal.SIGTERM) is handler


def test_the_local_variables_of_all_errors_in_a_chain_are_released(sft_model):
    live = LiveModels()

    def fail():
        model = tiny_causal_lm(tiny_tokenizer())
        raise KeyError(model.config.hidden_size)

    def fail_again():
        optimizer = Optimizer(tiny_causal_lm(tiny_tokenizer()).parameters(), {})
        try:
            fail()
        except KeyError as error:
            raise ValueError(optimizer.defaults) from error

    with pytest.raises(ValueError) as caught, release_at_end():
        fail_again()
    assert isinstance(caught.value.__cause__, KeyError) and live.names() == []


def test_the_models_of_step_5_wait_on_the_cpu_while_the_others_are_trained(tmp_path, monkeypatch):
    """
    The trainer of Algorithm 1 held its own policy, critic, reference and reward model on the device in step 4. Step 5
    has another critic and reward model, so the first ones stay on the CPU.
    """
    trainer = rlp_trainer(tmp_path, method="spg", data=ppo_prompts())
    moves, live = [], LiveModels()
    models = {
        "policy": trainer.model,
        "reference": trainer.ref_model,
        "critic": trainer._critic_optimizer.critic,
        "reward model": trainer.reward_model,
    }
    places = dict.fromkeys(models, "device")
    for name, model in models.items():
        follow_moves(monkeypatch, name, model, places)
    with RunFolder.on_start(lambda run, stage, _: moves.append((stage, dict(places), live.names()))):
        trainer.train()
    assert [stage for stage, _, _ in moves] == [
        "reward_model",
        "policy",
        "policy_samples",
        "groups",
        "synthetic_preferences",
        "refined_reward_model",
        "gate",
    ]
    assert all(set(where.values()) == {"cpu"} and names == [] for _, where, names in moves)
    assert places == {"policy": "device", "reference": "device", "critic": "cpu", "reward model": "cpu"}


def follow_moves(monkeypatch, name, model, places):
    """Notes where a model is. The first policy's trainer moves the models that it shares to the device."""
    original, calls = model.to, []

    def to(device, *arguments):
        calls.append(device)
        places[name] = "cpu" if isinstance(device, str) else "device"
        return original(device, *arguments)

    monkeypatch.setattr(model, "to", to)


def test_the_models_of_step_5_return_when_step_4_fails(tmp_path, monkeypatch):
    trainer = rlp_trainer(tmp_path)
    places = {"policy": "device"}
    follow_moves(monkeypatch, "policy", trainer.model, places)
    monkeypatch.setattr(type(trainer), "_train_first_policy", lambda self, folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert places == {"policy": "device"}
