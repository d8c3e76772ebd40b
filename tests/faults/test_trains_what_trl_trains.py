"""Data sets that TRL trains on: columns with any name, formats of `datasets`, and messages with missing keys."""

import json

import pytest
import torch
from datasets import Dataset

from tests.ppo_runs import ppo_trainer, prompts
from tests.reward_runs import (
    SameText,
    get_logged,
    policy_samples,
    preferences,
    rlp_trainer,
    synthetic_preferences,
    trl_trainer,
)
from tests.test_pipeline import SameParity, config, save_finishing_policy
from tests.test_pipeline import data as pipeline_data
from tests.tiny_models import tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.groups.clustering import cluster
from trl_rlp.data.preferences.collator import SyntheticPreferenceCollator
from trl_rlp.data.preferences.holdout import hold_out
from trl_rlp.data.preferences.mixing import mix_preferences
from trl_rlp.data.preferences.preferences import synthesize_preferences, tokenize_preferences
from trl_rlp.data.preferences.views import ViewSampler
from trl_rlp.data.sampling.engines import sample_completions
from trl_rlp.data.scoring import score_samples, scoring_ids
from trl_rlp.data.template_options import get_template_options
from trl_rlp.evaluation.alpaca_eval import write_model_outputs
from trl_rlp.evaluation.policy_metrics import describe_outputs
from trl_rlp.evaluation.policy_pairs import answer_pairs
from trl_rlp.evaluation.reward_bench import reward_bench_pairs
from trl_rlp.evaluation.reward_metrics import score_pairs
from trl_rlp.pipeline import run_rlp
from trl_rlp.storage.loading import load_rows


USER_COLUMNS = {
    "record": "patient 7",
    "candidates": ["a", "b"],
    "candidate_ids": "none",
    "candidates_finished": "no",
    "cluster_ids": "ward 3",
    "confidence": "high",
    "chosen_finished": "yes",
    "completions": [1, 2],
    "is_synthetic": "perhaps",
    "overlong": "no",
    "sample_row": "A7",
    "view_input_ids": [1],
    "weight": 0.5,
    "source": "web",
}


def add_columns(dataset: Dataset, columns=USER_COLUMNS) -> Dataset:
    for name, value in columns.items():
        if name not in dataset.column_names:
            dataset = dataset.add_column(name, [value] * len(dataset))
    return dataset


@pytest.mark.parametrize("method", ["uml", "uml+spg"])
def test_columns_of_the_user_do_not_change_training(method, tmp_path):
    """
    A user's pairs have columns such as `record` and `candidates`. TRL ignores them, so the trainer trains and
    evaluates as without them. It used their values as its own, or refused them.
    """
    runs = []
    for change in (lambda dataset: dataset, add_columns):
        trainer = rlp_trainer(
            tmp_path,
            method,
            data=change(preferences()),
            eval_dataset=change(preferences(4)),
            max_steps=2,
            **({"synthetic_dataset": change(synthetic_preferences())} if "spg" in method else {}),
        )
        trainer.train()
        evaluations = trainer.evaluate(), trainer.evaluate(change(preferences(4)))
        runs.append((get_logged(trainer, "loss"), [metrics["eval_loss"] for metrics in evaluations]))
    assert runs[0] == runs[1]


def test_columns_of_the_user_in_a_stream_do_not_change_training(tmp_path):
    """The same for a stream, whose columns are not known before its first row."""
    runs = []
    for data in (preferences(), add_columns(preferences())):
        stream = data.to_iterable_dataset()
        trainer = rlp_trainer(tmp_path, data=stream, eval_dataset=stream, max_steps=2)
        trainer.train()
        runs.append((get_logged(trainer, "loss"), trainer.evaluate()["eval_loss"]))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("method", ["uml", "uml+spg"])
def test_evaluation_pairs_with_candidates_do_not_change(method, tmp_path):
    """
    A user evaluates on synthetic pairs that kept their candidates. The rejected side is that of the data set, in each
    evaluation, as in TRL. It was drawn again, or the text candidates were refused.
    """
    pairs, _ = synthesize_preferences(
        policy_samples(), "spg", equivalence=SameText(), chosen="random", keep_candidates=True
    )
    candidates = pairs.map(lambda row: {"candidates": ["x", "yy", "zzz"], "candidates_finished": [True] * 3})
    tokenized = tokenize_preferences(candidates, tiny_tokenizer())
    expected = trl_trainer(tmp_path, eval_dataset=pairs).evaluate()["eval_loss"]
    for evaluation in (candidates, tokenized):
        redraws = {"redraw_rejected": True, "synthetic_dataset": candidates} if "spg" in method else {}
        trainer = rlp_trainer(tmp_path, method, eval_dataset=evaluation, **redraws)
        assert trainer.evaluate()["eval_loss"] == expected
        trainer.data_collator.epoch_callback.epoch.fill_(3)
        assert trainer.evaluate()["eval_loss"] == expected


def test_a_column_named_candidates_in_an_unmodified_trainer_is_not_ours():
    """Only a data set of `synthesize_preferences` has `candidates_finished` too. Other candidates are ignored."""
    record = {"chosen_ids": [1, 2], "rejected_ids": [3], "candidates": ["a", "b"]}
    batch = SyntheticPreferenceCollator(pad_token_id=0)([record])
    assert batch["input_ids"].tolist() == [[1, 2], [3, 0]]


def test_mixtures_keep_the_columns_of_the_user():
    """`tokenize_preferences` replaced a column `overlong`, and a mixture failed with an Arrow error."""
    tokenized = tokenize_preferences(add_columns(preferences(), {"overlong": "no"}), tiny_tokenizer(), max_length=64)
    assert tokenized["overlong"][:] == ["no"] * len(tokenized)
    with pytest.raises(ValueError, match="`human` has a column `is_synthetic`.*Rename or remove it"):
        mix_preferences(add_columns(preferences(), {"is_synthetic": "no"}), preferences())
    with pytest.raises(
        ValueError, match="column `confidence` holds text in `human` and numbers in `synthetic`.*Rename"
    ):
        mix_preferences(
            add_columns(preferences(), {"confidence": "high"}), add_columns(preferences(), {"confidence": 0.5})
        )


@pytest.mark.parametrize("reward", ["model", "function"])
def test_columns_named_like_arguments_of_reward_functions(reward, tmp_path):
    """
    A user trains a policy on the prompts of policy samples, which have `completions`. Reward functions get the
    policy's completions, and all other columns. TRL trains with a reward model, but both failed here.
    """
    seen = []

    def score(prompts, completions, record, **kwargs):
        seen.extend(zip(completions, record, strict=True))
        return [0.5] * len(completions)

    data = add_columns(prompts(), {"completions": ["an old one"], "prompts": "all", "record": "patient 7"})
    source = {"reward_model": tiny_reward_model(tiny_tokenizer())} if reward == "model" else {"reward_funcs": [score]}
    trainer = ppo_trainer(tmp_path, data, eval_dataset=data, total_episodes=4, **source)
    trainer.train()
    trainer.evaluate()
    assert trainer.state.global_step > 0
    assert all(isinstance(text, str) and text != "an old one" and record == "patient 7" for text, record in seen)


def shorten(batch):
    """A transform, as a user passes it to `with_transform`."""
    return {**batch, "rejected": [text.replace("no idea ", "none") for text in batch["rejected"]]}


def same(batch):
    return dict(batch)


FORMATS = {
    "torch": lambda dataset: dataset.with_format("torch"),
    "numpy": lambda dataset: dataset.with_format("numpy"),
    "pandas": lambda dataset: dataset.with_format("pandas"),
    "arrow": lambda dataset: dataset.with_format("arrow"),
    "one column": lambda dataset: dataset.with_format("torch", columns=dataset.column_names[:1]),
    "transform": lambda dataset: dataset.with_transform(same),
}


KINDS = [
    ("torch", False),
    ("numpy", True),
    ("pandas", False),
    ("arrow", True),
    ("one column", True),
    ("transform", False),
]


@pytest.mark.parametrize(("kind", "chat"), KINDS)
def test_formats_do_not_change_training(kind, chat, tmp_path):
    """
    A user has called `set_format` on the data sets. Training is the same as without, in the terms of RLP too. Tensors
    in place of numbers broke the views, and arrays in place of lists were no policy samples.
    """
    set_format = FORMATS[kind]
    runs = []
    for change in (lambda dataset: dataset, set_format):
        data, samples = change(preferences(margin=True, chat=chat)), change(policy_samples(chat=chat))
        formats = str(data.format), str(samples.format)
        arguments = {"policy_samples": samples, "equivalence": SameText(), "chosen": "random", "max_steps": 2}
        trainer = rlp_trainer(tmp_path, "uml+spg", data=data, **arguments)
        trainer.train()
        runs.append(get_logged(trainer, "loss"))
        assert formats == (str(data.format), str(samples.format))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("tokenized", [False, True])
@pytest.mark.parametrize("as_stream", [False, True])
def test_the_trainer_takes_formats_that_trl_takes(as_stream, tokenized, tmp_path):
    """Torch formats of text and of token ids, for training and evaluation, as data sets and as streams."""
    data = preferences()
    if tokenized:
        data = tokenize_preferences(data, tiny_tokenizer()).select_columns(["chosen_ids", "rejected_ids"])
    data = data.to_iterable_dataset() if as_stream else data
    runs = []
    for rows in (data, data.with_format("torch")):
        trainer = rlp_trainer(tmp_path, data=rows, eval_dataset=rows, max_steps=2)
        trainer.train()
        runs.append((get_logged(trainer, "loss"), trainer.evaluate()["eval_loss"]))
    assert runs[0] == runs[1]


def test_a_transform_is_applied_as_in_trl(tmp_path):
    """A user's transform changes the texts. The trainer trains on the changed texts, as TRL does."""
    data = preferences().with_transform(shorten)
    expected = trl_trainer(tmp_path, data=data).train_dataset
    for method in ("none", "uml", "spg"):
        trained = rlp_trainer(tmp_path, method, data=data).train_dataset
        for column in ("chosen_ids", "rejected_ids"):
            assert trained[column][: len(data)] == expected.with_format(None)[column][:]


def run_functions(folder, change, chat):
    """Yields the name and the result of each function that takes a data set, on data sets that `change` formats."""
    tokenizer = tiny_tokenizer()
    reward_model, policy = tiny_reward_model(tokenizer), tiny_causal_lm(tokenizer)
    samples, pairs = change(policy_samples(chat=chat)), change(preferences(margin=True, chat=chat))
    only_prompts = change(policy_samples(chat=chat).select_columns(["prompt"]))
    grouped = change(cluster(policy_samples(chat=chat), SameText(), complete_groups=True))
    answers = ["red"] * 6
    yield "cluster", cluster(samples, SameText())[:]
    yield (
        "synthesize_preferences",
        synthesize_preferences(grouped, "spg", reward_model=reward_model, reward_processing_class=tokenizer)[0][:],
    )
    yield "tokenize_preferences", tokenize_preferences(pairs, tokenizer)[:]
    yield "mix_preferences", mix_preferences(pairs, pairs, 0.3)[:]
    yield "hold_out", [part[:] for part in hold_out(pairs, 0.4, 0)]
    yield "ViewSampler", ViewSampler(samples, tokenizer).views(0, list(range(6)))
    yield "score_samples", score_samples(reward_model, tokenizer, samples)
    yield (
        "sample_completions",
        sample_completions(only_prompts, policy, tokenizer, num_generations=2, max_new_tokens=3)[:],
    )
    yield "answer_pairs", answer_pairs(samples, answers)[:]
    yield "describe_outputs", describe_outputs(samples, answers)
    yield "score_pairs", score_pairs(reward_model, tokenizer, pairs)
    yield "reward_bench_pairs", reward_bench_pairs(pairs)[:]
    write_model_outputs(folder / "outputs.json", samples, "policy")
    yield "write_model_outputs", json.loads((folder / "outputs.json").read_text())


@pytest.mark.parametrize(("kind", "chat"), KINDS)
def test_formats_do_not_change_the_results_of_functions(kind, chat, tmp_path):
    """The same for every function that takes a data set: `set_format` does not change its result."""
    plain = dict(run_functions(tmp_path, lambda dataset: dataset, chat))
    formatted = dict(run_functions(tmp_path, FORMATS[kind], chat))
    for name, expected in plain.items():
        assert str(formatted[name]) == str(expected), name


@pytest.mark.parametrize(
    ("kind", "form"),
    [("torch", "text"), ("numpy", "chat"), ("pandas", "ids"), ("one column", "chat"), ("torch", "ids")],
)
def test_formats_do_not_change_ppo(kind, form, tmp_path):
    """Prompts with a format give the same rollouts. An array of messages was not recognized as a chat."""
    rows = [{**row, "mark": [i, i]} for i, row in enumerate(prompts(8, form))]
    data = Dataset.from_list(rows)
    data = data.select_columns([name for name in ("prompt", "input_ids", "mark") if name in data.column_names])
    texts, marks = [], []

    def score(prompts, completions, mark=None, **kwargs):
        marks.append(mark)
        texts.append([prompts, completions])
        return [1.0] * len(completions)

    for dataset in (data, FORMATS[kind](data)):
        torch.manual_seed(0)
        ppo_trainer(tmp_path, dataset, reward_funcs=[score], total_episodes=4).train()
    assert texts[: len(texts) // 2] == texts[len(texts) // 2 :]
    if kind == "torch":  # other columns reach reward functions as in TRL
        assert isinstance(marks[-1][0], torch.Tensor)


@pytest.mark.parametrize("method", ["none", "uml", "spg"])
def test_messages_with_missing_keys_train(method, tmp_path):
    """`datasets` fills keys that only some messages have with `None`. TRL trains on such messages."""
    pairs = preferences(chat=True)
    rows = [dict(row) for row in pairs]
    rows[0]["prompt"] = [{"role": "user", "content": "Hi", "name": "Ann", "tool_calls": None}]
    rows[1]["chosen"] = [{"role": "assistant", "content": "red", "thinking": "a color"}]
    data = Dataset.from_list(rows)
    assert data[2]["prompt"][0]["name"] is None
    samples = [dict(row) for row in policy_samples(chat=True)]
    samples[0]["prompt"] = rows[0]["prompt"]
    arguments = {"policy_samples": Dataset.from_list(samples)} if method == "uml" else {}
    if method == "spg":
        arguments["synthetic_dataset"] = data
    trainer = rlp_trainer(tmp_path, method, data=data, **arguments)
    trainer.train()
    assert trainer.state.global_step == 4


@pytest.mark.parametrize(
    ("column", "value"), [("prompt", None), ("chosen", None), ("rejected", None), ("margin", None)]
)
@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
def test_missing_values_are_refused_in_one_line(name, column, value, tmp_path):
    """TRL fails on a pair without a value with an `AttributeError` or `TypeError`. The message names the row."""
    rows = [dict(row) for row in preferences(margin=True)]
    rows[3][column] = value
    data = Dataset.from_list(rows)
    datasets = {"data": data} if name == "train_dataset" else {"eval_dataset": data}
    with pytest.raises(ValueError, match=rf"`{name}` row 3 has no `{column}`\. Drop such rows") as error:
        rlp_trainer(tmp_path, "uml", **datasets)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
def test_empty_texts_train(column, tmp_path):
    """TRL trains on empty texts."""
    rows = [dict(row) for row in preferences()]
    rows[3][column] = ""
    for method in ("uml", "spg"):
        trainer = rlp_trainer(tmp_path, method, data=Dataset.from_list(rows))  # an epoch has four steps
        trainer.train()
        assert trainer.state.global_step == 4


@pytest.mark.parametrize(("kind", "policy_trainer"), [("numpy", "rloo"), ("pandas", "ppo")])
def test_the_pipeline_takes_formats_and_columns(kind, policy_trainer, tmp_path):
    """Algorithm 1 on data sets with a format, whose columns are named like those of samples and synthetic pairs."""
    folder = save_finishing_policy(tmp_path / "sft")
    preferences, prompts = (FORMATS[kind](add_columns(dataset)) for dataset in pipeline_data(chat=True))
    settings = config(tmp_path, folder, method="uml+spg", policy_trainer=policy_trainer)
    result = run_rlp(settings, preferences, prompts, SameParity())
    assert result.retrained_policy.exists()


def test_tool_calls_of_a_file_are_rendered_as_they_are(tmp_path):
    """
    Two rows of a file call different tools. The reader filled the arguments of each call and the properties of each
    tool with those of the other, as nulls, and templates wrote them into the text.
    """
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{{ tools | tojson }}{% for m in messages %}{{ m['content'] }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}"
        "{% endif %}{% endfor %}"
    )
    rows = []
    for name, argument in (("f", "a"), ("g", "b")):
        tool = {"name": name, "parameters": {"properties": {argument: {"type": "string"}}}}
        calls = [{"type": "function", "function": {"name": name, "arguments": {argument: "x"}}}]
        chosen = [{"role": "assistant", "content": "", "tool_calls": calls}]
        rows.append({"prompt": [{"role": "user", "content": "q"}], "chosen": chosen, "tools": [tool]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row, loaded in zip(rows, load_rows(tmp_path / "rows.jsonl"), strict=True):
        texts = [
            tokenizer.decode(
                scoring_ids(tokenizer, one["prompt"], one["chosen"], True, None, get_template_options(one))
            )
            for one in (row, loaded)
        ]
        assert texts[0] == texts[1]
