import re
from pathlib import Path

import trl_rlp
from trl_rlp.evaluation.metrics import METRICS


PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"


def test_the_snippets_run(capsys):
    for snippet in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S):
        exec(compile(snippet, str(PAGE), "exec"), {})
    said = capsys.readouterr().out.split("\n")
    assert [float(said[0]), float(said[2])] == [0.3, 0.25] and said[3].startswith("0.666")


def test_every_name_on_the_page_is_there():
    page = PAGE.read_text()
    for name in re.findall(r"`([a-z_]+)\(", page):
        assert name in trl_rlp.__all__ or name in ("judge", "metric_path"), name
    for name in METRICS:
        assert f"`{name}`" in page
