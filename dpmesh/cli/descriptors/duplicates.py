"""Annotations that are set twice. Compilers merge them, so only the source info of a .proto file shows both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorProto

from dpmesh.cli.descriptors import source_locations
from dpmesh.policy import Diagnostic, Severity
from dpmesh.policy.descriptors import oneof_of
from dpmesh.report.sources import SourceLocation
from dpmesh.v1 import privacy_pb2

# A path of source info: field numbers and indexes of descriptor.proto.
Numbers = tuple[int, ...]

# The annotations, by the options that they extend.
_EXTENSIONS: dict[str, Any] = {
    "google.protobuf.FieldOptions": privacy_pb2.field,
    "google.protobuf.MessageOptions": privacy_pb2.message,
    "google.protobuf.MethodOptions": privacy_pb2.method,
    "google.protobuf.OneofOptions": privacy_pb2.oneof,
}


@dataclass(frozen=True, slots=True)
class _Setting:
    """One statement that sets an annotation or a part of it.

    Attributes:
        path: What it sets, from the annotation's message on; empty for the whole annotation.
        fields: The fields along the path.
        span: First line and column, last line and column, from 0.
    """

    path: Numbers
    fields: tuple[Any, ...]
    span: Numbers

    @property
    def is_added(self) -> bool:
        """Whether it adds to a list, which replaces nothing."""
        return bool(self.fields) and bool(self.fields[-1].is_repeated)


def find(file: FileDescriptorProto, display_name: str) -> Iterator[tuple[SourceLocation, Diagnostic]]:
    """Finds all annotations of a file that are set twice, at the location of the second.

    A field has two kinds (`.numeric = {...}, .public = {}`), or may have two because a literal of the whole annotation
    holds one of them (`(dpmesh.v1.field) = {suppress {}}, (dpmesh.v1.field).public = {}`). Protoc keeps the last
    one, and refuses everything else that is set twice.

    Args:
        file: With source info; without it, nothing is found.
        display_name: What to call the file.
    """
    names: Mapping[Numbers, str] = {path: name for name, path in source_locations.elements(file)}
    written: dict[tuple[Numbers, str], list[_Setting]] = {}
    for location in file.source_code_info.location:
        split = _split(tuple(location.path))
        if split is not None:
            element, extension, path = split
            setting = _Setting(path, tuple(_along(path, extension.message_type)), _full_span(location.span))
            written.setdefault((element, extension.full_name), []).append(setting)
    for (element, option), settings in written.items():
        for setting, rule, text, fix in _twice(_outermost(settings), option):
            line, column = setting.span[:2]
            diagnostic = Diagnostic(Severity.ERROR, rule, names.get(element, file.package), text, fix)
            yield SourceLocation(display_name, line + 1, column + 1), diagnostic


def _split(path: Numbers) -> tuple[Numbers, Any, Numbers] | None:
    """Splits a path into the annotated element, the annotation's extension, and what of it is set."""
    at: Any = FileDescriptorProto.DESCRIPTOR
    index = 0
    while index < len(path):
        field = at.fields_by_number.get(path[index])
        if field is None or field.message_type is None:
            return None
        at = field.message_type
        extension = _EXTENSIONS.get(at.full_name)
        if extension is not None:
            is_annotation = path[index + 1 : index + 2] == (extension.number,)
            return (path[:index], extension, path[index + 2 :]) if is_annotation else None
        index += 2 if field.is_repeated else 1
    return None


def _along(path: Numbers, message: Any) -> Iterator[Any]:
    """The fields along a path, without the indexes of lists."""
    at, index = message, 0
    while index < len(path) and at is not None:
        field = at.fields_by_number.get(path[index])
        if field is None:
            return
        yield field
        at = field.message_type
        index += 2 if field.is_repeated else 1


def _full_span(span: Sequence[int]) -> Numbers:
    """A span with its last line, which source info omits for one line; all -1 if it is not a span."""
    if len(span) == 3:
        return (span[0], span[1], span[0], span[2])
    return tuple(span) if len(span) == 4 else (-1, -1, -1, -1)


def _outermost(settings: Iterable[_Setting]) -> list[_Setting]:
    """The settings in the order of the file, without those inside a literal, which buf lists too."""
    spans: dict[Numbers, list[Numbers]] = {}
    for setting in settings:
        spans.setdefault(setting.path, []).append(setting.span)

    def is_part(setting: _Setting) -> bool:
        above = (span for end in range(len(setting.path)) for span in spans.get(setting.path[:end], ()))
        return any(span[:2] <= setting.span[:2] and setting.span[2:] <= span[2:] for span in above)

    return sorted((setting for setting in settings if not is_part(setting)), key=lambda entry: entry.span)


def _twice(settings: Iterable[_Setting], option: str) -> Iterator[tuple[_Setting, str, str, str]]:
    """The settings that replace or contradict an earlier one, each with a rule, a text and a fix."""
    members: dict[tuple[Numbers, str], tuple[Any, int]] = {}
    literals: dict[Numbers, int] = {}
    parts: dict[Numbers, int] = {}
    for setting in settings:
        path, line = setting.path, setting.span[0] + 1
        other = _other_member(setting, members)
        again = _again(setting, literals, parts)
        if other is not None:
            text = f"sets {other[0]} and, on line {other[2]}, {other[1]}; only the last one would hold"
            yield setting, "kind-duplicate", text, "keep one of them"
        elif again is not None:
            name = ".".join([f"({option})", *(field.name for field in setting.fields)])
            text = f"sets {name} beside the literal on line {again}; the last one may replace the other"
            yield setting, "kind-duplicate", text, "write both as one literal"
        literals.setdefault(path, line)
        for end in range(len(path)):
            parts.setdefault(path[:end], line)


def _other_member(
    setting: _Setting, members: dict[tuple[Numbers, str], tuple[Any, int]]
) -> tuple[str, str, int] | None:
    """The oneof member that a setting sets, and another member that an earlier line sets, with that line."""
    above: Numbers = ()
    for field in setting.fields:
        oneof = oneof_of(field)
        if oneof is not None:
            other, line = members.setdefault((above, oneof.name), (field, setting.span[0] + 1))
            if other.number != field.number:
                return field.name, other.name, line
        above += (field.number,)
    return None


def _again(setting: _Setting, literals: Mapping[Numbers, int], parts: Mapping[Numbers, int]) -> int | None:
    """The line of a literal, or of a part of it, that may set a member of the same oneof. Source info hides which.

    Compilers refuse every other setting that is written twice.
    """
    if setting.is_added:
        return None
    path, above = setting.path, 0
    for field in setting.fields:
        if oneof_of(field) is not None and path[:above] in literals:
            return literals[path[:above]]
        above += 2 if field.is_repeated else 1
    return literals.get(path) or parts.get(path)
