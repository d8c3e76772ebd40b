import json

import pytest

from tests.tiny_models import save, tiny_causal_lm, tiny_nli, tiny_reward_model, tiny_tokenizer


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folders of a policy, a reward model and an NLI model with random weights."""
    tokenizer = tiny_tokenizer()
    folder = tmp_path_factory.mktemp("models")
    return {
        "policy": save(tiny_causal_lm(tokenizer), tokenizer, folder / "policy"),
        "reward": save(tiny_reward_model(tokenizer), tokenizer, folder / "reward"),
        "nli": save(tiny_nli(tokenizer), tokenizer, folder / "nli"),
    }


@pytest.fixture
def write_rows(tmp_path):
    """Returns a function that writes rows to a JSON Lines file and returns its path."""

    def write(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return write


@pytest.fixture
def samples(write_rows):
    completions = ["yes ", "yes.", "yes", "no", ""]
    rows = [{"prompt": f"{i}?", "completions": completions, "finished": [True] * 5} for i in range(4)]
    return write_rows("samples.jsonl", rows)


@pytest.fixture
def preferences(write_rows):
    return write_rows("preferences.jsonl", [{"prompt": f"{i}?", "chosen": "yes", "rejected": "no!"} for i in range(8)])
