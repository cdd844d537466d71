"""Descriptors to look at, from .proto files, descriptor sets or a live server, and where their elements stand."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError

from dpmesh.cli.console import InputError
from dpmesh.cli.descriptors import duplicates, protoc, source_locations
from dpmesh.report.sources import SourceLocation, Sources

# Files that come with protobuf, grpc or dpmesh: their Python modules fill gaps in a descriptor set.
_KNOWN = ("google/protobuf/", "google/rpc/", "google/api/", "google/type/", "dpmesh/v1/")
# A name of such a file; what a server calls its files is never imported unless it looks like this.
_PROTO = re.compile(r"\w+(/\w+)+\.proto", re.ASCII)
# Nothing of these is the user's.
_NOT_THEIRS = frozenset(
    {
        "grpc/reflection/v1/reflection.proto",
        "grpc/reflection/v1alpha/reflection.proto",
        "grpc/health/v1/health.proto",
    }
)
MOST_BYTES = 256 * 1024 * 1024
"""Of a descriptor set."""


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
        for file in _read_set(path):
            files.setdefault(file.name, file)
    return load(files.values(), theirs(files), {})


def _read_set(path: Path) -> Iterator[FileDescriptorProto]:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None
    if len(content) > MOST_BYTES:
        raise InputError(f"{path}: has more than {MOST_BYTES >> 20} MB, which is no descriptor set")
    try:
        found = FileDescriptorSet.FromString(content).file
    except (DecodeError, UnicodeDecodeError):
        raise InputError(f"{path}: is not a descriptor set") from None
    if not found:
        raise InputError(f"{path}: is a descriptor set without files")
    for entry in found:
        _check(entry, str(path))
        yield entry


def read_file(serialized: bytes, source: str) -> FileDescriptorProto:
    """Reads a serialized FileDescriptorProto.

    Args:
        serialized: From anywhere.
        source: What to call its sender in errors.

    Raises:
        InputError: It is none.
    """
    try:
        file = FileDescriptorProto.FromString(serialized)
    except (DecodeError, UnicodeDecodeError):
        raise InputError(f"{source}: answered with something that is no descriptor") from None
    _check(file, source)
    return file


def _check(file: FileDescriptorProto, source: str) -> None:
    """Checks what protobuf looks at only when it is used: the names of files, and that nothing required is missing."""
    try:
        # What is not in UTF-8 is an error in some versions of protobuf, and bytes in others.
        named = all(isinstance(name, str) and name for name in (file.name, *file.dependency))
    except UnicodeDecodeError:
        named = False
    if not named:
        raise InputError(f"{source}: has a file without a name, or with one that is not in UTF-8")
    if not file.IsInitialized():
        raise InputError(f"{source}: {file.name}: not a valid descriptor: it lacks required fields")


def theirs(names: Iterable[str]) -> tuple[str, ...]:
    """The names of files that don't come with protobuf, grpc or dpmesh."""
    return tuple(name for name in names if name not in _NOT_THEIRS and _known(name) is None)


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
    added = {name: _add(name, file, pool) for name, file in _imports_first(by_name)}
    found: dict[str, SourceLocation] = {}
    for name, file in by_name.items():
        found.update(source_locations.of_elements(file, shown.get(name, name)))
    twice = (
        entry for name in theirs(by_name) for entry in duplicates.find(by_name[name], shown.get(name, name))
    )
    return Sources(pool, tuple(added[name] for name in named), found, tuple(twice))


def _imports_first(
    files: Mapping[str, FileDescriptorProto],
) -> Iterator[tuple[str, FileDescriptorProto]]:
    """All files, each after what it imports. A chain of imports may be longer than Python's stack is deep.

    Raises:
        InputError: An import is missing, or files import each other.
    """
    opened: dict[str, FileDescriptorProto] = {}
    done: set[str] = set()
    waiting = [(name, False) for name in reversed(list(files))]
    while waiting:
        name, imports_done = waiting.pop()
        if imports_done:
            done.add(name)
            yield name, opened[name]
        elif name in done:
            continue
        elif name in opened:
            raise InputError(f"{name}: imports itself, directly or through others")
        else:
            # What a stranger sends in the place of an installed file, privacy.proto above all, never counts.
            file = _known(name) or files.get(name)
            if file is None:
                raise InputError(
                    f"{name}: imported, but missing; make the descriptor set with --include_imports"
                )
            opened[name] = file
            waiting.append((name, True))
            waiting.extend(
                (imported, False) for imported in reversed(file.dependency) if imported not in done
            )


def _add(name: str, file: FileDescriptorProto, pool: DescriptorPool) -> FileDescriptor:
    try:
        return pool.AddSerializedFile(file.SerializeToString())
    except Exception as error:
        # Of which type it is depends on protobuf's implementation; pure Python takes a descriptor without checking it.
        raise InputError(f"{name}: not a valid descriptor: {type(error).__name__}: {error}") from None


def _known(name: str) -> FileDescriptorProto | None:
    """A file that comes with an installed package, or None."""
    if not name.startswith(_KNOWN) or not _PROTO.fullmatch(name):
        return None
    try:
        importlib.import_module(name.removesuffix(".proto").replace("/", ".") + "_pb2")
        found = descriptor_pool.Default().FindFileByName(name)
    except (ImportError, KeyError):
        return None
    copied = FileDescriptorProto()
    found.CopyToProto(copied)
    return copied
