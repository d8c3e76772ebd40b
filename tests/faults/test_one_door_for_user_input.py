"""Paths, values and files of users: read once, expanded and converted, or refused in one line before any work."""

import gzip
import json
import re
from pathlib import Path
from typing import get_type_hints

import pandas as pd
import pytest
from datasets import Dataset

from tests.tiny_models import save, tiny_causal_lm, tiny_nli, tiny_reward_model, tiny_tokenizer
from trl_rlp import PPOConfig, RLPConfig, RLPPPOConfig, RLPRewardConfig
from trl_rlp.cli import main
from trl_rlp.cli.anchors import AnchorArguments
from trl_rlp.cli.arguments import EquivalenceArguments, parse
from trl_rlp.cli.evaluate import EvaluateArguments
from trl_rlp.cli.prefer import PreferArguments
from trl_rlp.cli.reward import RewardArguments
from trl_rlp.cli.run import RunArguments
from trl_rlp.cli.sample import SampleArguments
from trl_rlp.cli.sampling import SamplingArguments
from trl_rlp.data.groups import NLIEquivalence
from trl_rlp.data.groups.label_cache import LabelCache
from trl_rlp.data.sampling import sample_completions
from trl_rlp.evaluation.alpaca_eval import read_annotations, read_model_outputs, write_model_outputs, write_rows
from trl_rlp.evaluation.collected_metrics import write_metrics
from trl_rlp.evaluation.length_control import load_anchors
from trl_rlp.quickstart.quickstart_config import QuickstartConfig
from trl_rlp.storage import RunFolder, load_data, load_policy, load_reward_model, load_rows, save_data
from trl_rlp.trainer.checkpoints import resolve_checkpoint
from trl_rlp.trainer.reward.initial_model import init_reward_model


COMMANDS = {
    "sample": (SampleArguments, SamplingArguments),
    "anchors": (AnchorArguments, EquivalenceArguments),
    "prefer": (PreferArguments, EquivalenceArguments),
    "reward": (RewardArguments, EquivalenceArguments),
    "run": (RunArguments, RLPConfig, EquivalenceArguments),
    "evaluate": (EvaluateArguments,),
    "quickstart": (QuickstartConfig,),
}
CPU = {"use_cpu": True, "report_to": "none"}


@pytest.fixture(scope="session")
def home_models(tmp_path_factory):
    tokenizer, folder = tiny_tokenizer(), tmp_path_factory.mktemp("home")
    save(tiny_causal_lm(tokenizer), tokenizer, folder / "policy")
    save(tiny_reward_model(tokenizer), tokenizer, folder / "reward")
    save(tiny_nli(tokenizer), tokenizer, folder / "nli")
    return folder


@pytest.fixture
def home(tmp_path, home_models, monkeypatch):
    """A home folder with models, in which the working directory is another folder."""
    (tmp_path / "work").mkdir()
    for folder in home_models.iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path
    assert not list((tmp_path / "work").glob("~*"))


def write_config(text: str) -> list[str]:
    Path("config.yaml").write_text(text)
    return ["--config", "config.yaml"]


def test_samples_and_metrics_are_written_to_the_home_folder(home, capsys):
    """A user wrote `~` in YAML. Shards went to a folder called `~`. Each path belongs to the home folder."""
    (home / "prompts.jsonl").write_text('{"prompt": "a?"}\n{"prompt": "b?"}\n')
    text = "model: ~/policy\nprompts: ~/prompts.jsonl\noutput_dir: ~/out\nnum_generations: 2\nmax_new_tokens: 4\n"
    assert main(["sample", *write_config(text)]) == 0
    assert (home / "out" / "samples.jsonl").is_file() and (home / "out" / "shards").is_dir()
    assert main(["evaluate", "--output_dir=~/metrics", "--samples=~/out/samples.jsonl"]) == 0
    assert (home / "metrics" / "metrics.json").is_file()
    assert str(home / "metrics") in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_path_of_a_command_is_expanded(home, command):
    """A user wrote `~` in YAML or after `--name=`, where no shell expands it."""
    choices = ("method", "policy_trainer", "on_regression", "engine", "inference_dtype", "sample_from", "preset")
    choices += ("equivalence",)
    names = [
        name
        for kind in COMMANDS[command]
        for name, hint in get_type_hints(kind).items()
        if hint in (str, str | None) and name not in choices
    ]
    written = parse(command, "", write_config("".join(f"{name}: ~/x\n" for name in names)), *COMMANDS[command])
    typed = parse(command, "", [f"--{name}=~/x" for name in names], *COMMANDS[command])
    for parsed in (written, typed):
        values = {name: value for arguments in parsed for name, value in vars(arguments).items()}
        assert {values[name] for name in names} == {str(home / "x")}


@pytest.mark.parametrize("convert", [str, Path])
def test_every_path_of_a_configuration_is_expanded(home, convert):
    """Python users pass `~` and `Path` objects too, also inside the mappings for trainers."""
    x, expanded = convert("~/x"), str(home / "x")
    nested = {"model_init_kwargs": {"cache_dir": x}, **CPU}
    config = RLPConfig(x, x, reward_base_model=x, reward_args=nested, policy_args={**nested, "sft_model_path": x})
    assert {config.output_dir, config.sft_model, config.reward_base_model} == {expanded}
    assert config.reward_args["model_init_kwargs"] == {"cache_dir": expanded}
    assert config.policy_args["model_init_kwargs"] == {"cache_dir": expanded}
    assert config.policy_args["sft_model_path"] == expanded

    ppo = RLPPPOConfig(x, rlp_reward_base=x, sft_model_path=x, reward_model_path=x, rlp_reward_args=nested, **CPU)
    assert {ppo.output_dir, ppo.rlp_reward_base, ppo.sft_model_path, ppo.reward_model_path} == {expanded}
    assert ppo.rlp_reward_args["model_init_kwargs"] == {"cache_dir": expanded}
    plain = PPOConfig(x, resume_from_checkpoint=x, **nested)
    assert {plain.output_dir, plain.resume_from_checkpoint, plain.model_init_kwargs["cache_dir"]} == {expanded}
    reward = RLPRewardConfig(x, chat_template_path=x, **nested)
    assert {reward.output_dir, reward.chat_template_path, reward.model_init_kwargs["cache_dir"]} == {expanded}
    quickstart = QuickstartConfig(output_dir=x, model=x)
    assert {quickstart.output_dir, quickstart.model} == {expanded}


def test_names_on_the_hub_and_variables_stay(home):
    """Only a leading `~` is expanded, as in transformers' `TrainingArguments`."""
    config = RLPConfig("$HOME/x", "org/model", policy_args=CPU, reward_args=CPU)
    assert (config.output_dir, config.sft_model) == ("$HOME/x", "org/model")


@pytest.mark.parametrize("convert", [str, Path])
def test_every_function_with_a_path_expands_it(home, convert):
    """A notebook passes `~` to a function, and transformers answered that the Hub has no such model."""
    policy, tokenizer = load_policy(convert("~/policy"))
    load_reward_model(convert("~/reward"))
    init_reward_model(convert("~/policy"), seed=0)
    NLIEquivalence(convert("~/nli"), cache=convert("~/cache/labels.sqlite"))
    LabelCache(convert("~/labels.sqlite"))
    prompts = Dataset.from_list([{"prompt": "a?"}])
    samples = sample_completions(
        prompts, policy, tokenizer, num_generations=2, max_new_tokens=2, output_dir=convert("~/shards")
    )
    RunFolder.check(convert("~/run"), {"seed": 0})
    assert RunFolder(convert("~/run"), {"seed": 0}).path == home / "run"
    save_data(prompts, convert("~/stage"))
    assert load_data(convert("~/stage")).to_list() == prompts.to_list()
    write_model_outputs(convert("~/outputs.json"), samples, "policy")
    assert len(read_model_outputs(convert("~/outputs.json"))) == 1
    write_rows(convert("~/a.json"), [{"instruction": "a", "output_1": "b", "output_2": "c", "preference": 1}])
    assert len(read_annotations(convert("~/a.json"))) == len(load_rows(convert("~/a.json"))) == 1
    assert write_metrics(convert("~/metrics"), {}).parent == home / "metrics"
    (home / "gamed.csv").write_text("preference,index,std_delta_len,instruction_difficulty\n1,0,0.5,0.1\n")
    assert load_anchors(convert("~/gamed.csv")).preferences == [1]
    (home / "checkpoint-1").mkdir()
    (home / "checkpoint-1" / "trainer_state.json").write_text("{}")
    assert resolve_checkpoint(convert("~/checkpoint-1"), "out") == str(home / "checkpoint-1")
    names = {"shards", "cache", "labels.sqlite", "run", "stage", "outputs.json"}
    assert names <= {path.name for path in home.iterdir()}


RUN = (
    "output_dir: ~/run\nsft_model: ~/policy\npreference_dataset: ~/p.jsonl\nprompt_dataset: ~/u.jsonl\n"
    "equivalence: exact\n"
)


def test_text_in_yaml_becomes_the_type_of_its_field(home):
    """`save_total_limit: "2"` failed after the reward model was trained. A command line would have converted it."""
    _, config, _ = parse(
        "run",
        "",
        write_config(
            f"{RUN}seed: '7'\nheldout_share: '2e-1'\nmax_new_tokens: 8.0\nstandardize_rewards: 'yes'\n"
            "reward_args: {use_cpu: 'yes', learning_rate: 1e-4, confidence_threshold: '.5', save_strategy: no}\n"
            "policy_args: {use_cpu: true, save_total_limit: '2', max_steps: 4.0, generation_kwargs: {min_p: 1e-2}}\n"
            "policy_peft: {r: '8', lora_dropout: '0.1', target_modules: q_proj}\n"
        ),
        *COMMANDS["run"],
    )
    assert (config.seed, config.heldout_share, config.max_new_tokens, config.standardize_rewards) == (7, 0.2, 8, True)
    assert config.reward_args == {
        "use_cpu": True,
        "learning_rate": 1e-4,
        "confidence_threshold": 0.5,
        "save_strategy": "no",
    }
    policy_args = {"use_cpu": True, "save_total_limit": 2, "max_steps": 4, "generation_kwargs": {"min_p": 0.01}}
    assert config.policy_args == policy_args and type(config.max_new_tokens) is int
    assert config.lora("policy").r == 8
    assert RLPPPOConfig("x", rlp_reward_args={"max_steps": "3"}, **CPU).rlp_reward_args == {"max_steps": 3}


@pytest.mark.parametrize(
    ("command", "text", "message"),
    [
        ("run", "policy_args: {save_total_limit: two}", "`policy_args.save_total_limit` must be an integer or null"),
        ("run", "policy_args: {save_total_limit: 2.5}", "`policy_args.save_total_limit` must be an integer or null"),
        ("run", "policy_args: {run_name: [a]}", "`policy_args.run_name` must be text or null, got ['a']"),
        ("run", "policy_args: {eval_strategy: steps}", "`policy_args.eval_strategy` must be \"no\", got 'steps'"),
        ("run", "policy_args: {save_totl_limit: 2}", "Did you mean `save_total_limit`?"),
        ("run", "reward_args: {learning_rate: fast}", "`reward_args.learning_rate` must be a number, got 'fast'"),
        ("run", "reward_args: {lr_scheduler_type: linea}", "`reward_args`: linea is not a valid SchedulerType"),
        ("run", "policy_args: {log_level: loud}", "`policy_args.log_level` must be one of ['detail', 'debug'"),
        ("run", "policy_args: {model_init_kwargs: {dtype: bf16}}", "`policy_args`: `model_init_kwargs.dtype` must be"),
        ("run", "reward_args: {model_init_kwargs: {dtype: bf16}}", "`reward_args`: `model_init_kwargs.dtype` must be"),
        ("reward", "preference_dataset: a\ndtype: bf16", "`dtype` must be one of ['auto', 'bfloat16', "),
        ("run", "policy_peft: {r: eight}", "`policy_peft.r` must be an integer, got 'eight'"),
        ("run", "policy_peft: {layers_pattern: h, target_modules: q}", "`policy_peft`: "),
        ("run", "seed: 1.5", "`seed` must be an integer, got 1.5"),
        ("run", "method: no", "`method` must be text, got False. Write it in quotes"),
        ("prefer", "samples: a\noutput_dir: b\nthreshold: half", "`threshold` must be a number, got 'half'"),
        ("prefer", "samples: a\noutput_dir: b\nthreshold:", "`threshold` must be a number, got None. Set a value"),
        ("prefer", "samples: a\noutput_dir: b\nkeep_candidates: maybe", "`keep_candidates` must be true or false"),
        ("prefer", "samples: [a]\noutput_dir: b", "`samples` must be text, got ['a']"),
        ("prefer", "samples: a\noutput_dir:", "`output_dir` must be text, got None"),
        ("prefer", "samples: a\noutput_dir: b\nsamples: c", "`samples` appears twice in line 3, column 1"),
        ("prefer", "config: a", "has no option `config` (in `--config`). `trl-rlp prefer --help` lists"),
        ("prefer", "samples:\n\ta: b", "YAML allows no tabs"),
        ("prefer", "- samples", "is not a mapping"),
        ("prefer", "", "is empty. Write `name: value`"),
        ("quickstart", "minutes: ten", "`minutes` must be a number, got 'ten'"),
        ("quickstart", "seed: 1.5", "`seed` must be an integer, got 1.5"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line_before_any_work(home, capsys, command, text, message):
    """Values of a wrong type failed hours later, without the name of their option."""
    assert main([command, *write_config(text if command != "run" else RUN + text)]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1] and not (home / "run").exists()


def test_a_missing_config_file_is_named(home, capsys):
    assert main(["prefer", "--config", "~/no.yaml"]) == 2
    assert f"`--config` {home / 'no.yaml'} cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["evaluate", "--reward_model=~/reward", "--preferences=~/p.jsonl"],
        ["reward", "--model_name_or_path=~/policy", "--preference_dataset=~/p.jsonl", "--max_steps=1", "--use_cpu"],
    ],
)
def test_an_output_folder_that_cannot_be_written_is_refused_before_any_work(home, capsys, options):
    """A file as `output_dir` was an error of the operating system, and only after all metrics were computed."""
    (home / "file").write_text("precious")
    assert main([*options, "--output_dir=~/file"]) == 2
    assert f"`output_dir` {home / 'file'} cannot be written" in capsys.readouterr().err


def test_a_missing_model_of_the_quickstart_is_named_and_leaves_the_folder_free(home, capsys):
    """The error was that of a failed connection, and the folder belonged to the wrong model from then on."""
    assert main(["quickstart", "--output_dir=~/run", "--model=./missing"]) == 2
    assert "No model could be loaded from './missing'" in capsys.readouterr().err
    assert not (home / "run").exists()


def test_a_wrong_prompt_column_is_named(home, capsys):
    """The error was that of `rename_column`, without the name of the option."""
    (home / "rows.jsonl").write_text('{"prompt": "a?", "question": "b?"}\n')
    words = ["sample", "--model=~/policy", "--prompts=~/rows.jsonl", "--output_dir=~/out", "--prompt_column"]
    assert main([*words, "questoin"]) == main([*words, "question"]) == 2
    wrong, ambiguous = capsys.readouterr().err.strip().splitlines()[-2:]
    assert "`prompt_column`='questoin' names no column of `prompts`, which has ['prompt', 'question']" in wrong
    assert "`prompts` has a column 'prompt' besides `prompt_column`='question'" in ambiguous


CONVERSATIONS = [
    {"prompt": [{"role": "user", "content": "a?", "name": "x"}], "chosen": [{"role": "assistant", "content": "yes"}]},
    {"prompt": [{"role": "user", "content": "b?"}], "chosen": [{"role": "assistant", "content": "y", "name": "bot"}]},
]


def write_compressed(path, rows):
    with gzip.open(path, "wt", encoding="utf-8-sig") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.parquet", lambda path, rows: pd.DataFrame(rows).to_parquet(path)),
        ("rows.jsonl.gz", write_compressed),
        ("rows.json", lambda path, rows: path.write_text(json.dumps(rows), encoding="utf-16")),
    ],
)
def test_commands_read_the_files_that_datasets_and_pandas_read(home, name, write):
    """Parquet, gzip, UTF-16 and a byte order mark ended in codec errors. Messages may lack keys that others have."""
    rows = [{**row, "rejected": [{"role": "assistant", "content": "no"}], "id": 2**63} for row in CONVERSATIONS]
    write(home / name, rows)
    loaded = load_rows(home / name)
    assert loaded["id"][:] == [2**63] * 2 and loaded["prompt"][1][0]["content"] == "b?"
    words = [f"--prompts=~/{name}", "--output_dir=~/out", "--num_generations=2", "--max_new_tokens=2"]
    assert main(["sample", "--model=~/policy", *words]) == 0
    training = "--method none --use_cpu true --max_steps 1 --report_to none --save_strategy no".split()
    model = ["--model_name_or_path=~/policy", f"--preference_dataset=~/{name}", "--output_dir=~/trained"]
    assert main(["reward", *model, *training]) == 0
    files = [f"--preferences=~/{name}", "--samples=~/out/samples.jsonl", "--output_dir=~/metrics"]
    assert main(["evaluate", "--reward_model=~/trained", *files]) == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "rows.jsonl",
            b'{"prompt": "a"}\n' * 999 + b'{"prompt": "a\n',
            r"rows.jsonl' is not JSON \(line 1000, column 12",
        ),
        (
            "rows.jsonl",
            b'{"prompt": "a"}\n{"prompt": "\xff"}\n',
            "rows.jsonl' is not text in line 2 .* Save it as UTF-8",
        ),
        ("rows.jsonl", b'{"id": 1}\n{"id": ' + b"1" * 25 + b"}\n", "of more than 64 bits in the column `id`, line 2"),
        (
            "rows.jsonl.gz",
            gzip.compress(b'{"prompt": "a"}\n' * 99, mtime=0)[:-9],
            "rows.jsonl.gz' is damaged or incomplete",
        ),
        ("rows.parquet", b"PAR1" + bytes(99), "rows.parquet' is damaged or incomplete"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_line(home, capsys, name, content, message):
    """A broken line 1000 was reported as "line 1", and other files as codec errors without a name."""
    (home / name).write_bytes(content)
    words = ["sample", "--model=~/policy", f"--prompts=~/{name}", "--output_dir=~/out"]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, line)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_outputs_with_a_byte_order_mark_are_read(home, suffix):
    """Excel and PowerShell write UTF-8 with a byte order mark, also for AlpacaEval's files."""
    data = json.dumps([{"instruction": "a", "output": "b"}]).encode("utf-8-sig")
    (home / f"outputs.json{suffix}").write_bytes(gzip.compress(data) if suffix else data)
    assert read_model_outputs(f"~/outputs.json{suffix}") == [{"instruction": "a", "output": "b"}]
    (home / "gamed.csv").write_text(
        "preference,index,std_delta_len,instruction_difficulty\n1,0,0.5,0.1\n", encoding="utf-8-sig"
    )
    assert load_anchors("~/gamed.csv").preferences == [1]
