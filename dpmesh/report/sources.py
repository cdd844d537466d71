"""What findings and plans are about: the descriptors that somebody asked for, and where their elements are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from google.protobuf.descriptor import Descriptor, FileDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

from dpmesh.policy import Diagnostic
from dpmesh.policy.descriptors import with_nested
from dpmesh.rollout.policy_order import Elements


@dataclass(frozen=True, slots=True, order=True)
class SourceLocation:
    """A position in a file.

    Attributes:
        file: As the user would spell it.
        line: From 1; 0 when unknown.
        column: From 1; 0 when unknown.
    """

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        if not self.line:
            return self.file
        return f"{self.file}:{self.line}:{self.column}" if self.column else f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Sources:
    """The descriptors to report on.

    Attributes:
        pool: All files, imports included.
        files: The files that were asked for.
        source_locations: Where elements are written, by full name ("/package.Service/Method" for methods).
        duplicates: Annotations that are set twice, each with the location of the second. Only files with source info
            show them.
    """

    pool: DescriptorPool
    files: tuple[FileDescriptor, ...]
    source_locations: Mapping[str, SourceLocation]
    duplicates: tuple[tuple[SourceLocation, Diagnostic], ...] = ()

    def messages(self) -> Iterator[Descriptor]:
        """All message types of the files, nested ones too, in order."""
        for file in self.files:
            yield from with_nested(file.message_types_by_name.values())

    def services(self) -> Iterator[ServiceDescriptor]:
        """All services of the files, in order."""
        for file in self.files:
            yield from file.services_by_name.values()

    def elements(self) -> Elements:
        """What policies are compared on: all message types and methods of the files."""
        return Elements.of_files(self.files, self.pool)
