"""Compiles .proto files to descriptors with source info, with grpc_tools, protoc or buf."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from dpmesh import extras
from dpmesh.cli.console import InputError
from dpmesh.cli.descriptors import include
from dpmesh.policy import Severity
from dpmesh.report.findings import Finding
from dpmesh.report.sources import SourceLocation

_COMPLAINT = re.compile(r"^(?P<file>.+?\.proto):(?:(?P<line>\d+):(?:(?P<column>\d+):)?)?\s*(?P<text>.+)$")


class CompileError(InputError):
    """The compiler refused the files.

    Attributes:
        findings: Its errors, in its own words; at least one.
    """

    def __init__(self, findings: Sequence[Finding]) -> None:
        first, more = findings[0], len(findings) - 1
        super().__init__(f"{first.location}: {first.text}" + (f" (and {more} more)" if more else ""))
        self.findings = tuple(findings)


@dataclass(frozen=True, slots=True)
class Compiled:
    """The result of a compilation.

    Attributes:
        descriptors: The files and all they import, imports first.
        display_names: How the user would spell each file, by its name in the descriptors; requested files first.
        requested: The names of the files that were asked for, without their imports.
    """

    descriptors: FileDescriptorSet
    display_names: dict[str, str]
    requested: tuple[str, ...]


def compile_files(files: Sequence[Path], includes: Sequence[Path]) -> Compiled:
    """Compiles .proto files.

    Args:
        files: What to compile; a folder stands for all .proto files in it.
        includes: What imports are relative to. If there are none: the folder that each file's package is relative to;
            if that fails, the working directory.

    Raises:
        InputError: A file is missing, or there is no compiler.
        CompileError: The compiler refused them.
    """
    expanded = _expanded(files)
    if includes:
        missing = [folder for folder in includes if not folder.is_dir()]
        if missing:
            raise InputError(f"-I {missing[0]}: no such folder")
        return _compile(expanded, include.unique(includes))
    folders = [file for file in files if file.is_dir()]
    guessed = include.unique([*folders, *map(include.root_of, expanded)])
    try:
        return _compile(expanded, guessed)
    except CompileError:
        here = Path.cwd()
        if guessed == [here] or not all(include.absolute(file).is_relative_to(here) for file in expanded):
            raise
        try:
            return _compile(expanded, [here])
        except CompileError:
            pass
        raise


def _expanded(files: Sequence[Path]) -> list[Path]:
    expanded: list[Path] = []
    for file in files:
        if file.is_dir():
            inside = sorted(path for path in file.rglob("*.proto") if not _hidden(path.relative_to(file)))
            if not inside:
                raise InputError(f"{file}: no .proto files in this folder")
            expanded += inside
        elif file.is_file():
            expanded.append(file)
        else:
            raise InputError(f"{file}: no such file")
    return list(dict.fromkeys(expanded))


def _hidden(path: Path) -> bool:
    """Whether a path leads through a hidden folder, such as .venv."""
    return any(part.startswith(".") for part in path.parts)


def _compile(files: Sequence[Path], roots: Sequence[Path]) -> Compiled:
    names = {_name(file, roots): str(file) for file in files}
    with tempfile.TemporaryDirectory(prefix="dpmesh-") as folder:
        output = Path(folder) / "descriptors.binpb"
        command = _command(roots, output, [include.absolute(file) for file in files])
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603
        if done.returncode or not output.exists():
            raise CompileError(
                _complaints(done.stderr + done.stdout, {str(include.absolute(f)): str(f) for f in files})
            )
        descriptors = FileDescriptorSet.FromString(output.read_bytes())
    display_names = dict(names)
    for descriptor in descriptors.file:
        on_disk = next((root / descriptor.name for root in roots if (root / descriptor.name).is_file()), None)
        display_names.setdefault(descriptor.name, _shorter(on_disk) if on_disk else descriptor.name)
    return Compiled(descriptors, display_names, tuple(names))


def _name(file: Path, roots: Sequence[Path]) -> str:
    """Protoc's name for a file: its path from the first folder that holds it."""
    for root in roots:
        if include.absolute(file).is_relative_to(root):
            return include.absolute(file).relative_to(root).as_posix()
    raise InputError(f"{file}: is in none of the -I folders")


def _command(roots: Sequence[Path], output: Path, files: Sequence[Path]) -> list[str]:
    flags = ["--include_imports", "--include_source_info", f"--descriptor_set_out={output}"]
    folders = [*roots, include.dpmesh_protos()]
    options = [f"-I{root}" for root in include.unique([*folders, *include.google_protos()])]
    inputs = [str(file) for file in files]
    if importlib.util.find_spec("grpc_tools"):
        # -P: files in the working directory must not replace Python's own modules.
        return [sys.executable, "-P", "-m", "grpc_tools.protoc", *options, *flags, *inputs]
    if protoc := shutil.which("protoc"):
        return [protoc, *options, *flags, *inputs]
    if buf := shutil.which("buf"):
        # Buf brings Google's files itself, and accepts no folder inside another one.
        return [buf, "alpha", "protoc", *(f"-I{root}" for root in _outermost(folders)), *flags, *inputs]
    raise InputError(
        "reading .proto files needs a compiler: put protoc or buf on the PATH, or use --descriptor-set, or "
        + extras.install("tools")
    )


def _outermost(roots: Sequence[Path]) -> list[Path]:
    kept: list[Path] = []
    for root in include.unique(roots):
        if not any(root.is_relative_to(other) or other.is_relative_to(root) for other in kept):
            kept.append(root)
    return kept


def _complaints(output: str, spelled: dict[str, str]) -> list[Finding]:
    """The compiler's errors, without its warnings."""
    complaints = []
    for line in output.splitlines():
        match = _COMPLAINT.match(line)
        if match is None or match["text"].startswith("warning:"):
            continue
        file = spelled.get(str(include.absolute(Path(match["file"])))) or _shorter(Path(match["file"]))
        location = SourceLocation(file, int(match["line"] or 0), int(match["column"] or 0))
        complaints.append(_finding(location, match["text"]))
    text = " ".join(output.split()) or "the compiler failed without a word"
    return complaints or [_finding(SourceLocation("protoc"), text)]


def _finding(location: SourceLocation, text: str) -> Finding:
    return Finding(location, Severity.ERROR, "syntax", "", text)


def _shorter(path: Path) -> str:
    """A path relative to the working directory if it is inside, else absolute."""
    absolute, here = include.absolute(path), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)
