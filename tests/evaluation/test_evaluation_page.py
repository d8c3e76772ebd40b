import re
from pathlib import Path

import trl_rlp.data.judges
import trl_rlp.evaluation
from trl_rlp.evaluation.metrics import METRICS


PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"


def test_snippets_run(capsys):
    for snippet in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S):
        exec(compile(snippet, str(PAGE), "exec"), {})
    lines = capsys.readouterr().out.split("\n")
    assert [float(lines[0]), float(lines[2])] == [0.3, 0.25] and lines[3].startswith("0.666")
    assert float(lines[4]) == 1


def test_names_on_the_page_exist():
    page = PAGE.read_text()
    known = {"judge", *trl_rlp.evaluation.__all__, *trl_rlp.data.judges.__all__}
    for name in re.findall(r"`([a-z_]+)\(", page):
        assert name in known, name
    for name in METRICS:
        assert f"`{name}`" in page
