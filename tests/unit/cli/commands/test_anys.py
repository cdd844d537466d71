"""What `dpmesh check` and `dpmesh plan` say of google.protobuf.Any."""

from __future__ import annotations

import json

HEAD = """syntax = "proto3";
package acme;
import "dpmesh/v1/privacy.proto";
import "google/protobuf/any.proto";
import "google/rpc/status.proto";
message Event {
  string id = 1 [(dpmesh.v1.field).unit = {}];
  google.protobuf.Any payload = 2;
}
message Envelope {
  repeated google.protobuf.Any boxes = 1;
  Envelope child = 2;
  google.protobuf.Any kept = 3 [(dpmesh.v1.field).public = {}];
}
message Unused {
  google.protobuf.Any box = 1;
}
message Strict {
  option (dpmesh.v1.message) = {unannotated: REJECT};
  string secret = 1 [(dpmesh.v1.field).suppress = {}];
  map<string, google.protobuf.Any> named = 2;
}
"""
SERVICE = """service Bus {
  rpc Push(Envelope) returns (google.rpc.Status);
  rpc Raw(google.protobuf.Any) returns (Event);
}
"""


def test_check_names_every_any_that_an_rpc_or_an_annotated_message_reaches(dpmesh, write):
    ran = dpmesh("check", write("bus.proto", HEAD + SERVICE), "--json")
    assert ran.code == 0, ran.out + ran.err
    found = [entry for entry in json.loads(ran.out)["findings"] if entry["rule"] == "any"]
    assert {entry["severity"] for entry in found} == {"warning"}
    assert [(entry["file"], entry["line"], entry["element"]) for entry in found] == [
        ("bus.proto", 8, "acme.Event.payload"),
        ("bus.proto", 11, "acme.Envelope.boxes"),
        ("bus.proto", 21, "acme.Strict.named"),
        ("bus.proto", 24, "/acme.Bus/Push"),
        ("bus.proto", 25, "/acme.Bus/Raw"),
    ]
    assert "leave as they are" in found[0]["text"]
    assert "are refused" in found[2]["text"]
    assert "response reaches google.rpc.Status.details" in found[3]["text"]
    assert "request reaches google.protobuf.Any.value" in found[4]["text"]


def test_check_without_services_names_those_of_annotated_messages(dpmesh, write):
    ran = dpmesh("check", write("bus.proto", HEAD), "--json")
    found = [entry["element"] for entry in json.loads(ran.out)["findings"] if entry["rule"] == "any"]
    assert found == ["acme.Event.payload", "acme.Strict.named"]


def test_check_says_by_which_rule_of_a_policy_unknown_types_go(dpmesh, write):
    policy = write("policy.yaml", "messages: {google.protobuf.Any: {unannotated: SUPPRESS}}\n")
    ran = dpmesh("check", write("bus.proto", HEAD + SERVICE), "--policy", policy, "--json")
    texts = [entry["text"] for entry in json.loads(ran.out)["findings"] if entry["rule"] == "any"]
    assert ["are dropped" in text for text in texts] == [True, True, False, True, True]


def test_a_rule_for_a_field_of_any_itself_is_an_error(dpmesh, write):
    policy = write("policy.yaml", "fields: {google.protobuf.Any.value: {suppress: {}}}\n")
    ran = dpmesh("check", write("bus.proto", HEAD + SERVICE), "--policy", policy)
    assert ran.code == 1
    assert "google.protobuf.Any.value" in ran.out
    assert "[any]" in ran.out


def test_plan_lists_anys_as_rows(dpmesh, write):
    proto = write("bus.proto", HEAD + SERVICE)
    ran = dpmesh("plan", proto, "--json")
    assert ran.code == 0, ran.out + ran.err
    messages = {entry["message"]: entry for entry in json.loads(ran.out)["messages"]}
    rows = {
        name: [(row["path"], row["output"]) for row in entry["fields"] if row["kind"] == "any"]
        for name, entry in messages.items()
    }
    judged = "judged at release; types without rules leave as they are"
    assert rows == {
        "acme.Envelope": [("boxes", judged)],
        "acme.Event": [("payload", judged)],
        "google.rpc.Status": [("details", judged)],
        "google.protobuf.Any": [("value", judged)],
    }
    assert [name for name, entry in messages.items() if entry["protected"]] == ["acme.Event"]
    text = dpmesh("plan", proto).out
    assert "acme.Envelope: nothing to protect, but for what its Anys pack" in text
    assert "judged at release" in text
