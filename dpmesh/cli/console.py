"""Output of all commands: tables and lines to stdout, errors as one line to stderr.

Names come from other people's files, ledgers and servers. This module prints everything, so that no name can control a
terminal or a CI runner.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from rich.console import Console
    from rich.table import Table

OK = 0
FOUND = 1
UNUSABLE = 2
# After Control-C: 128 and the signal's number, as in shells.
INTERRUPTED = 130

# The width of tables in a pipe or a CI log, which have none of their own.
_PLAIN_WIDTH = 200
# What GitHub's runner executes: "::" at the beginning of a line, and "##[" anywhere.
_COMMAND = re.compile(r"^(\s*):(?=:)|(?<=##)\[")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class InputError(Exception):
    """The user's input can't be read or makes no sense: one line on stderr, exit code 2."""


class PipeSafeOutput:
    """An output stream that discards everything once its reader is gone, as in `dpmesh check | head -1`.

    Without it, such a command ends with exit code 1, as if it had found something, or with 120.

    Args:
        stream: Standard output, or its buffer.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def buffer(self) -> PipeSafeOutput:
        """The stream for bytes."""
        return PipeSafeOutput(self._stream.buffer)

    def write(self, data: Any) -> int:
        """Writes, or does nothing once the reader is gone."""
        try:
            return int(self._stream.write(data))
        except BrokenPipeError:
            self._drop()
            return len(data)

    def writelines(self, lines: Any) -> None:
        """Writes all of them."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flushes, or does nothing once the reader is gone."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        """Sends the rest to /dev/null, also what Python flushes when it ends."""
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, self._stream.fileno())
        os.close(devnull)


def prepare() -> None:
    """Makes stdout and stderr accept every character: those that their encoding lacks become "?"."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # The shell closed it.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open until the process ends
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def printable(text: str) -> str:
    """The text as one harmless line: control characters, line breaks, and marks that reorder text are replaced.

    The result has as many characters as the text.
    """
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else _REPLACEMENT for letter in text)
    return _COMMAND.sub(lambda match: (match[1] or "") + _REPLACEMENT, text)


def say(*lines: str) -> None:
    """Writes lines to stdout."""
    for line in lines:
        print(printable(line))


def say_help(context: Any) -> None:
    """Writes a command's help to stdout."""
    print(context.get_help(), end="")


def stdout() -> Console:
    """The console for results: coloured on a terminal, plain in a pipe."""
    from rich.console import Console
    from rich.text import Text

    class Printable(Console):
        """Prints only printable texts. Tables pass their cells to `render_str`."""

        def print(self, *objects: Any, **options: Any) -> None:
            super().print(*map(self._one_line, objects), **options)

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(printable(text), **options)

        @staticmethod
        def _one_line(item: Any) -> Any:
            if isinstance(item, Text):
                item = item.copy()
                item.plain = printable(item.plain)
            return item

    width = None if sys.stdout.isatty() else _PLAIN_WIDTH
    return Printable(width=width, highlight=False, markup=False, emoji=False)


def table(*columns: str, no_wrap: Container[str] = ()) -> Table:
    """An empty table without lines.

    Args:
        columns: Their heads.
        no_wrap: The columns that a narrow terminal breaks last.
    """
    from rich.table import Table

    empty = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for name in columns:
        empty.add_column(name, overflow="fold", no_wrap=name in no_wrap)
    return empty


def data_stdout() -> IO[str]:
    """Stdout for files that other programs read: UTF-8 in a pipe, and only printable lines on a terminal."""
    if sys.stdout.isatty():
        return cast("IO[str]", _Lines())
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", newline="")
    return sys.stdout


class _Lines(io.TextIOBase):
    """Writes to stdout by `say`."""

    def write(self, text: str) -> int:
        """Writes one or several whole lines."""
        say(*text.removesuffix("\n").split("\n"))
        return len(text)


def print_json(document: Any) -> None:
    """Writes one JSON document to stdout. Infinities and NaN are an error, because JSON has none."""
    print(json.dumps(document, indent=2, allow_nan=False).replace("##[", r"##\u005b"))


def print_json_line(line: str) -> None:
    """Writes a JSON document that is one line to stdout."""
    print(ascii_json(line))


def ascii_json(line: str) -> str:
    """Escapes, as JSON does, everything that is not ASCII or that `printable` would replace."""
    return re.sub(r"[^ -~]|(?<=##)\[", _json_escape, line)


def _json_escape(match: re.Match[str]) -> str:
    """One or two UTF-16 code units: only these can escape every character in JSON."""
    return r"\u" + match[0].encode("utf-16-be", "surrogatepass").hex(" ", 2).replace(" ", r"\u")


def print_github(severity: str, properties: Iterable[tuple[str, str]], text: str) -> None:
    """Writes a workflow command of GitHub Actions to stdout (actions/toolkit, packages/core/src/command.ts).

    Args:
        severity: "error" or "warning".
        properties: Such as ("file", "acme.proto").
        text: May have several lines.
    """
    listed = ",".join(
        f"{key}={_data(value).replace(':', '%3A').replace(',', '%2C')}" for key, value in properties
    )
    print(f"::{severity} {listed}::{_data(text)}")


def _data(text: str) -> str:
    """Escapes a workflow command's text."""
    lines = ("\r".join(map(printable, line.split("\r"))) for line in text.split("\n"))
    return "\n".join(lines).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def fail(text: str) -> None:
    """Writes one line to stderr."""
    print("dpmesh: " + printable(" ".join(text.split())), file=sys.stderr)


def note(text: str) -> None:
    """Writes a remark, one line, to stderr."""
    fail(f"note: {text}")
