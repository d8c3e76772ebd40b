import json
import math

import pytest

from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trl_rlp.evaluation.annotation_report import describe_win_rates
from trl_rlp.evaluation.collected_metrics import collect_metrics, load_pairs, load_samples, write_metrics
from trl_rlp.evaluation.policy_metrics import describe_outputs, kl_to_reference
from trl_rlp.evaluation.reward_bench import reward_bench_pairs
from trl_rlp.evaluation.reward_report import describe_reward_model
from trl_rlp.storage.artifacts import load_policy, load_reward_model
from trl_rlp.storage.loading import load_rows


ANNOTATIONS = [
    [{"instruction": f"{row}?", "output_1": "reference", "output_2": "text", "preference": value}]
    for row, value in enumerate([2, 1])
]
SAMPLES = [{"prompt": "a", "completions": ["b", "cc"], "finished": [True, False], "answers": ["b"]}]
PAIRS = [{"question": "a?", "chosen": "yes", "rejected": "no", "subset": "hep-go"}]


def write_rows(path, rows):
    path.write_text(json.dumps(rows))
    return str(path)


def test_nothing_gives_no_metrics():
    assert collect_metrics() == {}


def test_everything_is_collected_in_order(tmp_path):
    tokenizer = tiny_tokenizer()
    models = {
        "reward_model": tiny_reward_model(tokenizer),
        "policy": tiny_causal_lm(tokenizer),
        "reference_policy": tiny_causal_lm(tokenizer, seed=1),
    }
    paths = {name: save(model, tokenizer, tmp_path / name) for name, model in models.items()}
    files = {
        "samples": write_rows(tmp_path / "samples.json", SAMPLES),
        "preferences": write_rows(tmp_path / "pairs.json", PAIRS),
    }
    counts = {"asked": 2, "unreadable": 0}
    metrics = collect_metrics(annotations=ANNOTATIONS[:1], judge_counts=counts, **paths, **files, max_length=50)
    assert list(metrics) == ["win_rate", "judge", "reward_model", "policy"]
    assert metrics["win_rate"] == describe_win_rates(ANNOTATIONS[:1])["win_rate"] and metrics["judge"] == counts

    pairs = reward_bench_pairs(load_rows(files["preferences"]), chat=True)
    reward_model = load_reward_model(paths["reward_model"])
    assert metrics["reward_model"] == describe_reward_model(*reward_model, pairs, max_length=50)

    samples = load_rows(files["samples"])
    policy, reference = (load_policy(paths[name])[0] for name in ("policy", "reference_policy"))
    kl = metrics["policy"].pop("kl")
    assert kl == pytest.approx(kl_to_reference(policy, reference, tokenizer, samples))
    assert metrics["policy"] == describe_outputs(samples, samples["answers"])


def test_metrics_are_written_without_nan(tmp_path):
    path = write_metrics(tmp_path / "new", {"policy": {"kl": math.nan, "finished": 1.0}})
    assert path == tmp_path / "new" / "metrics.json"
    assert json.loads(path.read_text()) == {"policy": {"kl": None, "finished": 1.0}}


def test_a_reference_policy_with_another_tokenizer_is_an_error(tmp_path):
    paths = {}
    for name, offset in (("policy", 0), ("reference_policy", 3)):
        tokenizer = tiny_tokenizer(offset=offset)
        paths[name] = save(tiny_causal_lm(tokenizer), tokenizer, tmp_path / name)
    with pytest.raises(ValueError, match="The tokenizers of the policy and of its reference differ"):
        collect_metrics(samples=write_rows(tmp_path / "samples.json", SAMPLES), **paths)


def test_files_are_checked_when_they_are_loaded(tmp_path):
    samples, pairs = write_rows(tmp_path / "samples.json", SAMPLES), write_rows(tmp_path / "pairs.json", PAIRS)
    assert load_samples(samples)["completions"][:] == [["b", "cc"]]
    assert load_pairs(pairs)["prompt"][:] == ["a?"]
    assert load_pairs(pairs, chat=True)["prompt"][0] == [{"role": "user", "content": "a?"}]
    with pytest.raises(ValueError, match=r"`samples` .*\['prompt', 'completions', 'finished'\]"):
        load_samples(pairs)
    with pytest.raises(ValueError, match=r"`preferences` .*\['chosen', 'rejected'\]"):
        load_pairs(samples)
    with pytest.raises(TypeError, match="`answers` row 0 must be an accepted answer"):
        load_samples(write_rows(tmp_path / "wrong.json", [{**SAMPLES[0], "answers": 3}]))
