"""What all commands say and how: tables and lines to stdout, one line to stderr when something is wrong."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

OK = 0
FOUND = 1
UNUSABLE = 2
# By Control-C: 128 and the signal's number, as shells have it.
INTERRUPTED = 130

# A pipe or a CI log has no width of its own; tables may take this much.
_PLAIN_WIDTH = 200


class InputError(Exception):
    """What the user gave can't be read or makes no sense: one line on stderr, exit code 2."""


def stdout() -> Console:
    """The console for results: coloured on a terminal, plain in a pipe."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _PLAIN_WIDTH
    return Console(width=width, highlight=False, markup=False, emoji=False)


def print_json(document: Any) -> None:
    """Writes one JSON document to stdout; infinities and NaN, which JSON has not, are a mistake of the caller."""
    print(json.dumps(document, indent=2, allow_nan=False))


def fail(text: str) -> None:
    """Writes one line to stderr."""
    print("dpmesh: " + " ".join(text.split()), file=sys.stderr)
