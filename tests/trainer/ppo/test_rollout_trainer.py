import pytest
from datasets import Dataset

import trl_rlp.rewards.reward_function
from tests.ppo_runs import logged, ppo_trainer, prompts
from tests.tiny_models import tiny_tokenizer


def test_token_ids_reach_policy_and_reward_model_unchanged(tmp_path):
    tokenizer = tiny_tokenizer()
    data = Dataset.from_dict({"input_ids": [[tokenizer.eos_token_id, 40 + row, 50] for row in range(8)]})
    trainer = ppo_trainer(tmp_path, data, processing_class=tokenizer)
    read, scored = [], []
    generate = trainer._generate_single_turn

    def spy(prompt_ids, *args, **kwargs):
        read.extend(prompt_ids)
        return generate(prompt_ids, *args, **kwargs)

    trainer._generate_single_turn = spy
    function = trainer.reward_funcs[0]

    def score_spy(**kwargs):
        scored.extend(prompt.ids for prompt in kwargs["prompts"])
        return function(**kwargs)

    trainer.reward_funcs[0] = score_spy
    trainer.train()
    assert read == scored
    assert {tuple(ids) for ids in read} <= {tuple(ids) for ids in data["input_ids"]} and len(read) == 12


@pytest.mark.parametrize("begun", ["It is", ""])
def test_a_turn_that_a_prompt_begins_is_continued(tmp_path, begun):
    tokenizer = tiny_tokenizer()
    question = [{"role": "user", "content": "2 + 2?"}]
    half = [*question, {"role": "assistant", "content": begun}] if begun else question
    trainer = ppo_trainer(tmp_path, Dataset.from_dict({"prompt": [half] * 8}), processing_class=tokenizer)
    read, scored = [], []
    generate, score = trainer._generate_single_turn, trl_rlp.rewards.reward_function.score_rows

    def spy(prompt_ids, *args, **kwargs):
        read.extend(prompt_ids)
        return generate(prompt_ids, *args, **kwargs)

    def score_spy(model, rows, **kwargs):
        scored.extend(rows)
        return score(model, rows, **kwargs)

    trainer._generate_single_turn = spy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trl_rlp.rewards.reward_function.score_rows", score_spy)
        trainer.train()
    assert {tokenizer.decode(ids) for ids in read} == {f"<|user|>2 + 2?<|assistant|>{begun}"}
    assert scored and all(tokenizer.decode(ids).startswith(f"<|user|>2 + 2?<|assistant|>{begun}") for ids in scored)
    assert all(tokenizer.decode(ids).count("<|assistant|>") == 1 for ids in scored)


def test_completions_of_the_evaluation_prompts_are_printed(tmp_path, capsys):
    trainer = ppo_trainer(tmp_path, eval_dataset=prompts(4), num_sample_generations=1)
    trainer.train()
    printed = capsys.readouterr().out
    assert printed.count("model response") == 1 and "score" in printed
    temperature = trainer.generation_config.temperature
    trainer.generate_completions()
    assert capsys.readouterr().out.count("model response") == 1
    assert trainer.generation_config.temperature == temperature == 0.7


def test_the_table_of_completions_has_ppo_s_advantages(tmp_path):
    trainer = ppo_trainer(tmp_path, total_episodes=4)
    trainer.train()
    experience = trainer._rollout.experience
    means = experience.advantages.sum(dim=1) / experience.completion_mask.sum(dim=1)
    assert list(trainer._logs["advantages"]) == pytest.approx(means.tolist())


@pytest.mark.slow
def test_continuous_batching_passes_through(tmp_path):
    trainer = ppo_trainer(tmp_path, use_transformers_continuous_batching=True, total_episodes=4)
    trainer.train()
    assert trainer.state.log_history[0]["episode"] == 4


def test_an_empty_text_is_named_when_it_is_read(tmp_path):
    with pytest.raises(ValueError, match="A prompt has no tokens. Drop such rows with `Dataset.filter`"):
        ppo_trainer(tmp_path, Dataset.from_dict({"prompt": [""] * 8})).train()


def test_a_long_text_is_named_when_it_is_read(tmp_path):
    with pytest.raises(ValueError, match="A prompt has 510 tokens, but the policy's context leaves 506"):
        ppo_trainer(tmp_path, Dataset.from_dict({"prompt": ["a" * 510] * 8})).train()


def test_one_completion_of_one_token_can_be_evaluated(tmp_path):
    trainer = ppo_trainer(tmp_path, eval_dataset=prompts(1), response_length=1, per_device_eval_batch_size=1)
    assert "eval_objective/rlhf_reward" in trainer.evaluate()


def test_rows_that_are_padded_already_are_read_by_their_mask(tmp_path):
    tokenizer = tiny_tokenizer()
    rows = tokenizer(["ab", "abcdef"] * 4, padding="max_length", max_length=10, padding_side="left")
    texts = tokenizer(["ab", "abcdef"] * 4)
    logs = []
    for name, columns in (("padded", rows), ("plain", texts)):
        trainer = ppo_trainer(tmp_path / name, Dataset.from_dict(dict(columns)))
        trainer.train()
        logs.append(logged(trainer))
    assert logs[0] == logs[1]


def test_the_first_of_several_evaluation_sets_is_printed(tmp_path, capsys):
    trainer = ppo_trainer(
        tmp_path, eval_dataset={"one": prompts(2), "two": prompts(2, "chat")}, num_sample_generations=1
    )
    trainer.train()
    assert "ab0:" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"`eval_dataset\['two'\]` lacks a column `prompt`"):
        ppo_trainer(tmp_path, eval_dataset={"one": prompts(2), "two": Dataset.from_dict({"text": ["a"]})})


def test_printed_completions_stay_out_of_the_table_of_the_rollout(tmp_path):
    evaluation = Dataset.from_dict({"prompt": ["evaluated"] * 2})
    trainer = ppo_trainer(tmp_path, total_episodes=4, eval_dataset=evaluation, num_sample_generations=1)
    trainer.train()
    assert len(trainer._logs["prompt"]) == 4 and "evaluated" not in trainer._logs["prompt"]
