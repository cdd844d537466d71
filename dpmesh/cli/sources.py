"""Descriptors to look at, from .proto files, descriptor sets or a live server, and where their elements stand."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FileDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError

from dpmesh.cli import duplicates, places, protoc
from dpmesh.cli.console import InputError
from dpmesh.cli.places import Place
from dpmesh.policy import Problem

# Files that come with protobuf, grpc or dpmesh: their Python modules fill gaps in a descriptor set.
_KNOWN = ("google/protobuf/", "google/rpc/", "google/api/", "google/type/", "dpmesh/v1/")
# Nothing of these is the user's.
_NOT_THEIRS = (*_KNOWN, "grpc/reflection/", "grpc/health/")


@dataclass(frozen=True, slots=True)
class Sources:
    """What was loaded.

    Attributes:
        pool: All files, imports included.
        files: Those that were asked for.
        places: Where elements stand, by full name ("/package.Service/Method" for methods).
        duplicates: Annotations that are set twice, each with the place of the second; known only where the files
            have source info.
    """

    pool: DescriptorPool
    files: tuple[FileDescriptor, ...]
    places: Mapping[str, Place]
    duplicates: tuple[tuple[Place, Problem], ...] = ()

    def messages(self) -> Iterator[Descriptor]:
        """All message types of the files, nested ones too, in order."""
        for file in self.files:
            yield from _with_nested(file.message_types_by_name.values())

    def services(self) -> Iterator[ServiceDescriptor]:
        """All services of the files, in order."""
        for file in self.files:
            yield from file.services_by_name.values()


def from_protos(files: Sequence[Path], includes: Sequence[Path]) -> Sources:
    """Compiles .proto files.

    Raises:
        InputError: They can't be read; CompileError, when the compiler refuses them.
    """
    compiled = protoc.compile_files(files, includes)
    return load(compiled.descriptors.file, compiled.named, compiled.shown)


def from_descriptor_sets(paths: Sequence[Path]) -> Sources:
    """Reads serialized FileDescriptorSets; all their files count as asked for.

    Raises:
        InputError: One can't be read.
    """
    files: dict[str, FileDescriptorProto] = {}
    for path in paths:
        try:
            found = FileDescriptorSet.FromString(path.read_bytes()).file
        except OSError as error:
            raise InputError(f"{path}: can't be read ({error.strerror})") from None
        except (DecodeError, UnicodeDecodeError):  # The latter from pure-Python protobuf.
            raise InputError(f"{path}: is not a descriptor set") from None
        if not found:
            raise InputError(f"{path}: is a descriptor set without files")
        for file in found:
            files.setdefault(file.name, file)
    return load(files.values(), theirs(files), {})


def theirs(names: Iterable[str]) -> tuple[str, ...]:
    """The names of files that don't come with protobuf, grpc or dpmesh."""
    return tuple(name for name in names if not name.startswith(_NOT_THEIRS))


def load(files: Iterable[FileDescriptorProto], named: Sequence[str], shown: Mapping[str, str]) -> Sources:
    """Puts files into a pool of their own.

    Args:
        files: In any order; imports that come with protobuf or dpmesh may be missing.
        named: The names of those that were asked for.
        shown: How to spell files, by name; others by their name.

    Raises:
        InputError: An import is missing, or the files contradict each other.
    """
    pool, by_name = DescriptorPool(), {file.name: file for file in files}
    added: set[str] = set()
    for name in by_name:
        _add(name, by_name, pool, added)
    found: dict[str, Place] = {}
    for name, file in by_name.items():
        found.update(places.of_elements(file, shown.get(name, name)))
    twice = (
        entry for name in theirs(by_name) for entry in duplicates.find(by_name[name], shown.get(name, name))
    )
    return Sources(pool, tuple(pool.FindFileByName(name) for name in named), found, tuple(twice))


def _add(name: str, files: Mapping[str, FileDescriptorProto], pool: DescriptorPool, added: set[str]) -> None:
    """Adds a file after its imports."""
    if name in added:
        return
    added.add(name)
    file = files.get(name) or _known(name)
    if file is None:
        raise InputError(f"{name}: imported, but missing; make the descriptor set with --include_imports")
    for imported in file.dependency:
        _add(imported, files, pool, added)
    try:
        pool.AddSerializedFile(file.SerializeToString())
    except Exception as error:
        # TypeError, or in pure-Python protobuf whatever comes of a descriptor that it takes without checking it.
        raise InputError(f"{name}: not a valid descriptor: {type(error).__name__}: {error}") from None


def _known(name: str) -> FileDescriptorProto | None:
    """A file that comes with an installed package, or None."""
    if not name.startswith(_KNOWN) or not name.endswith(".proto"):
        return None
    try:
        importlib.import_module(name.removesuffix(".proto").replace("/", ".") + "_pb2")
        found = descriptor_pool.Default().FindFileByName(name)
    except (ImportError, KeyError):
        return None
    copied = FileDescriptorProto()
    found.CopyToProto(copied)
    return copied


def _with_nested(messages: Iterable[Descriptor]) -> Iterator[Descriptor]:
    for message in messages:
        if not message.GetOptions().map_entry:
            yield message
            yield from _with_nested(message.nested_types)
