"""Policy files that mean harm, or are broken: an error in one line that names the file, soon, and no other exception."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpmesh import cli, config
from dpmesh.errors import ConfigError
from dpmesh.policy import Policy, bounded_yaml


def laughs(line: str) -> str:
    """Nine levels of ten aliases each: a billion values in a kilobyte."""
    return "a0: &a0 {x: 1}\n" + "".join(
        line.format(number=number, aliases=",".join([f"*a{number - 1}"] * 10)) for number in range(1, 10)
    )


HARM = {
    "aliases of aliases": (laughs("a{number}: &a{number} [{aliases}]\n"), "values"),
    "merges of merges": (laughs("a{number}: &a{number}\n  <<: [{aliases}]\n"), "values"),
    "deep lists": ("[" * 1_000, "nested"),
    "deep mappings": ("{a: " * 150 + "}" * 150, "nested"),
    "deep blocks": ("a:\n" + "".join(" " * depth + "a:\n" for depth in range(1, 150)), "nested"),
    "a value in itself": ("&a {fields: *a}", "nested"),
    "a list in itself": ("fields: &a [*a]", "nested"),
}
BROKEN = {
    "no such date": "fields: {a.B.c: {numeric: {lower: 2001-99-99}}}",
    "a date as a name": "fields: {2001-01-01: {public: {}}}",
    "thousands of digits": f"fields: {{a.B.c: {{numeric: {{lower: {'9' * 5000}}}}}}}",
    "hundreds of digits": f"fields: {{a.B.c: {{numeric: {{lower: {'9' * 400}}}}}}}",
    "half a character": 'fields: {"\\ud800": {public: {}}}',
    "no boolean": "fields: !!bool perhaps",
    "no time": "fields: !!timestamp never",
    "a Python object": "!!python/object/apply:os.system [ls]",
}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bounded_yaml, "MOST_NODES", 10_000)

    def write(text: str) -> Path:
        path = tmp_path / "policy.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("kind", HARM)
def test_files_that_mean_harm(file, kind: str) -> None:
    text, words = HARM[kind]
    with pytest.raises(ConfigError, match=f"policy.yaml.*{words}"):
        Policy(file(text))


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files(file, kind: str) -> None:
    with pytest.raises(ConfigError, match="policy.yaml"):
        Policy(file(BROKEN[kind]))


def test_aliases_are_no_harm(file) -> None:
    policy = Policy(file("fields:\n  a.B.c: &rule {suppress: {}}\n  a.B.d: *rule\n"))
    assert set(policy.rules.overlay.fields) == {"a.B.c", "a.B.d"}


@pytest.mark.parametrize("text", ["a = " + "[" * 10_000, f"a = {'9' * 5000}", "a = " + "{a=" * 10_000])
def test_a_configuration_that_means_harm(tmp_path: Path, text: str, capsys) -> None:
    path = tmp_path / "dpmesh.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="dpmesh.toml"):
        config.load(path)
    assert cli.run(["budget", "list", "--config", str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
