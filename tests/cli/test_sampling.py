import re

import pytest

from trl_rlp.cli.model_arguments import InferenceArguments
from trl_rlp.cli.sampling import SamplingArguments, require_effect
from trl_rlp.cli.server_arguments import ServerArguments
from trl_rlp.storage.loading import load_rows


def test_prompts_come_from_any_column(write_rows):
    path = write_rows("prompts.jsonl", [{"instruction": "a", "topic": 1}])
    assert SamplingArguments(prompt_column="instruction").load_prompts(path).to_list() == [{"prompt": "a", "topic": 1}]
    assert SamplingArguments(prompt_column="topic").load_prompts(path)["prompt"][:] == [1]
    with pytest.raises(ValueError, match=r"`prompt_column`='prompt' names no column of `prompts`, which has \['instr"):
        SamplingArguments().load_prompts(path)
    path = write_rows("both.jsonl", [{"instruction": "a", "prompt": "b"}])
    assert SamplingArguments().load_prompts(path)["prompt"][:] == ["b"]
    with pytest.raises(ValueError, match="`prompts` has a column 'prompt' besides `prompt_column`='instruction'"):
        SamplingArguments(prompt_column="instruction").load_prompts(path)


def test_the_samples_are_written_and_returned(tmp_path, models, write_rows, capsys):
    sampling = SamplingArguments(num_generations=2, max_new_tokens=4)
    prompts = sampling.load_prompts(write_rows("prompts.jsonl", [{"prompt": "a?"}]))
    engine = sampling.choose_engine(ServerArguments().connection())
    assert engine == {"engine": "transformers", "engine_args": {}, "tokens_per_batch": None}
    samples = sampling.sample(prompts, models["policy"], engine, InferenceArguments(), tmp_path / "out")
    assert load_rows(tmp_path / "out" / "samples.jsonl").to_list() == samples.to_list()
    assert capsys.readouterr().out.startswith("2 completions, ")


def test_wrong_settings_are_found_before_any_work():
    with pytest.raises(ValueError, match="`max_new_tokens` must be at least 1"):
        SamplingArguments(max_new_tokens=0).choose_engine({})
    with pytest.raises(ValueError, match="`num_generations` must be at least 2"):
        SamplingArguments(num_generations=1).choose_engine({})
    with pytest.raises(ValueError, match="`engine`='server' needs the address of the server"):
        SamplingArguments(engine="server").choose_engine({})


def test_an_option_that_nothing_reads_is_an_error():
    require_effect(SamplingArguments(), "without `model`")
    with pytest.raises(ValueError, match=re.escape("`top_p` has no effect without `model`. Remove it.")):
        require_effect(SamplingArguments(top_p=0.5), "without `model`")
