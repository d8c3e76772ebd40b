import pytest
import torch
from trl import RLOOConfig

from tests.ppo_runs import ppo_trainer
from tests.reward_runs import rlp_trainer
from trl_rlp.trainer.saved_args import redact_saved_args


TOKENS = {"hub_token": "hf_SECRET", "model_init_kwargs": {"token": "hf_SECRET", "dtype": "float32"}}


def read_args(folder):
    assert b"SECRET" not in (folder / "training_args.bin").read_bytes()
    return torch.load(folder / "training_args.bin", weights_only=False)


def test_a_saved_configuration_has_no_secret_and_the_given_one_keeps_it(tmp_path):
    args = RLOOConfig(str(tmp_path), **TOKENS, use_cpu=True, bf16=False, learning_rate=0.5)
    redact_saved_args(tmp_path, args)
    assert not list(tmp_path.iterdir())  # there is nothing to redact
    torch.save(args, tmp_path / "training_args.bin")
    redact_saved_args(tmp_path, args)
    saved = read_args(tmp_path)
    assert type(saved) is RLOOConfig and saved.hub_token is None and saved.model_init_kwargs == {"dtype": "float32"}
    kept = vars(args).keys() - TOKENS.keys() - {"distributed_state"}  # states of accelerate cannot be compared
    assert vars(saved).keys() == vars(args).keys() and all(vars(saved)[name] == vars(args)[name] for name in kept)
    assert {name: vars(args)[name] for name in TOKENS} == TOKENS


@pytest.mark.parametrize("build", [rlp_trainer, ppo_trainer])
def test_models_and_checkpoints_of_our_trainers_have_no_secret(tmp_path, build):
    settings = {"method": "none"} if build is rlp_trainer else {"total_episodes": 4}
    trainer = build(tmp_path, **settings, save_strategy="epoch", hub_token="hf_SECRET")
    trainer.train()
    trainer.save_model()
    checkpoints = list(tmp_path.glob("checkpoint-*"))
    assert checkpoints and trainer.args.hub_token == "hf_SECRET"
    for folder in (tmp_path, *checkpoints):
        assert read_args(folder).learning_rate == trainer.args.learning_rate
