import re
from pathlib import Path

from tests.tiny_models import save, tiny_causal_lm, tiny_tokenizer
from trl_rlp.trainer.reward.representation_log import SKIPPED, TERMS


PAGE = Path(__file__).parents[3] / "docs" / "rlp_reward_trainer.md"


def test_the_snippet_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer()
    save(tiny_causal_lm(tokenizer), tokenizer, tmp_path / "sft_model")
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    exec(compile(snippet, str(PAGE), "exec"), {})
    assert (tmp_path / "refined" / "final" / "model.safetensors").is_file()


def test_the_page_names_every_logged_term():
    for name in (*TERMS, SKIPPED):
        assert f"`{name}`" in PAGE.read_text(), name
