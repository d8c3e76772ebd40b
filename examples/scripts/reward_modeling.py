# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "trl-rlp",
#     "trackio",
# ]
# ///
"""
Trains a reward model like TRL's own script. Two lines differ: the import of `trl_rlp` and `policy_samples=`.

The first line imports the configuration and the trainer from `trl_rlp` instead of `trl`. Without `--method`, this is
the only difference, and the run is the same as TRL's, step for step (docs/rlp_reward_trainer.md has two exceptions):

    python examples/scripts/reward_modeling.py --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct \
        --dataset_name pandalm_human_842.jsonl --output_dir reward

The second line passes policy samples. `trl-rlp sample --output_dir refined` writes them to `refined/samples.jsonl`:

    python examples/scripts/reward_modeling.py --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct \
        --dataset_name pandalm_human_842.jsonl --output_dir refined --method uml

`--dataset_name` is a JSON Lines file or a name on the Hub. A tenth of a file is held out for evaluation. `trl-rlp
reward` does the same without a script. It can also use synthetic pairs, which need an equivalence.
"""

from datasets import Dataset, DatasetDict, load_dataset
from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config


from trl_rlp import RLPRewardConfig as RewardConfig, RLPRewardTrainer as RewardTrainer  # isort: skip


def load_preferences(name: str, config: str | None, seed: int) -> DatasetDict:
    if name.endswith(".jsonl"):
        return Dataset.from_json(name).train_test_split(test_size=0.1, seed=seed)
    return load_dataset(name, config)


def main(script_args: ScriptArguments, args: RewardConfig, model_args: ModelConfig) -> None:
    dataset = load_preferences(script_args.dataset_name, script_args.dataset_config, args.seed)
    args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(args.model_init_kwargs or {}),
    }
    trainer = RewardTrainer(
        model=model_args.model_name_or_path,
        args=args,
        train_dataset=dataset[script_args.dataset_train_split],
        eval_dataset=dataset[script_args.dataset_test_split],
        peft_config=get_peft_config(model_args),
        policy_samples=None if args.method == "none" else Dataset.from_json(f"{args.output_dir}/samples.jsonl"),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    print(trainer.evaluate())
    trainer.save_model(args.output_dir)


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments, RewardConfig, ModelConfig)).parse_args_and_config())
