"""Units: how the id of the device or person that a message is about is read, and how it leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from dpmesh.errors import ProtectionError
from dpmesh.policy.findings import Findings
from dpmesh.policy.node import Node
from dpmesh.policy.plan import Alias, FieldPlan, Kind
from dpmesh.policy.rules import Ruling
from dpmesh.policy.steps import Step, passed
from dpmesh.policy.types import INTEGER_RANGES, F, choice_of, type_name
from dpmesh.v1 import privacy_pb2 as pb

DEFAULT_EPOCH = 86_400.0
# What a Duration may be, by its own rules.
LONGEST_EPOCH = 315_576_000_000

# From a message to its unit's id.
Read = Callable[[Any], bytes]


def add(node: Node, entry: FieldDescriptor, path: str, findings: Findings, *, owned: bool) -> Read | None:
    """Adds the field that holds the unit's id to the node of its message.

    Args:
        node: Of the message.
        entry: The field.
        path: What comes before its name.
        findings: What holds, and what was found.
        owned: The message stands in one that names a unit too.

    Returns:
        What reads the id, or None if the field can't hold one.
    """
    name = entry.full_name
    ruling = findings.field(entry)
    fits = entry.type in INTEGER_RANGES or entry.type in (F.TYPE_STRING, F.TYPE_BYTES)
    if entry.is_repeated or not fits:
        text = f"unit does not fit {type_name(entry)}"
        findings.error(name, "kind-type", text, "string, bytes or integer")
        return None
    if choice_of(entry) is not None:
        findings.error(name, "kind-type", "a unit can't be one of a oneof", "move it out")
        return None
    node.fields.append(FieldPlan(path + entry.name, name, Kind.UNIT, ruling.origin))
    read = _reader(entry)
    if ruling.rules.unit.form == pb.Unit.SUPPRESSED:
        _suppress(node, entry, read, findings, owned=owned)
        return read
    step = _step(entry, ruling, read, findings)
    node.steps.append(step)
    node.bare.append(step)
    node.shown.append(f"{name} leaves" + (" as it is" if ruling.rules.unit.form else " as a pseudonym"))
    return read


def _suppress(node: Node, entry: FieldDescriptor, read: Read, findings: Findings, *, owned: bool) -> None:
    if entry.is_required:
        text = "is required, so its message can't be sent without it"
        findings.error(entry.full_name, "required", text, "use another form, or make it optional")
    if not owned:
        # Where a message of an outer unit is filled in, there is no id; those that are there are read for the bill.
        step = _required(read)
        node.steps.append(step)
        node.bare.append(step)


def _step(entry: FieldDescriptor, ruling: Ruling, read: Read, findings: Findings) -> Step:
    name, rules = entry.full_name, ruling.rules.unit
    if rules.form == pb.Unit.RAW:
        findings.warn(name, "unit-raw", "the unit's id leaves as it is", "form: PSEUDONYM hides it")
        return passed(entry)
    epoch = rules.epoch.seconds + rules.epoch.nanos / 1e9 if rules.HasField("epoch") else DEFAULT_EPOCH
    if not 1 <= epoch <= LONGEST_EPOCH:
        findings.error(name, "epoch", "epoch must be from 1 s to 10,000 years")
    if INTEGER_RANGES.get(entry.type, (0, 2**63))[1] < 2**33:
        findings.warn(
            name,
            "unit-collision",
            "32-bit pseudonyms of different units collide",
            "use a string or int64",
        )
    return _pseudonym(entry, read, epoch)


def _reader(field: FieldDescriptor) -> Read:
    """Reads a unit's id as canonical bytes: text in UTF-8, bytes as they are, integers in decimal.

    So one device has one budget, whether a message spells its id "42" or 42. An id that is empty (or 0, where the
    field can't tell 0 from absent) is missing, and so is a declared default.
    """
    name, full_name, presence = field.name, field.full_name, field.has_presence

    def missing() -> ProtectionError:
        return ProtectionError("MISSING_UNIT", full_name, "the privacy unit's id is missing")

    if field.type in INTEGER_RANGES:

        def integer(message: Any) -> bytes:
            value = getattr(message, name)
            if not (message.HasField(name) if presence else value):
                raise missing()
            return b"%d" % value

        return integer
    if field.type == F.TYPE_STRING:

        def text(message: Any) -> bytes:
            value: str | bytes = getattr(message, name)
            if not value or (presence and not message.HasField(name)):
                raise missing()
            # Text that came over the wire and is no UTF-8 reads as bytes.
            return value.encode() if isinstance(value, str) else value

        return text

    def raw(message: Any) -> bytes:
        value: bytes = getattr(message, name)
        if not value or (presence and not message.HasField(name)):
            raise missing()
        return value

    return raw


def _required(read: Read) -> Step:
    """A unit's id that must be there, and does not leave."""

    def step(source: Any, _target: Any, _alias: Alias) -> None:
        read(source)

    return step


def _pseudonym(field: FieldDescriptor, read: Read, epoch: float) -> Step:
    """Writes the unit's keyed hash of this epoch in the field's own type."""
    name = field.name
    if field.type == F.TYPE_STRING:
        return lambda source, target, alias: setattr(target, name, alias(read(source), epoch).hex())
    if field.type == F.TYPE_BYTES:
        return lambda source, target, alias: setattr(target, name, alias(read(source), epoch))
    mask = INTEGER_RANGES[field.type][1]

    def integer(source: Any, target: Any, alias: Alias) -> None:
        # 0 would read as absent.
        setattr(target, name, int.from_bytes(alias(read(source), epoch), "big") & mask or 1)

    return integer
