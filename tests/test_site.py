"""The reference has every public name, and the hooks of `.mkdocs` do what they say. `make docs` builds the site."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

import trl_rlp
from tests.test_public_names import ROOMS


ROOT = Path(__file__).parents[1]
REFERENCE = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs/reference").glob("*.md")}


def load_hook(name: str):
    """Loads a module of `.mkdocs`, which is no package."""
    pytest.importorskip("mkdocstrings", reason="the extra `docs` is not installed")
    spec = importlib.util.spec_from_file_location(f"site_{name}", ROOT / ".mkdocs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("room", ROOMS)
def test_the_reference_has_every_room(room):
    """A page shows all names of a room, and the first page links to each of them. `make docs` checks these links."""
    pages = [name for name, page in REFERENCE.items() if re.search(rf"^::: {re.escape(room)}$", page, flags=re.M)]
    assert len(pages) == 1
    names = importlib.import_module(room).__all__
    missing = [name for name in names if f"[`{name}`]({pages[0]}#{room}.{name})" not in REFERENCE["index.md"]]
    assert missing == []


def test_the_reference_has_every_name_of_the_package():
    shown = re.findall(r"\[`(\w+)`\]\(", REFERENCE["index.md"])
    assert set(trl_rlp.__all__) <= set(shown) and len(shown) == len(set(shown))


def test_links_to_files_outside_the_docs_become_copies():
    files = load_hook("repository_files")
    assert files.find_path("../examples/scripts/ppo.py", "ppo_trainer.md") == "examples/scripts/ppo.py"
    assert files.find_path("docs/gate.md", "changelog.md") == "docs/gate.md"
    assert (
        files.find_path("../configs/paper.yaml", "source/examples/notebooks/a.ipynb.md")
        == "examples/configs/paper.yaml"
    )
    assert files.find_uri("examples/scripts/ppo.py") == "source/examples/scripts/ppo.py.md"
    assert files.find_uri("docs/gate.md") == "gate.md"
    assert files.find_uri("CHANGELOG.md") == "changelog.md"
    assert files.LINK.findall("[a](b.md#c) [d](https://e.f) [g](#h)") == ["b.md"]


@pytest.mark.parametrize(
    ("text", "loads"),
    [
        ('<script src="https://a.b/c.js"></script>', True),
        ('<link href="//a.b/c.css" rel="stylesheet">', True),
        ("@import url(https://a.b/c.css);", True),
        ("a { background: url('http://a.b/c.png') }", True),
        ('<img alt="" src=http://a.b/c.png>', True),
        ('<a href="https://a.b">c</a> <img src="c.png">', False),
        ('<svg xmlns="http://www.w3.org/2000/svg"></svg> url(data:image/svg+xml,a)', False),
    ],
)
def test_what_loads_from_another_host_is_found(text, loads):
    assert bool(load_hook("checks").LOADS.search(text)) == loads


def test_docstrings_become_what_griffe_reads():
    docstrings = load_hook("docstrings")
    paths = {"score": "trl_rlp.data.score"}
    assert docstrings.link("", "score", paths) == "[`score`][trl_rlp.data.score]"
    assert docstrings.link("~", "trl.RewardTrainer", paths) == "`RewardTrainer`"
    assert docstrings.LINK.findall("[`score`], [`~trl.A`], [`b`](c.md), [`d`][e]") == [("", "score"), ("~", "trl.A")]


def test_formulas_become_mathml():
    text = load_hook("formulas").on_page_content(
        '<span class="arithmatex">\\(x_1 &lt; 2\\)</span>', page=None, config=None, files=None
    )
    assert text.startswith('<span class="formula"><math') and "<msub>" in text and "arithmatex" not in text


def test_words_in_formulas_are_upright():
    hook = load_hook("formulas")
    latex = r"\max clip(x_{ij}) \pi_{old} KL \text{ and } \mathcal{L}"
    expected = r"\max \text{clip}(x_{ij}) \pi_{\text{old}} \text{KL} \text{ and } \mathcal{L}"
    assert hook.WORD.sub(hook.set_word, latex) == expected


def test_symbols_in_text_get_subscripts_and_code_stays():
    def convert(text):
        return load_hook("formulas").on_page_content(text, page=None, config=None, files=None)

    assert convert("<p>y_w and (π_SFT)</p>") == "<p>y<sub>w</sub> and (π<sub>SFT</sub>)</p>"
    unchanged = '<a href="a.html#y_w"><code>y_w</code></a> <pre><code>y_l --a trl-rlp</code></pre> policy_l, y_word'
    assert convert(unchanged) == unchanged


def test_names_in_code_and_intervals_stay_on_one_line():
    text = load_hook("formulas").on_page_content(
        "<code>trl-rlp run --engine_args x</code> .1 ± .2 [-.1, +.2]", page=None, config=None, files=None
    )
    whole = '<code><span class="whole">trl-rlp</span> run <span class="whole">--engine_args</span> x</code>'
    assert text == f"{whole} .1\u00a0±\u00a0.2 [-.1,\u00a0+.2]"


def test_pages_of_tables_have_an_introduction():
    """A page that a script writes begins with the seeds, so the site puts a sentence before it."""
    introductions = load_hook("table_pages").INTRODUCTIONS
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs/laboratory").rglob("*.md")}
    assert set(introductions) == pages


def test_llms_txt_describes_a_page_by_its_first_two_sentences():
    find = load_hook("llms_txt").find_description
    page = "# Title\n\n```python\nx\n```\n\n**The [first](a.md)\none (Eq. 1).** A second. A third.\n"
    assert find(page) == "The first one (Eq. 1). A second."
