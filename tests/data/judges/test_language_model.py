import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer

from tests.tiny_models import tiny_causal_lm, tiny_tokenizer
from trl_rlp.data.judges import language_model
from trl_rlp.data.judges.language_model import JUDGE_TEMPLATE, language_model_judge


TEXTS = ["Who wrote it?", "What is 2 + 2? Answer briefly."]
FIRSTS, SECONDS = ["Ada", "4"], ["Charles Babbage, I think", "{prompt} {first}"]


def probability_of_a(model, tokenizer, text):
    """Returns p(A) against p(B) for the next byte after one text, without padding."""
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1]
    a, b = (logits[tokenizer.convert_tokens_to_ids(label)] for label in "AB")
    return torch.sigmoid(a - b).item()


@pytest.mark.parametrize("chat", [False, True])
def test_a_language_model_judge_averages_the_probability_over_both_orders(chat):
    tokenizer = tiny_tokenizer(chat=chat)
    model = tiny_causal_lm(tokenizer, initializer_range=1.0)
    expected = []
    for text, first, second in zip(TEXTS, FIRSTS, SECONDS, strict=True):
        orders = []
        for a, b in ((first, second), (second, first)):
            question = JUDGE_TEMPLATE.replace("{first}", "<1>").replace("{second}", "<2>").replace("{prompt}", text)
            question = question.replace("<1>", a).replace("<2>", b)
            question = f"<|user|>{question}<|assistant|>" if chat else f"{question}\n\nBetter response: "
            orders.append(probability_of_a(model, tokenizer, question))
        expected.append((orders[0] + 1 - orders[1]) / 2)
    assert all(abs(probability - 0.5) > 1e-4 for probability in expected)
    for tokens_per_batch in (1, 8192):
        judge = language_model_judge(model, tokenizer, tokens_per_batch=tokens_per_batch)
        assert judge(TEXTS, FIRSTS, SECONDS) == pytest.approx(expected, abs=1e-5)
    # Swapped completions give the opposite probability, and a text against itself is a tie.
    assert judge(TEXTS, SECONDS, FIRSTS) == pytest.approx([1 - p for p in expected], abs=1e-5)
    assert judge(TEXTS, FIRSTS, FIRSTS) == [0.5, 0.5]
    assert judge([], [], []) == []


def test_labels_may_be_merged_with_the_space_before_them():
    tokenizer = tiny_tokenizer(chat=False)
    merging = json.loads(tokenizer.backend_tokenizer.to_str())
    merging["model"]["vocab"] |= {"ĠA": len(tokenizer), "ĠB": len(tokenizer) + 1}
    merging["model"]["merges"] = [["Ġ", "A"], ["Ġ", "B"]]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(merging))
    model = tiny_causal_lm(tokenizer, initializer_range=1.0)
    expected = []
    for question in ("Q: x or y", "Q: y or x"):
        with torch.no_grad():
            stem = tokenizer(f"{question}\n\nBetter response:")["input_ids"]
            logits = model(torch.tensor([stem])).logits[0, -1]
        expected.append(logits[-2:].softmax(0)[0].item())
    judge = language_model_judge(model, tokenizer, template="{prompt}: {first} or {second}")
    assert judge(["Q"], ["x"], ["y"]) == pytest.approx([(expected[0] + 1 - expected[1]) / 2], abs=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-3


def test_a_conversation_is_rendered_with_its_roles():
    tokenizer = tiny_tokenizer(chat=False)
    model = tiny_causal_lm(tokenizer, initializer_range=1.0)
    judge = language_model_judge(model, tokenizer)
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Who?"},
    ]
    as_text = "user: Hi\nassistant: Hello\nuser: Who?"
    assert judge([messages], ["Ada"], ["Bob"]) == judge([as_text], ["Ada"], ["Bob"])
    assert judge([messages[-1:]], ["Ada"], ["Bob"]) == judge(["Who?"], ["Ada"], ["Bob"])


def test_a_peft_model_can_judge_and_its_mode_is_restored():
    tokenizer = tiny_tokenizer()
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    base = language_model_judge(tiny_causal_lm(tokenizer), tokenizer)(TEXTS, FIRSTS, SECONDS)
    model = get_peft_model(tiny_causal_lm(tokenizer), config).train()
    assert language_model_judge(model, tokenizer)(TEXTS, FIRSTS, SECONDS) == pytest.approx(base, abs=1e-6)
    assert model.training


def test_bad_templates_long_questions_and_nan_are_errors():
    tokenizer = tiny_tokenizer()
    with pytest.raises(ValueError, match=r"`template` lacks \['\{second\}'\]"):
        language_model_judge(tiny_causal_lm(tokenizer), tokenizer, template="{prompt} {first}")
    small = tiny_causal_lm(tokenizer, max_position_embeddings=64)
    with pytest.raises(ValueError, match="could read none of 2 pairs.* tokens, more than the model's context of 64"):
        language_model_judge(small, tokenizer)(TEXTS, FIRSTS, SECONDS)
    broken = tiny_causal_lm(tokenizer)
    torch.nn.init.constant_(broken.lm_head.weight, float("nan"))
    with pytest.raises(ValueError, match="The judge's probability of pair 0 is nan"):
        language_model_judge(broken, tokenizer)(TEXTS, FIRSTS, SECONDS)


def test_answers_that_are_neither_letter_are_counted(caplog):
    """The most likely token is always "?". The more likely one of A and B still counts."""
    tokenizer = tiny_tokenizer(chat=False)
    top_token, model = tokenizer.convert_tokens_to_ids("?"), tiny_causal_lm(tokenizer, initializer_range=1.0)
    judge = language_model_judge(model, tokenizer)
    expected = judge(TEXTS, FIRSTS, SECONDS)

    def add_bias(module, inputs, logits):
        logits[..., top_token] = 1e4
        return logits

    model.lm_head.register_forward_hook(add_bias)
    judge = language_model_judge(model, tokenizer)
    assert judge(TEXTS, FIRSTS, SECONDS) == pytest.approx(expected, abs=1e-6)
    assert (judge.asked, judge.unreadable) == (4, 4)
    assert "4 of 4 answers of the judge name neither A nor B alone, such as '?'. The more likely" in caplog.text
    with pytest.raises(ValueError, match="4 of 4 answers .* more than `tolerance`=0.5"):
        language_model_judge(model, tokenizer, tolerance=0.5)(TEXTS, FIRSTS, SECONDS)
    top_token = tokenizer.convert_tokens_to_ids("B")
    judge = language_model_judge(model, tokenizer, tolerance=0.0)
    judge(TEXTS, FIRSTS, SECONDS)
    assert (judge.asked, judge.unreadable) == (4, 0)


def test_a_template_with_numbers_compares_numbers():
    """With A and B exchanged for 1 and 2 in the weights, the judge of a template with numbers is the same."""
    tokenizer = tiny_tokenizer()
    model = tiny_causal_lm(tokenizer, initializer_range=1.0)
    template = "{prompt} # {label_1}: {first} # {label_2}: {second}"
    letters, numbers = (template.format_map(_Labels(*labels)) for labels in ("AB", "12"))
    other = tiny_causal_lm(tokenizer, initializer_range=1.0)
    for letter, number in zip("AB", "12", strict=True):
        rows = [tokenizer.convert_tokens_to_ids(label) for label in (letter, number)]
        for weight in {other.model.embed_tokens.weight, other.lm_head.weight}:  # they may be one tensor
            with torch.no_grad():
                weight[rows] = weight[rows[::-1]]
    expected = language_model_judge(model, tokenizer, template=letters)(["Who?"], ["x"], ["y"])
    assert language_model_judge(other, tokenizer, template=numbers)(["Who?"], ["x"], ["y"]) == pytest.approx(expected)
    assert abs(expected[0] - 0.5) > 1e-3


class _Labels(dict):
    """Fills labels and keeps the other fields."""

    def __init__(self, first, second):
        super().__init__(label_1=first, label_2=second)

    def __missing__(self, name):
        return f"{{{name}}}"


def test_answers_are_kept_for_the_same_model_only(tmp_path):
    tokenizer = tiny_tokenizer()
    model, other = (tiny_causal_lm(tokenizer, seed=seed, initializer_range=1.0) for seed in (0, 1))
    cache = tmp_path / "answers.jsonl"
    expected = language_model_judge(model, tokenizer)(TEXTS, FIRSTS, SECONDS)
    for _ in range(2):
        judge = language_model_judge(model, tokenizer, cache=cache)
        assert judge(TEXTS, FIRSTS, SECONDS) == pytest.approx(expected, abs=1e-6) and judge.asked == 4
        assert len(cache.read_text().splitlines()) == 4
    found = language_model_judge(other, tokenizer, cache=cache)(TEXTS, FIRSTS, SECONDS)
    assert found == pytest.approx(language_model_judge(other, tokenizer)(TEXTS, FIRSTS, SECONDS), abs=1e-6) != expected
    assert len(cache.read_text().splitlines()) == 8


def test_the_weights_are_hashed_once(tmp_path, monkeypatch):
    """A hash of a judge of 8B copies 16 GB to the host, and a run calls the judge for each shard."""
    tokenizer, hashed = tiny_tokenizer(), []
    monkeypatch.setattr(language_model, "weights_fingerprint", lambda model: hashed.append(model) or "hash")
    judge = language_model_judge(tiny_causal_lm(tokenizer), tokenizer, cache=tmp_path / "answers.jsonl")
    for _ in range(2):
        judge(TEXTS, FIRSTS, SECONDS)
    assert len(hashed) == 1


def test_processes_that_share_batches_ask_each_question_once(tmp_path, monkeypatch):
    """What the main process knows is known to all, and each process keeps the answers of the others in memory."""
    tokenizer = tiny_tokenizer()
    model, module = tiny_causal_lm(tokenizer), "trl_rlp.data.judges.language_model"
    expected = language_model_judge(model, tokenizer, tokens_per_batch=300)(TEXTS, FIRSTS, SECONDS)
    shared = []

    def share_work(items, work):
        """Stands for process 0 of 2. The answers of process 1 come from a judge without a cache."""
        shared.append(len(items))
        other = [judge._ask([questions[row] for row in rows], is_kept=False) for rows in items[1::2]]
        results = [None] * len(items)
        results[::2], results[1::2] = work(items[::2]), other
        return results

    def remember(found):
        questions.extend(found)
        return [None] * len(found)

    judge = language_model_judge(
        model, tokenizer, tokens_per_batch=300, cache=tmp_path / "answers.jsonl", share_batches=True
    )
    questions = []
    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.share_work", share_work)
        patch.setattr(judge, "_find_answers", remember)
        assert judge(TEXTS, FIRSTS, SECONDS) == expected
    assert shared[0] >= 2 and 0 < len((tmp_path / "answers.jsonl").read_text().splitlines()) < len(questions)
    monkeypatch.setattr(f"{module}.share_work", lambda items, work: items and pytest.fail("asked again"))
    assert judge(TEXTS, FIRSTS, SECONDS) == expected


def test_a_template_that_refuses_the_question_is_an_error():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('No user') }}"
    with pytest.raises(ValueError, match=r"cannot render messages with the roles \['user'\]: No user"):
        language_model_judge(tiny_causal_lm(tokenizer), tokenizer)(TEXTS, FIRSTS, SECONDS)
