"""`dpmesh policy diff`: its text, its JSON and its exit codes."""

from __future__ import annotations

import json

import pytest

PROTO = """syntax = "proto3";
package acme.policies.v1;
import "dpmesh/v1/privacy.proto";
message Report {
  string id = 1 [(dpmesh.v1.field).unit = {}];
  double speed = 2 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1 epsilon: 1}];
  string note = 3 [(dpmesh.v1.field).public = {}];
}
"""
OLD = "fields: {acme.policies.v1.Report.note: {public: {}}}"
NEW = """budgets: [{name: day, epsilon: 2, accounting: pure}]
fields:
  acme.policies.v1.Report.note: {suppress: {}}
  acme.policies.v1.Report.speed: {numeric: {lower: 0, upper: 1, epsilon: 2}}
"""
CONFIG = '[[budget]]\nname = "day"\nepsilon = 4\naccounting = "pure"\n'


@pytest.fixture
def files(write) -> list[object]:
    write("dpmesh.toml", CONFIG)
    return [write("old.yaml", OLD), write("new.yaml", NEW), write("r.proto", PROTO)]


def test_the_differences_are_listed_from_the_worst_on(dpmesh, files) -> None:
    ran = dpmesh("policy", "diff", *files)
    assert ran.code == 1
    assert ran.out.splitlines() == [
        "looser  acme.policies.v1.Report.speed: epsilon 1 -> 2",
        "tighter acme.policies.v1.Report.note: public -> suppress",
        "tighter budget day: epsilon 4 -> 2",
        "3 differences: the new policy is looser",
    ]


def test_json(dpmesh, files) -> None:
    old, new, proto = files
    ran = dpmesh("policy", "diff", old, old, proto, "--json")
    assert (ran.code, json.loads(ran.out)) == (0, {"order": "equal", "differences": []})
    document = json.loads(dpmesh("policy", "diff", old, new, proto, "--json").out)
    assert document["order"] == "looser"
    assert document["differences"][-1] == {
        "element": "budget day",
        "order": "tighter",
        "text": "epsilon 4 -> 2",
    }


def test_wrong_input(dpmesh, files) -> None:
    old, new, proto = files
    for arguments, text in (
        ((old, "none.yaml", proto), "none.yaml: can't be read"),
        ((old, new), "give .proto files"),
        ((old,), "missing argument 'new'"),
    ):
        ran = dpmesh("policy", "diff", *arguments)
        assert ran.code == 2
        assert text.lower() in ran.err.lower()  # Versions of typer differ in the case of arguments.
