"""`send_slot`: which methods can have it, how long a slot may be, and by what a cover can be told."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from google.protobuf import descriptor_pool

from dpmesh.errors import AnnotationError
from dpmesh.mesh.snapshot import PolicySnapshot
from dpmesh.policy import Policy, send_slot
from dpmesh.v1 import policy_pb2
from tests.support.protos import compiled

TYPES = compiled(
    """message Step { string id = 1 [(dpmesh.v1.field).unit = {}];
      optional double speed = 2 [(dpmesh.v1.field).numeric = {lower: 0 upper: 9 epsilon: 1}];
      string note = 3 [(dpmesh.v1.field).suppress = {}]; bytes token = 4 [(dpmesh.v1.field).message_id = {}]; }
    message Trip { string id = 1 [(dpmesh.v1.field).unit = {}];
      double load = 2 [(dpmesh.v1.field).numeric = {lower: 0 upper: 9 epsilon: 1 sensitivity: 1}];
      string route = 3 [(dpmesh.v1.field).public = {}]; string trip = 4 [(dpmesh.v1.field).pseudonym = {}];
      bool up = 5 [(dpmesh.v1.field) = {categorical: {epsilon: 1} memoize: {}}];
      repeated double part = 6 [(dpmesh.v1.field) = {numeric: {lower: 0 upper: 9 epsilon: 1}
        max_items: 4 length: PUBLIC}];
      google.protobuf.Duration age = 7 [(dpmesh.v1.field).time = {earliest: "0s" latest: "90s" epsilon: 1
        largest_shift: {seconds: 5}}]; string free = 8;
      oneof side { option (dpmesh.v1.oneof).public = true;
        bool left = 9 [(dpmesh.v1.field).categorical = {epsilon: 1}];
        bool right = 10 [(dpmesh.v1.field).categorical = {epsilon: 1}]; } }
    message Batch { repeated Step steps = 1; }
    message Ack { string text = 1; }
    service Steps {
      rpc Send(Step) returns (Ack); rpc SendAll(stream Step) returns (Ack); rpc Watch(Step) returns (stream Ack);
      rpc Plain(Ack) returns (Ack); rpc Drive(Trip) returns (Ack); }"""
)
PREFIX = f"/{TYPES.package}.Steps/"


def method(name):
    return descriptor_pool.Default().FindMethodByName(f"{TYPES.package}.Steps.{name}")


def slotted(name, seconds=1.0):
    overlay = policy_pb2.Policy()
    overlay.methods[PREFIX + name].send_slot.FromNanoseconds(round(seconds * 1e9))
    return Policy(overlay)


@pytest.mark.parametrize(("name", "seconds"), [("Send", 0.01), ("SendAll", 86_400), ("Send", 0.25)])
def test_the_length_of_a_slot(name, seconds):
    assert slotted(name, seconds).send_slot(method(name)) == seconds
    assert PolicySnapshot(slotted(name, seconds), ()).send_slot(PREFIX + name) == seconds
    assert Policy().send_slot(method(name)) is None


@pytest.mark.parametrize(
    ("name", "seconds"),
    [("Send", 0), ("Send", -1), ("SendAll", 0.0099), ("Send", 86_401), ("Watch", 1), ("Plain", 1)],
)
def test_what_can_have_no_slots(name, seconds, monkeypatch):
    monkeypatch.setitem(sys.modules, "steps_pb2", SimpleNamespace(DESCRIPTOR=TYPES.Step.DESCRIPTOR.file))
    policy = slotted(name, seconds)
    with pytest.raises(AnnotationError) as caught:
        policy.send_slot(method(name))
    assert (caught.value.rule, caught.value.element) == ("send-slot", PREFIX + name)
    with pytest.raises(AnnotationError, match="send-slot"):
        PolicySnapshot(policy, ()).compile_loaded()


def test_by_what_a_cover_can_be_told():
    told = {
        name: list(send_slot.cover_warnings(method(name), slotted(name).plan(method(name).input_type)))
        for name in ("Send", "Drive")
    }
    assert told["Send"] == []
    (warning,) = told["Drive"]
    assert (warning.rule, warning.element) == ("slot-cover", PREFIX + "Drive")
    names = [
        f"{TYPES.package}.Trip.{field}"
        for field in ("load", "route", "trip", "up", "part", "age", "free", "side")
    ]
    assert [name for name in names if name not in warning.text] == []
    assert "Trip.id" not in warning.text


def test_the_number_of_units_tells_a_cover():
    (warning,) = send_slot.cover_warnings(method("SendAll"), Policy().plan(TYPES.Batch.DESCRIPTOR))
    assert "the number of steps[].id is shown" in warning.text
