"""How loss and error differ between two states of the same messages, for `dpmesh plan --against OLD`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dpmesh.report.plan import FieldReport, MessageReport


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field that leaves in another way than before.

    Attributes:
        path: From the root message.
        old: How it left; None if there was no such field.
        new: How it leaves; None if there is no such field.
    """

    path: str
    old: FieldReport | None
    new: FieldReport | None


@dataclass(frozen=True, slots=True)
class MessageChange:
    """One message type that leaves in another way than before.

    Attributes:
        message: Its full name.
        old: The report before; None if there was no such type.
        new: The report now; None if there is no such type.
        fields: The fields that differ.
    """

    message: str
    old: MessageReport | None
    new: MessageReport | None
    fields: tuple[FieldChange, ...]


def compare(old: Mapping[str, MessageReport], new: Mapping[str, MessageReport]) -> list[MessageChange]:
    """All message types that differ, those of the new state first.

    Args:
        old: Reports by message name, before the change.
        new: Reports by message name, after the change.
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
