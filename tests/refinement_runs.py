"""Runs of policies on tiny models whose reward model is refined while they train. A run takes a few seconds."""

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from tests.ppo_runs import prompts
from tests.reward_runs import SETTINGS as REWARD_SETTINGS
from tests.reward_runs import preferences
from tests.tiny_models import tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.anchors.semantic_anchors import SemanticAnchors
from trl_rlp.data.normalization import normalize_text
from trl_rlp.data.preferences.holdout import hold_out
from trl_rlp.rewards.refinable_reward import RefinableReward
from trl_rlp.trainer.callbacks.reward_refinement_callback import RewardRefinementCallback
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


SETTINGS = {
    "per_device_train_batch_size": 4,
    "num_generations": 2,
    "max_completion_length": 6,
    "max_steps": 6,
    "learning_rate": 1e-2,
    "beta": 0.0,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "dataloader_pin_memory": False,
}
CLASSES = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}


class SameParity:
    """Two completions mean the same if the codes of their first characters are both even or both odd."""

    fingerprint = "same parity"

    def normalize(self, text):
        return normalize_text(text)

    def are_equivalent(self, prompts, firsts, seconds):
        return [ord(first[0]) % 2 == ord(second[0]) % 2 for first, second in zip(firsts, seconds, strict=True)]


def refinable_reward(**options) -> RefinableReward:
    """Builds the reward function of a tiny reward model. The same model every time."""
    tokenizer = tiny_tokenizer()
    return RefinableReward(tiny_reward_model(tokenizer, seed=3), tokenizer, [tokenizer.eos_token_id], **options)


def anchors(data: Dataset | None = None) -> SemanticAnchors:
    """Builds anchors for the prompts of the runs. All of them start with the character "2"."""
    prompt_column = (prompts() if data is None else data)["prompt"][:]
    completions = [["2", "2!", "2 of them", "1"]] * len(prompt_column)
    finished = [[True] * 4] * len(prompt_column)
    samples = Dataset.from_dict({"prompt": prompt_column, "completions": completions, "finished": finished})
    return SemanticAnchors.from_samples(samples, SameParity())


def refinement(folder, reward: RefinableReward, method: str = "spg", **arguments) -> RewardRefinementCallback:
    """Builds a callback that refines every two rollouts. Arguments that it does not have configure its training."""
    names = ("base_model", "anchors", "equivalence", "comparison", "synthetic_dataset", "reference_samples", "seed")
    names += ("eval_preference_dataset", "every", "drift_threshold", "num_windows", "peft_config")
    given = {name: arguments.pop(name) for name in names if name in arguments}
    if "spg" in method and not {"anchors", "comparison", "equivalence"} & set(given):
        given |= {"anchors": anchors(), "equivalence": SameParity()}
    data = arguments.pop("preference_dataset", None)
    settings = {**REWARD_SETTINGS, "max_steps": 2, "view_prompts_per_device": 2, **arguments}
    if "uml" not in method:
        settings.pop("view_prompts_per_device")
    args = RLPRewardConfig(str(folder / "reward"), method=method, **settings)
    data = preferences(12) if data is None else data
    if "eval_preference_dataset" not in given:
        data, given["eval_preference_dataset"] = hold_out(data, 0.2, given.get("seed", 42))
    return RewardRefinementCallback(reward, data, args, **{"every": 2, **given})


def policy_trainer(
    folder,
    reward_funcs,
    kind: str = "grpo",
    data=None,
    callbacks=None,
    eval_dataset=None,
    peft_config=None,
    **settings,
):
    """Builds one of TRL's trainers of policies."""
    trainer_class, config_class = CLASSES[kind]
    tokenizer = tiny_tokenizer()
    return trainer_class(
        model=tiny_causal_lm(tokenizer),
        reward_funcs=reward_funcs,
        args=config_class(str(folder), **{**SETTINGS, **settings}),
        train_dataset=prompts() if data is None else data,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        callbacks=callbacks,
        peft_config=peft_config,
    )
