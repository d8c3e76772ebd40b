"""A prompt, the end of a completion and the reading of a completion are the same in every stage, and as in TRL."""

from pathlib import Path

import pytest
import trl
from datasets import Dataset
from tokenizers.processors import TemplateProcessing
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import add_response_schema

import trl_rlp.data.sampling.transformers_engine as transformers_engine
import trl_rlp.rewards.reward_function as reward_function
from tests.ppo_runs import ppo_config, ppo_trainer, prompts
from tests.reward_runs import rlp_trainer
from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp import RLPConfig, RLPPPOConfig, RLPPPOTrainer, RLPRewardTrainer
from trl_rlp.data.preferences.preferences import synthesize_preferences, tokenize_preferences
from trl_rlp.data.preferences.views import ViewSampler
from trl_rlp.data.sampling.completion_text import CompletionReader
from trl_rlp.data.sampling.engines import sample_completions
from trl_rlp.data.sampling.policy_prompts import PolicyPrompts
from trl_rlp.data.scoring import score, score_samples, scoring_ids
from trl_rlp.evaluation.policy_pairs import answer_pairs
from trl_rlp.evaluation.reward_metrics import score_pairs
from trl_rlp.pipeline import run_rlp
from trl_rlp.rewards.reward_function import RewardFunction
from trl_rlp.stages.policy import train_policy


QUESTION = [{"role": "user", "content": "3 * 4?"}]
CALL = {"type": "function", "function": {"name": "multiply", "arguments": {"a": 3, "b": 4}}}
CALLING = {"role": "assistant", "content": "I look it up", "tool_calls": [CALL]}
RESULT = {"role": "tool", "name": "multiply", "content": "12"}
TOOL = {
    "type": "function",
    "function": {"name": "multiply", "description": "Multiplies.", "parameters": {"type": "object", "properties": {}}},
}
NO_THINKING = {"enable_thinking": False}
TEXTS = ["12", "13", "14"]


def say(role, content, **keys):
    return [{"role": role, "content": content, **keys}]


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def qwen3(tokenizer):
    """Builds a tokenizer with Qwen3's chat template and tokens."""
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    tokenizer.add_tokens(["<|im_start|>", "<think>", "</think>", "<tool_call>", "</tool_call>"])
    return tokenizer


@pytest.fixture
def rows_read(monkeypatch):
    """Records the token ids that reward functions give to the reward model."""
    rows, real = [], reward_function.score_rows

    def record(model, ids, **options):
        rows.extend(ids)
        return real(model, ids, **options)

    monkeypatch.setattr(reward_function, "score_rows", record)
    return rows


@pytest.fixture
def drawn(monkeypatch):
    """Records the prompts and stop tokens of every call that samples in process."""
    calls, real = [], transformers_engine.generate_samples

    def record(model, prompt_ids, num_generations, config, **options):
        calls.append((prompt_ids[0], config.eos_token_id, config.max_new_tokens))
        return real(model, prompt_ids, num_generations, config, **options)

    monkeypatch.setattr(transformers_engine, "generate_samples", record)
    return calls


# Reading


@pytest.mark.parametrize(
    "completion",
    [
        say("assistant", "12", reasoning_content="three fours"),
        [CALLING, RESULT, *say("assistant", "12")],
        [CALLING, RESULT],
        [{**CALLING, "content": None}],
    ],
    ids=["thought", "tool", "cut after a tool's output", "call without content"],
)
def test_a_reward_model_reads_the_whole_completion_as_trl_renders_it(qwen3, rows_read, completion):
    """
    A user trains a policy that thinks and calls tools. The reward model read the content of the last message only:
    no thought, no call, and for a completion that ends with a tool's output, that output.
    """
    reward = RewardFunction(tiny_reward_model(qwen3), qwen3, [qwen3.eos_token_id])
    reward([QUESTION], [completion], completion_ids=[[qwen3.eos_token_id]])
    assert qwen3.decode(rows_read[0]) == qwen3.apply_chat_template(QUESTION + completion, tokenize=False)


def test_grpo_scores_a_reward_function_as_trl_scores_a_reward_model(qwen3, tmp_path):
    """With a response template, TRL parses completions to messages. TRL's own path and ours give the same rewards."""
    folder = save(tiny_causal_lm(qwen3), qwen3, tmp_path / "policy")
    model, tokenizer = tiny_reward_model(qwen3), add_response_schema(qwen3)
    trainer = GRPOTrainer(
        model=folder,
        reward_funcs=[model, RewardFunction(model, tokenizer, [tokenizer.eos_token_id])],
        reward_processing_classes=[tokenizer, None],
        args=GRPOConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none", per_device_train_batch_size=8),
        train_dataset=Dataset.from_list([{"prompt": QUESTION}]),
        processing_class=tokenizer,
    )
    completions = [say("assistant", "12", reasoning_content="fours"), [CALLING, RESULT, *say("assistant", "12")]]
    rows = [{"prompt": QUESTION}] * 2
    ids = [[tokenizer.eos_token_id]] * 2
    rewards = trainer._calculate_rewards(rows, [QUESTION] * 2, completions, ids)
    assert rewards[:, 0].tolist() == pytest.approx(rewards[:, 1].tolist(), abs=1e-6)


def test_a_continued_turn_is_read_once_with_a_response_template(qwen3, rows_read, tmp_path):
    """The user's prompts begin the assistant's turn. TRL's parser returns this beginning again, with the answer."""
    tokenizer = add_response_schema(qwen3)
    prompt = [*QUESTION, *say("assistant", "It is")]
    data = Dataset.from_list([{"prompt": prompt}] * 4)
    seen = []

    def reward(completions, **kwargs):
        seen.extend(completions)
        return [float(i) for i in range(len(completions))]

    trainer = ppo_trainer(
        tmp_path,
        data,
        processing_class=tokenizer,
        reward_model=tiny_reward_model(tokenizer),
        reward_funcs=[reward],
        total_episodes=4,
    )
    trainer.train()
    assert len(seen) == 4 and not any(turn["content"].startswith("It is") for (turn,) in seen)
    assert all(tokenizer.decode(ids).count("It is") == 1 for ids in rows_read)


def test_keys_that_a_dataset_fills_in_do_not_reach_a_template(tokenizer, tmp_path, monkeypatch):
    """
    Some rows of a user's dataset have tool calls. Datasets give all messages this key, with `None`. Many templates
    write "None" for it, or fail. New versions of transformers drop such keys themselves.
    """
    real = type(tokenizer).apply_chat_template

    def require_values(self, conversation, **options):
        chats = conversation if isinstance(conversation[0], list) else [conversation]
        assert all(value is not None for chat in chats for message in chat for value in message.values())
        return real(self, conversation, **options)

    monkeypatch.setattr(type(tokenizer), "apply_chat_template", require_values)
    prompt, answer = [{**QUESTION[0], "tool_calls": None}], say("assistant", "12", tool_calls=None)
    model = tiny_reward_model(tokenizer)
    for finished in (True, False):
        rewards = score(model, tokenizer, [prompt, QUESTION], [answer, say("assistant", "12")], [finished] * 2)
        assert rewards[0] == pytest.approx(rewards[1], abs=1e-6)
    data = Dataset.from_list([{"prompt": prompt}, {"prompt": [*prompt, *answer]}] * 2)
    trainer = ppo_trainer(tmp_path, data, processing_class=tokenizer)
    for row in data:
        assert len(trainer._tokenize_prompts([row["prompt"]])[0]) == 1
    samples = sample_completions(data, tiny_causal_lm(tokenizer), tokenizer, num_generations=2, max_new_tokens=2)
    assert len(samples) == 4


def pairs_with_tools():
    row = {"prompt": QUESTION, "chosen": say("assistant", "12"), "rejected": say("assistant", "13")}
    return Dataset.from_list([{**row, "tools": [TOOL], "chat_template_kwargs": NO_THINKING}] * 2)


def test_pairs_are_labeled_and_evaluated_with_the_tools_that_trl_trains_on(qwen3, tmp_path):
    """TRL's `RewardTrainer` reads the columns `tools` and `chat_template_kwargs` of pairs. Scores left them out."""
    data, model = pairs_with_tools(), tiny_reward_model(qwen3)
    trained = rlp_trainer(tmp_path, "none", model=model, tokenizer=qwen3, data=data, max_length=None).train_dataset
    assert tokenize_preferences(data, qwen3)["chosen_ids"][:] == trained["chosen_ids"][:]
    assert "Multiplies." in qwen3.decode(trained["chosen_ids"][0])
    rewards, _ = score_pairs(model, qwen3, data)
    options = [{"tools": [TOOL], **NO_THINKING}] * 2
    expected = score(model, qwen3, data["prompt"][:], data["chosen"][:], template_options=options)
    assert rewards["chosen"] == pytest.approx(expected, abs=1e-6)
    assert expected != pytest.approx(score(model, qwen3, data["prompt"][:], data["chosen"][:]), abs=1e-6)


def test_samples_keep_the_tools_of_their_prompt_in_every_stage(qwen3):
    """Labels, views, synthetic pairs and policy pairs read the prompt that the policy read."""
    model = tiny_reward_model(qwen3)
    row = {"completions": TEXTS, "finished": [True] * 3, "tools": [TOOL]}
    samples = Dataset.from_list([{"prompt": prompt, **row} for prompt in (QUESTION, say("user", "Hi"))])
    options = {"tools": [TOOL]}
    ids = [scoring_ids(qwen3, QUESTION, text, template_options=options) for text in TEXTS]
    expected = score(model, qwen3, [QUESTION] * 3, TEXTS, template_options=[options] * 3)
    assert score_samples(model, qwen3, samples)[0] == pytest.approx(expected, abs=1e-6)
    view = next(view for view in ViewSampler(samples, qwen3).views(0, [0, 1]) if view.prompt_index == 0)
    assert view.first in ids and view.second in ids
    synthetic, _ = synthesize_preferences(samples, "reward", reward_model=model, reward_processing_class=qwen3)
    chosen = TEXTS.index(synthetic[0]["chosen"][0]["content"])
    assert synthetic[0]["chosen_reward"] == pytest.approx(expected[chosen], abs=1e-6)
    for pairs in (synthetic, answer_pairs(samples, ["12", "12"])):
        tokenized = tokenize_preferences(pairs, qwen3)
        assert tokenized[0]["chosen_ids"] in ids and tokenized[0]["rejected_ids"] in ids


# Prompt and stop


def chat_prompts(size=4):
    return Dataset.from_list([{"prompt": say("user", f"Q{i}")} for i in range(size)])


def preferences(size=6):
    rows = [(say("user", f"Q{i}"), say("assistant", "yes"), say("assistant", "no")) for i in range(size)]
    return Dataset.from_list([dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in rows])


REFINEMENT = {"max_steps": 1, "per_device_train_batch_size": 2, "view_prompts_per_device": 2}
RLP = {"rlp_method": "uml", "rlp_num_generations": 2, "rlp_heldout_share": 0.25, "rlp_reward_args": REFINEMENT}


@pytest.mark.parametrize(
    ("settings", "data"),
    [(RLP, {"preference_dataset": preferences()}), ({"standardize_rewards": True}, {})],
    ids=["rlp_method", "standardize_rewards"],
)
def test_the_policy_is_sampled_on_the_prompt_and_stop_of_its_training(qwen3, drawn, tmp_path, settings, data):
    """
    A user turned thinking off and named a stop token. The policy was trained so, but sampled for P and for the scale
    of the rewards on a prompt that lets it think, and up to EOS.
    """
    settings = {**settings, "chat_template_kwargs": NO_THINKING, "stop_token_id": 70, "total_episodes": 4}
    trainer = ppo_trainer(
        tmp_path,
        chat_prompts(),
        RLPPPOTrainer,
        RLPPPOConfig,
        processing_class=qwen3,
        reward_model=tiny_reward_model(qwen3),
        **data,
        **settings,
    )
    trainer.train()
    trained_on = trainer._tokenize_prompts([say("user", "Q0")])[0][0]
    assert qwen3.decode(trained_on).endswith("<think>\n\n</think>\n\n")
    ids, stops, length = drawn[0]
    same_head = qwen3.decode(ids).partition("Q")[0] == qwen3.decode(trained_on).partition("Q")[0]
    assert same_head and qwen3.decode(ids).endswith("<think>\n\n</think>\n\n")
    assert (stops, length) == (trainer.eos_token_ids, trainer.args.max_completion_length) == ([70], 6)
    assert trainer.reward_funcs[0].chat_template_kwargs == NO_THINKING


def test_a_completion_that_a_stop_token_ends_is_scored_as_in_training(tokenizer):
    """A stop token that is not EOS is text that the policy wrote. EOS follows it when the completion is scored."""
    stop = tokenizer("E")["input_ids"][0]
    reader = CompletionReader(tokenizer, stop_token_ids=[stop], eos_token_ids=[1])
    texts, finished = reader.read([[70, stop, 71], [70, 71, 72], [70, tokenizer.eos_token_id, 71]], "a", [5])
    assert finished == [True, False, False]
    assert texts[0].endswith("E") and len(texts[0]) == 2


def test_without_a_stop_token_samples_have_the_full_length_and_are_unfinished(tokenizer):
    """`stop_token=None` generates past EOS in training, so it does in sampling."""
    data = Dataset.from_dict({"prompt": ["a", "b"]})
    options = {"num_generations": 2, "max_new_tokens": 4, "stop_token_ids": []}
    samples = sample_completions(data, tiny_causal_lm(tokenizer), tokenizer, **options)
    assert samples["finished"] == [[False, False]] * 2


@pytest.mark.parametrize("policy_trainer", ["ppo", "grpo"])
def test_the_stages_of_the_pipeline_share_prompt_stop_and_length(qwen3, drawn, tmp_path, monkeypatch, policy_trainer):
    """
    `policy_args` reached training only, and `max_new_tokens` sampling only: a user who set it to 300 trained on
    completions of 53 tokens.
    """
    training = {"per_device_train_batch_size": 4, "max_steps": 1, "report_to": "none", "use_cpu": True, "bf16": False}
    policy_args = {**training, "num_generations": 2, "chat_template_kwargs": NO_THINKING}
    if policy_trainer == "ppo":
        policy_args["stop_token_id"] = 70
    seen = []
    monkeypatch.setattr(
        "trl_rlp.pipeline.train_policy", lambda folder, **kw: seen.append(kw) or train_policy(folder, **kw)
    )
    config = RLPConfig(
        str(tmp_path / "run"),
        save(tiny_causal_lm(qwen3), qwen3, tmp_path / "sft"),
        method="uml",
        policy_trainer=policy_trainer,
        num_generations=2,
        max_new_tokens=5,
        standardize_rewards=True,
        heldout_share=0.25,
        reward_args={**training, "view_prompts_per_device": 2},
        policy_args=policy_args,
    )
    result = run_rlp(config, preferences(), chat_prompts(), eval_prompt_dataset=chat_prompts(2))
    assert seen[0]["args"]["max_completion_length"] == 5
    assert result.stages["evaluation"]["metrics"]["policy"]["reward/reward_model"] is not None
    stops = [70] if policy_trainer == "ppo" else [qwen3.eos_token_id]
    assert {(tuple(stop), length) for _, stop, length in drawn} == {(tuple(stops), 5)}
    assert all(qwen3.decode(ids).endswith("<think>\n\n</think>\n\n") for ids, _, _ in drawn)


def test_a_reward_model_knows_the_stop_token_of_the_policy(tokenizer, tmp_path, monkeypatch):
    """The pipeline's reward function took completions that the stop token ended for unfinished ones."""
    built = []

    class Recorded(RewardFunction):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            built.append(self)

    monkeypatch.setattr("trl_rlp.stages.policy.RewardFunction", Recorded)
    policy = save(tiny_causal_lm(tokenizer), tokenizer, tmp_path / "policy")
    reward_model = save(tiny_reward_model(tokenizer), tokenizer, tmp_path / "reward")
    args = {
        "per_device_train_batch_size": 4,
        "max_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "stop_token_id": 70,
    }
    train_policy(tmp_path / "out", policy, reward_model, prompts(4), {**args, "response_length": 4})
    assert built[0].eos_token_ids == {70}


@pytest.mark.parametrize("name", ["stop_strings", "eos_token_id", "max_new_tokens"])
def test_ends_of_completions_that_sampling_does_not_know_are_refused(tmp_path, name):
    """A user stops at a text in `generation_kwargs`. Sampling would go on, so the run is refused before any work."""
    match = rf"`generation_kwargs` sets \['{name}'\], which end completions in training only"
    kwargs = {"generation_kwargs": {name: 5}}
    ppo_config(tmp_path, RLPPPOConfig, **kwargs)  # nothing is sampled outside of training
    for settings in ({"rlp_method": "uml"}, {"standardize_rewards": True}):
        with pytest.raises(ValueError, match=match):
            ppo_config(tmp_path, RLPPPOConfig, **kwargs, **settings)
    with pytest.raises(ValueError, match=match):
        RLPConfig(str(tmp_path), "sft", policy_args=kwargs)


def test_spg_without_a_stop_token_is_refused(tmp_path):
    """Without a stop token no completion is finished, and SPG would find no y_w after the first policy is trained."""
    match = "`stop_token`=None lets no completion finish"
    ppo_config(tmp_path, RLPPPOConfig, rlp_method="uml", stop_token=None)
    ppo_config(tmp_path, RLPPPOConfig, rlp_method="spg", stop_token_id=70)
    with pytest.raises(ValueError, match=match):
        ppo_config(tmp_path, RLPPPOConfig, rlp_method="spg", stop_token=None)
    with pytest.raises(ValueError, match=match):
        RLPConfig(str(tmp_path), "sft", policy_args={"stop_token": None})


def test_prompts_with_tools_are_refused_by_runs_whose_trainer_does_not_read_them(qwen3, tmp_path):
    """TRL's policy trainers do not read the columns `tools` and `chat_template_kwargs` of prompts."""
    data = chat_prompts().add_column("tools", ["[]"] * 4)
    policy = save(tiny_causal_lm(qwen3), qwen3, tmp_path / "sft")
    with pytest.raises(ValueError, match=r"`prompt_dataset` has the columns \['tools'\]"):
        run_rlp(RLPConfig(str(tmp_path / "run"), policy, method="uml"), preferences(), data)
    with pytest.raises(ValueError, match=r"`train_dataset` has the columns \['tools'\]"):
        ppo_trainer(tmp_path, data, RLPPPOTrainer, RLPPPOConfig, preference_dataset=preferences(), **RLP)


# EOS and BOS


def tokenizer_that_appends_eos(bos=False):
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<|system|>" if bos else None
    pattern = "<|system|> $A <eos>" if bos else "$A <eos>"
    names = ["<eos>", "<|system|>"] if bos else ["<eos>"]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=pattern, special_tokens=[(name, tokenizer.convert_tokens_to_ids(name)) for name in names]
    )
    return tokenizer


@pytest.mark.parametrize("bos", [False, True])
def test_a_tokenizer_that_appends_eos_writes_it_once_or_not_at_all(bos):
    """Finished texts had two EOS tokens, and unfinished ones had one, so that both looked finished."""
    tokenizer = tokenizer_that_appends_eos(bos)
    a, b = tokenizer.convert_tokens_to_ids(["a", "b"])
    start = [tokenizer.bos_token_id] if bos else []
    assert scoring_ids(tokenizer, "a", "b") == scoring_ids(tokenizer, "a", "b<eos>") == [*start, a, b, 1]
    assert scoring_ids(tokenizer, "a", "b", finished=False) == [*start, a, b]
    if bos:
        assert scoring_ids(tokenizer, "<|system|>a", "b") == [*start, a, b, 1]


@pytest.mark.parametrize("bos", [False, True])
def test_human_pairs_are_trained_on_with_the_tokens_that_are_scored(tmp_path, bos):
    """TRL appends EOS to a text before the tokenizer appends it again. Training and scoring read different tokens."""
    tokenizer = tokenizer_that_appends_eos(bos)
    trainer = rlp_trainer(tmp_path, "spg", tokenizer=tokenizer)
    assert isinstance(trainer, RLPRewardTrainer)
    rows = [*trainer.train_dataset["chosen_ids"], *trainer.train_dataset["rejected_ids"]]
    assert {ids.count(tokenizer.eos_token_id) for ids in rows} == {1}
    assert trainer.train_dataset[0]["chosen_ids"] == scoring_ids(tokenizer, "Colour 0? ", "red")


def test_prompts_do_not_end_with_an_eos_that_the_tokenizer_appends(tmp_path):
    """The policy read EOS at the end of every prompt, in sampling and in PPO."""
    tokenizer = tokenizer_that_appends_eos()
    trainer = ppo_trainer(tmp_path, processing_class=tokenizer)
    a = tokenizer.convert_tokens_to_ids("a")
    assert trainer._tokenize_prompts(["a"])[0] == [[a]]
    prompts_u = PolicyPrompts(Dataset.from_dict({"prompt": ["a"]}), tokenizer, max_new_tokens=4, context=None)
    assert prompts_u.tokenize({"prompt": ["a"]}) == [[a]] and prompts_u.lengths.tolist() == [1]
    assert len(trainer._tokenize_prompts(prompts(1)["prompt"][:])[0][0]) == len(prompts(1)["prompt"][0])


def test_a_prompt_that_begins_with_bos_has_one(tmp_path):
    """A user rendered the prompts with a chat template beforehand. The tokenizer added a second BOS."""
    tokenizer = tokenizer_that_appends_eos(bos=True)
    a = tokenizer.convert_tokens_to_ids("a")
    trainer = ppo_trainer(tmp_path, processing_class=tokenizer)
    assert trainer._tokenize_prompts(["<|system|>a", "a"])[0] == [[tokenizer.bos_token_id, a]] * 2


def test_rloo_and_grpo_refuse_prompts_that_would_end_with_eos(tmp_path):
    """TRL's trainers tokenize text prompts themselves, so P would be drawn for other prompts than training."""
    tokenizer = tokenizer_that_appends_eos()
    policy = save(tiny_causal_lm(tokenizer), tokenizer, tmp_path / "sft")
    config = RLPConfig(str(tmp_path / "run"), policy, method="uml", policy_trainer="grpo")
    with pytest.raises(ValueError, match="`prompt_dataset` row 0: the tokenizer of `sft_model` adds"):
        run_rlp(config, preferences(), prompts(4))


def test_an_eos_token_that_the_configuration_names_is_used(tmp_path):
    """TRL's `RewardTrainer` sets the tokenizer's EOS from its configuration. Ours refused the tokenizer."""
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    trainer = rlp_trainer(
        tmp_path, "none", tokenizer=tokenizer, model=tiny_reward_model(tiny_tokenizer()), eos_token="<eos>"
    )
    assert trainer.train_dataset[0]["chosen_ids"][-1] == 1


@pytest.mark.parametrize("stream", [False, True])
def test_token_ids_need_no_eos(tmp_path, stream):
    """Pairs of token ids are trained on as they are."""
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    data = Dataset.from_dict({"chosen_ids": [[70, 71]] * 8, "rejected_ids": [[72]] * 8})
    data = data.to_iterable_dataset() if stream else data
    trainer = rlp_trainer(
        tmp_path, "none", tokenizer=tokenizer, model=tiny_reward_model(tiny_tokenizer()), data=data, max_steps=1
    )
    trainer.train()
    assert trainer.state.global_step == 1
