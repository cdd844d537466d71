"""What docs/architecture.md and CONTRIBUTING.md name exists, and the code that they show is code that tests run."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("docs/architecture.md", "CONTRIBUTING.md")
SOURCES = ("dpmesh", "interceptors/dpmesh_grpc", "tests/support", "tests/contract")
# Made up, or of a service that uses dpmesh.
OTHERS = {"dpmesh.toml", "dpmesh/policy/kinds/NAME.py", "ca/root.key"}

QUOTED = re.compile(r"`([^`]+)`")
PATH = re.compile(r"[\w.-]+(/[\w.-]+)+/?|[\w-]+/|[\w-]+\.(py|md|toml)")
# `Class`, `Class.name`, `Class.name()` or `name()`.
NAME = re.compile(r"(?P<owner>[A-Z]\w*[a-z]\w*)(\.(?P<name>\w+))?(\(\))?|(?P<function>\w+)\(\)")


def text_of(page):
    return (ROOT / page).read_text()


def blocks(page):
    """The paragraphs, list items and table rows of a page, without its code."""
    prose = re.sub(r"```.*?```|^    .*?$", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    return re.split(r"\n\n+|\n(?=\||- |\d+\. )", prose)


def located(name, block):
    """The files and folders that a name means: from the root, or within a folder that its paragraph names."""
    folders = [word for word in QUOTED.findall(block) if (ROOT / word).is_dir()]
    return [path for path in (ROOT / name, *(ROOT / folder / name for folder in folders)) if path.exists()]


def paths_in(block):
    return [word for word in QUOTED.findall(block) if PATH.fullmatch(word) and word not in OTHERS]


@cache
def defined(path):
    """The functions, the classes and their attributes of a file; of each class also its bases."""
    names, bases = set(), {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names.add(node.name)
            bases[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name)]
            names |= {f"{node.name}.{name}" for name in attributes(node)}
    return names, bases


def attributes(owner):
    for node in ast.walk(owner):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            for target in [node.target] if isinstance(node, ast.AnnAssign) else node.targets:
                if isinstance(target, ast.Name):
                    yield target.id
                elif isinstance(target, ast.Attribute):
                    yield target.attr


@cache
def all_sources():
    return [path for folder in SOURCES for path in sorted((ROOT / folder).rglob("*.py"))]


def is_defined(owner, name, files):
    """Whether a file defines a name; in a class, or in a base of it."""
    for file in files:
        names, bases = defined(file)
        if (f"{owner}.{name}" if owner else name) in names:
            return True
        if any(is_defined(base, name, all_sources()) for base in bases.get(owner, ())):
            return True
    return False


def unknown_names(page):
    for block in blocks(page):
        files = [path for word in paths_in(block) for path in located(word, block) if path.suffix == ".py"]
        for word in QUOTED.findall(block):
            found = NAME.fullmatch(word)
            if found is None:
                continue
            owner, name = (found["owner"], found["name"]) if found["name"] else (None, found["owner"])
            if not is_defined(owner, name or found["function"], files or all_sources()):
                yield f"{word} in {[file.name for file in files]}"


@pytest.mark.parametrize("page", PAGES)
def test_all_files_and_folders_exist(page):
    named = [(word, block) for block in blocks(page) for word in paths_in(block)]
    assert len(named) > 15
    assert [word for word, block in named if not located(word, block)] == []


@pytest.mark.parametrize("page", PAGES)
def test_all_functions_and_classes_are_where_it_says(page):
    assert list(unknown_names(page)) == []


@pytest.mark.parametrize("page", PAGES)
def test_all_tasks_are_in_the_makefile(page):
    tasks = set(re.findall(r"(?:^ {4}|`)make (\w+)", text_of(page), flags=re.MULTILINE))
    assert tasks
    assert tasks - set(re.findall(r"^(\w+):", text_of("Makefile"), flags=re.MULTILINE)) == set()


def unindented(code):
    return "\n".join(line.strip() for line in code.strip().splitlines())


def test_the_code_of_each_recipe_is_code_that_tests_run():
    recipes = re.findall(
        r"^## (Add .*?)\n(.*?)```python\n(.*?)```", text_of("docs/architecture.md"), re.DOTALL | re.MULTILINE
    )
    assert [title for title, _, _ in recipes] == ["Add a field kind", "Add a ledger", "Add a transport"]
    for title, steps, code in recipes:
        tests = [word for word in QUOTED.findall(steps) if word.startswith("tests/")]
        assert unindented(code) in "\n".join(unindented(text_of(test)) for test in tests), title


def test_the_rooms_are_in_the_order_of_the_import_contract():
    contracts = tomllib.loads(text_of("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    (layers,) = [c["layers"] for c in contracts if "dpmesh.errors" in c.get("layers", [""])[-1]]
    rooms = re.findall(r"^\| `dpmesh/(\w+)` ", text_of("docs/architecture.md"), flags=re.MULTILINE)
    ordered = [{part.strip().removeprefix("dpmesh.") for part in layer.split("|")} for layer in layers[:-1]]
    for layer in ordered:
        beside, rooms = rooms[: len(layer)], rooms[len(layer) :]
        assert set(beside) == layer
    assert rooms == []


def test_the_files_that_mutants_change_exist():
    for glob in tomllib.loads(text_of("pyproject.toml"))["tool"]["mutmut"]["only_mutate"]:
        assert list(ROOT.glob(glob)), glob
