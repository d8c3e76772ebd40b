# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "trl-rlp",
#     "trackio",
# ]
# ///
"""
Trains a policy with TRL's RLOO, and refines the reward model while the policy trains.

The trainer is `trl.RLOOTrainer` itself, and the script has the form of TRL's `rloo.py`. The lines between the comments
`# Added` and `# As in TRL` are new, with their options. They make the reward model refinable, and add a callback that
trains it again every few rollouts, on human preferences and on pairs of the completions that it scored
(docs/refinement_in_the_loop.md):

    python examples/scripts/rloo_refined.py --model_name_or_path sft --reward_model_name_or_path reward \
        --preference_dataset_name preferences.jsonl --nli_model_name_or_path nli --dataset_name prompts.jsonl \
        --output_dir rloo --num_generations 8 --max_completion_length 32 --beta 0.02 --max_steps 100

`sft` is the folder of a causal LM with its tokenizer. `reward` is the folder of a reward model, for example from
`examples/scripts/reward_modeling.py --output_dir reward`. `nli` is the folder of an NLI classifier, by default
`microsoft/deberta-large-mnli`. All of them can also be names on the Hub. `--dataset_name` is a JSON Lines file with a
column `prompt`, or a name on the Hub. A tenth of a file is held out for evaluation. `--preference_dataset_name` has
the pairs that the reward model was trained on, in TRL's preference format. A tenth of a file, or the test split,
decides whether a refinement is accepted. It must be what `reward_modeling.py` held out, so use the same `--seed`.

Semantic anchors label the pairs of policy samples, as in `examples/scripts/grpo_with_anchors.py` (docs/anchors.md).
"""

from dataclasses import dataclass, field

from accelerate import PartialState
from datasets import Dataset, DatasetDict, load_dataset
from trl import (
    ModelConfig,
    RLOOConfig,
    RLOOTrainer,
    ScriptArguments,
    TrlParser,
    get_peft_config,
    get_quantization_config,
)

from trl_rlp import (
    NLIEquivalence,
    RefinableReward,
    RewardRefinementCallback,
    RLPRewardConfig,
    SemanticAnchors,
    load_policy,
    load_reward_model,
    sample_completions,
)
from trl_rlp.rewards import standardize


@dataclass
class RLOOScriptArguments(ScriptArguments):
    reward_model_name_or_path: str = field(
        default="reward", metadata={"help": "Folder or Hub name of the reward model."}
    )
    preference_dataset_name: str = field(
        default="preferences.jsonl", metadata={"help": "Human preferences: a JSON Lines file or a Hub name."}
    )
    nli_model_name_or_path: str = field(
        default="microsoft/deberta-large-mnli",
        metadata={"help": "Folder or Hub name of the NLI classifier that compares completions."},
    )
    anchor_generations: int = field(
        default=10, metadata={"help": "Completions per prompt that anchors are made from."}
    )
    reward_base_model: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub name of the model that the reward model started from. Default: the policy."},
    )
    refine_every: int = field(default=8, metadata={"help": "Rollouts between two refinements of the reward model."})
    reward_learning_rate: float = field(default=1e-5, metadata={"help": "Learning rate of a refinement."})
    reward_num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the pairs in a refinement."})


def load_splits(name: str, config: str | None, seed: int) -> DatasetDict:
    if name.endswith(".jsonl"):
        return Dataset.from_json(name).train_test_split(test_size=0.1, seed=seed)
    return load_dataset(name, config)


def main(script_args: RLOOScriptArguments, training_args: RLOOConfig, model_args: ModelConfig) -> None:
    model_init_kwargs = {
        "revision": model_args.model_revision,
        "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    training_args.model_init_kwargs = model_init_kwargs
    dataset = load_splits(script_args.dataset_name, script_args.dataset_config, training_args.seed)
    prompts = dataset[script_args.dataset_train_split]

    # Added: sample the initial policy, and make anchors from the answers that its completions agree on.
    policy, tokenizer = load_policy(model_args.model_name_or_path, **model_init_kwargs)
    sampling = {"max_new_tokens": training_args.max_completion_length, "seed": training_args.seed}
    equivalence = NLIEquivalence(script_args.nli_model_name_or_path)
    samples = sample_completions(
        prompts, policy, tokenizer, num_generations=script_args.anchor_generations, **sampling
    )
    anchors = SemanticAnchors.from_samples(samples, equivalence)
    PartialState().print(f"{len(anchors)} of {anchors.num_prompts} prompts have an anchor.")

    # Added: a reward model that records what it scores. Its rewards get mean 0 and standard deviation 1 on samples of
    # the initial policy. A refinement keeps this scale.
    reward_model, reward_tokenizer = load_reward_model(
        script_args.reward_model_name_or_path, trust_remote_code=training_args.trust_remote_code
    )
    reward = RefinableReward(reward_model, reward_tokenizer, eos_token_ids=[tokenizer.eos_token_id])
    standardize([reward], policy, tokenizer, prompts, {"num_generations": 2, **sampling})
    del policy

    # Added: every `refine_every` rollouts, a new reward model is trained, from the same weights as the first one.
    preferences = load_splits(script_args.preference_dataset_name, None, training_args.seed)
    refinement = RewardRefinementCallback(
        reward,
        preferences[script_args.dataset_train_split],
        RLPRewardConfig(
            f"{training_args.output_dir}/refinement",
            method="spg",
            learning_rate=script_args.reward_learning_rate,
            num_train_epochs=script_args.reward_num_train_epochs,
            per_device_train_batch_size=training_args.per_device_train_batch_size,
            use_cpu=training_args.use_cpu,
            bf16=training_args.bf16,
            fp16=training_args.fp16,
            seed=training_args.seed,
        ),
        eval_preference_dataset=preferences[script_args.dataset_test_split],
        base_model=script_args.reward_base_model or model_args.model_name_or_path,
        anchors=anchors,
        equivalence=equivalence,
        reference_samples=samples.select(range(min(len(samples), 256))),
        every=script_args.refine_every,
    )

    # As in TRL, except for `callbacks`
    trainer = RLOOTrainer(
        model=model_args.model_name_or_path,
        reward_funcs=reward,
        args=training_args,
        train_dataset=prompts,
        eval_dataset=dataset[script_args.dataset_test_split] if training_args.eval_strategy != "no" else None,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
        callbacks=[refinement],
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)


if __name__ == "__main__":
    main(*TrlParser((RLOOScriptArguments, RLOOConfig, ModelConfig)).parse_args_and_config())
