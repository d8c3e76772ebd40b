import pytest

from trl_rlp.cli.config_file import read_config


def write(folder, text: str | bytes) -> str:
    path = folder / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_numbers_with_an_exponent_are_numbers_and_dates_are_text(tmp_path):
    text = "a: 1e-4\nb: 3E5\nc: -.5e+2\nd: 1945-09-02\ne: {f: [2e-1, 1e, e5, 1.5, 3]}\nn: null\n"
    assert read_config(write(tmp_path, text)) == {
        "a": 1e-4,
        "b": 3e5,
        "c": -50.0,
        "d": "1945-09-02",
        "e": {"f": [0.2, "1e", "e5", 1.5, 3]},
        "n": None,
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_may_have_a_byte_order_mark(tmp_path, encoding):
    assert read_config(write(tmp_path, "name: é\n".encode(encoding))) == {"name": "é"}


def test_a_merged_mapping_may_be_overridden(tmp_path):
    text = "a: &base {x: 1, y: 2}\nb:\n  <<: *base\n  x: 3\n"
    assert read_config(write(tmp_path, text))["b"] == {"x": 3, "y": 2}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: [1\n", "is not YAML .* Write `name: value`, one per line."),
        ("a:\n\tb: 1\n", "Indent with spaces, because YAML allows no tabs"),
        ("a: 1\nb: 2\na: 3\n", "`a` appears twice"),
        ("a: {b: 1, b: 2}\n", "`b` appears twice"),
        ("", "is empty. Write `name: value`"),
        ("- a\n", r"is not a mapping, but holds \"\['a'\]\""),
        ("text", "is not a mapping, but holds 'text'"),
        ("1: a\n", "has the key 1, which is not the name of an option"),
        ("on: a\n", "has the key True, which"),
        (b"a: \xff\n", "is not YAML"),
        ("a: 1\n---\nb: 2\n", "is not YAML"),
        ("a: !!python/object:os.system x\n", "is not YAML"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path, text, match):
    with pytest.raises(ValueError, match=rf"(?s)`--config` .*config.yaml {match}|config.yaml .*{match}"):
        read_config(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`--config` .*no.yaml cannot be read \(No such file"):
        read_config(str(tmp_path / "no.yaml"))


def test_the_path_may_begin_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, "a: 1\n")
    assert read_config("~/config.yaml") == {"a": 1}
