"""Loads descriptors from .proto files or descriptor sets, and the locations of their elements."""

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

# Files that come with protobuf, grpc or dpmesh. Their Python modules fill gaps in a descriptor set.
_KNOWN = ("google/protobuf/", "google/rpc/", "google/api/", "google/type/", "dpmesh/v1/")
# The form of such a name. A server's file name is imported only if it has this form.
_PROTO = re.compile(r"\w+(/\w+)+\.proto", re.ASCII)
# Files of gRPC's own services, which are not the user's.
_INFRASTRUCTURE = frozenset(
    {
        "grpc/reflection/v1/reflection.proto",
        "grpc/reflection/v1alpha/reflection.proto",
        "grpc/health/v1/health.proto",
    }
)
MOST_BYTES = 256 * 1024 * 1024
"""The largest descriptor set."""


def from_protos(files: Sequence[Path], includes: Sequence[Path]) -> Sources:
    """Compiles .proto files.

    Raises:
        InputError: They can't be read.
        CompileError: The compiler refuses them.
    """
    compiled = protoc.compile_files(files, includes)
    return load(compiled.descriptors.file, compiled.requested, compiled.display_names)


def from_descriptor_sets(paths: Sequence[Path]) -> Sources:
    """Reads serialized FileDescriptorSets; all their files count as asked for.

    Raises:
        InputError: One can't be read.
    """
    files: dict[str, FileDescriptorProto] = {}
    for path in paths:
        for file in _read_set(path):
            files.setdefault(file.name, file)
    return load(files.values(), user_files(files), {})


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
        serialized: From an untrusted sender.
        source: What to call the sender in errors.

    Raises:
        InputError: It is not a valid one.
    """
    try:
        file = FileDescriptorProto.FromString(serialized)
    except (DecodeError, UnicodeDecodeError):
        raise InputError(f"{source}: answered with something that is no descriptor") from None
    _check(file, source)
    return file


def _check(file: FileDescriptorProto, source: str) -> None:
    """Checks what protobuf checks only at use: the names of files, and that no required field is missing."""
    try:
        # Text that is not UTF-8 is an error in some versions of protobuf, and bytes in others.
        named = all(isinstance(name, str) and name for name in (file.name, *file.dependency))
    except UnicodeDecodeError:
        named = False
    if not named:
        raise InputError(f"{source}: has a file without a name, or with one that is not in UTF-8")
    if not file.IsInitialized():
        raise InputError(f"{source}: {file.name}: not a valid descriptor: it lacks required fields")


def user_files(names: Iterable[str]) -> tuple[str, ...]:
    """The names without those of files that come with protobuf, grpc or dpmesh."""
    return tuple(name for name in names if name not in _INFRASTRUCTURE and _known(name) is None)


def load(
    files: Iterable[FileDescriptorProto], requested: Sequence[str], display_names: Mapping[str, str]
) -> Sources:
    """Puts files into a pool of their own.

    Args:
        files: In any order; imports that come with protobuf or dpmesh may be missing.
        requested: The names of the files that were asked for.
        display_names: How to spell files, by name; others are spelled by their name.

    Raises:
        InputError: An import is missing, or the files contradict each other.
    """
    pool, by_name = DescriptorPool(), {file.name: file for file in files}
    added = {name: _add(name, file, pool) for name, file in _imports_first(by_name)}
    locations: dict[str, SourceLocation] = {}
    for name, file in by_name.items():
        locations.update(source_locations.of_elements(file, display_names.get(name, name)))
    twice = (
        entry
        for name in user_files(by_name)
        for entry in duplicates.find(by_name[name], display_names.get(name, name))
    )
    return Sources(pool, tuple(added[name] for name in requested), locations, tuple(twice))


def _imports_first(
    files: Mapping[str, FileDescriptorProto],
) -> Iterator[tuple[str, FileDescriptorProto]]:
    """All files, each after its imports. It does not recurse: a chain of imports may be longer than Python's stack.

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
            # An installed file wins over one that a stranger sends: privacy.proto above all.
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
        # The type depends on protobuf's implementation. Pure Python accepts descriptors unchecked.
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
