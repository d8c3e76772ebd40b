import json

import pytest

from trl_rlp.storage.redaction import hide_secrets, remove_secrets


SECRETS = (
    "token",
    "hub_token",
    "HF_TOKEN",
    "push_to_hub_token",
    "use_auth_token",
    "args.hub_token",
    "api_key",
    "apikey",
    "OPENAI_API_KEY",
    "x-api-key",
    "aws_secret_access_key",
    "client_secret",
    "password",
    "Authorization",
)
OTHERS = ("eos_token", "pad_token", "args.stop_token", "add_bos_token", "tokens", "key", "tokenizer", "secretary")


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("value", ["hf_abc", ["hf_abc"], True, None])
def test_secret_entries_are_removed_whatever_their_value_is(name, value):
    """A run without a token is the same as a run with one, so an empty entry goes too."""
    assert remove_secrets({name: value, "seed": 1}) == {"seed": 1}


@pytest.mark.parametrize("name", OTHERS)
def test_tokens_of_a_text_and_other_names_stay(name):
    assert remove_secrets({name: "<s>"}) == {name: "<s>"}
    assert hide_secrets(f"{name}: <s>") == f"{name}: <s>"


def test_a_number_is_no_secret():
    settings = {"bits_per_token": 1.5, "num_per_token": 2}
    assert remove_secrets(settings) == settings


def test_any_depth_is_reached_and_the_given_value_stays():
    value = {
        "rewards": [{"token": "hf_a", "dtype": None}, "text"],
        "pair": ({"api_key": "a"}, 1),
        3: {"password": 0.5},
    }
    expected = {"rewards": [{"dtype": None}, "text"], "pair": ({}, 1), 3: {"password": 0.5}}
    assert remove_secrets(value) == expected and value["rewards"][0]["token"] == "hf_a"


def test_a_json_object_in_a_text_is_a_mapping():
    """A mapping on the command line is JSON, such as `model_init_kwargs` inside `reward_args`."""
    text = json.dumps({"token": "hf_abc", "dtype": "float32"})
    assert remove_secrets({"model_init_kwargs": text}) == {"model_init_kwargs": '{"dtype": "float32"}'}
    for other in ('{"dtype":  "float32"}', "{token}", "{", '{"token": 1'):
        assert remove_secrets(other) == other


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: sft api_key: sk-abc", "model: sft api_key: ***"),
        ("{'hub_token': 'hf_abc', 'seed': 1}", "{'hub_token': '*** 'seed': 1}"),
        ("api_key sk-abc", "api_key ***"),
        ("HF_TOKEN=hf_abc", "HF_TOKEN=***"),
        ("Authorization: Bearer sk-abc", "Authorization: ***"),
        ("x-api-key: sk-abc", "x-api-key: ***"),
        ("found a character that cannot start any token in line 2", None),
        ("the token <s> and the secret number", None),
    ],
)
def test_a_text_shows_the_names_of_secrets_only(text, expected):
    assert hide_secrets(text) == (text if expected is None else expected)
