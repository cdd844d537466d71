"""Loaded types: the message types and methods of this process that can have rules, from all imported _pb2 modules."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FileDescriptor, MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

from dpmesh.errors import DpmeshError
from dpmesh.method_name import name_of
from dpmesh.policy import overlay_paths
from dpmesh.policy.descriptors import with_nested
from dpmesh.policy.policy import Policy
from dpmesh.v1 import privacy_pb2

# Two pools may hold files of one name.
_Key = tuple[DescriptorPool, str]


def _tag() -> bytes:
    options = descriptor_pb2.FieldOptions()
    extension: Any = privacy_pb2.field
    options.Extensions[extension].SetInParent()
    return options.SerializeToString()[:-1]


# What every annotation begins with in a serialized descriptor: the four extensions have one number.
_ANNOTATION = _tag()


def message_types(policy: Policy) -> Iterator[Descriptor]:
    """All message types of loaded files from which an annotation or an overlay can be reached, nested types included.

    A file counts if it is privacy.proto or has annotations, if it holds a message type that an overlay names or that
    an extension with options extends, or if it imports such a file, directly or not: a message type without rules may
    hold others that have some.

    Args:
        policy: Whose overlays to look for.
    """
    files = _files(policy)
    overlaid = _overlaid(policy)
    with_rules = [key for key, file in files.items() if _has_rules(file, overlaid)]
    importers: dict[_Key, list[_Key]] = {}
    for key, file in files.items():
        for used in file.dependencies:
            importers.setdefault(_key(used), []).append(key)
    reached = set(with_rules)
    while with_rules:
        key = with_rules.pop()
        reaching = {*importers.get(key, ()), *_extended(files[key])} & files.keys()
        new = [key for key in reaching if key not in reached]
        reached.update(new)
        with_rules += new
    for key, file in files.items():
        if key in reached:
            yield from with_nested(file.message_types_by_name.values())


def names(policy: Policy) -> list[str]:
    """The names of all elements of loaded files that can take a rule.

    Args:
        policy: Whose overlays to look for.
    """
    found = [name_of(method) for method in methods()]
    for file in _files(policy).values():
        for message in with_nested(file.message_types_by_name.values()):
            found.append(message.full_name)
            found += [field.full_name for field in message.fields]
            found += [oneof.full_name for oneof in message.oneofs]
    return found


def methods() -> Iterator[MethodDescriptor]:
    """All methods of imported modules."""
    for file in _imported():
        for service in file.services_by_name.values():
            yield from service.methods


def _imported() -> Iterator[FileDescriptor]:
    for module in list(sys.modules.values()):
        # Not getattr: modules that load lazily may do and raise anything then.
        file = getattr(module, "__dict__", {}).get("DESCRIPTOR")
        if isinstance(file, FileDescriptor):
            yield file


def _files(policy: Policy) -> dict[_Key, FileDescriptor]:
    """The files of all imported modules and of the overlays' types, and what these files import."""
    todo = list(_imported())
    for name in sorted(_overlaid(policy)):
        try:
            todo.append(descriptor_pool.Default().FindMessageTypeByName(name).file)
        except KeyError:
            continue
    files: dict[_Key, FileDescriptor] = {}
    while todo:
        file = todo.pop()
        if _key(file) not in files:
            files[_key(file)] = file
            todo += file.dependencies
    return files


def _key(file: FileDescriptor) -> _Key:
    return file.pool, file.name


def _overlaid(policy: Policy) -> set[str]:
    """The names of the message types that overlays are about."""
    overlays = policy.rules.overlay
    names = {*overlays.fields, *overlays.oneofs, *overlays.messages}
    # A path goes on after the name of a field of the type.
    return {beginning for name in names for beginning in overlay_paths.prefixes(name)} | set(
        overlays.messages
    )


def _has_rules(file: FileDescriptor, overlaid: set[str]) -> bool:
    # The serialized file is searched, because its imports don't tell of all annotations:
    # `import option "dpmesh/v1/privacy.proto"` (edition 2024) is not among them.
    if file.name == privacy_pb2.DESCRIPTOR.name or _ANNOTATION in file.serialized_pb:
        return True
    return bool(overlaid) and any(
        message.full_name in overlaid for message in with_nested(file.message_types_by_name.values())
    )


def _extended(file: FileDescriptor) -> Iterator[_Key]:
    """The files of the types that a file's extensions extend, where these have options, which may be a rule."""
    inside = [
        entry for message in with_nested(file.message_types_by_name.values()) for entry in message.extensions
    ]
    for entry in (*file.extensions_by_name.values(), *inside):
        if entry.has_options and entry.containing_type is not None:
            yield _key(entry.containing_type.file)


# Generated code keeps its file's descriptor under this name. A module that has none yet is still being imported.
_DESCRIPTOR = "DESCRIPTOR"


class InForce:
    """Looks for rules: an overlay, or an annotation of a type whose module is imported.

    The answer is kept: "yes" for good, "no" until more modules are imported.

    Args:
        policy: The rules.
    """

    def __init__(self, policy: Policy) -> None:
        overlays = policy.rules.overlay
        self._policy = policy
        self._in_force = any((overlays.fields, overlays.messages, overlays.oneofs, overlays.methods))
        # How many modules were imported when no rule was found.
        self._modules = -1

    def __call__(self) -> bool:
        """Whether any rule is in force."""
        if not self._in_force and len(sys.modules) != self._modules:
            self._look()
        return self._in_force

    def _look(self) -> None:
        modules = len(sys.modules)
        # Another thread may be in the middle of an import: the number of modules then changes no more.
        importing = any(
            name.endswith("_pb2") and _DESCRIPTOR not in getattr(module, "__dict__", {})
            for name, module in list(sys.modules.items())
        )
        self._in_force = any(self._rules(message) for message in message_types(self._policy))
        self._modules = -1 if importing else modules

    def _rules(self, message: Descriptor) -> bool:
        try:
            plan = self._policy.plan(message)
        except DpmeshError:
            return True
        # An open plan says only that messages of the type can hold others.
        return plan is not None and not plan.is_open
