from pathlib import Path

from trl_rlp.report.rows import Rows
from trl_rlp.report.run_contents import RunContents


def test_settings_and_policies_alone_are_nothing_to_report():
    """Both belong to stages. A folder with nothing else holds no run."""
    assert not RunContents(Path("run"), settings={"run.json": {}}, anchors=Rows([])).has_parts()
    assert RunContents(Path("run"), anchors=Rows([{"prompt": "a"}])).has_parts()
    assert RunContents(Path("run"), missing=["The run has not finished."]).has_parts()
