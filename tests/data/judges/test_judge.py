import pytest
import torch

from tests.tiny_models import tiny_reward_model, tiny_tokenizer
from trl_rlp.data.judges.judge import add_user_turns, function_judge, reward_judge
from trl_rlp.data.scoring import score


TEXTS = ["Who wrote it?", "What is 2 + 2? Answer briefly."]
FIRSTS, SECONDS = ["Ada", "4"], ["Charles Babbage, I think", "{prompt} {first}"]


def prompts(form):
    return TEXTS if form == "text" else [[{"role": "user", "content": text}] for text in TEXTS]


@pytest.mark.parametrize("form", ["text", "chat"])
def test_a_reward_judge_returns_the_bradley_terry_probability(form):
    tokenizer = tiny_tokenizer()
    model = tiny_reward_model(tokenizer)
    judge = reward_judge(model, tokenizer)
    first, second = (score(model, tokenizer, prompts(form), completions) for completions in (FIRSTS, SECONDS))
    expected = torch.sigmoid(torch.tensor(first) - torch.tensor(second)).tolist()
    assert judge(prompts(form), FIRSTS, SECONDS) == pytest.approx(expected, abs=1e-6)
    assert judge(prompts(form), FIRSTS, FIRSTS) == [0.5, 0.5]
    assert judge([], [], []) == []


def test_a_function_judge_prefers_the_higher_score_and_equal_scores_are_ties():
    judge = function_judge(lambda prompt, completion: len(completion) - len(prompt))
    assert judge(["a", "a", "a"], ["long", "b", "b"], ["b", "long", "c"]) == [1.0, 0.0, 0.5]
    assert judge([], [], []) == []
    with pytest.raises(ValueError, match="The function's score of pair 1 is NaN"):
        function_judge(lambda prompt, completion: float(completion))(["a", "a"], ["1", "1"], ["2", "nan"])


def test_text_prompts_become_user_turns_for_a_judge_of_chats():
    calls = []
    judge = add_user_turns(lambda prompts, firsts, seconds: calls.append((prompts, firsts, seconds)) or [1.0])
    chat = [{"role": "user", "content": "b"}]
    assert judge(["a", chat], ["c", "d"], ["e", "f"]) == [1.0]
    assert calls == [([[{"role": "user", "content": "a"}], chat], ["c", "d"], ["e", "f"])]
