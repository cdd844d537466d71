"""Where .proto files are found: dpmesh's own, Google's well-known ones, and the folders of the user's files."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import dpmesh

_PACKAGE = re.compile(r"^\s*package\s+([\w.]+)\s*;", re.MULTILINE)


def dpmesh_protos() -> Path:
    """The folder that holds dpmesh/v1/privacy.proto: in the wheel inside the package, in a checkout beside it."""
    package = Path(dpmesh.__file__).resolve().parent
    candidates = (package / "protos", package.parent / "protos")
    return next((path for path in candidates if (path / "dpmesh/v1/privacy.proto").is_file()), candidates[0])


def google_protos() -> Iterator[Path]:
    """The folders that hold google/protobuf/*.proto and google/api, rpc, type, as far as they are installed."""
    tools = importlib.util.find_spec("grpc_tools")
    if tools is not None and tools.origin is not None:
        yield Path(tools.origin).parent / "_proto"
    google = importlib.util.find_spec("google")
    for folder in (google.submodule_search_locations if google else None) or ():
        if (Path(folder) / "rpc/status.proto").is_file():
            yield Path(folder).parent


def root_of(file: Path) -> Path:
    """The folder that a .proto file's imports are relative to: for package acme.v1, the parent of acme/v1.

    If folders and package differ, it is the file's own folder.
    """
    try:
        package = _PACKAGE.search(file.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        package = None
    names = package[1].split(".") if package else []
    folder = absolute(file).parent
    if names and list(folder.parts[-len(names) :]) == names:
        return folder.parents[len(names) - 1]
    return folder


def unique(paths: Sequence[Path]) -> list[Path]:
    """The absolute paths, each once, in order."""
    return list(dict.fromkeys(map(absolute, paths)))


def absolute(path: Path) -> Path:
    """The absolute path, without "..", because compilers compare paths as text."""
    return Path(os.path.abspath(path))
