"""Reports of whole folders, and what a real browser makes of hostile texts."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from tests.report.run_folders import build_samples, write_lines, write_log, write_run
from trl_rlp import write_report
from trl_rlp.report import page as page_module
from trl_rlp.report import plots
from trl_rlp.report.contents_reader import read_contents
from trl_rlp.report.elements import Image
from trl_rlp.report.run_report import build_sections
from trl_rlp.storage.artifacts import save_data
from trl_rlp.storage.json_files import write_json


ATTACK = "document.title = 'hacked'"
PAYLOADS = (
    f"<script>{ATTACK}</script>",
    f"</script><script>{ATTACK}</script>",
    f'--><img src=x onerror="{ATTACK}"><svg onload="{ATTACK}">',
    f'\'"><a href="javascript:{ATTACK}">x</a><style>body {{ display: none }}</style><!-- <script>',
)
HOSTILE = (
    *PAYLOADS,
    "\x1b[31mred\x1b[0m",
    "\u202etxet \u2066isolated",
    "half \ud83d surrogate",
    "nul \x00 and \u2028 line",
    "{{ 7 * 7 }} ${7 * 7} $\\frac{1}{2}$",
    "long " + "x" * 1_000_000,
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)


@pytest.fixture(scope="module", autouse=True)
def quick_plots():
    """Replaces the drawing of plots, which test_plots.py tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "render_svg", lambda figure, title: Image("<svg/>", title))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("report") / "run")


def test_a_run_has_every_part(run):
    assert list(build_sections(read_contents(run))) == [
        "run",
        "policies",
        "reward_models",
        "policy_curves",
        "reward_curves",
        "acceptance",
        "lengths",
        "prompts",
        "samples",
    ]


def test_equal_folders_give_equal_reports_and_the_default_place_is_the_folder(run, tmp_path):
    page = write_report(run)
    assert page == run / "report.html"
    assert write_report(str(run), tmp_path / "new" / "page.html").read_bytes() == page.read_bytes()
    page.unlink()


def test_the_page_has_the_name_of_the_folder_and_not_its_path(tmp_path):
    write_lines(tmp_path / "mine" / "samples.jsonl", build_samples().to_list())
    text = write_report(tmp_path / "mine").read_text(encoding="utf-8")
    assert "What the folder &#39;mine&#39; holds." in text and str(tmp_path) not in text


def list_places(value, place=()):
    """Lists the places of all values. Of a list, the last one stands for all."""
    yield place
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else enumerate(value[-1:], len(value) - 1)
        for key, part in parts:
            yield from list_places(part, (*place, key))


def put(value, place, new):
    if not place:
        return new
    value = value.copy()
    value[place[0]] = put(value[place[0]], place[1:], new)
    return value


def test_places_of_values():
    value = {"a": [1, {"b": 2}]}
    assert list(list_places(value)) == [(), ("a",), ("a", 1), ("a", 1, "b")]
    assert put(value, ("a", 1, "b"), 3) == {"a": [1, {"b": 3}]} and value["a"][1] == {"b": 2}


@pytest.mark.slow
@pytest.mark.parametrize("new", [None, "x", -1, []], ids=str)
def test_every_wrong_value_is_no_error_or_one_line_with_the_file(run, tmp_path, new):
    shutil.copytree(run, tmp_path / "run")
    for file in sorted((tmp_path / "run").rglob("*.json")):
        value = json.loads(text := file.read_text())
        for place in list_places(value) if file.parent.name != "data" else ():
            file.write_text(json.dumps(put(value, place, new)))
            try:
                write_report(tmp_path / "run", tmp_path / "page.html")
            except ValueError as error:
                assert str(file) in str(error) and "\n" not in str(error), place
        file.write_text(text)


def test_a_part_appears_only_with_its_data(tmp_path):
    write_lines(tmp_path / "samples" / "samples.jsonl", build_samples().to_list())
    assert list(build_sections(read_contents(tmp_path / "samples"))) == ["run", "prompts"]
    write_log(tmp_path / "trainer", [{"step": 1, "completions/mean_length": 2.0, "kl": 0.1}])
    assert list(build_sections(read_contents(tmp_path / "trainer"))) == ["run", "policy_curves"]
    (tmp_path / "evaluation").mkdir()
    write_json(tmp_path / "evaluation" / "metrics.json", {"policy": {"outputs": 2}})
    assert list(build_sections(read_contents(tmp_path / "evaluation"))) == ["run", "policy_samples"]


def test_a_further_round_has_its_own_sections(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    for name in ("policy_samples", "groups", "synthetic_preferences", "gate"):
        shutil.copytree(run / name, tmp_path / "run" / f"{name}_2")
    sections = build_sections(read_contents(tmp_path / "run"))
    assert sections["prompts_2"].title == "Prompts, groups and pairs (round 2)"
    assert {"reward_models_2", "acceptance_2"} <= set(sections)


def test_a_folder_as_the_output_is_an_error_before_any_work(tmp_path):
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match="`output` .* is a folder. Pass the name of a file, such as '.*report.html'"):
        write_report(tmp_path, tmp_path)


def test_a_report_above_the_limit_is_sampled_and_says_so(tmp_path, monkeypatch, caplog):
    samples = build_samples(200)
    write_lines(tmp_path / "samples.jsonl", samples.to_list())
    monkeypatch.setattr(page_module, "MAX_BYTES", 26_000)
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert len(text.encode()) <= 26_000
    (shown,) = re.findall(r"(\d+) of 200 rows are on this page, drawn at random \(seed 0\)", text)
    assert 50 < int(shown) < 200 and f"{shown} of 200 rows" in caplog.text
    assert len(json.loads(find_rows(text, "prompts"))["rows"]) == int(shown)


def find_rows(text, name):
    return re.search(rf'<script type="application/json" id="rows-{name}">(.*?)</script>', text)[1]


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory):
    """A report in which every text and every name is hostile: prompts, completions, policies, settings and metrics."""
    folder = tmp_path_factory.mktemp("hostile") / f"run {PAYLOADS[0].replace('/', '')}"
    samples = build_samples(60, words=PAYLOADS)
    write_run(folder, samples, [[PAYLOADS[0]]] * 60)
    policy = folder / "evaluation" / PAYLOADS[2].replace("/", "")
    save_data(samples, policy)
    write_json(policy / "rewards.json", {PAYLOADS[0]: [[0.5] * 4] * 60})
    settings = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**settings, **{text[:80]: text for text in HOSTILE}}))
    entry = {f"rewards/{text[:60].replace('/', '')}/mean": 0.5 for text in HOSTILE[3:8]}
    (folder / "policy" / "trainer_state.json").write_text(
        json.dumps({"log_history": [{"step": 1, "completions/mean_length": 2.0, **entry}]})
    )
    rows = [{"prompt": text, "completions": list(HOSTILE), "finished": [True] * len(HOSTILE)} for text in HOSTILE]
    rows += [{"prompt": f"needle {row}", "completions": ["a"], "finished": [True]} for row in range(110)]
    write_lines(folder / "samples.jsonl", rows)
    return write_report(folder).read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Collects the elements of a page and the text of its title."""

    def __init__(self, text):
        super().__init__()
        self.found, self.title, self._is_title = [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self._is_title = tag == "title"

    def handle_data(self, data):
        self.title += data if self._is_title else ""
        self._is_title = False

    def count(self, tag):
        return sum(name == tag for name, _ in self.found)


def test_hostile_texts_are_no_markup(hostile_page):
    elements = Elements(hostile_page)
    for _, attributes in elements.found:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        assert attributes.get("href", "#").startswith("#") and attributes.get("src", "data:image").startswith(
            "data:image"
        )
    rows = [attributes for tag, attributes in elements.found if tag == "script" and attributes]
    assert elements.count("script") == len(rows) + 1 and elements.count("style") == 1
    assert all(attributes["type"] == "application/json" for attributes in rows)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u2028\u2029\u202a-\u202e\u2066-\u2069]", hostile_page)
    shown = {row[0] for row in json.loads(find_rows(hostile_page, "prompts_2"))["rows"]}
    assert {
        *PAYLOADS,
        "⟨U+001B⟩[31mred⟨U+001B⟩[0m",
        "⟨U+202E⟩txet ⟨U+2066⟩isolated",
        "half ⟨U+D83D⟩ surrogate",
    } <= shown
    assert "nul ⟨U+0000⟩ and ⟨U+2028⟩ line" in shown
    assert max(map(len, shown)) < 20_100 and any(text.endswith("[cut here: 1,000,005 characters]") for text in shown)


DRIVER = """
const table = document.querySelector('[data-rows="rows-prompts_2"]');
const results = { hacked: document.title, start: table.querySelector(".count").textContent };
const search = table.querySelector("input");
search.value = "NEEDLE";
search.dispatchEvent(new Event("input"));
setTimeout(() => {
  results.search = table.querySelector(".count").textContent;
  table.querySelector("button.next").click();
  results.next = table.querySelector(".count").textContent;
  table.querySelector("button.sort").click();
  table.querySelector("button.sort").click();
  results.first = table.querySelector("tbody .value").textContent;
  table.querySelector("button.open").click();
  results.detail = table.querySelectorAll("tr.detail dd").length;
  const first = document.querySelector('[data-rows="rows-prompts"]');
  const status = first.querySelector("select");
  status.value = "pair";
  status.dispatchEvent(new Event("change"));
  results.status = first.querySelector(".count").textContent;
  const shown = document.createElement("pre");
  document.body.append(Object.assign(shown, { id: "driver", textContent: JSON.stringify(results) }));
}, 300);
"""


def browse(path, text):
    """Opens a page in Chromium. Returns the elements and the text of the page after its scripts."""
    path.write_text(text, encoding="utf-8")
    words = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom"]
    words += [f"--user-data-dir={path.parent / 'profile'}", path.as_uri()]
    shown = subprocess.run(words, capture_output=True, timeout=120, check=True).stdout.decode("utf-8")
    return Elements(shown), shown


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium or google-chrome on the PATH")
def test_a_browser_runs_no_text_of_a_run(hostile_page, tmp_path):
    """
    The page gets the payloads as raw markup too, as if escaping had failed. With the policy of the page, none of them
    runs. Without it, they change the title, so the test would notice.
    """
    raw = hostile_page.replace("</body>", "".join(PAYLOADS[:3]) + "</body>")
    elements, shown = browse(tmp_path / "safe.html", raw)
    assert elements.title.startswith("Report: run") and "hacked" not in elements.title.replace(ATTACK, "")
    assert "rows 1–50 of 120" in shown

    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    elements, shown = browse(
        tmp_path / "open.html", policy.sub("", raw).replace("</body>", f"<script>{DRIVER}</script></body>")
    )
    results = json.loads(re.search(r'<pre id="driver">(.*?)</pre>', shown)[1].replace("&amp;", "&"))
    assert results["hacked"] == "hacked"
    assert results["start"] == "rows 1–50 of 120"
    assert results["search"] == "rows 1–50 of 110 found in 120"
    assert results["next"] == "rows 51–100 of 110 found in 120"
    assert results["first"] == "needle 99" and results["detail"] >= 2
    assert re.fullmatch(r"rows 1–\d+ of \d+ found in 60", results["status"])
