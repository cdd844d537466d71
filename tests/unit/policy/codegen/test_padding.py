"""Padding: every size is reached exactly, nothing else of a message changes, and what fits nowhere is refused."""

import pytest
from google.protobuf.unknown_fields import UnknownFieldSet

from dpmesh.errors import ProtectionError
from dpmesh.policy import Policy, Severity
from dpmesh.policy.codegen.padding import FIELD, LEAST, padding
from tests.support.protos import compiled

TYPES = compiled(
    """message M { option (dpmesh.v1.message) = {epsilon: 64 pad_to: [40, 64, 300]};
        bool on = 1 [(dpmesh.v1.field).categorical = {}];
        string note = 2 [(dpmesh.v1.field).public = {}];
        repeated N n = 3 [(dpmesh.v1.field) = {max_items: 1}]; }
    message N { option (dpmesh.v1.message).pad_to = 100; bool up = 1 [(dpmesh.v1.field).categorical = {epsilon: 1}]; }
    message Old { bool on = 1; string note = 2; }"""
)
PLAN = Policy().plan(TYPES.M.DESCRIPTOR)


def protected(note, build=PLAN.protect):
    return build(TYPES.M(on=True, note=note), lambda unit, epoch: unit)


@pytest.mark.parametrize(("around", "within"), [(4, 140), (128, 140), (2**14, 140), (2**21, 20)])
def test_every_size_is_reached_with_bytes_that_every_parser_skips(around, within):
    for size in range(max(LEAST, around - within), around + within):
        added = padding(size)
        assert len(added) == size
        message = TYPES.Old()
        message.MergeFromString(added)
        fields = list(UnknownFieldSet(message))
        assert {(field.field_number, field.wire_type) for field in fields} == {(FIELD, 2)}
        assert not any(b"".join(field.data for field in fields))
        message.DiscardUnknownFields()
        assert message == TYPES.Old()


def test_all_small_sizes_are_reached():
    assert [len(padding(size)) for size in range(LEAST, 2**15)] == list(range(LEAST, 2**15))


def test_a_message_has_the_smallest_size_that_holds_it():
    for length in range(270):
        note = "x" * length
        out = protected(note)
        wire = out.SerializeToString()
        plain = TYPES.M.FromString(wire)
        plain.DiscardUnknownFields()
        needed = plain.ByteSize() + LEAST
        assert len(wire) == min(size for size in PLAN.pad_to if size >= needed)
        assert (plain.note, plain.on, len(plain.n)) == (note, True, 1)
        assert TYPES.Old.FromString(wire).note == note


def test_a_message_that_is_suppressed_has_such_a_size_as_well():
    assert [protected("x" * n, PLAN.blank).ByteSize() for n in (0, 1, 40)] == [40, 40, 64]


def test_a_message_that_no_size_holds_is_refused_without_its_content():
    with pytest.raises(ProtectionError) as caught:
        protected("secret" * 60)
    assert (caught.value.reason, caught.value.field) == ("SIZE", TYPES.M.DESCRIPTOR.full_name)
    assert "secret" not in str(caught.value)


def test_padding_does_not_pass_a_second_sender():
    out = PLAN.protect(protected("x"), lambda unit, epoch: unit)
    assert out.ByteSize() == 40
    assert sum(field.field_number == FIELD for field in UnknownFieldSet(out)) == 1


def test_a_rule_inside_another_message_is_named():
    (found,) = [d for d in Policy().diagnostics(TYPES.M.DESCRIPTOR) if d.rule == "pad-to"]
    assert (found.severity, found.element) == (Severity.WARNING, TYPES.N.DESCRIPTOR.full_name)


RULE = "option (dpmesh.v1.message).pad_to = %s;"
BOOL = "bool b = %d [(dpmesh.v1.field).categorical = {epsilon: 1}];"


@pytest.mark.parametrize(
    "body",
    [
        RULE % 3 + BOOL % 1,
        RULE % (2**26 + 1) + BOOL % 1,
        RULE % 64 + RULE % 64 + BOOL % 1,
        RULE % 64 + RULE % 32 + BOOL % 1,
        RULE % 64 + BOOL % FIELD,
        RULE % 64 + "bool b = 1;",
    ],
)
def test_sizes_that_make_no_sense_are_refused(body):
    found = Policy().diagnostics(compiled(f"message M {{ {body} }}").M.DESCRIPTOR)
    assert [d.rule for d in found if d.severity is Severity.ERROR] == ["pad-to"]


NOTE = "string note = 2 [(dpmesh.v1.field).public = {}];"
ID = "string id = 3 [(dpmesh.v1.field).pseudonym = {}];"


@pytest.mark.parametrize(("body", "needed"), [(BOOL % 1, 6), (BOOL % 1 + ID, 40), (BOOL % 1 + ID + NOTE, 38)])
def test_sizes_that_can_not_hold_the_longest_message_are_refused(body, needed):
    """Of a message with a public note, only the shortest length is known."""
    for last in (needed - 1, needed):
        found = Policy().diagnostics(compiled(f"message M {{ {RULE % last} {body} }}").M.DESCRIPTOR)
        errors = [d for d in found if d.severity is Severity.ERROR]
        assert [d.rule for d in errors] == ["pad-to"] * (last < needed)
        assert all(f"{needed} bytes" in d.text for d in errors)
