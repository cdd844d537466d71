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


@pytest.mark.parametrize("command", ["check", "plan"])
def test_a_followed_policy_needs_its_end_mark_as_on_a_device(dpmesh, write, command) -> None:
    policy = "fields:\n  acme.Report.delay: {suppress: {}}\n"
    write("policy.yaml", policy)
    write("dpmesh.toml", '[policy]\nsource = "policy.yaml"\n')
    report = write("report.proto", GOOD)
    ran = dpmesh(command, report)
    assert (ran.code, ran.err.partition(", YAML")[0]) == (
        2,
        "dpmesh: policy file policy.yaml: does not end with a line of three dots (...)",
    )
    assert dpmesh(command, report, "--policy", "policy.yaml").code == 0
    write("policy.yaml", policy + "...\n")
    assert dpmesh(command, report).code == 0


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
    assert document["summary"] == {"errors": 1, "warnings": 0, "message_types": 1, "protected_types": 0}
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


PLAIN = GOOD.replace(" [(dpmesh.v1.field).unit = {}]", "").replace(
    " [(dpmesh.v1.field).numeric = {lower: 0 upper: 60 epsilon: 1}]", ""
)
NOTHING = "Nothing is protected: all fields of 1 message type leave as they are."


def test_that_nothing_is_protected_is_said(dpmesh, write) -> None:
    write("report.proto", PLAIN)
    assert dpmesh("check", "report.proto") == (0, NOTHING + "\n", "")
    ran = dpmesh("check", "report.proto", "--format", "github")
    assert ran == (0, f"::warning title=dpmesh::{NOTHING}\n{NOTHING}\n", "")
    ran = dpmesh("check", "report.proto", "--json")
    assert (ran.code, json.loads(ran.out)) == (
        0,
        {"findings": [], "summary": {"errors": 0, "warnings": 0, "message_types": 1, "protected_types": 0}},
    )


ANYS = """syntax = "proto3";
package acme;
import "google/protobuf/any.proto";
message Box { google.protobuf.Any held = 1; }
"""
EXTENDABLE = 'syntax = "proto2"; package acme; message Base { optional string s = 1; extensions 100 to 199; }'


@pytest.mark.parametrize("text", [ANYS, EXTENDABLE])
def test_types_that_only_can_hold_protected_messages_are_not_protected(dpmesh, write, text: str) -> None:
    assert dpmesh("check", write("box.proto", text)) == (0, NOTHING + "\n", "")
    ran = dpmesh("check", "box.proto", "--json")
    assert json.loads(ran.out)["summary"]["protected_types"] == 0


def test_what_anys_pack_is_left_out_of_what_leaves_as_it_is(dpmesh, write) -> None:
    service = "service Post { rpc Send(Box) returns (Box); }\n"
    ran = dpmesh("check", write("box.proto", ANYS + service))
    assert ran.code == 0
    assert ran.out.endswith(f"1 message type. {NOTHING[:-1]}, but for what their Anys pack.\n")


def test_fields_that_are_public_are_not_protected(dpmesh, write) -> None:
    text = PLAIN.replace("tail = 1", "tail = 1 [(dpmesh.v1.field).public = {}]")
    assert dpmesh("check", write("report.proto", text)).out == NOTHING + "\n"


def test_without_message_types_nothing_is_protected(dpmesh, write) -> None:
    ran = dpmesh("check", write("empty.proto", 'syntax = "proto3";\n'))
    assert ran == (0, "Nothing is protected: there are no message types.\n", "")


def test_what_an_overlay_protects_counts(dpmesh, write) -> None:
    policy = write(
        "policy.yaml", "fields: {acme.Report.tail: {suppress: {}}, acme.Report.delay: {public: {}}}\n"
    )
    ran = dpmesh("check", write("report.proto", PLAIN), "--policy", policy)
    assert ran == (0, "No findings in 1 message type.\n", "")


@pytest.mark.parametrize("how", ["working directory", "option", "environment"])
def test_the_configurations_policy_file_counts(dpmesh, write, monkeypatch, how: str) -> None:
    """As for plan and at run time, its path is relative to the configuration."""
    folder = "" if how == "working directory" else "etc/"
    write(
        f"{folder}policy.yaml", "fields:\n  acme.Report.tail: {numeric: {lower: 0, upper: 1, epsilon: 1}}\n"
    )
    config = write(f"{folder}dpmesh.toml", "" if how == "environment" else '[policy]\nfile = "policy.yaml"\n')
    if how == "environment":
        monkeypatch.setenv("DPMESH_POLICY_FILE", "policy.yaml")
    more = [] if how == "working directory" else ["--config", config]
    ran = dpmesh("check", write("report.proto", PLAIN), *more)
    assert ran.code == 1
    assert ran.out.startswith(f"{folder}policy.yaml:2:3: error [kind-type] acme.Report.tail:")
    assert dpmesh("plan", "report.proto", *more).code == 1


def test_policy_wins_over_the_configurations(dpmesh, write) -> None:
    write("bad.yaml", "fields: {acme.Report.tail: {numeric: {}}}\n")
    write("good.yaml", "fields: {acme.Report.tail: {suppress: {}}, acme.Report.delay: {public: {}}}\n")
    write("dpmesh.toml", '[policy]\nfile = "bad.yaml"\n')
    write("report.proto", PLAIN)
    assert dpmesh("check", "report.proto").code == 1
    assert dpmesh("check", "report.proto", "--policy", "good.yaml").code == 0


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (
            "fields:\n  acme.Report.tail: {suppress: }\n",
            "policy.yaml:2:22: fields acme.Report.tail suppress: has no",
        ),
        ("fields:\n  acme.Report.tail: {supress: {}}\n", "did you mean suppress?"),
    ],
)
def test_an_overlay_that_can_not_be_read_is_refused_by_check_and_plan(
    dpmesh, write, policy: str, words: str
) -> None:
    write("report.proto", GOOD)
    write("dpmesh.toml", '[policy]\nfile = "policy.yaml"\n')
    write("policy.yaml", policy)
    for command in ("check", "plan"):
        ran = dpmesh(command, "report.proto")
        assert (ran.code, ran.out) == (2, "")
        assert words in ran.err
        assert len(ran.err.splitlines()) == 1


EMPTY = "fields:\n  acme.Report.tail: {}\n  acme.Report.delay:\nmessages:\n  acme.Report: {labels: []}\n"


def test_overlays_that_set_nothing_are_findings_among_the_others(dpmesh, write) -> None:
    write("policy.yaml", EMPTY)
    ran = dpmesh("check", write("report.proto", BAD), "--policy", "policy.yaml")
    assert ran.code == 1
    lines = [line for line in ran.out.splitlines() if " error " in line]
    for start in (
        "policy.yaml:2:3: error [empty-rule] acme.Report.tail: has an overlay that sets nothing",
        "policy.yaml:3:3: error [empty-rule] acme.Report.delay:",
        "policy.yaml:5:3: error [empty-rule] acme.Report:",
        "report.proto:6:3: error [epsilon] acme.Report.delay:",
    ):
        assert sum(line.startswith(start) for line in lines) == 1, ran.out


def test_overlays_that_set_nothing_are_found_where_protos_do_not_compile(dpmesh, write) -> None:
    write("policy.yaml", EMPTY)
    ran = dpmesh("check", write("report.proto", "message {"), "--policy", "policy.yaml")
    assert ran.code == 1
    assert ran.out.count("[empty-rule]") == 3
    assert ran.out.splitlines()[-1].startswith("4 errors")


def test_overlays_that_set_nothing_are_refused_by_plan(dpmesh, write) -> None:
    write("policy.yaml", EMPTY)
    ran = dpmesh("plan", write("report.proto", GOOD), "--policy", "policy.yaml")
    assert (ran.code, ran.out) == (2, "")
    assert "policy.yaml:2:3: fields acme.Report.tail: sets nothing" in ran.err


BUDGET = '[[budget]]\nname = "day"\nkey = "unit"\nepsilon = %s\naccounting = "pure"\non_exhausted = "%s"\n'


@pytest.mark.parametrize("how", ["suppress", "replay"])
def test_messages_that_look_alike_without_values_are_named(dpmesh, write, how: str) -> None:
    write("dpmesh.toml", BUDGET % (4, how))
    ran = dpmesh("check", write("report.proto", GOOD))
    assert ran.code == 0
    assert "warning [unseen] acme.Report: has only plain fields with noise" in ran.out
    assert "budget day" in ran.out


@pytest.mark.parametrize(
    ("config", "proto"),
    [
        (BUDGET % (4, "reject"), GOOD),
        (BUDGET % (4, "suppress"), GOOD.replace("double", "optional double")),
        ((BUDGET % (4, "suppress")).replace('"unit"', '"global"'), GOOD),
        (BUDGET % (4, "suppress") + 'messages = ["other.*"]\n', GOOD),
    ],
)
def test_messages_that_tell_it_are_not(dpmesh, write, config: str, proto: str) -> None:
    write("dpmesh.toml", config)
    assert dpmesh("check", write("report.proto", proto)).out == "No findings in 1 message type.\n"


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (BUDGET % (-1, "reject"), "epsilon"),
        (
            BUDGET % (4, "reject") + '[[quota]]\nname = "q"\nunder = "dya"\nepsilon = 1\n',
            "no budget has this name",
        ),
        (BUDGET % (4, "reject") + '[[quota]]\nname = "q"\nunder = "day"\nepsilon = 9\n', "day"),
    ],
)
def test_a_budget_that_is_none_is_an_error(dpmesh, write, config: str, text: str) -> None:
    write("dpmesh.toml", config)
    ran = dpmesh("check", write("report.proto", GOOD))
    assert ran.code == 2
    assert text in ran.err
