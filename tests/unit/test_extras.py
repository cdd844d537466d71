"""What errors and documents say about installing dpmesh: commands that work, because no package registry has it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from dpmesh import extras

ROOT = Path(__file__).parents[2]
SUFFIXES = {".py", ".md", ".toml", ".yaml", ".yml", ".proto"}
# `pip install dpmesh`, with or without extras, but not `dpmesh @ git+...`.
FROM_A_REGISTRY = re.compile(r"pip install[^\n@]*?['\"\s]dpmesh(\[[a-z,]+\])?['\"]?(?!\s*@|\S)")


def test_the_pattern_finds_what_does_not_work() -> None:
    for wrong in ("pip install dpmesh", "pip install 'dpmesh[otel,tools]'", "pip install -U dpmesh && x"):
        assert FROM_A_REGISTRY.search(wrong)
    for right in (
        "pip install 'dpmesh[otel] @ git+URL'",
        "pip install -e '.[otel]'",
        "pip install dpmesh-1.whl",
    ):
        assert not FROM_A_REGISTRY.search(right)


def test_nothing_names_a_package_of_a_registry() -> None:
    texts = [*ROOT.glob("*.md"), ROOT / "pyproject.toml", ROOT / "Makefile"]
    for folder in ("dpmesh", "interceptors", "examples", "docs", "deploy", "protos", "benchmarks"):
        texts += [path for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    found = [path.name for path in texts if FROM_A_REGISTRY.search(path.read_text(encoding="utf-8"))]
    assert found == []


def test_errors_name_extras_that_there_are() -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set()
    for folder in ("dpmesh", "interceptors", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            named |= set(re.findall(r"extras\.install\(['\"](\w+)['\"]\)", path.read_text(encoding="utf-8")))
    assert named == set(known)
    assert "pip install '.[otel]'" in extras.install("otel")
    assert "'dpmesh[otel] @ git+" in extras.install("otel")
