"""Judges, which return the probability that the first of two completions is better."""

from trl_rlp.data.judges.asked_judge import AskedJudge
from trl_rlp.data.judges.judge import Judge, function_judge, reward_judge, with_user_turns
from trl_rlp.data.judges.language_model_judge import language_model_judge
from trl_rlp.data.judges.server_judge import ServerJudge


__all__ = [
    "AskedJudge",
    "Judge",
    "ServerJudge",
    "function_judge",
    "language_model_judge",
    "reward_judge",
    "with_user_turns",
]
