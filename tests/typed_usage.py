"""A user's script for pyright (`make quality`), which must see every public name with the types of its arguments."""

from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from trl_rlp import (
    NLIEquivalence,
    PPOConfig,
    PPOTrainer,
    RLPConfig,
    RLPPPOConfig,
    RLPPPOTrainer,
    RLPResult,
    RLPRewardConfig,
    RLPRewardTrainer,
    cluster,
    load_data,
    load_policy,
    load_reward_model,
    run_rlp,
    sample_completions,
    score_samples,
    synthesize_preferences,
)
from trl_rlp.data.judges import ServerJudge
from trl_rlp.data.preferences import hold_out
from trl_rlp.evaluation import annotate, win_rate
from trl_rlp.losses import RepresentationLoss, jsd_lower_bound


def refine_a_reward_model(preferences: Dataset, prompts: Dataset) -> RLPRewardTrainer:
    policy, tokenizer = load_policy("policy")
    samples: Dataset = sample_completions(prompts, policy, tokenizer, num_generations=10)
    equivalence = NLIEquivalence()
    groups: Dataset = cluster(samples, equivalence, threshold=0.5)
    reward_model, reward_tokenizer = load_reward_model("reward")
    synthetic, counts = synthesize_preferences(
        groups, "spg", reward_model=reward_model, reward_processing_class=reward_tokenizer
    )
    rejected: int = sum(counts.values())
    print(rejected, score_samples(reward_model, reward_tokenizer, samples))
    args = RLPRewardConfig("refined", method="spg", learning_rate=1e-5)
    train, _ = hold_out(preferences, 0.05, seed=0)
    trainer = RLPRewardTrainer("sft", args, train_dataset=train, synthetic_dataset=synthetic)
    trainer.train()
    return trainer


def train_a_policy(prompts: Dataset, preferences: Dataset) -> PPOTrainer:
    reward_model = AutoModelForSequenceClassification.from_pretrained("reward", num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained("sft")
    args = PPOConfig.from_preset("alpacafarm", "ppo", total_episodes=1000)
    trainer = PPOTrainer(args, tokenizer, "sft", reward_model=reward_model, train_dataset=prompts)
    trainer.train()
    rlp_args: RLPPPOConfig = RLPPPOConfig.from_preset("alpacafarm", "rlp", rlp_method="spg")
    return RLPPPOTrainer(
        rlp_args,
        tokenizer,
        "sft",
        reward_model=reward_model,
        train_dataset=prompts,
        preference_dataset=preferences,
        equivalence=NLIEquivalence(),
    )


def run_algorithm_1(preferences: Dataset, prompts: Dataset) -> Dataset:
    config: RLPConfig = RLPConfig.from_preset("anchored", "run", "sft", policy_args={"beta": 0.2})
    print(run_rlp(config, preferences, prompts, NLIEquivalence()).rounds)
    result: RLPResult = run_rlp(RLPConfig("run", "sft", method="uml"), preferences, prompts)
    print(result.retrained_policy / "config.json")
    return load_data(result.policy_samples)


def evaluate(rows: list[dict], loss: RepresentationLoss) -> None:
    print(annotate, win_rate([1.0, 2.0, 2.0]), ServerJudge, loss, jsd_lower_bound, rows)
