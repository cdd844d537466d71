"""Which message types and methods of this process may have annotations: those of all imported _pb2 modules."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, FileDescriptor, MethodDescriptor

from dpmesh.policy.policy import Policy
from dpmesh.v1 import privacy_pb2


def _tag() -> bytes:
    options = descriptor_pb2.FieldOptions()
    extension: Any = privacy_pb2.field
    options.Extensions[extension].SetInParent()
    return options.SerializeToString()[:-1]


# What every annotation begins with in a serialized descriptor: the four extensions have one number.
_ANNOTATION = _tag()


def message_types(policy: Policy) -> Iterator[Descriptor]:
    """All message types, nested ones too, that may hold something protected.

    These are the types of imported modules that have annotations or that import a file with some, the types that
    their extensions extend, and the types that an overlay names.

    Args:
        policy: Whose overlays to look for.
    """
    overlays = policy.rules.overlay
    named = {name.rpartition(".")[0] for names in (overlays.fields, overlays.oneofs) for name in names}
    named |= set(overlays.messages)
    known: dict[str, bool] = {}
    files = list(_files())
    annotated = [file for file in files if _has_annotations(file, known)]
    named |= {extended.full_name for file in annotated for extended in _extended(file)}
    for file in files:
        for descriptor in _all(file.message_types_by_name.values()):
            if known[file.name] or descriptor.full_name in named:
                yield descriptor


def methods() -> Iterator[MethodDescriptor]:
    """All methods of imported modules."""
    for file in _files():
        for service in file.services_by_name.values():
            yield from service.methods


def _files() -> Iterator[FileDescriptor]:
    """The files of imported modules, without those of the annotations themselves."""
    for module in list(sys.modules.values()):
        # Not getattr: modules that load lazily may do and raise anything then.
        file = getattr(module, "__dict__", {}).get("DESCRIPTOR")
        if isinstance(file, FileDescriptor) and file.name != privacy_pb2.DESCRIPTOR.name:
            yield file


def _has_annotations(file: FileDescriptor, known: dict[str, bool]) -> bool:
    """Whether a file, or one that it imports, has annotations: its messages may hold messages of that one.

    The serialized file is searched for them. Its imports don't tell: `import option "dpmesh/v1/privacy.proto"`
    (edition 2024) is not among them.
    """
    if file.name not in known:
        known[file.name] = _ANNOTATION in file.serialized_pb or any(
            _has_annotations(used, known) for used in file.dependencies
        )
    return known[file.name]


def _extended(file: FileDescriptor) -> Iterator[Descriptor]:
    """The message types that a file's extensions extend."""
    extensions: list[Any] = list(file.extensions_by_name.values())
    for message in _all(file.message_types_by_name.values()):
        extensions += message.extensions
    return (extension.containing_type for extension in extensions)


def _all(descriptors: object) -> Iterator[Descriptor]:
    for descriptor in descriptors:  # type: ignore[attr-defined]
        if not descriptor.GetOptions().map_entry:
            yield descriptor
            yield from _all(descriptor.nested_types)
