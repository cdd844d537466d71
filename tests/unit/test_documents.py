"""What the README and the pages in docs/ name exists: commands, imports, configuration, links."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from pathlib import Path

import pytest

import dpmesh
from dpmesh import cli
from dpmesh.errors import AnnotationError
from dpmesh.policy import Policy
from dpmesh.telemetry import names
from tests.support.protos import compiled

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").rglob("*.md"))),
]
GROUPS = ("budget", "identity", "ledger", "policy")
COMMAND = re.compile(r"(?:\$ |`|&& )dpmesh ([a-z]+)(?: ([a-z]+))?([^`\n#&]*)")


def text_of(page):
    return (ROOT / page).read_text()


def code_of(page, language):
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), flags=re.DOTALL)


def found(dotted):
    """What a dotted name means; AttributeError if it means nothing."""
    module, rest = dotted, []
    while True:
        try:
            value = importlib.import_module(module)
        except ModuleNotFoundError:
            module, _, name = module.rpartition(".")
            rest.insert(0, name)
        else:
            break
    for name in rest:
        value = getattr(value, name)
    return value


@pytest.mark.parametrize("page", PAGES)
def test_all_commands_and_options_exist(page, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    missing = []
    for command, action, rest in COMMAND.findall(text_of(page)):
        words = [command, action] if command in GROUPS and action else [command]
        if cli.run([*words, "--help"]) != 0:
            missing.append(words)
        known = set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
        missing += [
            (words, option) for option in re.findall(r"(?<!\S)--[a-z][\w-]*", rest) if option not in known
        ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_examples_are_python_and_import_what_exists(page):
    for code in code_of(page, "python"):
        tree = compile(code, page, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert all(found(f"{node.module}.{alias.name}") for alias in node.names), code


@pytest.mark.parametrize("page", PAGES)
def test_all_names_exist(page):
    kept = {value for value in vars(names).values() if isinstance(value, str)}
    for dotted in re.findall(r"`(dpmesh(?:_grpc)?(?:\.\w+)+)[`(]", text_of(page)):
        if dotted != "dpmesh.toml" and dotted not in kept and not dotted.startswith("dpmesh.v1."):
            assert found(dotted) is not None


@pytest.mark.parametrize("page", PAGES)
def test_all_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!http)([^)#]+)", text_of(page))
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_the_readme_shows_the_error_that_check_prints():
    """Two fields of its example share epsilon 2."""
    rule = "(dpmesh.v1.field).numeric = {lower: 0 upper: 50 epsilon: 1}"
    with pytest.raises(AnnotationError) as caught:
        Policy().plan(compiled(f"message Reading {{ uint32 people = 3 [{rule}]; }}").Reading.DESCRIPTOR)
    assert caught.value.text in text_of("README.md")


def test_the_configuration_of_the_readme_is_one(tmp_path):
    for code in code_of("README.md", "toml"):
        document = tomllib.loads(code)
        document["ledger"] = {"url": "memory:"}
        assert dpmesh.open(document).ledger.budgets
