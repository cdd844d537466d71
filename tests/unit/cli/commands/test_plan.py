"""`dpmesh plan`: what it shows, its JSON, --against and exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

FLEET = """syntax = "proto3";
package acme.v1;
import "dpmesh/v1/privacy.proto";
message Report {
  string tail = 1 [(dpmesh.v1.field).unit = {}];
  double delay = 2 [(dpmesh.v1.field).numeric = {lower: 0 upper: 60 epsilon: 1}];
  bool late = 3 [(dpmesh.v1.field).categorical = {epsilon: 1}];
}
message Ack {}
message Mean {
  double delay = 1 [(dpmesh.v1.field).numeric = {lower: 0 upper: 60 epsilon: 0.5 sensitivity: 1}];
}
service Fleet {
  rpc Push(stream Report) returns (Ack);
  rpc Echo(Report) returns (Report);
  rpc Ask(Ack) returns (Mean);
}
"""
CONFIG = """
[[budget]]
name = "daily"
key = "unit"
epsilon = 4.0
accounting = "pure"

[[budget]]
name = "analysts"
key = "global"
epsilon = 2.0
accounting = "pure"
window = "lifetime"
"""


@pytest.fixture
def fleet(write) -> Path:
    write("dpmesh.toml", CONFIG)
    return write("fleet.proto", FLEET)


def test_every_rpc_with_its_request_and_response(dpmesh, fleet: Path) -> None:
    ran = dpmesh("plan", fleet, "--rate", "2/h")
    assert (ran.code, ran.err) == (0, "")
    lines = [" ".join(line.split()) for line in ran.out.splitlines()]
    assert lines[:3] == [
        "/acme.v1.Fleet/Push",
        "request stream acme.v1.Report: at most ε 2, ρ 0.9242 per message",
        "field kind mechanism ε ρ error what leaves decided by",
    ]
    assert lines[3] == "tail unit pseudonym per 1 d annotation"
    assert lines[4].startswith("delay numeric optimized_piecewise 1 0.4621 sd 60.")
    assert lines[5] == "late categorical k_randomized_response 1 0.4621 true 73.1% one of 2 annotation"
    assert lines[6] == "size on the wire: 34 to 45 bytes"
    assert re.fullmatch("digest of the rules: [0-9a-f]{16}", lines.pop(7))
    assert (
        lines[7]
        == "daily pays, account of tail: 50 % a message, 2 messages per window of 1 d; at 2/h it is spent after 1 h"
    )
    assert "response acme.v1.Ack: nothing to protect" in lines
    assert "request acme.v1.Report: as above" in lines
    assert (
        "analysts pays, account of everyone: 25 % a message, 4 messages per lifetime; at 2/h it is spent after 2 h"
        in lines
    )
    assert any(
        line.startswith(
            "Budget daily: ε 4 for each unit in each window of 1 d. T windows cost at most T times"
        )
        and "(30: ε 120)" in line
        for line in lines
    )
    assert "Budget analysts: ε 2 for everyone together in all." in lines


def test_without_a_service_every_protected_message(dpmesh, write) -> None:
    ran = dpmesh("plan", write("fleet.proto", FLEET[: FLEET.index("service")]))
    heads = [line.strip() for line in ran.out.splitlines() if "  message " in line]
    assert [head.split(":")[0] for head in heads] == ["message acme.v1.Report", "message acme.v1.Mean"]
    assert "embedded defaults" in ran.out


def test_without_anything_to_protect(dpmesh, write) -> None:
    ran = dpmesh("plan", write("plain.proto", 'syntax = "proto3";\nmessage A {}\n'))
    assert (ran.code, ran.out) == (0, "No service and no protected message type in these files.\n")


def test_json(dpmesh, fleet: Path) -> None:
    ran = dpmesh("plan", fleet, "--json", "--config", "dpmesh.toml")
    document = json.loads(ran.out)
    assert ran.code == 0
    pays = document["rpcs"][0].pop("pays")
    assert [entry["budget"] for entry in pays["request"]["payments"]] == ["daily"]
    assert pays["response"] == {
        "refused": None,
        "payments": [],
        "tightest": None,
        "seconds": None,
        "tightest_for_some": None,
        "seconds_for_some": None,
    }
    assert document["rpcs"][0] == {
        "method": "/acme.v1.Fleet/Push",
        "request": "acme.v1.Report",
        "response": "acme.v1.Ack",
        "client_streaming": True,
        "server_streaming": False,
        "trust_boundary": False,
        "send_slot": None,
    }
    messages = {entry["message"]: entry for entry in document["messages"]}
    assert sorted(messages) == ["acme.v1.Ack", "acme.v1.Mean", "acme.v1.Report"]
    delay = messages["acme.v1.Report"]["fields"][1]
    assert (delay["path"], delay["epsilon"], delay["mechanism"]) == ("delay", 1.0, "optimized_piecewise")
    assert messages["acme.v1.Report"]["payments"][0]["messages"] == 2
    assert [budget["cap"] for budget in document["budgets"]] == [4.0, 2.0]


def test_a_trust_boundary_is_named(dpmesh, fleet: Path, write) -> None:
    policy = write("policy.yaml", "methods:\n  /acme.v1.Fleet/Push: {trust_boundary: true}\n")
    out = dpmesh("plan", fleet, "--policy", policy).out
    assert "/acme.v1.Fleet/Push: a trust boundary, over which no trace goes on\n" in out
    assert "/acme.v1.Fleet/Echo\n" in out


def test_slots_are_named(dpmesh, fleet: Path, write) -> None:
    policy = write("policy.yaml", "methods:\n  /acme.v1.Fleet/Push: {send_slot: 0.5s}\n")
    out = dpmesh("plan", fleet, "--policy", policy).out
    assert "  requests leave in slots, one each 0.5 s: 172,800 messages a day, covers included\n" in out
    assert out.count("slots") == 1


def test_a_budget_lasts_for_as_many_slots_as_it_covers(dpmesh, fleet: Path, write) -> None:
    policy = write("policy.yaml", "methods:\n  /acme.v1.Fleet/Push: {send_slot: 0.5s}\n")
    out = dpmesh("plan", fleet, "--policy", policy, "--rate", "1/d").out
    assert "2 messages per window of 1 d; at one each 0.5 s it is spent after 1 s\n" in out
    assert "2 messages per window of 1 d; at 1/d it is never spent\n" in out


def test_sizes_are_named_and_compared(dpmesh, fleet: Path, write) -> None:
    text = "messages:\n  acme.v1.Report: {pad_to: [64, 256]}\n"
    out = dpmesh("plan", fleet, "--policy", write("policy.yaml", text)).out
    assert "    size on the wire: one of 64, 256 bytes\n" in out
    text = FLEET.replace("message Report {", "message Report { option (dpmesh.v1.message).pad_to = 64;")
    out = dpmesh("plan", write("padded.proto", text), "--against", fleet).out
    assert "  size: as long as it is -> always 64 bytes\n" in out


def test_an_overlay_decides(dpmesh, fleet: Path, write) -> None:
    policy = write("policy.yaml", "fields:\n  acme.v1.Report.late: {suppress: {}}\n")
    document = json.loads(dpmesh("plan", fleet, "--policy", policy, "--json").out)
    report = next(entry for entry in document["messages"] if entry["message"] == "acme.v1.Report")
    late = next(field for field in report["fields"] if field["path"] == "late")
    assert (late["kind"], late["origin"], late["output"]) == ("suppress", "overlay", "nothing")


def test_the_configurations_policy_is_used(dpmesh, fleet: Path, write) -> None:
    write("overlay.yaml", "fields:\n  acme.v1.Report.late: {suppress: {}}\n")
    write("dpmesh.toml", '[policy]\nfile = "overlay.yaml"\n' + CONFIG)
    assert "overlay" in dpmesh("plan", fleet).out


def test_what_can_not_be_released_exits_1(dpmesh, write) -> None:
    ran = dpmesh(
        "plan", write("fleet.proto", FLEET.replace("epsilon: 1}];\n  bool", "epsilon: 60}];\n  bool"))
    )
    assert ran.code == 1
    assert "refused: acme.v1.Report: one message costs more than budget 'unit-daily' has in all" in ran.out
    ran = dpmesh("plan", write("fleet.proto", FLEET.replace("upper: 60", "upper: -60")))
    assert ran.code == 1
    assert "[bounds]" in ran.out


@pytest.mark.parametrize("kind", ["proto", "package", "set", "policy"])
def test_against(dpmesh, fleet: Path, write, kind: str) -> None:
    before = FLEET.replace("epsilon: 1}];\n  bool", "epsilon: 2}];\n  bool")
    if kind == "proto":
        old = write("old.proto", before)
    elif kind == "package":
        old = write("old/acme/v1/fleet.proto", before)
    elif kind == "set":
        from dpmesh.cli.descriptors import protoc

        compiled = protoc.compile_files([write("before/fleet.proto", before)], [])
        old = Path("old.binpb")
        old.write_bytes(compiled.descriptors.SerializeToString())
    else:
        rules = "{numeric: {lower: 0, upper: 60, epsilon: 2}}"
        old = write("old.yaml", f"fields:\n  acme.v1.Report.delay: {rules}\n")
    ran = dpmesh("plan", fleet, "--against", old)
    assert (ran.code, ran.err) == (0, "")
    lines = [" ".join(line.split()) for line in ran.out.splitlines() if line]
    assert lines[0] == "acme.v1.Report: ε 3, ρ 1.985 -> ε 2, ρ 0.9242"
    assert lines[2].startswith("delay optimized_piecewise 2 -> 1 1.523 -> 0.4621 sd ")
    assert len(lines) == 3
    document = json.loads(dpmesh("plan", fleet, "--against", old, "--json").out)
    (change,) = document["changes"]
    assert change["fields"][0]["old"]["error"] < change["fields"][0]["new"]["error"]


def test_against_itself(dpmesh, fleet: Path) -> None:
    ran = dpmesh("plan", fleet, "--against", fleet)
    assert (ran.code, ran.out) == (0, "Nothing changes: the same fields leave at the same loss and error.\n")


def test_against_a_state_without_the_message(dpmesh, fleet: Path, write) -> None:
    old = write("old.proto", FLEET.replace("Mean", "Average"))
    ran = dpmesh("plan", fleet, "--against", old)
    assert "acme.v1.Mean: not there -> ε 0.5" in ran.out
    assert "acme.v1.Average: ε 0.5" in ran.out


def test_source_is_the_code_of_each_message_type(dpmesh, fleet: Path) -> None:
    plain, ran = dpmesh("plan", fleet), dpmesh("plan", fleet, "--source")
    assert ran.code == 0
    assert ran.out.startswith(plain.out)
    code = ran.out.removeprefix(plain.out)
    assert [line for line in code.splitlines() if line.startswith("# acme")] == [
        "# acme.v1.Report",
        "# acme.v1.Mean",
    ]
    assert "    target.delay = out" in code.splitlines()
    compile(code, "sources", "exec")
    document, wider = (json.loads(dpmesh("plan", fleet, *more, "--json").out) for more in ([], ["--source"]))
    sources = wider.pop("sources")
    assert wider == document
    assert list(sources) == ["acme.v1.Report", "acme.v1.Mean"]
    assert all(source.rstrip() in code for source in sources.values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rate", "fast"], "--rate 'fast'"),
        (["--rate", "0/s"], "--rate '0/s'"),
        (["--rate", "-1/s"], "--rate '-1/s'"),
        (["--config", "nowhere.toml"], "nowhere.toml: can't be read"),
        (["--config", "misspelled.toml"], "budgett"),
        (["--policy", "stray.yaml"], "acme.v1.Nothing"),
        (["--against", "nowhere.proto"], "nowhere.proto: no such file"),
        (["--against", "nowhere.yaml"], "nowhere.yaml: can't be read"),
        (["--against", "nowhere.binpb"], "nowhere.binpb: can't be read"),
        (["--against", "broken.proto"], "broken.proto:1:1:"),
    ],
)
def test_unusable_input_is_one_line_and_exit_2(
    dpmesh, fleet: Path, write, arguments: list[str], words: str
) -> None:
    write("misspelled.toml", "[[budgett]]\nname = 'a'\n")
    write("stray.yaml", "messages: {acme.v1.Nothing: {}}")
    write("broken.proto", "nonsense")
    ran = dpmesh("plan", fleet, *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("dpmesh: ")
    assert len(ran.err.splitlines()) == 1
    assert words in ran.err


def test_a_broken_proto_is_one_line_and_exit_2(dpmesh, write) -> None:
    ran = dpmesh("plan", write("broken.proto", 'syntax = "proto3";\nmessage A { strin a = 1; }\n'))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("dpmesh: broken.proto:2:13:")


SCOPED = """
[[budget]]
name = "daily"
epsilon = 8.0
accounting = "pure"

[[budget]]
name = "echoes"
epsilon = 2.0
accounting = "pure"
methods = ["/acme.v1.Fleet/Echo"]
directions = ["response"]

[[budget]]
name = "analysts"
key = "global"
epsilon = 2.0
accounting = "pure"

[[budget]]
name = "nobody"
epsilon = 1.0
accounting = "pure"
labels = ["health"]

[[quota]]
name = "each"
under = "daily"
epsilon = 4.0

[[quota]]
name = "partner"
under = "analysts"
epsilon = 0.25
consumers = ["spiffe://partner.example/*", ""]
"""


def test_each_rpc_says_who_pays_and_who_is_spent_first(dpmesh, fleet: Path, write) -> None:
    write("dpmesh.toml", SCOPED)
    ran = dpmesh("plan", fleet, "--rate", "2/h")
    assert (ran.code, ran.err) == (0, "")
    lines = [" ".join(line.split()) for line in ran.out.splitlines()]
    at = lines.index("/acme.v1.Fleet/Echo")
    assert lines[at - 3 : at - 1] == [
        "at 2/h the first to be spent is each, after 1 h",
        "response acme.v1.Ack: nothing to protect",
    ]
    assert lines[at + 1 : at + 3] == [
        "request acme.v1.Report: as above",
        "response acme.v1.Report: fields as above",
    ]
    assert lines[at + 3 : at + 7] == [
        "daily pays, account of tail: 25 % a message, 4 messages per window of 1 d; at 2/h it is spent after 2 h",
        "echoes pays, account of tail: 100 % a message, 1 message per window of 1 d; at 2/h it is spent after 30 min",
        "each limits each consumer, account of tail: 50 % a message, 2 messages per window of 1 d; "
        "at 2/h it is spent after 1 h",
        "at 2/h the first to be spent is echoes, after 30 min",
    ]
    assert (
        "partner limits each consumer spiffe://partner.example/* or nobody known, account of everyone: 200 % a message, "
        "0 messages per window of 1 d; too little for one message"
    ) in lines
    tail = ran.out[ran.out.index("Budget daily") :]
    assert "It pays only for methods /acme.v1.Fleet/Echo; directions response.\n" in tail
    assert "It pays only for labels health. It pays for nothing here." in tail
    assert tail.count("nothing here") == 1
    assert "Quota each under daily: ε 4 for each unit, to each consumer in each window of 1 d." in tail
    assert "add up: one unit's whole loss is at most the sum" in tail


FOR_SOME = """
[[quota]]
name = "some"
under = "daily"
epsilon = 2.0
consumers = ["spiffe://partner.example/*"]
methods = ["/acme.v1.Fleet/Push"]

[[quota]]
name = "others"
under = "echoes"
epsilon = 2.0
consumers = ["cn:*"]
messages = ["acme.v1.Other"]
"""


def test_a_quota_for_some_consumers_that_is_spent_before_the_others_is_named(
    dpmesh, fleet: Path, write
) -> None:
    write("dpmesh.toml", SCOPED + FOR_SOME)
    ran = dpmesh("plan", fleet, "--rate", "2/h")
    lines = [" ".join(line.split()) for line in ran.out.splitlines()]
    assert (
        "at 2/h the first to be spent is each, after 1 h; for consumers it fits: some, after 30 min" in lines
    )
    assert "at 2/h the first to be spent is echoes, after 30 min" in lines
    assert (
        "at 2/h the first to be spent is analysts, after 2 h; for consumers it fits: partner, too little for one message"
        in lines
    )
    tail = " ".join(ran.out[ran.out.index("Budget daily") :].split())
    assert "It counts only methods /acme.v1.Fleet/Push." in tail
    assert "It counts only messages acme.v1.Other. It counts nothing here." in tail
    slow = dpmesh("plan", fleet, "--rate", "3/d").out
    assert "at 3/d the first to be spent is each, after 16 h; for consumers it fits: some, after 8 h" in slow
    slower = dpmesh("plan", fleet, "--rate", "1/d").out
    assert (
        "at 1/d the first to be spent, for consumers it fits, is partner, too little for one message"
        in slower
    )


def test_json_says_who_pays_on_each_rpc(dpmesh, fleet: Path, write) -> None:
    write("dpmesh.toml", SCOPED)
    document = json.loads(dpmesh("plan", fleet, "--json").out)
    echo = document["rpcs"][1]["pays"]
    assert (echo["request"]["tightest"], echo["response"]["tightest"]) == ("each", "echoes")
    assert [entry["budget"] for entry in echo["response"]["payments"]] == ["daily", "echoes", "each"]
    assert [entry["under"] for entry in echo["response"]["payments"]] == ["", "", "daily"]
    assert echo["response"]["tightest_for_some"] is None
    ask = document["rpcs"][2]["pays"]["response"]
    assert (ask["tightest"], ask["tightest_for_some"], ask["seconds_for_some"]) == (
        "analysts",
        "partner",
        0.0,
    )
    budgets = {entry["name"]: entry for entry in document["budgets"]}
    assert (budgets["echoes"]["directions"], budgets["partner"]["under"]) == (["response"], "analysts")


def test_an_rpc_that_no_budget_pays_for_exits_1(dpmesh, fleet: Path, write) -> None:
    write("dpmesh.toml", CONFIG.replace('key = "unit"', 'directions = ["request"]'))
    ran = dpmesh("plan", fleet)
    assert ran.code == 1
    assert "refused: acme.v1.Report: no budget with key = 'unit' pays for it in a response of" in ran.out
    assert ran.out.count("refused") == 1


def test_against_compares_what_an_rpc_carries(dpmesh, fleet: Path, write) -> None:
    write("dpmesh.toml", CONFIG.replace('key = "unit"', 'methods = ["/acme.v1.Fleet/*"]'))
    old = write("old.proto", FLEET.replace("epsilon: 1}];\n  bool", "epsilon: 2}];\n  bool"))
    ran = dpmesh("plan", fleet, "--against", old)
    assert (ran.code, ran.out.splitlines()[0]) == (0, "acme.v1.Report: ε 3, ρ 1.985 -> ε 2, ρ 0.9242")


def test_a_loss_that_is_not_pure_says_at_which_delta(dpmesh, write) -> None:
    """A Gaussian of .25 beside a pure .25: the message costs .5, and not what both give as zCDP."""
    bounds = "lower: 0 upper: 1000 resolution: 1 sensitivity: 5 epsilon: 0.25"
    proto = write(
        "sums.proto",
        f"""syntax = "proto3";
package acme.v1;
import "dpmesh/v1/privacy.proto";
message Sums {{
  int64 one = 1 [(dpmesh.v1.field).numeric = {{{bounds}}}];
  int64 two = 2 [(dpmesh.v1.field).numeric = {{{bounds} delta: 1e-6 mechanism: DISCRETE_GAUSSIAN}}];
}}
""",
    )
    write(
        "dpmesh.toml",
        '[[budget]]\nname = "sums"\nkey = "global"\nepsilon = 4.0\ndelta = 1e-6\naccounting = "zcdp"\nwindow = "24h"\n',
    )
    ran = dpmesh("plan", proto)
    assert (ran.code, ran.err) == (0, "")
    assert "message acme.v1.Sums: at most ε 0.5 at δ 1e-06, ρ 0." in " ".join(ran.out.split())


def test_a_loss_that_several_units_in_one_message_have_says_that_it_counts_one_of_each(dpmesh, write) -> None:
    """Three elements of epsilon .5 each cost 1.5 in all, and each unit .5."""
    proto = write(
        "batch.proto",
        """syntax = "proto3";
package acme.v1;
import "dpmesh/v1/privacy.proto";
message Row {
  string id = 1 [(dpmesh.v1.field).unit = {}];
  bool b = 2 [(dpmesh.v1.field).categorical = {epsilon: 0.5}];
}
message Batch { repeated Row rows = 1; }
""",
    )
    lines = dpmesh("plan", proto).out.splitlines()
    assert any(
        "acme.v1.Batch: at most ε 0.5" in line and line.endswith("one of each unit in it") for line in lines
    )
    assert any("acme.v1.Row: at most ε 0.5" in line and line.endswith("per message") for line in lines)


def test_a_size_without_a_bound_names_the_field(dpmesh, write) -> None:
    noted = FLEET.replace(
        "message Report {", "message Report { string note = 99 [(dpmesh.v1.field).public = {}];"
    )
    proto = write("noted.proto", noted)
    assert "size on the wire: 34 bytes or more, unbounded because of note\n" in dpmesh("plan", proto).out
    messages = json.loads(dpmesh("plan", proto, "--json").out)["messages"]
    (report,) = (each for each in messages if each["message"] == "acme.v1.Report")
    assert report["size"] == {"smallest": 34, "largest": None, "unbounded": "note"}
    padded = write("policy.yaml", "messages:\n  acme.v1.Report: {pad_to: [64, 256]}\n")
    longer = "one of 64, 256 bytes; longer ones, which are possible because of note, are refused\n"
    assert f"size on the wire: {longer}" in dpmesh("plan", proto, "--policy", padded).out
