"""`dpmesh check`: its formats, exit codes and complaints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

GOOD = """syntax = "proto3";
package acme;
import "dpmesh/v1/privacy.proto";
message Report {
  string tail = 1 [(dpmesh.v1.field).unit = {}];
  double delay = 2 [(dpmesh.v1.field).numeric = {lower: 0 upper: 60 epsilon: 1}];
}
"""
WARNED = GOOD.replace("}\n", "  string note = 3;\n}\n")
BAD = GOOD.replace("epsilon: 1", "epsilon: -1")


def test_nothing_to_find(dpmesh, write) -> None:
    ran = dpmesh("check", write("report.proto", GOOD))
    assert ran == (0, "No findings in 1 message type.\n", "")


def test_warnings_alone_exit_0(dpmesh, write) -> None:
    ran = dpmesh("check", write("report.proto", WARNED))
    assert ran.code == 0
    assert ran.out.splitlines() == [
        "report.proto:7:3: warning [unannotated] acme.Report.note: has no annotation and leaves as it is",
        "    fix: say `public` if that is right",
        "0 errors, 1 warning in 1 message type.",
    ]


def test_errors_exit_1(dpmesh, write) -> None:
    ran = dpmesh("check", write("deep/report.proto", BAD))
    assert ran.code == 1
    assert ran.out.startswith("deep/report.proto:6:3: error [epsilon] acme.Report.delay: epsilon must be ")
    assert ran.out.endswith("\n1 error, 0 warnings in 1 message type.\n")


@pytest.mark.parametrize("flag", [("--format", "json"), ("--json",)])
def test_json(dpmesh, write, flag: tuple[str, ...]) -> None:
    ran = dpmesh("check", write("report.proto", BAD), *flag)
    document = json.loads(ran.out)
    assert ran.code == 1
    assert document["summary"] == {"errors": 1, "warnings": 0, "message_types": 1}
    (finding,) = document["findings"]
    assert finding.pop("text")
    assert finding.pop("fix")
    assert finding == {
        "file": "report.proto",
        "line": 6,
        "column": 3,
        "severity": "error",
        "rule": "epsilon",
        "element": "acme.Report.delay",
    }


def test_github(dpmesh, write) -> None:
    ran = dpmesh("check", write("odd,name%.proto", BAD), "--format", "github")
    assert ran.code == 1
    first, summary = ran.out.splitlines()
    assert first.startswith(
        "::error file=odd%2Cname%25.proto,line=6,col=3,title=dpmesh epsilon::acme.Report.delay: "
    )
    assert "%0AFix: " in first
    assert summary == "1 error, 0 warnings in 1 message type."


def test_long_lines_are_not_wrapped(dpmesh, write) -> None:
    ran = dpmesh("check", write("f" * 150 + "/report.proto", BAD.replace("delay", "d" * 100)))
    assert len(ran.out.splitlines()) == 3


def test_a_syntax_error_is_a_finding_with_its_line(dpmesh, write) -> None:
    ran = dpmesh("check", write("report.proto", GOOD.replace("double delay", "doble delay")), "--json")
    assert ran.code == 1
    (finding,) = json.loads(ran.out)["findings"]
    assert (finding["file"], finding["line"], finding["column"], finding["rule"]) == (
        "report.proto",
        6,
        3,
        "syntax",
    )
    assert "doble" in finding["text"]


def test_an_unknown_kind_is_a_syntax_error(dpmesh, write) -> None:
    ran = dpmesh("check", write("report.proto", GOOD.replace(".numeric", ".numberic")))
    assert ran.code == 1
    assert ran.out.startswith("report.proto:6:")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give .proto files"),
        (["report.proto", "--descriptor-set", "x"], "one of them"),
        (["--descriptor-set", "x", "--reflect", "localhost:1"], "one of them"),
        (["--reflect", "localhost:1", "-I", "."], "-I goes with .proto files"),
        (["nowhere.proto"], "nowhere.proto: no such file"),
        (["report.proto", "-I", "nowhere"], "-I nowhere: no such folder"),
        (["report.proto", "-I", "elsewhere"], "report.proto: is in none of the -I folders"),
        (["elsewhere"], "no .proto files"),
        (["--descriptor-set", "nowhere.binpb"], "nowhere.binpb: can't be read"),
        (["--descriptor-set", "garbage"], "garbage: is not a descriptor set"),
        (["--descriptor-set", "empty"], "empty: is a descriptor set without files"),
        (["report.proto", "--policy", "nowhere.yaml"], "nowhere.yaml: can't be read"),
        (["report.proto", "--policy", "garbage"], "policy file garbage"),
        (["report.proto", "--policy", "misspelled.yaml"], "feilds"),
        (["report.proto", "--format", "xml"], "'xml' is not one of"),
        (["--reflect", "localhost:1"], "localhost:1: can't be reached"),
        (["--colour"], "No such option: --colour"),
    ],
)
def test_unusable_input_is_one_line_and_exit_2(dpmesh, write, arguments: list[str], words: str) -> None:
    write("report.proto", GOOD)
    write("garbage", "{ not a descriptor set, not yaml")
    write("empty", "")
    write("misspelled.yaml", "feilds: {}")
    write("elsewhere/readme", "")
    ran = dpmesh("check", *arguments)
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.startswith("dpmesh: ")
    assert len(ran.err.splitlines()) == 1
    assert words in ran.err


def test_several_inputs(dpmesh, write: Callable[[str, str], Path]) -> None:
    write("a/one.proto", GOOD)
    write("a/b/two.proto", BAD.replace("package acme", "package two"))
    write("a/.venv/three.proto", "not looked at")
    ran = dpmesh("check", "a")
    assert ran.code == 1
    assert ran.out.startswith("a/b/two.proto:6:3: error")
    assert ran.out.endswith("in 2 message types.\n")
