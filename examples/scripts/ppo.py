# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "trl-rlp",
#     "trackio",
# ]
# ///
"""
Trains a policy with PPO. The script looks like those for the PPOTrainer that TRL removed in 1.13.

Only one line imports `trl_rlp`: the import of configuration and trainer. The options are those of TRL's PPOConfig:

    python examples/scripts/ppo.py --dataset_name vicuna_80.jsonl --prompt_column turns \
        --sft_model_path sft --reward_model_path reward --output_dir ppo --response_length 64 \
        --per_device_train_batch_size 4 --gradient_accumulation_steps 4 --total_episodes 320 --missing_eos_penalty 1.0

`sft` is the folder of a causal LM with its tokenizer. `reward` is the folder of a reward model with the same
tokenizer, for example from `examples/scripts/reward_modeling.py --output_dir reward`. Both can also be names on the
Hub. Other files need another column:

    python examples/scripts/ppo.py --dataset_name self_instruct_252.jsonl \
        --prompt_column instruction --sft_model_path sft --reward_model_path reward --output_dir ppo

`--dataset_name` is a JSON Lines file or a name on the Hub. A tenth of a file is held out for evaluation. The two files
above are evaluation sets (Vicuna, AlpacaFarm). They only show how to run the script. Do not evaluate a policy on
prompts that it was trained on. `--use_peft` trains an adapter.
"""

from dataclasses import dataclass, field
from typing import Any

from accelerate import PartialState
from datasets import Dataset, DatasetDict, load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config, get_quantization_config


from trl_rlp import PPOConfig, PPOTrainer  # isort: skip


@dataclass
class PPOScriptArguments(ScriptArguments):
    prompt_column: str = field(
        default="prompt",
        metadata={"help": "Column with the prompt: text, or a list of texts. Only the first text of a list is used."},
    )


def load_prompts(name: str, config: str | None, seed: int) -> DatasetDict:
    if name.endswith(".jsonl"):
        return Dataset.from_json(name).train_test_split(test_size=0.1, seed=seed)
    return load_dataset(name, config)


def tokenize(dataset: Dataset, column: str, tokenizer: PreTrainedTokenizerBase, num_proc: int | None) -> Dataset:
    def add_ids(row: dict[str, Any]) -> dict[str, list[int]]:
        prompt = row[column]
        return {"input_ids": tokenizer(prompt if isinstance(prompt, str) else prompt[0])["input_ids"]}

    return dataset.map(add_ids, remove_columns=dataset.column_names, num_proc=num_proc)


def load_models(args: PPOConfig, model_args: ModelConfig) -> dict[str, PreTrainedModel | None]:
    options = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    }
    quantization = get_quantization_config(model_args)
    if quantization is not None:
        options["quantization_config"] = quantization

    def load_policy() -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(args.sft_model_path, **options)

    def load_classifier() -> PreTrainedModel:
        return AutoModelForSequenceClassification.from_pretrained(args.reward_model_path, num_labels=1, **options)

    return {
        "model": load_policy(),
        "ref_model": None if model_args.use_peft else load_policy(),
        "reward_model": load_classifier(),
        "value_model": load_classifier(),
    }


def main(script_args: PPOScriptArguments, args: PPOConfig, model_args: ModelConfig) -> None:
    tokenizer = AutoTokenizer.from_pretrained(args.sft_model_path, revision=model_args.model_revision)
    dataset = load_prompts(script_args.dataset_name, script_args.dataset_config, args.seed)
    with PartialState().local_main_process_first():
        prompts, eval_prompts = (
            tokenize(dataset[split], script_args.prompt_column, tokenizer, args.dataset_num_proc)
            for split in (script_args.dataset_train_split, script_args.dataset_test_split)
        )
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        **load_models(args, model_args),
        train_dataset=prompts,
        eval_dataset=eval_prompts,
        peft_config=get_peft_config(model_args),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model(args.output_dir)
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
    trainer.generate_completions()


if __name__ == "__main__":
    main(*TrlParser((PPOScriptArguments, PPOConfig, ModelConfig)).parse_args_and_config())
