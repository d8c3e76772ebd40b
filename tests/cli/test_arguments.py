from dataclasses import dataclass

import pytest

from trl_rlp.cli import main
from trl_rlp.cli.arguments import BUILDERS, EquivalenceArguments, parse
from trl_rlp.data.groups.equivalence import EQUIVALENCES, EmbeddingEquivalence, ExactMatch, NLIEquivalence


def test_every_equivalence_has_a_builder():
    assert list(BUILDERS) == list(EQUIVALENCES)


def test_arguments_reach_the_equivalence(monkeypatch):
    monkeypatch.setattr("trl_rlp.cli.arguments.NLIEquivalence", lambda *args, **kwargs: (NLIEquivalence, args, kwargs))
    monkeypatch.setattr(
        "trl_rlp.cli.arguments.EmbeddingEquivalence", lambda *args, **kwargs: (EmbeddingEquivalence, args, kwargs)
    )
    arguments = {"equivalence_model": "model", "equivalence_rule": "rule", "equivalence_cache": "cache"}
    built = {
        name: EquivalenceArguments(equivalence=name, embedding_threshold=0.5, **arguments).build("float32")
        for name in BUILDERS
    }
    expected = {"rule": "rule", "instruction": "auto", "cache": "cache", "dtype": "float32"}
    assert built["nli"] == (NLIEquivalence, ("model",), expected)
    assert built["embedding"] == (EmbeddingEquivalence, ("model",), {"threshold": 0.5, "dtype": "float32"})
    assert isinstance(built["exact"], ExactMatch)


@pytest.mark.parametrize(("option", "instruction"), [("none", None), ("question", "question"), ("prompt", "prompt")])
def test_the_instruction_is_a_column_or_none(monkeypatch, option, instruction):
    monkeypatch.setattr("trl_rlp.cli.arguments.NLIEquivalence", lambda *args, **kwargs: kwargs["instruction"])
    (arguments,) = parse("prefer", "Makes.", ["--equivalence_instruction", option], EquivalenceArguments)
    assert arguments.build() == instruction


def test_an_embedding_without_a_threshold_is_an_error():
    with pytest.raises(ValueError, match="`embedding` needs `embedding_threshold`"):
        EquivalenceArguments(equivalence="embedding").build()


def test_a_name_without_a_builder_is_an_error(monkeypatch):
    monkeypatch.setitem(EQUIVALENCES, "new", ExactMatch)
    with pytest.raises(ValueError, match=r"must be one of \['embedding', 'exact', 'nli'\], got 'new'"):
        EquivalenceArguments(equivalence="new")


@dataclass
class Options:
    name: str
    rate: float = 0.5
    count: int = 1


def test_options_of_several_dataclasses_come_from_the_command_line_and_the_file(tmp_path):
    (tmp_path / "config.yaml").write_text("name: file\nrate: 1e-5\nequivalence: exact\n")
    words = ["--config", str(tmp_path / "config.yaml"), "--name", "flag", "--count", "3"]
    options, equivalence = parse("reward", "Trains.", words, Options, EquivalenceArguments)
    assert options == Options(name="flag", rate=1e-5, count=3)
    assert equivalence == EquivalenceArguments(equivalence="exact")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("name: file\nrats: 1", r"`trl-rlp reward` has no option `rats` \(in `--config`\)\. Did you mean `rate`\?"),
        ("nam: file", "has no option `nam` .*Did you mean `name`"),  # although `name` is required
        ("name: file\nxyz: 1", "has no option `xyz` .*`trl-rlp reward --help` lists the options"),
    ],
)
@pytest.mark.parametrize("form", ["--config {}", "--config={}"])
def test_an_unknown_key_of_the_file_is_an_error(tmp_path, text, match, form):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=match):
        parse("reward", "Trains.", form.format(tmp_path / "config.yaml").split(), Options)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("--name a --rats 1", r"`trl-rlp reward` has no option `--rats`\. Did you mean `--rate`\?"),
        ("--nmae=a", "has no option `--nmae`. Did you mean `--name`?"),  # although `name` is required
        ("--name a --xyz 1", "has no option `--xyz`. `trl-rlp reward --help` lists the options"),
        ("--conf missing.yaml --name a", "has no option `--conf`. Did you mean `--config`?"),
        ("a", "`trl-rlp reward` does not expect 'a'. Write options as `--name value`"),
        ("--count 1", "required: --name. `trl-rlp reward --help` lists the options"),
        ("--name a --count x", "--count: invalid int value: 'x'"),
        ("--config", "--config: expected one argument"),
    ],
)
def test_a_wrong_option_is_named(words, match):
    with pytest.raises(ValueError, match=match):
        parse("reward", "Trains.", words.split(), Options)


def test_options_may_be_written_with_hyphens_and_abbreviated():
    words = ["--embedding-threshold=0.5", "--equivalence_r", "strict"]
    assert parse("prefer", "Makes.", words, EquivalenceArguments) == (EquivalenceArguments(embedding_threshold=0.5),)


def test_broken_yaml_is_one_line(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("samples: [1\n")
    assert main(["prefer", "--config", str(tmp_path / "config.yaml")]) == 2
    assert "config.yaml is not YAML" in capsys.readouterr().err
