# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "trl-rlp",
#     "trackio",
# ]
# ///
"""
Trains a policy with TRL's GRPO, a reward model and semantic anchors as a second reward.

The trainer is `trl.GRPOTrainer` itself, and the script has the form of TRL's `grpo.py`. The lines between the comments
`# Added` and `# As in TRL` are new, with their options. They sample the initial policy, keep the majority answer of
each prompt as its anchor, and reward completions that mean the same as the anchor (docs/anchors.md):

    python examples/scripts/grpo_with_anchors.py --model_name_or_path sft --reward_model_name_or_path reward \
        --nli_model_name_or_path nli --dataset_name prompts.jsonl --output_dir grpo --num_generations 8 \
        --max_completion_length 32 --beta 0.01 --max_steps 100

`sft` is the folder of a causal LM with its tokenizer. `reward` is the folder of a reward model, for example from
`examples/scripts/reward_modeling.py --output_dir reward`. `nli` is the folder of an NLI classifier, by default
`microsoft/deberta-large-mnli`. All of them can also be names on the Hub. `--dataset_name` is a JSON Lines file with a
column `prompt`, or a name on the Hub. A tenth of a file is held out for evaluation.

The anchors are saved to `anchors` in the output folder. `--anchors FOLDER` reads them from another folder, for example
from the command `trl-rlp anchors`.

`--reward_weights` are those of the reward model and of the anchors, by default 1 and 3.

`--scale_rewards` is "none" here. With GRPO's default, "group", advantages are divided by the standard deviation of
the rewards in their group. The reward weights and `--beta` then mean something else for each prompt.
"""

from dataclasses import dataclass, field

from accelerate import PartialState
from accelerate.logging import get_logger
from datasets import Dataset, DatasetDict, load_dataset
from trl import (
    GRPOConfig,
    GRPOTrainer,
    ModelConfig,
    ScriptArguments,
    TrlParser,
    get_peft_config,
    get_quantization_config,
)

from trl_rlp import (
    NLIEquivalence,
    RewardFunction,
    SemanticAnchorReward,
    SemanticAnchors,
    load_policy,
    load_reward_model,
    sample_completions,
)
from trl_rlp.rewards import standardize


logger = get_logger(__name__)


@dataclass
class GRPOScriptArguments(ScriptArguments):
    reward_model_name_or_path: str = field(
        default="reward", metadata={"help": "Folder or Hub name of the reward model."}
    )
    nli_model_name_or_path: str = field(
        default="microsoft/deberta-large-mnli",
        metadata={"help": "Folder or Hub name of the NLI classifier that compares completions."},
    )
    anchors: str | None = field(
        default=None, metadata={"help": "Folder with anchors. By default, they are made from samples of the policy."}
    )
    anchor_generations: int = field(
        default=10, metadata={"help": "Completions per prompt that anchors are made from."}
    )


def load_prompts(name: str, config: str | None, seed: int) -> DatasetDict:
    if name.endswith(".jsonl"):
        return Dataset.from_json(name).train_test_split(test_size=0.1, seed=seed)
    return load_dataset(name, config)


def main(script_args: GRPOScriptArguments, training_args: GRPOConfig, model_args: ModelConfig) -> None:
    model_init_kwargs = {
        "revision": model_args.model_revision,
        "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    training_args.model_init_kwargs = model_init_kwargs
    dataset = load_prompts(script_args.dataset_name, script_args.dataset_config, training_args.seed)
    prompts = dataset[script_args.dataset_train_split]

    # Added: sample the initial policy, and make anchors from the answers that its completions agree on.
    policy, tokenizer = load_policy(model_args.model_name_or_path, **model_init_kwargs)
    sampling = {"max_new_tokens": training_args.max_completion_length, "seed": training_args.seed}
    equivalence = NLIEquivalence(script_args.nli_model_name_or_path)
    if script_args.anchors is None:
        samples = sample_completions(
            prompts, policy, tokenizer, num_generations=script_args.anchor_generations, **sampling
        )
        anchors = SemanticAnchors.from_samples(samples, equivalence)
        anchors.save(f"{training_args.output_dir}/anchors")
    else:
        anchors = SemanticAnchors.load(script_args.anchors)
    PartialState().print(f"{len(anchors)} of {anchors.num_prompts} prompts have an anchor.")

    # Added: the reward model reads completions as in its training, with EOS. Its rewards get mean 0 and standard
    # deviation 1 on samples of the initial policy, so that the weight of the anchor reward has a fixed meaning.
    reward_model, reward_tokenizer = load_reward_model(
        script_args.reward_model_name_or_path, trust_remote_code=training_args.trust_remote_code
    )
    reward = RewardFunction(reward_model, reward_tokenizer, eos_token_ids=[tokenizer.eos_token_id])
    standardize([reward], policy, tokenizer, prompts, {"num_generations": 2, **sampling})
    del policy
    if training_args.scale_rewards != "none":
        logger.warning(
            f"`scale_rewards` is {training_args.scale_rewards!r}, so advantages are divided by a standard deviation, "
            'and `reward_weights` and `beta` lose their meaning. Leave it at "none".'
        )

    # As in TRL
    trainer = GRPOTrainer(
        model=model_args.model_name_or_path,
        reward_funcs=[reward, SemanticAnchorReward(anchors, equivalence)],
        args=training_args,
        train_dataset=prompts,
        eval_dataset=dataset[script_args.dataset_test_split] if training_args.eval_strategy != "no" else None,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)


if __name__ == "__main__":
    parser = TrlParser((GRPOScriptArguments, GRPOConfig, ModelConfig))
    parser.set_defaults(scale_rewards="none", reward_weights=[1.0, 3.0])
    main(*parser.parse_args_and_config())
