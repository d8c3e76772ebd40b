"""Judges, which return the probability that the first of two completions is better."""

from trl_rlp.data.judges.asked_judge import AskedJudge
from trl_rlp.data.judges.judge import Judge, add_user_turns, function_judge, reward_judge
from trl_rlp.data.judges.language_model import language_model_judge
from trl_rlp.data.judges.server import ServerJudge


__all__ = [
    "AskedJudge",
    "Judge",
    "ServerJudge",
    "add_user_turns",
    "function_judge",
    "language_model_judge",
    "reward_judge",
]
