"""What `dpmesh plan --against OLD` works out: how loss and error differ between two states of the same messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dpmesh.report.plan import FieldReport, MessageReport


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field that leaves otherwise than before; None on the side where the message has no such field.

    Attributes:
        path: From the root message.
        old: How it left.
        new: How it leaves.
    """

    path: str
    old: FieldReport | None
    new: FieldReport | None


@dataclass(frozen=True, slots=True)
class MessageChange:
    """One message type that leaves otherwise than before; None on the side that does not have it.

    Attributes:
        message: Its full name.
        old: The whole report before.
        new: The whole report now.
        fields: The fields that differ.
    """

    message: str
    old: MessageReport | None
    new: MessageReport | None
    fields: tuple[FieldChange, ...]


def compare(old: Mapping[str, MessageReport], new: Mapping[str, MessageReport]) -> list[MessageChange]:
    """All message types that differ, those of the new state first.

    Args:
        old: Reports by message name.
        new: The same, after the change.
    """
    changes = []
    for name in dict.fromkeys((*new, *old)):
        before, after = old.get(name), new.get(name)
        fields = _fields(before.fields if before else (), after.fields if after else ())
        if fields or before is None or after is None or before.refused != after.refused:
            changes.append(MessageChange(name, before, after, tuple(fields)))
    return changes


def _fields(old: Sequence[FieldReport], new: Sequence[FieldReport]) -> list[FieldChange]:
    before = {entry.path: entry for entry in old}
    after = {entry.path: entry for entry in new}
    pairs = [
        FieldChange(path, before.get(path), after.get(path)) for path in dict.fromkeys((*after, *before))
    ]
    return [pair for pair in pairs if pair.old != pair.new]
