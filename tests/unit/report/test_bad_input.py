"""Every bad input that a check can see: its rule, on exactly the line of the field, oneof or message at fault."""

from __future__ import annotations

import functools
import re
from collections import Counter
from pathlib import Path

import pytest

from dpmesh.cli.descriptors import sources
from dpmesh.policy import Policy
from dpmesh.report import findings
from dpmesh.report.findings import Finding

BAD = Path(__file__).parent / "protos/bad.proto"


def _expected() -> list[tuple[int, str]]:
    """(line, rule) of each comment `expect: rule, rule`."""
    lines = enumerate(BAD.read_text(encoding="utf-8").splitlines(), start=1)
    marks = [(number, match[1]) for number, line in lines if (match := re.search(r"// expect: (.+)$", line))]
    return [(number, rule) for number, rules in marks for rule in rules.split(", ")]


@functools.cache
def _found() -> list[Finding]:
    return findings.check(sources.from_protos([BAD], []), Policy(), {}).findings


@pytest.mark.parametrize(("line", "rule"), _expected())
def test_each_is_found_on_its_line(line: int, rule: str) -> None:
    found = [entry for entry in _found() if entry.location.line == line and entry.rule == rule]
    assert len(found) == 1
    assert found[0].location.file == str(BAD)
    assert found[0].text


def test_nothing_else_is_found() -> None:
    assert Counter((entry.location.line, entry.rule) for entry in _found()) == Counter(_expected())


def test_the_column_is_where_the_element_begins() -> None:
    lines = BAD.read_text(encoding="utf-8").splitlines()
    for entry in _found():
        line = lines[entry.location.line - 1]
        assert entry.location.column == len(line) - len(line.lstrip()) + 1


def test_the_element_is_declared_on_the_line() -> None:
    lines = BAD.read_text(encoding="utf-8").splitlines()
    for entry in _found():
        assert entry.element.startswith("bad.")
        assert re.search(rf"\b{entry.element.rpartition('.')[2]}\b", lines[entry.location.line - 1])


def test_all_errors_of_one_message_are_reported_at_once() -> None:
    assert sum(entry.element.startswith("bad.Epsilons.") for entry in _found()) == 7


def test_errors_say_how_to_fix_them() -> None:
    assert sum(bool(entry.fix) for entry in _found()) > 0.6 * len(_found())


def test_no_finding_quotes_a_traceback_or_a_memory_address() -> None:
    for entry in _found():
        assert "\n" not in entry.text
        assert " at 0x" not in entry.text
