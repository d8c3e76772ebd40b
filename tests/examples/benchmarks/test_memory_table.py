import runpy
from pathlib import Path


ROOT = Path(__file__).parents[3]


def test_the_tables_are_those_of_the_page():
    tables = runpy.run_path(str(ROOT / "examples/benchmarks/memory_table.py"))["build_tables"]()
    page = (ROOT / "docs/memory.md").read_text(encoding="utf-8")
    assert tables in page, f"Write the tables like this:\n\n{tables}"
