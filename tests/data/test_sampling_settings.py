import pytest

from trl_rlp.data.sampling_settings import END_SETTINGS, require_settings, require_shared_ends, require_stop


def test_the_papers_settings_pass():
    paper = {"num_generations": 10, "temperature": 1, "top_p": 1, "top_k": 0, "max_new_tokens": 256}
    assert require_settings(**paper, seed=0, shard_size=1) is None


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("num_generations", 1, "`num_generations` must be at least 2, because RLP compares completions .* Got 1"),
        ("temperature", 0.0, r"`temperature` must be above 0 .* Got 0\.0"),
        ("temperature", float("nan"), "Got nan"),
        ("temperature", float("inf"), "Got inf"),
        ("top_p", 0, r"`top_p` must be in \(0, 1\]"),
        ("top_p", 1.01, r"Got 1\.01"),
        ("top_k", -1, "`top_k` must be at least 0"),
        ("max_new_tokens", 0, "`max_new_tokens` must be at least 1 token"),
        ("seed", -1, "`seed` must be at least 0"),
        ("tokens_per_batch", 0, "try 8192"),
        ("shard_size", 0, "`shard_size` must be at least 1 prompt"),
        ("max_concurrency", 0, "`max_concurrency` must be at least 1 request"),
        ("max_retries", -1, "`max_retries` must be at least 0"),
    ],
)
def test_values_out_of_range_are_errors(name, value, match):
    with pytest.raises(ValueError, match=match):
        require_settings(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("num_generations", 2.0), ("seed", "1"), ("temperature", None), ("top_k", True)]
)
def test_values_of_the_wrong_type_are_errors(name, value):
    with pytest.raises(TypeError, match=f"`{name}` must be an? (integer|number), got {value!r}"):
        require_settings(**{name: value})


@pytest.mark.parametrize("name", END_SETTINGS)
def test_settings_that_end_completions_in_training_only_are_errors(name):
    require_shared_ends(None, "`run_rlp`")
    require_shared_ends({"repetition_penalty": 1.1}, "`run_rlp`")
    with pytest.raises(
        ValueError, match=rf"`generation_kwargs` sets \['{name}'\], .* but `run_rlp` samples the policy"
    ):
        require_shared_ends({name: 1, "repetition_penalty": 1.1}, "`run_rlp`")


def test_completions_must_be_able_to_finish():
    require_stop(None)
    require_stop([5])
    with pytest.raises(ValueError, match="`stop_token`=None lets no completion finish"):
        require_stop([])
