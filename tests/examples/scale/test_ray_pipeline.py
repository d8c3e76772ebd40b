import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from tests.tiny_models import save, tiny_reward_model, tiny_talker, tiny_tokenizer
from trl_rlp import ExactMatch, Group, Label, cluster, load_reward_model, synthesize_preferences


SCRIPT = Path(__file__).parents[3] / "examples/scale/ray_pipeline.py"
PROMPTS = [f"{row} + 1 =" for row in range(6)]
DECISIONS = ["sample_row", "prompt", "chosen", "rejected", "confidence", "chosen_finished", "rejected_finished"]


@pytest.fixture(scope="module")
def program():
    """The program as a module. It imports Ray only when it starts Ray."""
    spec = importlib.util.spec_from_file_location("ray_pipeline", SCRIPT)
    module = sys.modules["ray_pipeline"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["ray_pipeline"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("models"), tiny_tokenizer()
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    return {
        "policy": save(tiny_talker(tokenizer, ["4", "5", "6"], steps=60), tokenizer, folder / "policy"),
        "reward_model": save(tiny_reward_model(tokenizer), tokenizer, folder / "reward"),
        "prompts": str(folder / "prompts.jsonl"),
    }


@pytest.fixture
def args(program, models, tmp_path):
    sizes = {"num_generations": 8, "max_new_tokens": 3, "threshold": 0.25, "block_size": 4, "batch_size": 2}
    return program.PipelineArguments(**models, output_dir=str(tmp_path / "run"), **sizes)


def number_prompts():
    return pa.table({"prompt": PROMPTS, "sample_row": list(range(len(PROMPTS)))})


def run_locally(samples, reward_model):
    """Runs the stages without Ray, on the samples of a run."""
    groups = cluster(samples, ExactMatch(), threshold=0.25)
    model, tokenizer = load_reward_model(reward_model)
    options = {"reward_model": model, "reward_processing_class": tokenizer, "threshold": 0.25}
    return synthesize_preferences(groups, "spg", **options)[0]


def test_the_steps_of_the_program_give_the_pairs_of_a_local_run(program, args):
    """The steps without Ray, on the batches that Ray would pass."""
    table, sample = number_prompts(), program.Sample(args)
    parts = [sample(table.slice(start, 2)) for start in (0, 2, 4)]
    again = [program.Sample(args)(table.slice(start, 2)) for start in (4, 0, 2)]
    assert [again[1], again[2], again[0]] == parts
    group, label = Group(ExactMatch(), threshold=0.25), Label(args.reward_model, threshold=0.25, seed=0)
    pairs = pa.concat_tables([label(group(part)) for part in parts])
    expected = run_locally(Dataset(pa.concat_tables(parts)), args.reward_model)
    assert pairs.select(DECISIONS).to_pylist() == expected.select_columns(DECISIONS).to_list()
    assert 0 < len(expected) and expected["sample_row"][:] == pairs["sample_row"].to_pylist()


def test_vllm_gets_one_request_for_each_sample_and_its_answers_come_together(program, args):
    """Ray's vLLM engine returns token ids of one completion, and not why it ended."""
    requests = program.Requests(args)(number_prompts()).to_pylist()
    assert len(requests) == 6 * 8 and len({request["seed"] for request in requests}) == 6 * 8
    asked = [program.build_request(request, args) for request in requests]
    assert {row["sampling_params"]["seed"] for row in asked} == {request["seed"] for request in requests}
    assert all(row["sampling_params"].get("n", 1) == 1 for row in asked)
    tokenizer = tiny_tokenizer()
    answers = []
    for row in asked[8:16]:
        tokens = [*tokenizer(str(row["sample"]))["input_ids"], *([tokenizer.eos_token_id] * (row["sample"] % 2))]
        answer = {**row, "generated_tokens": tokens, "prompt_token_ids": row["tokenized_prompt"]}
        answers.append(program.read_answer(answer))
    (row,) = program.Collect(args)(pa.Table.from_pylist(answers[::-1])).to_pylist()
    assert row["prompt"] == PROMPTS[1] and row["sample_row"] == 1
    assert row["completions"] == list("01234567") and row["finished"] == [False, True] * 4


def test_an_interrupted_write_starts_again(program, tmp_path):
    class Rows:
        def write_parquet(self, folder):
            pq.write_table(pa.table({"sample_row": [0, 1]}), f"{folder}/new.parquet")

    pq.write_table(pa.table({"sample_row": [5]}), tmp_path / "old.parquet")
    assert program.write_result(tmp_path, lambda source: Rows(), None) == {"rows": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["new.parquet"]


def test_results_are_read_in_the_order_of_the_prompts(program, tmp_path):
    for block, rows in enumerate([[1, 0], [], [3, 2]]):
        (tmp_path / f"pairs-{block:05d}").mkdir()
        if rows:
            pq.write_table(pa.table({"sample_row": rows}), tmp_path / f"pairs-{block:05d}/part.parquet")
    (tmp_path / "pairs-00003.partial").mkdir()
    assert program.read_rows(tmp_path, "pairs")["sample_row"][:] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="has no groups"):
        program.read_rows(tmp_path, "groups")


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ({"engine": "llama"}, r"`--engine` must be one of \['vllm', 'transformers', 'server'\], got 'llama'"),
        ({"engine": "server"}, "`--engine server` needs `--base_url`"),
        ({"base_url": "http://localhost"}, "the other engines take none"),
    ],
)
def test_invalid_arguments_raise(program, models, overrides, match):
    with pytest.raises(ValueError, match=match):
        program.PipelineArguments(**models, output_dir="run", **overrides)


def test_missing_ray_is_one_clear_line(program, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"Ray is not installed. Run `pip install \"trl-rlp\[ray\]\"`"):
        program.import_ray()


def test_a_node_with_another_version_is_one_clear_line(program):
    class Ray:
        """A cluster of one node, whose tasks run here."""

        class util:
            class scheduling_strategies:
                NodeAffinitySchedulingStrategy = staticmethod(lambda *_, **__: None)

        def __init__(self, version):
            self.version = version

        def nodes(self):
            return [{"Alive": True, "NodeID": "a", "NodeManagerHostname": "worker-1"}, {"Alive": False}]

        def remote(self, **options):
            return lambda find_version: type("Task", (), {"remote": lambda task: find_version()})()

        def get(self, found):
            return [self.version or version for version in found]

    program.require_same_version(Ray(None))
    with pytest.raises(RuntimeError, match="The Ray node worker-1 has trl_rlp 0.0.1, but this process has"):
        program.require_same_version(Ray("0.0.1"))


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("prompts.jsonl", "`prompt_rows` was"),
        ("policy/model.safetensors", "`policy_files` was"),
        ("reward/model.safetensors", "`reward_model_files` was"),
    ],
)
def test_other_content_under_the_same_path_is_another_run(program, models, tmp_path, monkeypatch, path, change):
    monkeypatch.setattr(program, "Pipeline", lambda args: SimpleNamespace(sample=None))
    monkeypatch.setattr(program.RunFolder, "stage", lambda *arguments, **options: 1 / 0)
    copied = shutil.copytree(Path(models["policy"]).parent, tmp_path / "models")
    paths = {"policy": "policy", "reward_model": "reward", "prompts": "prompts.jsonl"}
    paths = {name: str(copied / part) for name, part in paths.items()}
    args = program.PipelineArguments(**paths, output_dir=str(tmp_path / "run"))
    with pytest.raises(ZeroDivisionError):
        program.main(args)
    (copied / path).write_text('{"prompt": "1 + 1 ="}\n')
    with pytest.raises(ValueError, match=f"holds a run with other settings: {change}"):
        program.main(args)


@pytest.mark.slow
def test_the_program_runs_on_a_local_ray_and_resumes(program, args, capsys):
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(program)  # the workers cannot import it
    try:
        program.main(args)
        folder = Path(args.output_dir)
        pairs = program.read_rows(folder, "pairs")
        expected = run_locally(program.read_rows(folder, "samples"), args.reward_model)
        assert pairs.select_columns(DECISIONS).to_list() == expected.select_columns(DECISIONS).to_list()
        made = (folder / "samples-00000/stage.json").stat().st_mtime_ns
        (folder / "pairs-00001").rename(folder / "pairs-00001.partial")
        program.main(args)
        assert program.read_rows(folder, "pairs").to_list() == pairs.to_list()
        assert (folder / "samples-00000/stage.json").stat().st_mtime_ns == made
    finally:
        ray.shutdown()
