"""If a prompt ends with an assistant message, every stage reads it and the completion as one turn."""

import importlib

import pytest
from datasets import Dataset

from tests.tiny_models import tiny_reward_model, tiny_tokenizer
from trl_rlp.data.groups.equivalence import ExactMatch
from trl_rlp.data.judges.language_model import language_model_judge
from trl_rlp.data.preferences.preferences import synthesize_preferences, tokenize_preferences
from trl_rlp.data.preferences.views import ViewSampler
from trl_rlp.data.scoring import batch_scoring_ids, score, scoring_ids
from trl_rlp.data.turns import (
    ChatTemplateError,
    apply_template,
    build_preference_sides,
    drop_missing_keys,
    drop_prefill,
    ends_with_assistant,
    final_text,
    is_plain_completion,
    join_turns,
    message_text,
    prompt_token_ids,
    require_no_assistant_prefill,
    split_assistant_prefill,
)
from trl_rlp.evaluation.policy_pairs import answer_pairs


QUESTION = [{"role": "user", "content": "2 + 2?"}]
PREFILLED = [*QUESTION, {"role": "assistant", "content": "It is"}]


def turn(text):
    return [{"role": "assistant", "content": text}]


def samples():
    return Dataset.from_list(
        [
            {"prompt": PREFILLED, "completions": [" 4", " 4.", " 5"], "finished": [True, True, False]},
            {"prompt": PREFILLED[:1], "completions": ["6", "6.", "7"], "finished": [True, True, True]},
        ]
    )


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


def synthesize(tokenizer, **options):
    model = tiny_reward_model(tokenizer)
    pairs, _ = synthesize_preferences(
        samples(),
        "spg",
        equivalence=ExactMatch(),
        reward_model=model,
        reward_processing_class=tokenizer,
        **options,
    )
    return pairs, model


def test_the_prefill_is_split_from_its_prompt():
    assert split_assistant_prefill(PREFILLED) == (QUESTION, "It is")
    for prompt in ("Q: 2 + 2?", QUESTION, []):
        assert split_assistant_prefill(prompt) == (prompt, "")
        assert not ends_with_assistant(prompt)
    assert build_preference_sides(PREFILLED, [" 4"]) == (QUESTION, [turn("It is 4")])
    assert build_preference_sides(QUESTION, ["4"]) == (QUESTION, [turn("4")])
    assert build_preference_sides("2 + 2 =", [" 4"]) == ("2 + 2 =", [" 4"])


def test_a_completion_is_joined_to_the_turn_that_the_prompt_begins():
    assert join_turns(QUESTION, "4") == [*QUESTION, *turn("4")]
    assert join_turns(PREFILLED, " 4") == [*QUESTION, *turn("It is 4")]
    tool = {"role": "tool", "name": "add", "content": "4"}
    calls = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]}
    assert join_turns(QUESTION, [calls, tool]) == [*QUESTION, calls, tool]
    assert join_turns(PREFILLED, [calls, tool]) == [*QUESTION, {**calls, "content": "It is"}, tool]


def test_a_parsed_completion_loses_the_text_that_the_prompt_begins_with():
    assert drop_prefill(PREFILLED, turn("It is 4")) == drop_prefill(PREFILLED, turn(" 4")) == turn(" 4")
    assert drop_prefill(QUESTION, turn("It is 4")) == turn("It is 4")
    assert drop_prefill("It is", "It is 4") == "It is 4"


def test_a_message_is_text_with_its_thoughts_and_tool_calls():
    calls = [{"function": {"name": "add"}}]
    message = {"role": "assistant", "reasoning_content": "Add.", "content": None, "tool_calls": calls, "name": None}
    assert drop_missing_keys([message]) == [{"role": "assistant", "reasoning_content": "Add.", "tool_calls": calls}]
    assert message_text(message) == 'Add.\n{"function": {"name": "add"}}'
    assert message_text(QUESTION[0]) == "2 + 2?" and message_text({"role": "user"}) == ""


@pytest.mark.parametrize(
    ("completion", "text", "is_plain"),
    [
        ("4", "4", True),
        (turn("4"), "4", True),
        ([{**turn("4")[0], "tool_calls": None, "reasoning_content": ""}], "4", True),
        ([{"role": "assistant", "content": None}], "", True),
        ([{**turn("4")[0], "reasoning_content": "Add."}], "4", False),
        ([{"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}], "", False),
        ([*turn("I add."), {"role": "tool", "content": "4"}, *turn("Four")], "Four", False),
        ([*turn("I add."), {"role": "tool", "content": "4"}], "", False),
        ([], "", False),
    ],
)
def test_the_final_text_of_a_completion_and_whether_it_is_all_of_it(completion, text, is_plain):
    assert final_text(completion) == text and is_plain_completion(completion) == is_plain


@pytest.mark.parametrize("finished", [True, False])
def test_scoring_ids_equal_the_ids_of_the_policy(tokenizer, finished):
    """The byte-level tokenizer splits text the same way at every position, so the ids can be compared."""
    completion = tokenizer(" 4")["input_ids"] + [tokenizer.eos_token_id] * finished
    assert scoring_ids(tokenizer, PREFILLED, " 4", finished) == prompt_token_ids(PREFILLED, tokenizer) + completion
    assert tokenizer.decode(scoring_ids(tokenizer, PREFILLED, " 4")) == "<|user|>2 + 2?<|assistant|>It is 4<eos>"


def test_synthetic_preferences_contain_whole_turns_with_the_same_rewards(tokenizer):
    pairs, model = synthesize(tokenizer, keep_candidates=True)
    first, second = pairs
    assert first["prompt"] == second["prompt"] == QUESTION
    assert first["rejected"] == turn("It is 5")
    assert first["candidates"] == ["It is 5"]
    assert second["rejected"] == turn("7")
    for side in ("chosen", "rejected"):
        rewards = score(model, tokenizer, pairs["prompt"][:], pairs[side][:], pairs[f"{side}_finished"][:])
        assert pairs[f"{side}_reward"][:] == pytest.approx(rewards, abs=1e-6)
    ids = tokenize_preferences(pairs, tokenizer)
    expected = scoring_ids(tokenizer, PREFILLED, " 5", finished=False)
    assert ids["rejected_ids"][0] == ids["candidate_ids"][0][0] == expected


def test_views_policy_pairs_and_the_judge_read_the_whole_turn(tokenizer, monkeypatch):
    views = ViewSampler(samples(), tokenizer).views(0, [0, 1])
    view = next(view for view in views if view.prompt_index == 0)
    expected = batch_scoring_ids(tokenizer, [PREFILLED] * 3, [" 4", " 4.", " 5"], [True, True, False])
    assert view.first in expected and view.second in expected
    pair = answer_pairs(samples(), ["4", "6"])[0]
    assert (pair["prompt"], pair["rejected"]) == (QUESTION, turn("It is 5"))

    questions = []
    # The package has a function of the same name as this module.
    module = importlib.import_module("trl_rlp.data.judges.language_model")
    monkeypatch.setattr(module, "_tokenize_questions", lambda _, texts, labels: questions.extend(texts) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        language_model_judge(None, tokenizer, template="{prompt}|{first}|{second}")([PREFILLED], [" 4"], [" 5"])
    assert questions[0] == "<|user|>2 + 2?|It is 4|It is 5<|assistant|>"


def test_an_assistant_prefill_is_an_error_for_trainers_that_open_a_second_turn():
    require_no_assistant_prefill([QUESTION, "text"], "rloo")
    with pytest.raises(ValueError, match="`prompt_dataset` row 1 ends with an assistant message"):
        require_no_assistant_prefill([QUESTION, PREFILLED], "rloo")


TRIMMING = tiny_tokenizer().chat_template.replace("message['content'] }}", "message['content'] | trim }}")
REASONING = tiny_tokenizer().chat_template.replace(
    "message['content'] }}", "message['content'].split('</think>')[-1] | trim }}"
)


@pytest.mark.parametrize("template", [TRIMMING, REASONING], ids=["trimming", "reasoning"])
def test_a_prefill_that_the_template_changes_is_an_error(tokenizer, template):
    tokenizer.chat_template = template
    assert tokenizer.decode(prompt_token_ids(PREFILLED, tokenizer)) == "<|user|>2 + 2?<|assistant|>It is"
    message = {"role": "assistant", "content": "<think></think>It is" if template == REASONING else "It is "}
    with pytest.raises(ValueError, match="A prompt begins the assistant's turn with .*It is.*, but the chat template"):
        prompt_token_ids([*QUESTION, message], tokenizer)


def test_an_unfinished_turn_that_the_template_rewrites_stays_open(tokenizer):
    tokenizer.chat_template = REASONING
    for prompt in (QUESTION, [*QUESTION, {"role": "assistant", "content": "<think>"}]):
        ids = scoring_ids(tokenizer, prompt, "two and two</think> 4", finished=False)
        assert tokenizer.decode(ids) == "<|user|>2 + 2?<|assistant|>4"
        assert tokenizer.decode(scoring_ids(tokenizer, prompt, "so</think> 4")) == "<|user|>2 + 2?<|assistant|>4<eos>"


REFUSING = "{% if messages[0].role != 'user' %}{{ raise_exception('System role not supported') }}{% endif %}"


@pytest.mark.parametrize("ending", [[], turn("It is")], ids=["question", "prefill"])
def test_a_template_that_refuses_messages_names_their_roles(tokenizer, ending):
    tokenizer.chat_template = REFUSING + tokenizer.chat_template
    chat = [{"role": "system", "content": "Be brief"}, *QUESTION, *ending]
    match = r"cannot render messages with the roles \['system', 'user'.*\]: System role not supported\. Change the"
    with pytest.raises(ChatTemplateError, match=match):
        apply_template(tokenizer, chat, tokenize=False)
    with pytest.raises(ChatTemplateError, match=match):
        prompt_token_ids(chat, tokenizer)
    for finished in (True, False):
        with pytest.raises(ChatTemplateError, match=match):
            scoring_ids(tokenizer, chat, " 4.", finished)
