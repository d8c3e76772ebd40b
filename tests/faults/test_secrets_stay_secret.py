"""Tokens and API keys reach no file, report, tracker or error message, and another token is the same run."""

import json

import pytest
from datasets import Dataset

from tests.ppo_runs import prompts
from tests.rlp_ppo.test_rlp_ppo_trainer import RLP, rlp_trainer
from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp import RLPConfig, RLPPPOConfig, RLPRewardConfig, run_rlp
from trl_rlp.cli import main
from trl_rlp.report import write_report
from trl_rlp.stages.policy import train_policy
from trl_rlp.storage import RunFolder
from trl_rlp.storage.manifest import check_folder


CPU = {"use_cpu": True, "bf16": False, "report_to": "none"}
TOKENS = {"hub_token": "hf_SECRET", "model_init_kwargs": {"token": "hf_SECRET", "dtype": "float32"}}


class Stopped(Exception):
    pass


def find_secrets(folder) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and b"SECRET" in path.read_bytes()]


def start_run(folder, sft, reward_args: dict, seed: int = 0) -> None:
    """Starts a run and stops it when its folder is claimed and the first stage starts."""
    pairs = Dataset.from_list([{"prompt": f"{i} + 1 =", "chosen": " 2", "rejected": " no"} for i in range(8)])
    args = {**CPU, "view_prompts_per_device": 2, "model_init_kwargs": {"dtype": "float32"}, **reward_args}
    settings = {"method": "uml", "num_generations": 2, "max_new_tokens": 4, "heldout_share": 0.25}
    config = RLPConfig(str(folder), str(sft), reward_args=args, policy_args=CPU, seed=seed, **settings)

    def stop(run, name, arguments):
        raise Stopped

    with RunFolder.on_start(stop), pytest.raises(Stopped):
        run_rlp(config, pairs, Dataset.from_dict({"prompt": ["2 + 2 ="] * 8}))


def test_a_run_keeps_no_token_and_another_token_is_the_same_run(tmp_path):
    tokenizer, folder = tiny_tokenizer(), tmp_path / "run"
    save(tiny_causal_lm(tokenizer), tokenizer, tmp_path / "sft")
    start_run(folder, tmp_path / "sft", TOKENS)
    assert not find_secrets(folder)
    for reward_args in ({**TOKENS, "hub_token": "hf_SECRET2"}, {}):
        start_run(folder, tmp_path / "sft", reward_args)
    with pytest.raises(ValueError, match="`seed` was 0 and is 1") as error:
        start_run(folder, tmp_path / "sft", TOKENS, seed=1)
    assert "SECRET" not in str(error.value)


@pytest.mark.parametrize("name", ["ppo", "rloo"])
def test_a_policy_of_a_stage_is_saved_without_a_token(tmp_path, name):
    """transformers pickles the configuration next to each model and checkpoint, also for TRL's own trainers."""
    tokenizer = tiny_tokenizer()
    save(tiny_causal_lm(tokenizer), tokenizer, tmp_path / "sft")
    save(tiny_reward_model(tokenizer), tokenizer, tmp_path / "reward")
    args = {**CPU, **TOKENS, "max_steps": 1, "per_device_train_batch_size": 2, "max_completion_length": 4}
    models = tmp_path / "sft", tmp_path / "reward"
    train_policy(tmp_path / "policy", *models, prompts(), {**args, "num_generations": 2}, name)
    assert list((tmp_path / "policy").rglob("checkpoint-*/training_args.bin"))
    assert not find_secrets(tmp_path / "policy")


def test_the_ppo_trainer_with_rlp_keeps_no_token_and_another_token_is_the_same_run(tmp_path):
    reward_args = {**RLP["rlp_reward_args"], "model_init_kwargs": {"dtype": "float32"}}
    for tokens in (TOKENS, {**TOKENS, "hub_token": "hf_SECRET2"}, {}):
        rlp_trainer(tmp_path, "uml", rlp_reward_args={**reward_args, **tokens}, hub_token="hf_SECRET3")
        assert not find_secrets(tmp_path)
    with pytest.raises(ValueError, match="holds a run with other settings: `args.stop_token` was 'eos' and is None"):
        rlp_trainer(tmp_path, "uml", rlp_reward_args=reward_args, stop_token=None)


def test_the_folder_of_an_earlier_version_is_resumed_and_its_report_shows_no_token(tmp_path):
    settings = {"method": "uml", "rounds": 1, "sft_model": "sft", "reward_args": {"seed": 1, **TOKENS}}
    (tmp_path / "run.json").write_text(json.dumps(settings))
    same = {"seed": 1, "model_init_kwargs": {"dtype": "float32"}}
    check_folder(tmp_path, "run.json", {**settings, "reward_args": same})
    with pytest.raises(ValueError, match=r"`reward_args` was \{'seed': 1, .*\} and is \{'seed': 2\}\. ") as error:
        check_folder(tmp_path, "run.json", {**settings, "reward_args": {"seed": 2, "hub_token": "hf_SECRET"}})
    assert "SECRET" not in str(error.value)
    report = write_report(tmp_path).read_text()
    assert "float32" in report and "SECRET" not in report


@pytest.mark.parametrize("kind", [RLPPPOConfig, RLPRewardConfig])
def test_trackers_get_no_token_of_a_configuration(tmp_path, kind):
    """transformers logs `to_dict()`. It hides the field `hub_token`, but no tokens inside mappings."""
    fields = {"rlp_reward_args": TOKENS} if kind is RLPPPOConfig else {}
    config = kind(str(tmp_path), **CPU, **TOKENS, **fields)
    logged = json.dumps([config.to_dict(), config.to_sanitized_dict()], default=str)
    assert "SECRET" not in logged and "float32" in logged and "<HUB_TOKEN>" in logged
    assert config.hub_token == config.model_init_kwargs["token"] == "hf_SECRET"


FILES = (
    "env:\n- HF_TOKEN=hf_SECRET\n",
    "seed: 1\n  hub_token: hf_SECRET\n",
    "api_key hf_SECRET",
    "- token: hf_SECRET",
)


@pytest.mark.parametrize("text", FILES)
def test_an_error_about_a_file_of_options_shows_no_token(tmp_path, capsys, text):
    (tmp_path / "run.yaml").write_text(text)
    assert main(["run", "--config", str(tmp_path / "run.yaml")]) == 2
    error = capsys.readouterr().err
    assert "`--config`" in error and "SECRET" not in error
