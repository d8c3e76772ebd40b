"""Compiled and adapter-wrapped models train as plain ones."""

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.ppo_runs import has_changed, ppo_config, ppo_trainer, prompts, weights
from tests.reward_runs import policy_samples, preferences, rlp_trainer
from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.score_inputs import capture_score_inputs, find_score_layers
from trl_rlp.data.scoring import score
from trl_rlp.rlp_ppo.rlp_ppo_config import RLPPPOConfig
from trl_rlp.rlp_ppo.rlp_ppo_trainer import RLPPPOTrainer
from trl_rlp.storage.artifacts import load_policy
from trl_rlp.trainer.ppo.ppo_setup import init_value_model
from trl_rlp.trainer.ppo.ppo_trainer import PPOTrainer
from trl_rlp.trainer.ppo.token_models import Critic
from trl_rlp.trainer.reward.initial_model import init_reward_model
from trl_rlp.trainer.reward.joint_forward import JointForward
from trl_rlp.trainer.reward.rlp_reward_trainer import RLPRewardTrainer


TOKENIZER = tiny_tokenizer()
COMPILED = {"torch_compile": True, "torch_compile_backend": "eager"}


def compiled(model):
    return torch.compile(model, backend="eager")


def largest_difference(model, other) -> float:
    first, second = weights(model), weights(other)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def saved_names(folder: Path) -> set[str]:
    """Returns the names of all weights in the checkpoints of a folder."""
    names = set()
    for path in folder.rglob("*.safetensors"):
        length = int.from_bytes(path.read_bytes()[:8], "little")
        names |= json.loads(path.read_bytes()[8 : 8 + length]).keys() - {"__metadata__"}
    return names


# torch_compile


@pytest.fixture(autouse=True)
def forget_compiled_code():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def trained(trainer, checkpoint: Path | None = None):
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return trainer


def ppo_run(folder, **arguments):
    """Trains the smallest models for one rollout, because compilation takes time."""
    models = {
        "model": tiny_causal_lm(TOKENIZER, num_hidden_layers=1),
        "reward_model": tiny_reward_model(TOKENIZER, seed=3, num_hidden_layers=1),
    }
    settings = {"total_episodes": 4, "num_ppo_epochs": 1, "response_length": 3}
    return ppo_trainer(folder, **{**models, **settings, **arguments})


def test_ppo_with_torch_compile_trains_as_without(tmp_path):
    """A user sets `torch_compile`. It failed with "does not support len()". The weights are those of a run without."""
    plain, other = (trained(ppo_run(tmp_path, gradient_checkpointing=True, **more)) for more in ({}, COMPILED))
    assert largest_difference(plain.policy_model, other.policy_model) < 1e-5
    assert largest_difference(plain.value_model, other.value_model) < 1e-5


ADAPTERS = {
    "peft_config": LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "value_peft_config": LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS"),
}


@pytest.mark.parametrize("arguments", [{"cast_lm_head_to_fp32": True}, ADAPTERS], ids=["plain", "adapters"])
def test_a_run_with_torch_compile_saves_plain_names_and_resumes(tmp_path, arguments):
    """A user sets `torch_compile` and resumes. To save time, the wrappers compile nothing."""
    settings = {"total_episodes": 8, "save_strategy": "steps", "save_steps": 1}
    settings |= {"trainer_class": RLPPPOTrainer, "config_class": RLPPPOConfig}

    def build(name, **more):
        return ppo_run(tmp_path / name, **settings, **copy.deepcopy(arguments), **more)

    with torch.compiler.set_stance("force_eager"):
        plain, other = trained(build("plain")), trained(build("compiled", **COMPILED))
        resumed = trained(build("compiled", **COMPILED), tmp_path / "compiled" / "checkpoint-1")
    for run in (other, resumed):
        assert largest_difference(plain.policy_model, run.policy_model) == 0
        assert largest_difference(plain.value_model, run.value_model) == 0
    names = saved_names(tmp_path / "compiled")
    assert names == saved_names(tmp_path / "plain") and not any("_orig_mod" in name for name in names)


@pytest.mark.parametrize("is_joint", [True, False])
def test_views_of_a_compiled_model_are_those_of_the_plain_one(is_joint):
    """A user sets `torch_compile` with `uml`. With two passes per batch, the second one failed."""
    model = tiny_reward_model(TOKENIZER, num_hidden_layers=1).train()
    layers, code = find_score_layers(model), compiled(model)
    for length in (3, 4):
        pairs, views = (torch.randint(70, 200, (2, length)) for _ in range(2))
        arguments = {"input_ids": pairs, "attention_mask": torch.ones_like(pairs), "use_cache": False}
        inputs = {"input_ids": views, "attention_mask": torch.ones_like(views)}
        forwards = [JointForward(m, layers, inputs, pad_token_id=0, is_joint=is_joint) for m in (model, code)]
        logits, compiled_logits = (forward(**arguments).logits for forward in forwards)
        assert torch.allclose(logits, compiled_logits, atol=1e-6)
        assert torch.allclose(forwards[0].hidden, forwards[1].hidden, atol=1e-6)


def test_a_reward_model_with_torch_compile_trains_and_saves_as_without(tmp_path):
    """A user sets `torch_compile` with `uml`. The weights and their names are those of a run without it."""
    with torch.compiler.set_stance("force_eager"):
        plain, other = (
            trained(rlp_trainer(tmp_path / str(len(more)), method="uml", max_steps=2, **more))
            for more in ({}, COMPILED)
        )
    assert largest_difference(plain.model, other.model) == 0
    for run in (plain, other):
        run.save_model()
    assert saved_names(tmp_path / "0") == saved_names(tmp_path / "2") != set()


def test_models_that_the_user_compiled_are_used_as_plain_ones(tmp_path):
    """A user passes compiled reward and value models, as to TRL's trainers. The run is that of plain models."""
    models = {
        "reward_model": tiny_reward_model(TOKENIZER, seed=3),
        "value_model": tiny_reward_model(TOKENIZER, seed=4),
    }
    with torch.compiler.set_stance("force_eager"):
        expected = score(models["reward_model"], TOKENIZER, ["Sea: "], ["red"])
        assert score(compiled(models["reward_model"]), TOKENIZER, ["Sea: "], ["red"]) == expected
        plain = trained(ppo_run(tmp_path, **copy.deepcopy(models)))
        other = trained(ppo_run(tmp_path, **{name: compiled(model) for name, model in copy.deepcopy(models).items()}))
        copied = init_value_model("reward", plain.policy_model, compiled(models["reward_model"]))
    assert largest_difference(plain.policy_model, other.policy_model) == 0
    assert largest_difference(plain.value_model, other.value_model) == 0
    assert type(copied) is type(models["reward_model"])


def test_a_reward_model_that_the_user_compiled_trains_on_views(tmp_path):
    """A user passes a compiled reward model, as to TRL's trainer. Its score layer is found inside."""
    with torch.compiler.set_stance("force_eager"):
        plain = trained(rlp_trainer(tmp_path, model=tiny_reward_model(TOKENIZER), method="uml", max_steps=2))
        trainer = RLPRewardTrainer(
            compiled(tiny_reward_model(TOKENIZER)),
            plain.args,
            train_dataset=preferences(),
            processing_class=TOKENIZER,
            policy_samples=policy_samples(),
        )
        trained(trainer)
    difference = [a - b for a, b in zip(plain.model.parameters(), trainer.model.parameters(), strict=True)]
    assert not any(tensor.any() for tensor in difference)


# Adapters on the score head


def adapt(config, scale: float = 0.5) -> PeftModel:
    """Wraps a classifier and gives its adapter random weights, so that it changes every score."""
    model = get_peft_model(tiny_reward_model(TOKENIZER), config)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=scale)
    return model.eval()


HEADS = {
    "lora": LoraConfig(r=2, target_modules=["q_proj", "score"]),
    "lora of rank 1": LoraConfig(r=1, target_modules="all-linear"),
    "dora": LoraConfig(r=2, target_modules=["score"], use_dora=True),
    "copy": LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["score"]),
    "ia3": IA3Config(target_modules=["q_proj", "score"], feedforward_modules=[]),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_value_is_the_score_of_the_adapted_head(name):
    """A user passes a value model with an adapter on its score head. A value is what the model itself computes."""
    model = adapt(copy.deepcopy(HEADS[name]))
    ids = torch.tensor([[70, 71, 72, 73, 70]])
    mask = torch.ones_like(ids)
    with torch.no_grad():
        values = Critic(model)(ids, mask, torch.arange(5)[None], 2)
        scores = [model(input_ids=ids[:, :end], attention_mask=mask[:, :end]).logits.item() for end in (3, 4)]
    assert values[0].tolist() == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_a_view_is_the_state_that_enters_the_adapted_head(name):
    """A user trains a reward model with such an adapter on views. Dropout in the adapter must not change the state."""
    config = copy.deepcopy(HEADS[name])
    if isinstance(config, LoraConfig):
        config.lora_dropout = 0.9
    model = adapt(config).train()
    ids = torch.tensor([[70, 71, 72]])
    with capture_score_inputs(find_score_layers(model)) as captured, torch.no_grad():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    assert len(captured) == 1
    torch.manual_seed(0)
    if not any(isinstance(m, torch.nn.Dropout) and "q_proj" in n for n, m in model.named_modules()):
        assert torch.allclose(captured[0], states)


@pytest.mark.parametrize("name", HEADS)
def test_the_adapter_on_the_score_head_of_a_value_model_trains(tmp_path, name):
    """A user trains such a value model with PPO. The adapter on the score head must move."""
    model = get_peft_model(tiny_reward_model(TOKENIZER), copy.deepcopy(HEADS[name]))
    before = weights(model)
    ppo_trainer(tmp_path, value_model=model, total_episodes=8).train()
    moved = {n for n, weight in weights(model).items() if not torch.equal(weight, before[n])}
    trainable = {n for n, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("score" in n for n in moved) and moved <= trainable


# Adapters that are loaded by name


@pytest.fixture
def adapters(tmp_path) -> dict[str, str]:
    """Folders of an adapter of a policy and of one of a reward model, each next to the folder of its base model."""
    folders = {}
    for name, model, auto_class, config in (
        ("policy", tiny_causal_lm(TOKENIZER), AutoModelForCausalLM, LoraConfig(r=2, target_modules=["q_proj"])),
        (
            "reward_model",
            tiny_reward_model(TOKENIZER, seed=3),
            AutoModelForSequenceClassification,
            LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS"),
        ),
    ):
        base = save(model, TOKENIZER, tmp_path / f"{name}_base")
        adapted = get_peft_model(auto_class.from_pretrained(base), config)
        torch.manual_seed(2)
        for n, parameter in adapted.named_parameters():
            if "lora_" in n:
                torch.nn.init.normal_(parameter, std=0.5)
        folders[name] = save(adapted, TOKENIZER, tmp_path / name)
    return folders


def test_a_policy_that_is_named_by_its_adapter_trains(tmp_path, adapters):
    """A user passes the folder of an adapter. It was loaded with all weights frozen, and training changed nothing."""
    trainer = ppo_trainer(tmp_path / "ppo", model=adapters["policy"], total_episodes=4)
    before = weights(trainer.model)
    assert not any("lora" in name for name in before)
    trainer.train()
    assert has_changed(trainer.model, before)


def test_an_adapter_without_a_tokenizer_has_that_of_its_base_model(tmp_path, adapters):
    """A user saved an adapter with PEFT, which writes no tokenizer. PPO and the stages found no tokenizer."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (Path(adapters["policy"]) / name).unlink()
    trainer = PPOTrainer(
        ppo_config(tmp_path / "ppo"),
        None,
        adapters["policy"],
        reward_model=tiny_reward_model(TOKENIZER),
        train_dataset=prompts(),
    )
    tokenizers = [
        trainer.processing_class,
        load_policy(adapters["policy"])[1],
        init_reward_model(adapters["policy"], 0)[1],
    ]
    assert all(tokenizer.get_vocab() == TOKENIZER.get_vocab() for tokenizer in tokenizers)


def test_a_value_model_from_a_reward_model_that_is_named_by_its_adapter_is_plain(tmp_path, adapters):
    """A user passes the folder of a reward model's adapter. The value model in the checkpoint must be complete."""
    trainer = ppo_trainer(
        tmp_path / "ppo", reward_funcs=adapters["reward_model"], total_episodes=4, save_strategy="steps", save_steps=1
    )
    trainer.train()
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ppo" / "checkpoint-2" / "value_model")
    assert largest_difference(saved, trainer.value_model) == 0


def test_a_reward_model_that_starts_from_an_adapter_trains(tmp_path, adapters):
    """A user's SFT model is an adapter. The reward model starts from the merged model, with all of its weights."""
    model, _ = init_reward_model(adapters["policy"], seed=0)
    assert all(parameter.requires_grad for parameter in model.parameters())
    merged = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "policy_base"), adapters["policy"]
    ).merge_and_unload()
    trunk = merged.model.state_dict()
    assert all(torch.allclose(tensor, trunk[name]) for name, tensor in model.model.state_dict().items())
