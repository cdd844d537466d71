"""Where elements stand: file, line and column of fields, oneofs, messages and methods, and of overlay entries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto

from dpmesh.report.sources import SourceLocation

_SECTIONS = ("fields", "messages", "methods", "oneofs")

# Field numbers in descriptor.proto, of which the paths in SourceCodeInfo are made.
_FILE_MESSAGES, _FILE_SERVICES, _FILE_EXTENSIONS = 4, 6, 7
_MESSAGE_FIELDS, _MESSAGE_NESTED, _MESSAGE_EXTENSIONS, _MESSAGE_ONEOFS = 2, 3, 6, 8
_SERVICE_METHODS = 2


def of_elements(file: FileDescriptorProto, shown: str) -> dict[str, SourceLocation]:
    """The places of all elements of a file, by the names that Problem.element uses.

    Args:
        file: With source info, or the lines are unknown.
        shown: What to call the file.
    """
    spans = {tuple(entry.path): entry.span for entry in file.source_code_info.location}
    return {name: _place(spans.get(path), shown) for name, path in elements(file)}


def _place(span: Sequence[int] | None, shown: str) -> SourceLocation:
    return (
        SourceLocation(shown, span[0] + 1, span[1] + 1) if span and len(span) >= 2 else SourceLocation(shown)
    )


def elements(file: FileDescriptorProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The names of all elements of a file that can have annotations, and of services, with their source info paths."""
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
    """The places of all entries of a policy file in YAML or JSON, by the names they overlay.

    Args:
        path: A file that dpmesh.policy could read.
    """
    import yaml

    from dpmesh.policy.bounded_yaml import BoundedLoader

    root = yaml.compose(path.read_text(encoding="utf-8"), Loader=BoundedLoader)
    places: dict[str, SourceLocation] = {}
    for section, entries in _pairs(root):
        if section.value in _SECTIONS:
            for key, _ in _pairs(entries):
                places[key.value] = SourceLocation(
                    str(path), key.start_mark.line + 1, key.start_mark.column + 1
                )
    return places


def _pairs(node: Any) -> Sequence[tuple[Any, Any]]:
    """The keys and values of a YAML mapping; nothing for what is none."""
    return node.value if isinstance(getattr(node, "value", None), list) and node.id == "mapping" else ()
