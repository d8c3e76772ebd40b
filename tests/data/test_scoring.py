import logging
import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from tokenizers.processors import TemplateProcessing
from trl import RewardConfig, RewardTrainer

from tests.tiny_models import save, tiny_reward_model, tiny_tokenizer
from trl_rlp.data import scoring
from trl_rlp.data.scoring import (
    Score,
    batch_scoring_ids,
    count_overlong,
    cut_prompts,
    score,
    score_samples,
    scoring_ids,
)


def chat(text):
    return [{"role": "user", "content": text}]


def turn(text):
    return [{"role": "assistant", "content": text}]


PROMPTS = {
    "text": ["2 + 2 = ", "Who?", "Say nothing."],
    "chat": [chat("2 + 2 = "), chat("Who?"), chat("Say nothing.")],
}
COMPLETIONS = ["4", "Ada Lovelace, of course.", ""]


def trl_ids(tokenizer, prompts, completions, folder):
    """Returns the token ids of an unmodified `trl.RewardTrainer` for these prompts and their chosen completions."""
    rows = {"prompt": prompts, "chosen": completions, "rejected": completions[::-1]}
    args = RewardConfig(str(folder), bf16=False, use_cpu=True, report_to="none")
    trainer = RewardTrainer(
        tiny_reward_model(tokenizer), args, train_dataset=Dataset.from_dict(rows), processing_class=tokenizer
    )
    return list(trainer.train_dataset["chosen_ids"])


@pytest.mark.parametrize("form", ["text", "chat"])
@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_ids_of_finished_completions_equal_those_of_trls_reward_trainer(form, pad_is_eos, tmp_path):
    tokenizer = tiny_tokenizer(pad_is_eos=pad_is_eos)
    completions = COMPLETIONS if form == "text" else [turn(text) for text in COMPLETIONS]
    expected = trl_ids(tokenizer, PROMPTS[form], completions, tmp_path)
    assert batch_scoring_ids(tokenizer, PROMPTS[form], COMPLETIONS) == expected
    assert [scoring_ids(tokenizer, *row) for row in zip(PROMPTS[form], COMPLETIONS, strict=True)] == expected
    assert batch_scoring_ids(tokenizer, PROMPTS[form], completions) == expected


def test_an_existing_eos_token_is_not_added_again(tmp_path):
    tokenizer = tiny_tokenizer()
    (expected,) = trl_ids(tokenizer, ["Who?"], ["Ada<eos>"], tmp_path)
    assert scoring_ids(tokenizer, "Who?", "Ada<eos>") == expected == scoring_ids(tokenizer, "Who?", "Ada")
    assert expected.count(tokenizer.eos_token_id) == 1


def test_bos_is_added_to_text_only_once_and_kept_when_text_is_truncated(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<|system|>"
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|system|> $A", special_tokens=[("<|system|>", bos)]
    )
    ids = scoring_ids(tokenizer, "Who?", "Ada")
    assert ids == trl_ids(tokenizer, ["Who?"], ["Ada"], tmp_path)[0]
    assert ids[0] == bos
    # This chat template writes no BOS token, so the tokenizer must not add one either.
    assert bos not in scoring_ids(tokenizer, chat("Who?"), "Ada")
    # Five tokens are kept: BOS and the last four, A, d, a, EOS.
    assert scoring_ids(tokenizer, "Who?", "Ada", max_length=5) == [bos] + ids[-4:]


def test_an_unfinished_completion_gets_no_eos_and_its_chat_turn_stays_open():
    tokenizer = tiny_tokenizer()
    for prompt in ("Who?", chat("Who?")):
        closed = scoring_ids(tokenizer, prompt, "Ada Love")
        assert closed[-1] == tokenizer.eos_token_id
        assert scoring_ids(tokenizer, prompt, "Ada Love", finished=False) == closed[:-1]
    assert tokenizer.decode(scoring_ids(tokenizer, chat("Who?"), "", finished=False)) == "<|user|>Who?<|assistant|>"


def test_long_prompts_lose_their_beginning_and_the_count_is_logged(caplog):
    tokenizer = tiny_tokenizer()
    whole = scoring_ids(tokenizer, "0123456789", "yes")  # 10 + 3 bytes and EOS
    assert len(whole) == 14
    with caplog.at_level(logging.WARNING):
        long, short = batch_scoring_ids(tokenizer, ["0123456789", "0"], ["yes", "no"], max_length=6)
    assert tokenizer.decode(long) == "89yes<eos>"
    assert tokenizer.decode(short) == "0no<eos>"
    assert "1 of 2 texts are longer than `max_length`=6" in caplog.text
    caplog.clear()
    assert scoring_ids(tokenizer, "0123456789", "yes", max_length=14) == whole
    assert not caplog.records


def test_rows_are_truncated_and_counted_without_a_log(caplog):
    tokenizer, rows = tiny_tokenizer(), [[5, 6, 7], [8], [9, 10, 11, 12]]
    assert cut_prompts(rows, tokenizer, 2) == [[6, 7], [8], [11, 12]]
    assert cut_prompts(rows, tokenizer, None) == rows
    assert [count_overlong(rows, max_length) for max_length in (None, 4, 3, 2, 1)] == [0, 0, 1, 2, 2]
    with pytest.raises(ValueError, match="`max_length` must be at least 1 token, got 0"):
        cut_prompts([], tokenizer, 0)
    assert not caplog.records


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((["a"], ["b", "c"]), "`prompts`, `completions` and `finished` have 1, 2 and 1 entries"),
        ((["a"], ["b"], [True, False]), "have 1, 1 and 2 entries"),
        ((["a"], ["b"], None, 0), "`max_length` must be at least 1 token, got 0"),
    ],
)
def test_bad_arguments_are_errors(arguments, match):
    with pytest.raises(ValueError, match=match):
        batch_scoring_ids(tiny_tokenizer(), *arguments)


def test_a_missing_chat_template_or_eos_token_is_an_error():
    with pytest.raises(ValueError, match="`processing_class` has no chat template, but the prompts are messages"):
        scoring_ids(tiny_tokenizer(chat=False), chat("Who?"), "Ada")
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="`processing_class` has no EOS token"):
        scoring_ids(tokenizer, "Who?", "Ada")
    assert scoring_ids(tokenizer, "Who?", "Ada", finished=False)


@pytest.mark.parametrize("form", ["text", "chat"])
def test_scores_equal_those_of_single_rows_without_padding_for_every_batch_size(form):
    tokenizer = tiny_tokenizer()
    model = tiny_reward_model(tokenizer)
    finished = [True, False, True]
    rows = batch_scoring_ids(tokenizer, PROMPTS[form], COMPLETIONS, finished)
    with torch.no_grad():
        expected = [model(input_ids=torch.tensor([ids])).logits.item() for ids in rows]
    assert len(set(expected)) == 3
    for tokens_per_batch in (1, 60, 8192):
        rewards = score(model, tokenizer, PROMPTS[form], COMPLETIONS, finished, tokens_per_batch=tokens_per_batch)
        assert rewards == pytest.approx(expected, abs=1e-6)


def test_scores_of_a_pair_equal_those_that_trl_trains_on(tmp_path):
    tokenizer = tiny_tokenizer()
    args = RewardConfig(
        str(tmp_path), bf16=False, use_cpu=True, report_to="none", max_steps=1, learning_rate=0.0, logging_steps=1
    )
    pairs = Dataset.from_dict({"prompt": ["Who?"], "chosen": ["Ada"], "rejected": ["Nobody at all"]})
    trainer = RewardTrainer(tiny_reward_model(tokenizer), args, train_dataset=pairs, processing_class=tokenizer)
    trainer.train()
    chosen, rejected = score(trainer.model, tokenizer, ["Who?"] * 2, ["Ada", "Nobody at all"])
    assert trainer.state.log_history[0]["margin"] == pytest.approx(chosen - rejected, abs=1e-6)
    assert trainer.state.log_history[0]["max_reward"] == pytest.approx(max(chosen, rejected), abs=1e-6)


def test_finished_and_unfinished_completions_score_differently_unless_pad_is_eos(caplog):
    logging.Logger.warning_once.cache_clear()
    tokenizer = tiny_tokenizer()
    model = tiny_reward_model(tokenizer)
    finished, unfinished = score(model, tokenizer, ["Who?"] * 2, ["Ada"] * 2, [True, False])
    assert abs(finished - unfinished) > 1e-4
    assert not caplog.records
    tokenizer = tiny_tokenizer(pad_is_eos=True)
    model = tiny_reward_model(tokenizer)
    for _ in range(2):
        finished, unfinished = score(model, tokenizer, ["Who?"] * 2, ["Ada"] * 2, [True, False])
        assert finished == pytest.approx(unfinished, abs=1e-6)
    (record,) = caplog.records
    assert "Call `ensure_pad_token(model, processing_class)`" in record.message


def test_the_reward_model_may_have_a_different_tokenizer_and_chat_template():
    policy_tokenizer, tokenizer = tiny_tokenizer(), tiny_tokenizer(offset=7)
    tokenizer.chat_template = tokenizer.chat_template.replace("message['content']", "message['content'] | upper")
    text = policy_tokenizer.decode(policy_tokenizer("ada")["input_ids"], skip_special_tokens=True)
    ids = scoring_ids(tokenizer, chat("Who?"), text)
    assert ids != scoring_ids(policy_tokenizer, chat("Who?"), text)
    assert tokenizer.decode(ids) == "<|user|>WHO?<|assistant|>ADA<eos>"
    model = tiny_reward_model(tokenizer)
    assert score(model, tokenizer, [chat("Who?")], [text]) == score(model, tokenizer, [chat("Who?")], ["ADA"])


def test_an_empty_list_has_no_rewards():
    tokenizer = tiny_tokenizer()
    assert score(tiny_reward_model(tokenizer), tokenizer, [], []) == []


def test_models_without_exactly_one_output_are_errors():
    tokenizer = tiny_tokenizer()
    with pytest.raises(ValueError, match=r"`model` has `num_labels`=2, but a reward is one number"):
        score(tiny_reward_model(tokenizer, num_labels=2), tokenizer, ["a"], ["b"])
    with pytest.raises(TypeError, match="got `Linear`.*nwrap it with `accelerator.unwrap_model`"):
        score(torch.nn.Linear(2, 1), tokenizer, ["a"], ["b"])


def test_a_row_longer_than_the_context_is_an_error_and_can_be_truncated():
    tokenizer = tiny_tokenizer()
    model = tiny_reward_model(tokenizer, max_position_embeddings=16)
    with pytest.raises(
        ValueError, match=r"Row 1 has 22 tokens, more than the model's context of 16. Truncate prompts with"
    ):
        score(model, tokenizer, ["a", "x" * 20], ["b", "y"])
    (expected,) = score(model, tokenizer, ["x" * 14], ["y"])
    assert score(model, tokenizer, ["x" * 20], ["y"], max_length=16) == pytest.approx([expected], abs=1e-6)


@pytest.fixture
def samples():
    completions = [["4", "five", "4."], ["Ada", "", "Bob Dylan"], ["so", "so it is", "x"]]
    return Dataset.from_dict(
        {"prompt": PROMPTS["chat"], "completions": completions, "finished": [[True, False, True]] * 3}
    )


def test_score_adds_the_rewards_of_score_samples_to_any_batch(samples, tmp_path):
    tokenizer = tiny_tokenizer()
    model = tiny_reward_model(tokenizer)
    folder = save(model, tokenizer, tmp_path / "reward")
    expected = score_samples(model, tokenizer, samples)
    assert [len(rewards) for rewards in expected] == [3, 3, 3]
    scored = samples.map(Score(folder), batched=True, batch_size=2, with_rank=True)
    assert scored.column_names == [*samples.column_names, "rewards"]
    table = pickle.loads(pickle.dumps(Score(folder)))(samples.with_format("arrow")[:])
    assert table.schema.field("rewards").type == pa.list_(pa.float64())
    arrays = Score(model, tokenizer)({name: np.array(samples[name][:], dtype=object) for name in samples.column_names})
    for rewards in (scored["rewards"][:], table["rewards"].to_pylist(), arrays["rewards"]):
        for row, values in zip(rewards, expected, strict=True):
            assert values == pytest.approx(row, abs=1e-6)


def test_rows_of_a_batch_may_have_different_numbers_of_completions():
    tokenizer = tiny_tokenizer()
    score_batch = Score(tiny_reward_model(tokenizer), tokenizer)
    batch = {"prompt": ["a", "b"], "completions": [["c"], ["d", "e"]], "finished": [[True], [True, True]]}
    assert [len(rewards) for rewards in score_batch(batch)["rewards"]] == [1, 2]
    empty = pa.table(batch).slice(0, 0)
    assert score_batch(empty).num_rows == 0 and "rewards" in score_batch(empty).column_names


@pytest.mark.parametrize("form", ["text", "chat"])
def test_texts_are_tokenized_a_few_at_a_time_and_the_rewards_stay_the_same(form, monkeypatch, caplog):
    """All rows are still sorted by length together, so the rewards are the same to the last bit."""
    tokenizer = tiny_tokenizer()
    model, sizes = tiny_reward_model(tokenizer), []
    arguments = model, tokenizer, PROMPTS[form], COMPLETIONS
    expected = score(*arguments, max_length=12)
    warnings = list(caplog.messages)
    encode = type(tokenizer)._encode_plus

    def count_texts(self, text, *args, **kwargs):
        sizes.append(len(text))
        return encode(self, text, *args, **kwargs)

    monkeypatch.setattr(scoring, "_TEXTS_AT_ONCE", 2)
    monkeypatch.setattr(type(tokenizer), "_encode_plus", count_texts)
    caplog.clear()
    assert score(*arguments, max_length=12) == expected
    assert max(sizes) == 2
    assert len(warnings) == 1 and caplog.messages == warnings


def test_samples_are_scored_some_prompts_at_a_time(samples, monkeypatch):
    tokenizer = tiny_tokenizer()
    model = tiny_reward_model(tokenizer, max_position_embeddings=60)
    expected = score_samples(model, tokenizer, samples)
    monkeypatch.setattr(scoring, "_PROMPTS_AT_ONCE", 2)
    for values, row in zip(score_samples(model, tokenizer, samples), expected, strict=True):
        assert values == pytest.approx(row, abs=1e-6)
    longer = samples.map(
        lambda row, index: {"completions": row["completions"][:2] + ["x" * 99 * (index == 2)]}, with_indices=True
    )
    with pytest.raises(ValueError, match=r"Row 8 has \d+ tokens"):
        score_samples(model, tokenizer, longer)
