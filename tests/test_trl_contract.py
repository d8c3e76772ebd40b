"""Everything that we rely on in TRL, transformers and accelerate. A failure shows what a new version changed."""

import inspect
from types import SimpleNamespace

import pytest
import torch
import transformers
from accelerate import Accelerator
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.integrations import deepspeed
from transformers.trainer_jit_checkpoint import JITCheckpointCallback
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import is_torch_bf16_gpu_available, is_torch_xla_available
from trl import GRPOConfig, GRPOTrainer, ModelConfig, RewardConfig, RewardTrainer, RLOOConfig, RLOOTrainer, TrlParser
from trl.trainer import add_fused_lm_head
from trl.trainer.reward_trainer import DataCollatorForPreference
from trl.trainer.utils import RepeatSampler

from tests.ppo_runs import ppo_trainer
from tests.reward_runs import SETTINGS, rlp_trainer, trl_trainer
from tests.tiny_models import tiny_causal_lm, tiny_tokenizer
from trl_rlp.rlp_ppo.rlp_ppo_trainer import RLPPPOTrainer
from trl_rlp.trainer.model_card import ModelCardMixin
from trl_rlp.trainer.ppo.fused_head import KNOWN_CHANGES
from trl_rlp.trainer.ppo.ppo_trainer import PPOTrainer
from trl_rlp.trainer.reward.rlp_reward_trainer import RLPRewardTrainer


OVERRIDDEN = {
    "__init__",
    "_init_training_state",
    "_prepare_dataset",
    "_save",
    "_save_checkpoint",
    "_save_rng_state",
    "compute_loss",
    "create_model_card",
    "log",
    "train",
}
CLASS_ATTRIBUTES = {"_tag_names", "_name", "_paper"}
OWN_NAMES = {
    "_prepare_card",
    "_prepare_score_head",
    "_add_terms",
    "_connect_collator",
    "_describe_model",
    "_take_card_names",
    "representation_term",
}
PPO_OVERRIDDEN = {
    "__init__": ["self", "model", "reward_funcs", "args", "train_dataset", "eval_dataset", "processing_class"],
    "_get_train_sampler": ["self", "dataset"],
    "_prepare_inputs": ["self", "generation_batch"],
    "_tokenize_prompts": ["self", "prompts"],
    "_get_per_token_logps_and_entropies": ["self"],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_generate_and_score_completions": ["self", "inputs"],
    "_generate_single_turn": ["self"],
    "_save": ["self", "output_dir", "state_dict"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_save_rng_state": ["self", "output_dir"],
    "create_model_card": ["self", "model_name", "dataset_name", "tags"],
    "create_scheduler": ["self", "num_training_steps", "optimizer"],
    "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    "log": ["self", "logs", "start_time"],
    "training_step": ["self", "model", "inputs", "num_items_in_batch"],
    "train": ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
}
"""Methods of GRPO's trainer that our PPO overrides, with their first parameters."""

PPO_OWN = {
    "_describe_model",
    "_take_card_names",
    "policy_model",
    "value_model",
    "generate_completions",
    "_continue_final_message",
    "_config_class",
    "_resolve_tokens",
    "_build_reward_functions",
    "_set_stop_tokens",
    "_add_critic",
    "_follow_refinements",
    "_steps_without_guard",
    "_policy_token_reward_model",
    "_standardize_rewards",
    "_log_advantages",
    "_move_models",
    "_prepare_rlp",
    "_refine_reward_model",
    "_train_first_policy",
    "_train_policy_again",
    "_build_stage_trainer",
    "_load_reward_function",
    "_replace_reward_model",
    "_add_in_loop",
}


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_our_trainer_overrides_these_names_and_no_others():
    names = {*vars(ModelCardMixin), *vars(RLPRewardTrainer)}
    own = {name for name in names if not name.startswith("__") or name == "__init__"}
    assert own == OVERRIDDEN | CLASS_ATTRIBUTES | OWN_NAMES
    for name in OVERRIDDEN | CLASS_ATTRIBUTES:
        assert hasattr(RewardTrainer, name), f"TRL's RewardTrainer no longer has `{name}`"
    for name in OWN_NAMES:
        assert not hasattr(RewardTrainer, name), f"TRL's RewardTrainer now has its own `{name}`"


def test_the_reward_trainer_has_these_arguments():
    """Our trainer passes them by position, so their order matters."""
    theirs, ours = parameters(RewardTrainer.__init__), parameters(RLPRewardTrainer.__init__)
    assert ours[: len(theirs)] == theirs


@pytest.mark.parametrize(
    "name",
    [
        "_init_training_state",
        "_save_checkpoint",
        "_save_rng_state",
        "compute_loss",
        "create_model_card",
        "log",
        "train",
    ],
)
def test_overridden_methods_have_the_same_signature(name):
    ours, theirs = (inspect.getattr_static(trainer, name) for trainer in (RLPRewardTrainer, RewardTrainer))
    assert ours is not theirs and parameters(ours) == parameters(theirs)


def test_the_loss_is_a_mean_that_the_trainer_divides_by_the_accumulation_steps():
    assert RewardTrainer.loss_is_scaled_for_ga is False


def test_the_loss_calls_a_callable_instead_of_the_model_once_and_reads_its_logits(tmp_path):
    """Two pairs have rewards (2, 1) and (0, 3). The loss is the mean of softplus(-1) and softplus(3)."""
    trainer = trl_trainer(tmp_path)
    calls = []

    def model(**inputs):
        calls.append(inputs)
        return SimpleNamespace(logits=torch.tensor([[2.0], [0.0], [1.0], [3.0]]))

    ids = torch.ones(4, 3, dtype=torch.long)
    trainer.model.train()
    loss, outputs = trainer.compute_loss(model, {"input_ids": ids, "attention_mask": ids}, True, None)
    assert len(calls) == 1
    assert {"input_ids", "attention_mask"} <= set(calls[0])
    expected = (torch.nn.functional.softplus(torch.tensor([-1.0, 3.0]))).mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert outputs.logits.shape == (4, 1)


def test_the_trainer_reads_attributes_that_are_set_after_its_constructor(tmp_path):
    """After TRL's constructor, `train_dataset` and `data_collator` are replaced and callbacks are added."""
    trainer = trl_trainer(tmp_path, max_steps=1, remove_unused_columns=False)
    assert {"chosen_ids", "rejected_ids"} <= set(trainer.train_dataset.column_names)
    trainer.train_dataset = trainer.train_dataset.add_column("record", list(range(8)))
    seen = []

    def collate(examples):
        seen.extend(example["record"] for example in examples)
        return DataCollatorForPreference(pad_token_id=0)(examples)

    class Began(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            seen.append("began")

    trainer.data_collator = collate
    trainer.add_callback(Began())
    trainer.train()
    assert "began" in seen
    assert set(seen) & set(range(8))


def test_the_order_of_events_around_an_optimizer_step(tmp_path):
    """
    Before the step, gradients are complete and clipped. After the step, the step count rises. On save, the folder
    exists.
    """
    events = []

    class Recorder(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            events.append(("epoch", state.epoch))

        def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
            norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm().item()
            events.append(("step", state.global_step, round(norm, 6)))

        def on_save(self, args, state, control, **kwargs):
            folder = tmp_path / f"checkpoint-{state.global_step}"
            events.append(("save", state.global_step, (folder / "trainer_state.json").is_file()))

    settings = {"max_steps": 4, "gradient_accumulation_steps": 2, "max_grad_norm": 1e-3, "save_steps": 2}
    trainer = trl_trainer(tmp_path, save_strategy="steps", **settings)
    trainer.add_callback(Recorder())
    trainer.train()
    # Eight pairs in steps of four are two steps per epoch.
    steps = [("step", step, 1e-3) for step in range(4)]
    saves = [("save", 2, True), ("save", 4, True)]
    assert events == [("epoch", 0), *steps[:2], saves[0], ("epoch", 1), *steps[2:], saves[1]]
    assert get_last_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-4")


def test_the_state_of_the_trainer_is_the_last_file_of_a_checkpoint(tmp_path, monkeypatch):
    """We find complete checkpoints by it. Those without random states were written with `save_only_model`."""
    before, files = [], []
    monkeypatch.setattr(TrainerState, "save_to_json", lambda self, path: before.append(path))
    settings = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    for name, save_only_model in (("whole", False), ("model", True)):
        trl_trainer(tmp_path / name, save_only_model=save_only_model, **settings).train()
        folder = tmp_path / name / "checkpoint-1"
        files.append({path.name for path in folder.iterdir()})
        assert before.pop() == str(folder / "trainer_state.json")
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth"} == files[0] - files[1]


def test_the_plan_of_the_loop_begins_with_the_epochs_and_ends_with_the_steps(tmp_path):
    """The loop starts with epoch `global_step // steps_per_epoch`, and ends before the first value of the plan."""
    trainer = trl_trainer(tmp_path, max_steps=6)
    epochs, steps_per_epoch, *_, max_steps = trainer.set_initial_training_values(
        trainer.args, trainer.get_train_dataloader()
    )
    assert (epochs, steps_per_epoch, max_steps) == (2, 4, 6)
    assert "set_initial_training_values(args, train_dataloader" in inspect.getsource(Trainer._inner_training_loop)


def test_sigterm_sets_a_flag_of_the_callback_that_writes_jit_checkpoints(tmp_path):
    trainer = trl_trainer(tmp_path, enable_jit_checkpoint=True)
    callback = trainer.pop_callback(JITCheckpointCallback)
    assert callback.jit_manager.is_checkpoint_requested is False and callback.jit_manager.kill_wait == 3
    assert trainer.pop_callback(JITCheckpointCallback) is None
    callback.on_train_end(trainer.args, trainer.state, trainer.control)  # restores the handler of SIGTERM


def test_names_on_the_trainer_that_we_read(tmp_path):
    trainer = trl_trainer(tmp_path)
    for name in ("model", "args", "accelerator", "processing_class", "state", "train_dataset", "data_collator"):
        assert name in vars(trainer), name
    assert isinstance(trainer, Trainer)
    assert trainer.accelerator.num_processes == 1
    assert trainer.accelerator.scaler is None
    assert trainer.processing_class.pad_token_id == trainer.model.config.pad_token_id


def test_bf16_is_none_until_the_post_init_of_the_configuration(tmp_path):
    """TRL replaces `bf16=None` in its own `__post_init__`. Ours chooses a value first and then calls it."""
    assert next(field for field in RewardConfig.__dataclass_fields__.values() if field.name == "bf16").default is None
    assert RewardConfig(str(tmp_path), bf16=False).bf16 is False
    assert RewardConfig(str(tmp_path), **SETTINGS).remove_unused_columns is True


def test_columns_that_the_collator_of_trl_reads():
    """The collator reads the ids and `margin` and ignores other columns."""
    collator = DataCollatorForPreference(pad_token_id=0, pad_to_multiple_of=4)
    batch = collator([{"chosen_ids": [1], "rejected_ids": [2, 3], "margin": 0.5, "record": 1, "candidate_ids": None}])
    assert batch["input_ids"].tolist() == [[1, 0, 0, 0], [2, 3, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 0, 0, 0], [1, 1, 0, 0]]
    assert batch["margin"].tolist() == [0.5]
    assert set(batch) == {"input_ids", "attention_mask", "margin"}


def test_public_names_that_we_import():
    assert callable(is_torch_bf16_gpu_available) and callable(is_torch_xla_available)
    assert {"tensor", "reduction"} <= set(parameters(Accelerator.reduce))
    assert {"train_dataset", "reward_funcs", "peft_config"} <= set(parameters(RLOOTrainer.__init__))
    assert {"train_dataset", "reward_funcs", "peft_config"} <= set(parameters(GRPOTrainer.__init__))
    for config in (RLOOConfig, GRPOConfig, ModelConfig):
        assert config.__dataclass_fields__
    assert "return_remaining_strings" in parameters(TrlParser.parse_args_and_config)
    assert callable(TrlParser.set_defaults_with_config) and callable(TrlParser.error)


def test_model_outputs_can_be_shortened():
    outputs = transformers.modeling_outputs.SequenceClassifierOutputWithPast(logits=torch.zeros(3, 1))
    outputs.logits = outputs.logits[:2]
    assert outputs["logits"].shape == (2, 1)


def test_the_card_of_trl_has_the_parts_that_ours_takes_over(tmp_path, monkeypatch):
    """The front matter, the link to the paper, the badges of trackers, and the citations."""
    monkeypatch.setattr("trl.trainer.base_trainer.get_trackio_space_url", lambda: "https://huggingface.co/spaces/o/t")
    trl_trainer(tmp_path).create_model_card(model_name="refined")
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\n") and "\nmodel_name: refined\n" in card and "\n- trl\n" in card
    assert "\n[<img " in card and card.count("```bibtex\n") >= 1
    rlp_trainer(tmp_path, method="uml").create_model_card(model_name="refined")
    card = (tmp_path / "README.md").read_text()
    assert "- Method: [Fine-Tuning Language Models with Reward Learning" in card and "papers/2403.19279" in card


def test_our_ppo_overrides_these_names_of_the_grpo_trainer_and_no_others():
    own = {}
    for cls in (ModelCardMixin, PPOTrainer, RLPPPOTrainer):
        own |= {name: value for name, value in vars(cls).items() if callable(value) or isinstance(value, property)}
    own = {name for name in own if not name.startswith("__") or name == "__init__"}
    assert own == set(PPO_OVERRIDDEN) | PPO_OWN
    for name, arguments in PPO_OVERRIDDEN.items():
        theirs = parameters(inspect.getattr_static(GRPOTrainer, name))
        assert theirs[: len(arguments)] == arguments, f"GRPOTrainer.{name} has other arguments now"
    for name in PPO_OWN:
        assert not hasattr(GRPOTrainer, name), f"TRL's GRPOTrainer now has its own `{name}`"


def test_attributes_of_the_grpo_trainer_that_our_ppo_reads(tmp_path):
    trainer = ppo_trainer(tmp_path)
    for name in (
        "eos_token_ids",
        "generation_config",
        "generation_kwargs",
        "reward_funcs",
        "reward_weights",
        "use_vllm",
    ):
        assert name in vars(trainer), name
    assert set(trainer._metrics) == {"train", "eval"}
    assert trainer._logs["advantages"].maxlen == trainer.args.generation_batch_size
    assert trainer.loss_is_scaled_for_ga is True
    assert trainer.generation_config.temperature == trainer.generation_kwargs["temperature"] == 0.7
    assert isinstance(RepeatSampler(range(4), 1).generator, torch.Generator) and RepeatSampler(range(4), 1).shuffle


def test_a_rollout_of_the_grpo_trainer_has_everything_that_ppo_needs(tmp_path):
    """Prompts are padded on the left and completions on the right. Rewards have one column per function."""
    trainer = ppo_trainer(tmp_path)
    trainer.model.train()
    rows = [{"prompt": "a"}, {"prompt": "bcd"}]
    batch = GRPOTrainer._generate_and_score_completions(trainer, rows)
    assert {"prompt_ids", "prompt_mask", "completion_ids", "completion_mask"} <= set(batch)
    assert batch["prompt_mask"].tolist() == [[0, 0, 1], [1, 1, 1]]
    mask = batch["completion_mask"].bool()
    assert not (mask[:, 1:] & ~mask[:, :-1]).any()
    assert trainer._scores.shape == (2,)


def test_evaluation_takes_a_loss_and_a_mode_from_the_model(tmp_path):
    trainer = ppo_trainer(tmp_path)
    trainer.model.eval()
    assert trainer.compute_loss(trainer.model, {"loss": torch.tensor(2.0)}).item() == 2.0
    assert parameters(Trainer.get_optimizer_cls_and_kwargs) == ["args", "model"]


def test_the_trainer_searches_a_checkpoint_for_adapters_of_the_policy():
    """It would load an adapter folder of the critic into the policy. The adapter is therefore another kind of file."""
    assert "adapter_subdirs" in inspect.getsource(Trainer._load_from_checkpoint)


def test_the_fused_lm_head_takes_these_arguments_and_knows_these_changes_of_logits():
    parameters = ["model", "temperature", "cast_lm_head_to_fp32", "outputs"]
    assert list(inspect.signature(add_fused_lm_head).parameters) == parameters
    source = inspect.getsource(add_fused_lm_head)
    assert "fused_lm_head=False, labels=None" in source and all(f'"{name}"' in source for name in KNOWN_CHANGES)


def test_models_name_the_weights_that_stay_in_fp32():
    """`cast_weights` reads the names from the model, because transformers offers no public way."""
    assert isinstance(tiny_causal_lm(tiny_tokenizer())._keep_in_fp32_modules_strict, set)


def test_private_names_for_models_that_are_not_sharded():
    """`whole_weights` puts transformers' DeepSpeed config aside, and `own_layers` reads the layers of a model."""
    assert deepspeed._hf_deepspeed_config_weak_ref is None
    config = torch.nn.Identity()
    deepspeed.set_hf_deepspeed_config(config)
    assert deepspeed._hf_deepspeed_config_weak_ref() is config
    deepspeed.unset_hf_deepspeed_config()
    assert deepspeed._hf_deepspeed_config_weak_ref is None
    assert "LlamaDecoderLayer" in tiny_causal_lm(tiny_tokenizer())._no_split_modules
