"""docs/migrating.md: the snippets train on files of other libraries' formats, and a script with TRL's calls runs."""

import json
import re
from pathlib import Path

import pytest
import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, HfArgumentParser
from trl import ModelConfig, ScriptArguments, get_peft_config

import trl_rlp
from tests.ppo_runs import SETTINGS, prompts
from tests.reward_runs import rlp_trainer
from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp import PPOConfig, PPOTrainer, load_reward_model, score


PAGE = (Path(__file__).parents[1] / "docs/migrating.md").read_text(encoding="utf-8")
SMALL = {**SETTINGS, "total_episodes": 4, "num_ppo_epochs": 1, "num_mini_batches": 1, "response_length": 4}
LORA = {"r": 2, "target_modules": ["q_proj"]}
USER = {"role": "user", "content": "Name a river:"}


def write_rows(name: str, rows: list[dict]) -> None:
    Path(name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def run_snippets(heading: str, names: dict, monkeypatch) -> dict:
    """Runs the snippets below a heading with small settings. Returns the fields that the page sets."""
    written: dict = {}

    def build(folder, **fields):
        PPOConfig(folder, **fields, use_cpu=True, bf16=False)
        written.update(fields)
        return PPOConfig(folder, **{**fields, **SMALL})

    monkeypatch.setattr(trl_rlp, "PPOConfig", build)
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    for snippet in re.findall(r"```python\n(.*?)```", section, flags=re.S):
        exec(compile(snippet, f"migrating.md, {heading}", "exec"), names)
    return written


@pytest.fixture
def sft_model(tmp_path, monkeypatch):
    """Saves an SFT model in the current folder, under the name that the page uses."""
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer()
    model = tiny_causal_lm(tokenizer)
    save(model, tokenizer, "sft_model")
    return model


def test_llama_factory(sft_model, monkeypatch):
    """The head has a bias of 0.5, which is left out. `ppo_buffer_size` 2 and 4 micro-batches are 8 micro-batches."""
    tokenizer = tiny_tokenizer()
    save(sft_model, tokenizer, "llamafactory_rm")
    head = {"v_head.summary.weight": torch.randn(1, 16), "v_head.summary.bias": torch.tensor([0.5])}
    save_file(head, "llamafactory_rm/value_head.safetensors")
    with pytest.raises(ValueError, match="'llamafactory_rm' is not a reward model with one label. .*'score.weight'"):
        load_reward_model("llamafactory_rm")
    rows = [{"instruction": "Name a river:", "input": part, "output": ""} for part in ("In Asia.", "")] * 2
    write_rows("prompts.json", rows)
    write_rows("preferences.json", [{"instruction": "A river?", "chosen": "Rhine", "rejected": "no"}] * 4)
    names: dict = {}
    written = run_snippets("From LLaMA-Factory", names, monkeypatch)
    assert (written["gradient_accumulation_steps"], written["num_mini_batches"]) == (4 * 2, 2)
    assert [row[0]["content"] for row in names["prompts"]["prompt"][:2]] == [
        "Name a river:\nIn Asia.",
        "Name a river:",
    ]
    assert names["trainer"].state.global_step == 1

    ids = torch.tensor(
        [tokenizer("A river?")["input_ids"] + tokenizer("Rhine")["input_ids"] + [tokenizer.eos_token_id]]
    )
    expected = sft_model.model(ids).last_hidden_state[0, -1] @ head["v_head.summary.weight"][0]
    assert score(*load_reward_model("reward_model"), ["A river?"], ["Rhine"]) == pytest.approx(
        [expected.item()], abs=1e-5
    )
    rlp_trainer(
        "refined", "none", names["reward_model"], names["tokenizer"], names["preferences"], max_steps=1
    ).train()


def run_data_snippet(heading: str, number: int) -> dict:
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    names: dict = {}
    exec(re.findall(r"```python\n(.*?)```", section, flags=re.S)[number], names)
    return names


SYSTEM = {"role": "system", "content": "You are a geographer."}
HISTORY = [{"role": "user", "content": "A river?"}, {"role": "assistant", "content": "The Rhine."}]
RHINE, AMUR, NO = ([{"role": "assistant", "content": text}] for text in ("The Rhine.", "The Amur.", "no"))


def test_system_prompt_and_history_of_the_alpaca_format_of_llama_factory(tmp_path, monkeypatch):
    """LLaMA-Factory's files are lists of rows, and its rows may lack the optional columns."""
    monkeypatch.chdir(tmp_path)
    row = {"instruction": "And in Asia?", "input": "", "output": "", "system": SYSTEM["content"]}
    rows = [{**row, "history": [["A river?", "The Rhine."]]}, {"instruction": "Name a river:"}]
    Path("prompts.json").write_text(json.dumps(rows, indent=1))
    pairs = [{**row, "chosen": "The Amur.", "rejected": "no"} for row in rows]
    Path("preferences.json").write_text(json.dumps(pairs, indent=1))
    names = run_data_snippet("From LLaMA-Factory", 1)
    expected = [[SYSTEM, *HISTORY, {"role": "user", "content": "And in Asia?"}], [USER]]
    assert names["prompts"]["prompt"][:] == names["preferences"]["prompt"][:] == expected
    assert names["preferences"][0]["chosen"] == AMUR and names["preferences"][1]["rejected"] == NO


def test_the_sharegpt_format_of_llama_factory(tmp_path, monkeypatch):
    """As in `dpo_en_demo`, the data of its example of `stage: rm`. A system turn replaces the column `system`."""
    monkeypatch.chdir(tmp_path)
    turns = [{"from": "human", "value": "A river?"}, {"from": "gpt", "value": "The Rhine."}]
    last = {"from": "human", "value": "And in Asia?"}
    system = {"from": "system", "value": SYSTEM["content"]}
    rows = [
        {"conversations": [*turns, last], "system": SYSTEM["content"]},
        {"conversations": [system, *turns, last], "system": "another one"},
        {"conversations": [last], "system": None},
    ]
    answers = {"chosen": {"from": "gpt", "value": "The Amur."}, "rejected": {"from": "gpt", "value": "no"}}
    Path("preferences.json").write_text(json.dumps([{**row, **answers} for row in rows]))
    answered = [{**row, "conversations": [*row["conversations"], answers["chosen"]]} for row in rows]
    Path("prompts.json").write_text(json.dumps(answered))
    names = run_data_snippet("From LLaMA-Factory", 1)
    question = {"role": "user", "content": "And in Asia?"}
    expected = [[SYSTEM, *HISTORY, question], [SYSTEM, *HISTORY, question], [question]]
    assert names["prompts"]["prompt"][:] == names["preferences"]["prompt"][:] == expected
    assert names["preferences"]["chosen"][:] == [AMUR] * 3 and names["preferences"]["rejected"][:] == [NO] * 3
    calls = {"conversations": [last, {"from": "function_call", "value": "{}"}]}
    with pytest.raises(KeyError, match="function_call"):
        names["to_prompt"](calls)


def test_margins_and_whole_rejected_conversations_of_ms_swift(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows("ppo.jsonl", [{"messages": [SYSTEM, *HISTORY, USER]}])
    pair = {"messages": [SYSTEM, USER, *RHINE], "margin": 2.0}
    for rejected in (
        {"rejected_messages": [SYSTEM, USER, *NO]},
        {"rejected_response": NO},
        {"rejected_response": "no"},
    ):
        write_rows("rm.jsonl", [{**pair, **rejected}])
        names = run_data_snippet("From ms-swift", 0)
        assert names["preferences"][0] == {"prompt": [SYSTEM, USER], "chosen": RHINE, "rejected": NO, "margin": 2.0}
    assert names["prompts"][0] == {"prompt": [SYSTEM, *HISTORY, USER]}
    with pytest.raises(ValueError, match="Both sides of a pair must answer the same prompt"):
        names["to_preference"]({**pair, "rejected_messages": [USER, *NO]})


def test_an_adapter_with_a_value_head_is_refused(sft_model):
    adapter = get_peft_model(sft_model, LoraConfig(task_type="CAUSAL_LM", **LORA))
    adapter.peft_config["default"].base_model_name_or_path = "sft_model"
    save(adapter, tiny_tokenizer(), "llamafactory_rm")
    with pytest.raises(ValueError, match="'llamafactory_rm' is not a reward model .*adapter of CAUSAL_LM"):
        load_reward_model("llamafactory_rm")


def test_ms_swift(sft_model, monkeypatch):
    """Its adapter of a reward model has the task SEQ_CLS, so it has the head. It names a module without weights."""
    classifier = AutoModelForSequenceClassification.from_pretrained("sft_model", num_labels=1)
    adapter = get_peft_model(classifier, LoraConfig(task_type="SEQ_CLS", modules_to_save=["v_head"], **LORA))
    save(adapter, tiny_tokenizer(), "swift_rm")
    answer = {"role": "assistant", "content": "The Rhine."}
    write_rows("ppo.jsonl", [{"messages": [USER]}, {"messages": [USER, answer]}] * 2)
    write_rows("rm.jsonl", [{"messages": [USER, answer], "rejected_response": "no", "margin": 0.5}] * 4)
    names: dict = {}
    written = run_snippets("From ms-swift", names, monkeypatch)
    assert written["response_length"] == 512 and written["temperature"] == 0.9
    assert written["per_device_train_batch_size"] * written["gradient_accumulation_steps"] == 16
    assert names["prompts"]["prompt"][:] == [[USER]] * 4
    assert names["preferences"][0]["rejected"] == [{"role": "assistant", "content": "no"}]
    assert names["trainer"].state.global_step == 1
    rlp_trainer(
        "refined", "none", names["reward_model"], names["tokenizer"], names["preferences"], max_steps=1
    ).train()


def test_aligntune(sft_model, monkeypatch):
    """Four tokens without a space are one word, so the reward function returns at most 1."""
    save(tiny_reward_model(tiny_tokenizer(), seed=3), tiny_tokenizer(), "reward_model")
    tokenized = prompts(4, "ids")
    names = {"prompts": tokenized.add_column("lengths", [len(ids) for ids in tokenized["input_ids"]])}
    written = run_snippets("From AlignTune", names, monkeypatch)
    assert written["reward_weights"] == [1.0, 0.2]
    (row,) = [row for row in names["trainer"].state.log_history if "objective/scores" in row]
    both = row["rewards/reward_model/mean"] + 0.2 * row["rewards/brevity_reward/mean"]
    assert row["reward"] == pytest.approx(both, abs=1e-5) and 0 < row["rewards/brevity_reward/mean"] <= 1


def test_the_calls_of_trls_script_for_tldr(sft_model):
    """TRL's own `ppo_tldr.py` was run by hand. Its calls: parsed options, a pad token, token ids with `lengths`."""
    save(tiny_reward_model(tiny_tokenizer(), seed=3), tiny_tokenizer(), "reward")
    Path("tldr").mkdir()
    for split, count in (("train", 8), ("validation", 4)):
        write_rows(
            f"tldr/{split}.jsonl", [{"prompt": f"POST {row} TL;DR:", "completion": " x"} for row in range(count)]
        )
    options = "--dataset_name tldr --dataset_test_split validation --output_dir out --missing_eos_penalty 1.0 "
    options += "--model_name_or_path sft_model --sft_model_path sft_model --reward_model_path reward --stop_token eos "
    options += "--per_device_train_batch_size 1 --per_device_eval_batch_size 4 --gradient_accumulation_steps 4 "
    options += "--local_rollout_forward_batch_size 1 --total_episodes 8 --response_length 4 --num_ppo_epochs 1 "
    options += "--eval_strategy steps --eval_steps 1 --logging_steps 1 --use_cpu true --disable_tqdm true"
    parser = HfArgumentParser((ScriptArguments, PPOConfig, ModelConfig))
    script_args, args, model_args = parser.parse_args_into_dataclasses(options.split())
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path, padding_side="left")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    value_model, reward_model = (
        AutoModelForSequenceClassification.from_pretrained(args.reward_model_path, num_labels=1) for _ in range(2)
    )
    policy, reference = (AutoModelForCausalLM.from_pretrained(args.sft_model_path) for _ in range(2))

    def tokenize(row):
        ids = tokenizer(row["prompt"])["input_ids"]
        return {"input_ids": ids, "lengths": len(ids)}

    data = load_dataset(script_args.dataset_name).map(tokenize, remove_columns=["prompt", "completion"])
    data = data.filter(lambda row: row["lengths"] <= 512, num_proc=args.dataset_num_proc)
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward_model,
        value_model=value_model,
        train_dataset=data[script_args.dataset_train_split],
        eval_dataset=data[script_args.dataset_test_split],
        peft_config=get_peft_config(model_args),
    )
    trainer.train()
    trainer.save_model(args.output_dir)
    trainer.generate_completions()
    assert [row["episode"] for row in trainer.state.log_history if "episode" in row] == [4, 8]
    assert sum("eval_objective/rlhf_reward" in row for row in trainer.state.log_history) == 2
    assert AutoModelForCausalLM.from_pretrained("out")
