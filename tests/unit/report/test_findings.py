"""Findings: overlays and where they stand, imports, duplicates, newer schemas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from dpmesh.cli.descriptors import source_locations, sources
from dpmesh.policy import Policy, Severity
from dpmesh.report import findings
from dpmesh.report.findings import Finding
from dpmesh.v1 import privacy_pb2

Write = Callable[[str, str], Path]

READING = """syntax = "proto3";
package acme;
message Reading {
  string id = 1;
  double temperature = 2;
  oneof place {
    double height = 3;
    double depth = 4;
  }
}
service Telemetry {
  rpc Push(Reading) returns (Reading);
}
"""


def _check(files: list[Path], policy: Path | None = None) -> list[Finding]:
    overlays = source_locations.of_overlays(policy) if policy else {}
    return findings.check(sources.from_protos(files, []), Policy(policy), overlays).findings


def _lines(found: list[Finding]) -> list[tuple[str, int, str]]:
    return [(entry.location.file, entry.location.line, entry.rule) for entry in found]


def test_a_proto_without_annotations_has_no_findings(write: Write) -> None:
    assert _check([write("reading.proto", READING)]) == []


SLOTS = """syntax = "proto3";
package acme;
import "dpmesh/v1/privacy.proto";
message Step {
  bool up = 1 [(dpmesh.v1.field).categorical = {epsilon: 1}];
  string route = 2 [(dpmesh.v1.field).public = {}];
}
message Ack {}
service Steps {
  rpc Send(Step) returns (Ack) { option (dpmesh.v1.method).send_slot = {seconds: 1}; }
  rpc Late(Step) returns (Ack) { option (dpmesh.v1.method).send_slot = {seconds: -1}; }
}
"""


def test_slots_that_can_not_be_and_those_whose_covers_show(write: Write) -> None:
    found = [(each.rule, each.severity, each.element) for each in _check([write("steps.proto", SLOTS)])]
    assert found == [
        ("slot-cover", Severity.WARNING, "/acme.Steps/Send"),
        ("send-slot", Severity.ERROR, "/acme.Steps/Late"),
    ]


PLACES = """syntax = "proto3";
package acme;
message Money { int64 units = 1; int32 nanos = 2; }
message Order { Money price = 1; map<string, Money> fees = 2; Money tip = 3; }
"""


def test_a_path_that_leads_nowhere_is_an_error_on_its_own_line(write: Write) -> None:
    policy = write(
        "policy.yaml",
        "fields:\n"
        "  acme.Order.price.unit: {numeric: {lower: 0, upper: 9, epsilon: 1}}\n"
        "  acme.Order.fees.value.units: {suppress: {}}\n"
        "  acme.Odrer.price.units: {suppress: {}}\n"
        "messages:\n"
        "  acme.Order.tip.units: {unannotated: SUPPRESS}\n",
    )
    found = _check([write("places.proto", PLACES)], policy)
    assert [(entry.rule, entry.location.line) for entry in found] == [
        ("stray", 2),
        ("stray", 3),
        ("stray", 4),
        ("stray", 6),
    ]
    assert found[0].fix == "did you mean acme.Order.price.units?"
    assert found[2].fix == "did you mean acme.Order.price.units?"
    assert found[3].fix == "move it to `fields`"


def test_a_path_whose_beginning_is_misspelt_is_told_the_nearest_path(write: Write) -> None:
    proto = write("places.proto", PLACES + "message Cart { repeated Order orders = 1; Money price = 2; }")
    policy = write("policy.yaml", "fields:\n  acme.Catr.orders.price.units: {suppress: {}}\n")
    stray = [entry for entry in _check([proto], policy) if entry.rule == "stray"]
    assert [entry.fix for entry in stray] == ["did you mean acme.Cart.orders.price.units?"]


def test_a_path_through_an_any_is_told_that_it_ends_there(write: Write) -> None:
    text = 'syntax = "proto3"; package acme; import "google/protobuf/any.proto";'
    proto = write("box.proto", text + "message Box { google.protobuf.Any any = 1; }")
    policy = write("policy.yaml", "fields:\n  acme.Box.any.vaule: {suppress: {}}\n")
    stray = [entry for entry in _check([proto], policy) if entry.rule == "stray"]
    assert [entry.fix for entry in stray] == [
        "a path ends at an Any: set `unannotated` on the message that holds it"
    ]


def test_what_is_wrong_with_a_rule_by_path_is_said_on_its_own_line(write: Write) -> None:
    policy = write(
        "policy.yaml",
        "fields:\n"
        "  acme.Order.price.units: {numeric: {lower: 0, upper: 9}}\n"
        "  acme.Order.tip: {public: {}}\n"
        "  acme.Order.tip.units: {suppress: {}}\n",
    )
    found = _check([write("places.proto", PLACES)], policy)
    errors = [
        (entry.location.line, entry.element, entry.rule) for entry in found if entry.severity == "error"
    ]
    assert (2, "acme.Order.price.units", "epsilon") in errors
    # It lies in a field that leaves as it is.
    assert (4, "acme.Order.tip.units", "path") in errors


def test_a_check_examines_the_type_in_another_file_at_which_a_path_begins(write: Write) -> None:
    write("places.proto", PLACES)
    user = 'syntax = "proto3"; package acme; import "places.proto"; message Basket { Order order = 1; }'
    policy = write("policy.yaml", "fields:\n  acme.Order.price.units: {numeric: {lower: 0, upper: 9}}\n")
    found = _check([write("basket.proto", user)], policy)
    assert ("policy.yaml", 2, "epsilon") in _lines(found)


def test_a_misspelled_overlay_field_is_an_error_on_its_own_line(write: Write) -> None:
    policy = write(
        "policy.yaml",
        "version: '1'\nfields:\n"
        "  acme.Reading.id: {unit: {}}\n"
        "  acme.Reading.temprature: {numeric: {lower: -40, upper: 120, epsilon: 0.5}}\n",
    )
    found = _check([write("reading.proto", READING)], policy)
    stray = [entry for entry in found if entry.rule == "stray"]
    assert _lines(stray) == [("policy.yaml", 4, "stray")]
    assert stray[0].severity is Severity.ERROR
    assert stray[0].fix == "did you mean acme.Reading.temperature?"
    assert stray[0].element == "acme.Reading.temprature"


@pytest.mark.parametrize(
    ("section", "name", "rules"),
    [
        ("messages", "acme.Raeding", "{epsilon: 1}"),
        ("methods", "/acme.Telemetry/Pull", "{require: true}"),
        ("oneofs", "acme.Reading.where", "{epsilon: 1}"),
        ("fields", "Reading.id", "{suppress: {}}"),
    ],
)
def test_every_section_finds_its_strays(write: Write, section: str, name: str, rules: str) -> None:
    policy = write("policy.yaml", f"{section}:\n\n  {name}: {rules}\n")
    assert _lines(_check([write("reading.proto", READING)], policy)) == [("policy.yaml", 3, "stray")]


def test_a_bad_overlay_is_found_where_it_is_written(write: Write) -> None:
    policy = write(
        "policy.json",
        '{"fields": {\n  "acme.Reading.id": {"unit": {}},\n'
        '  "acme.Reading.temperature": {"numeric": {"lower": 1, "upper": 0, "epsilon": 1}}\n}}',
    )
    found = _check([write("reading.proto", READING)], policy)
    assert ("policy.json", 3, "bounds") in _lines(found)
    # What the overlay does not mention is at fault in the .proto.
    assert ("reading.proto", 7, "unannotated") in _lines(found)


def test_a_type_that_only_an_overlay_names_is_checked(write: Write) -> None:
    write("lib.proto", READING)
    user = write(
        "user.proto",
        'syntax = "proto3";\npackage user;\nimport "lib.proto";\nmessage M { acme.Reading r = 1; }\n',
    )
    assert _check([user]) == []
    alone = write(
        "alone.proto", 'syntax = "proto3";\npackage alone;\nimport "lib.proto";\nmessage N { int32 n = 1; }\n'
    )
    policy = write("policy.yaml", "fields:\n  acme.Reading.temperature: {numeric: {lower: 0, upper: 1}}\n")
    assert ("policy.yaml", 2, "epsilon") in _lines(_check([alone], policy))


def test_types_of_imports_are_looked_at_only_where_they_are_used(write: Write) -> None:
    write(
        "lib.proto",
        'syntax = "proto3";\npackage lib;\nimport "dpmesh/v1/privacy.proto";\n'
        "message Used {\n  double v = 1 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1 epsilon: 0}];\n}\n"
        "message Unused {\n  double v = 1 [(dpmesh.v1.field).numeric = {lower: 0 upper: 1 epsilon: 0}];\n}\n",
    )
    user = write(
        "user.proto",
        'syntax = "proto3";\npackage user;\nimport "lib.proto";\n'
        "message A { lib.Used u = 1; }\nmessage B { lib.Used u = 1; }\n",
    )
    # Both messages hold it; it is reported once.
    assert _lines(_check([user])) == [("lib.proto", 5, "epsilon")]


def test_findings_come_in_order_of_file_and_line(write: Write) -> None:
    text = (
        'syntax = "proto3";\npackage {0};\nimport "dpmesh/v1/privacy.proto";\nmessage M {{\n'
        "  double a = 1 [(dpmesh.v1.field).numeric = {{lower: 0 upper: 1}}];\n"
        "  double b = 2 [(dpmesh.v1.field).numeric = {{epsilon: 1}}];\n}}\n"
    )
    files = [write(f"{name}.proto", text.format(name)) for name in ("b", "a")]
    lines = [
        ("a.proto", 5, "epsilon"),
        ("a.proto", 6, "bounds"),
        ("b.proto", 5, "epsilon"),
        ("b.proto", 6, "bounds"),
    ]
    assert _lines(_check(files)) == lines


def test_annotations_of_a_newer_schema_are_errors() -> None:
    file = FileDescriptorProto(name="new.proto", package="new", syntax="proto3")
    file.dependency.append("dpmesh/v1/privacy.proto")
    message = file.message_type.add(name="M")
    field = message.field.add(name="v", number=1, type="TYPE_DOUBLE", label="LABEL_OPTIONAL", json_name="v")
    rules = privacy_pb2.FieldRules()
    rules.ParseFromString(b"\xfa\x01\x00")  # field 31: a kind that no version has yet
    field.options.Extensions[privacy_pb2.field].CopyFrom(rules)
    Path("new.binpb").write_bytes(FileDescriptorSet(file=[file]).SerializeToString())
    found = findings.check(sources.from_descriptor_sets([Path("new.binpb")]), Policy(), {}).findings
    assert [(str(entry.location), entry.rule, entry.element) for entry in found] == [
        ("new.proto", "newer-schema", "new.M.v")
    ]


def test_a_finding_without_source_info_names_the_file_alone() -> None:
    bad = Path(__file__).parent / "protos/bad.proto"
    compiled = sources.protoc.compile_files([bad], [])
    for file in compiled.descriptors.file:
        file.ClearField("source_code_info")
    Path("bad.binpb").write_bytes(compiled.descriptors.SerializeToString())
    found = findings.check(sources.from_descriptor_sets([Path("bad.binpb")]), Policy(), {}).findings
    assert len(found) > 50
    assert {str(entry.location) for entry in found} == {"bad.proto"}
    assert found[0].document()["line"] is None


SERVICE = """service Station {{
  rpc Push(Reading) returns (Ack);
  rpc Ask(Ack) returns ({response});
  rpc Watch(Ack) returns (stream {response});
}}
"""


@pytest.mark.parametrize(
    ("unit", "response", "found"),
    [
        ("string id = 1 [(dpmesh.v1.field).unit = {}];", "Reading", 1),
        ("string id = 1 [(dpmesh.v1.field).unit = {form: RAW}];", "Batch", 1),
        ("string id = 1 [(dpmesh.v1.field).unit = {}];", "Ack", 0),
        ("string id = 1 [(dpmesh.v1.field).unit = {normalize: NFC}];", "Reading", 0),
        ("string id = 1 [(dpmesh.v1.field).unit = {normalize: AS_IS}];", "Reading", 0),
        ("bytes id = 1 [(dpmesh.v1.field).unit = {}];", "Reading", 0),
        ("int64 id = 1 [(dpmesh.v1.field).unit = {}];", "Reading", 0),
    ],
)
def test_a_unit_in_a_response_may_have_a_peers_spelling(
    write: Write, unit: str, response: str, found: int
) -> None:
    text = (
        'syntax = "proto3";\npackage acme;\nimport "dpmesh/v1/privacy.proto";\n'
        f"message Reading {{\n  {unit}\n  bool b = 2 [(dpmesh.v1.field).categorical = {{epsilon: 1}}];\n}}\n"
        "message Batch { repeated Reading readings = 1; }\nmessage Ack { string text = 1; }\n"
        + SERVICE.format(response=response)
    )
    spellings = [each for each in _check([write("acme.proto", text)]) if each.rule == "unit-spelling"]
    assert [(each.element, each.location.line) for each in spellings] == [("acme.Reading.id", 5)] * found
    assert all(each.severity is Severity.WARNING for each in spellings)


@pytest.mark.parametrize(
    ("section", "name", "rules", "fix"),
    [
        ("fields", "acme.M.TagsEntry.value", "{suppress: {}}", "write a rule for the map, acme.M.tags"),
        ("messages", "acme.M.TagsEntry", "{epsilon: 1}", "write a rule for the map, acme.M.tags"),
        ("fields", "acme.extra", "{suppress: {}}", "extensions of a protected message never leave"),
        ("messages", "acme.M.name", "{epsilon: 1}", "move it to `fields`"),
        ("fields", "acme.M.choice", "{suppress: {}}", "move it to `oneofs`"),
        ("fields", "acme.M", "{suppress: {}}", "move it to `messages`"),
        ("messages", "/acme.S/R", "{epsilon: 1}", "move it to `methods`"),
        ("methods", "acme.S.R", "{require: true}", "did you mean /acme.S/R?"),
        ("fields", "acme.M.nome", "{suppress: {}}", "did you mean acme.M.name?"),
        ("oneofs", "acme.M.choise", "{epsilon: 1}", "did you mean acme.M.choice?"),
        ("messages", "acme.Mm", "{epsilon: 1}", "did you mean acme.M?"),
        ("oneofs", "quite.different", "{epsilon: 1}", "write its full name, as in package.Message.field"),
    ],
)
def test_the_fix_is_a_name_that_takes_the_rule(
    write: Write, section: str, name: str, rules: str, fix: str
) -> None:
    file = write(
        "m.proto",
        'syntax = "proto3";\npackage acme;\nimport "google/protobuf/descriptor.proto";\n'
        "message M { map<string, string> tags = 1; string name = 2; oneof choice { bool a = 3; bool b = 4; } }\n"
        "extend google.protobuf.FileOptions { string extra = 51234; }\n"
        "service S { rpc R(M) returns (M); }\n",
    )
    policy = write("policy.yaml", f"{section}:\n  {name}: {rules}\n")
    (stray,) = [entry for entry in _check([file], policy) if entry.rule == "stray"]
    assert (str(stray.location), stray.element, stray.fix) == ("policy.yaml:2:3", name, fix)


EMPTY = """syntax = "proto3";
package acme;
import "dpmesh/v1/privacy.proto";
message M {
  option (dpmesh.v1.message) = {};
  string a = 1 [(dpmesh.v1.field) = {}];
  oneof o {
    option (dpmesh.v1.oneof) = {};
    string b = 2; string c = 3;
  }
}
service S {
  rpc R(M) returns (M) { option (dpmesh.v1.method) = {}; }
}
message User { N n = 1; }
message N { bool z = 2 [(dpmesh.v1.field).suppress = {}]; string a = 1 [(dpmesh.v1.field) = {}]; }
"""


def test_annotations_that_set_nothing_are_all_errors_on_their_lines(write: Write) -> None:
    found = [entry for entry in _check([write("m.proto", EMPTY)]) if entry.rule == "empty-rule"]
    assert all(entry.severity is Severity.ERROR for entry in found)
    assert [(entry.location.line, entry.element) for entry in found] == [
        (4, "acme.M"),
        (6, "acme.M.a"),
        (7, "acme.M.o"),
        (13, "/acme.S/R"),
        (16, "acme.N.a"),
    ]


def test_an_overlay_that_drops_a_kind_is_an_error_on_its_line(write: Write) -> None:
    file = write(
        "m.proto",
        'syntax = "proto3";\npackage acme;\nimport "dpmesh/v1/privacy.proto";\n'
        "message M { repeated string a = 1 [(dpmesh.v1.field).suppress = {}]; }\n",
    )
    policy = write("policy.yaml", "fields:\n\n  acme.M.a: {max_items: 3}\n")
    assert _lines(_check([file], policy)) == [("policy.yaml", 3, "overlay-drops")]


def test_a_type_that_a_service_uses_is_looked_at_wherever_it_stands(write: Write) -> None:
    """As etcd's TxnRequest, which holds itself, and what an overlay rules for."""
    head = 'syntax = "proto3";\npackage acme;\n'
    write("put.proto", head + "message Put { bytes value = 1; }\n")
    write(
        "txn.proto",
        head
        + 'import "put.proto";\nmessage Op { Put put = 1;\n  Txn txn = 2; }\nmessage Txn { repeated Op ops = 1; }\n',
    )
    service = write(
        "kv.proto",
        head + 'import "txn.proto";\nservice KV { rpc Do(Txn) returns (Nothing); }\nmessage Nothing {}\n',
    )
    policy = write(
        "policy.yaml",
        "fields:\n  acme.Put.value: {suppress: {}}\n",
    )
    found = [entry for entry in _check([service], policy) if entry.severity is Severity.ERROR]
    assert ("acme.Op.txn", "recursive") in {(entry.element, entry.rule) for entry in found}
    assert {entry.location.line for entry in found if entry.rule == "recursive"} == {5}
