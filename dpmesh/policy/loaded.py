"""Which message types of this process have annotations: those of all imported _pb2 modules."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor, FileDescriptor

from dpmesh.policy.policy import Policy
from dpmesh.v1 import privacy_pb2


def message_types(policy: Policy) -> Iterator[Descriptor]:
    """All message types of imported modules that import privacy.proto or that an overlay names, innermost too.

    A file that imports privacy.proto only by way of others counts.

    Args:
        policy: Whose overlays to look for.
    """
    overlays = policy.rules.overlay
    overlaid = {name.rpartition(".")[0] for names in (overlays.fields, overlays.oneofs) for name in names}
    overlaid |= set(overlays.messages)
    known = {privacy_pb2.DESCRIPTOR.name: True}
    for module in list(sys.modules.values()):
        # Not getattr: modules that load lazily may do and raise anything then.
        file = getattr(module, "__dict__", {}).get("DESCRIPTOR")
        if not isinstance(file, FileDescriptor):
            continue
        annotated = _uses_annotations(file, known)
        for descriptor in _all(file.message_types_by_name.values()):
            if annotated or descriptor.full_name in overlaid:
                yield descriptor


def _uses_annotations(file: FileDescriptor, known: dict[str, bool]) -> bool:
    """Whether a file imports privacy.proto: a message without annotations may hold others that have some."""
    if file.name not in known:
        known[file.name] = any(_uses_annotations(used, known) for used in file.dependencies)
    return known[file.name]


def _all(descriptors: object) -> Iterator[Descriptor]:
    for descriptor in descriptors:  # type: ignore[attr-defined]
        if not descriptor.GetOptions().map_entry:
            yield descriptor
            yield from _all(descriptor.nested_types)
