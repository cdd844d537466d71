"""Source locations: file, line and column of fields, oneofs, messages and methods, and of overlay entries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto

from dpmesh.policy.policy import SECTIONS
from dpmesh.report.sources import SourceLocation

# Field numbers in descriptor.proto, of which the paths in SourceCodeInfo are made.
_FILE_MESSAGES, _FILE_SERVICES, _FILE_EXTENSIONS = 4, 6, 7
_MESSAGE_FIELDS, _MESSAGE_NESTED, _MESSAGE_EXTENSIONS, _MESSAGE_ONEOFS = 2, 3, 6, 8
_SERVICE_METHODS = 2


def of_elements(file: FileDescriptorProto, display_name: str) -> dict[str, SourceLocation]:
    """The locations of all elements of a file, by the names in Diagnostic.element.

    Args:
        file: With source info; without it, lines are unknown.
        display_name: What to call the file.
    """
    spans = {tuple(entry.path): entry.span for entry in file.source_code_info.location}
    return {name: _location(spans.get(path), display_name) for name, path in elements(file)}


def _location(span: Sequence[int] | None, file: str) -> SourceLocation:
    return SourceLocation(file, span[0] + 1, span[1] + 1) if span and len(span) >= 2 else SourceLocation(file)


def elements(file: FileDescriptorProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The names of services, and of all elements that can have annotations, with their paths in the source info."""
    prefix = file.package + "." if file.package else ""
    for index, message in enumerate(file.message_type):
        yield from _of_message(message, prefix + message.name, (_FILE_MESSAGES, index))
    for index, service in enumerate(file.service):
        yield prefix + service.name, (_FILE_SERVICES, index)
        for number, method in enumerate(service.method):
            path = (_FILE_SERVICES, index, _SERVICE_METHODS, number)
            yield f"/{prefix}{service.name}/{method.name}", path
    for index, extension in enumerate(file.extension):
        yield prefix + extension.name, (_FILE_EXTENSIONS, index)


def _of_message(
    message: DescriptorProto, name: str, path: tuple[int, ...]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield name, path
    for index, field in enumerate(message.field):
        yield f"{name}.{field.name}", (*path, _MESSAGE_FIELDS, index)
    for index, extension in enumerate(message.extension):
        yield f"{name}.{extension.name}", (*path, _MESSAGE_EXTENSIONS, index)
    for index, oneof in enumerate(message.oneof_decl):
        yield f"{name}.{oneof.name}", (*path, _MESSAGE_ONEOFS, index)
    for index, nested in enumerate(message.nested_type):
        yield from _of_message(nested, f"{name}.{nested.name}", (*path, _MESSAGE_NESTED, index))


def of_overlays(path: Path) -> dict[str, SourceLocation]:
    """The locations of all entries of a policy file in YAML or JSON, by the names that they overlay.

    Args:
        path: A file that dpmesh.policy has read.
    """
    import yaml

    from dpmesh.policy.bounded_yaml import BoundedLoader

    root = yaml.compose(path.read_text(encoding="utf-8"), Loader=BoundedLoader)
    locations: dict[str, SourceLocation] = {}
    for section, entries in _pairs(root):
        if section.value in SECTIONS:
            for key, _ in _pairs(entries):
                locations[key.value] = SourceLocation(
                    str(path), key.start_mark.line + 1, key.start_mark.column + 1
                )
    return locations


def _pairs(node: Any) -> Sequence[tuple[Any, Any]]:
    """The keys and values of a YAML mapping; nothing for other nodes."""
    return node.value if isinstance(getattr(node, "value", None), list) and node.id == "mapping" else ()
