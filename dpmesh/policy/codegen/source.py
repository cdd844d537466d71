"""Compiles generated functions, and shows their text to tracebacks, debuggers and profilers.

All functions that are compiled within one `Source` have its file name, "<dpmesh acme.v1.Report>". `linecache` knows its
lines as long as one of the functions lives.
"""

from __future__ import annotations

import itertools
import linecache
from contextvars import ContextVar, Token
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any, Protocol
from weakref import finalize

from google.protobuf.message import Message

from dpmesh.noise.draws import Draws
from dpmesh.noise.pool import Pool

_MEANING_LENGTH = 100
_numbers = itertools.count(2)


class Draw(Protocol):
    """Draws from one mechanism."""

    def __call__(self, x: int, /) -> int:
        """Maps an index to the released one. Safe in threads, tasks and forked children."""


class Source:
    """The text of the functions that are compiled in a `with` block, usually those of one plan.

    Args:
        subject: What they are for, such as the full name of a message type.

    Attributes:
        filename: What tracebacks call the text; no two that live have the same.
    """

    def __init__(self, subject: str) -> None:
        name = f"<dpmesh {subject}>"
        self._lines: list[str] = []
        # One step of a plain dict: other threads may compile, too.
        while _alive.setdefault(name, self._lines) is not self._lines:
            name = f"<dpmesh {subject} {next(_numbers)}>"
        self.filename = name
        self._outer: Token[Source | None] | None = None
        finalize(self, _forget, name).atexit = False

    def __enter__(self) -> Source:
        self._outer = _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._outer is not None
        _current.reset(self._outer)
        linecache.cache[self.filename] = len(self.text), None, self._lines, self.filename

    @property
    def text(self) -> str:
        """The functions that have been compiled so far."""
        return "".join(self._lines)

    def function(self, name: str, text: str, global_names: dict[str, Any]) -> Any:
        """Compiles one function, and adds its text.

        Args:
            name: Its name.
            text: Its text, which is nothing but its definition.
            global_names: Its global names.
        """
        self._lines += [
            f"# {name}: {_meaning(value, self.filename)}\n"
            for name, value in global_names.items()
            if name not in ("pop", "refill")
        ]
        line = len(self._lines) + 1
        self._lines += [*text.splitlines(keepends=True), "\n", "\n"]
        code = _compiled(text).replace(co_filename=self.filename, co_firstlineno=line)
        global_names["__source__"] = self  # Keeps the lines.
        return FunctionType(code, global_names, name)


# The lines of each source that lives, by its file name.
_alive: dict[str, list[str]] = {}
_current: ContextVar[Source | None] = ContextVar("dpmesh_source", default=None)


def _forget(filename: str) -> None:
    linecache.cache.pop(filename, None)
    del _alive[filename]


def function(name: str, arguments: str, body: str, result: str, global_names: dict[str, Any]) -> Any:
    """Compiles a function, as a part of the current Source or alone in one of its own.

    Args:
        name: The function's name.
        arguments: Its parameters.
        body: Its statements: see `dpmesh.policy.codegen`.
        result: What it returns.
        global_names: What the statements refer to besides.
    """
    # textwrap.indent takes twice as long.
    lines = [f"    {line}\n" if line else "\n" for line in body.split("\n")]
    text = f"def {name}({arguments}):\n{''.join(lines)}    return {result}\n"
    source = _current.get()
    if source is not None:
        return source.function(name, text, global_names)
    with Source(name) as source:
        return source.function(name, text, global_names)


def drawing_function(
    pool: Pool, name: str, arguments: str, codes: str, body: str, result: str, global_names: dict[str, Any]
) -> Any:
    """Compiles a function that begins with taking its randomness from a pool.

    Args:
        pool: The pool.
        name: The function's name.
        arguments: Its parameters.
        codes: What a draw from the pool is assigned to.
        body: Its statements.
        result: What it returns.
        global_names: What the statements refer to besides.
    """
    take = f"try:\n    {codes} = pop()\nexcept IndexError:\n    {codes} = refill()\n"
    return function(
        name, arguments, take + body, result, {**global_names, "pop": pool.pop, "refill": pool.refill}
    )


def draw_function(draws: Draws, pool: Pool | None = None) -> Draw:
    """Compiles what draws from one mechanism.

    Args:
        draws: The mechanism's codes.
        pool: Where to take codes from, if not from the pool that all with the same law share.
    """
    draw: Draw = drawing_function(pool or draws.pool(), "draw", "x", "code", draws.decode, "y", {})
    return draw


# Types with the same fields and rules have the same text.
@lru_cache(maxsize=256)
def _compiled(text: str) -> CodeType:
    (code,) = (part for part in compile(text, "<dpmesh>", "exec").co_consts if isinstance(part, CodeType))
    return code


def _meaning(value: Any, filename: str) -> str:
    """What a value is, in words; of a function, also the texts, numbers and generated functions that it was made with.

    It holds what the policy and the message type say, which is no secret, and nothing of any message.
    """
    if isinstance(value, type) and issubclass(value, Message):
        return f"the message class {value.DESCRIPTOR.full_name}"
    if isinstance(value, tuple):
        return f"the domain {_shortened(repr(value))}"
    if not isinstance(value, FunctionType):
        return (
            "the position in the domain" if isinstance(getattr(value, "__self__", None), dict) else "built in"
        )
    if value.__code__.co_filename == filename:
        return _argument(value, filename)
    cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
    made_with = [f"{name}={_argument(cell.cell_contents, filename)}" for name, cell in cells]
    made_by = value.__qualname__.partition(".<locals>")[0]
    return _shortened(f"{made_by}({', '.join(given for given in made_with if not given.endswith('='))})")


def _argument(value: Any, filename: str) -> str:
    if isinstance(value, dict | list):
        runs = value.values() if isinstance(value, dict) else value
        return f"[{', '.join(filter(None, (_argument(run, filename) for run in runs)))}]"
    if isinstance(value, FunctionType):
        code, maker = value.__code__, value.__qualname__.partition(".<locals>")[0]
        return f"line {code.co_firstlineno}" if code.co_filename == filename else maker
    return repr(value) if isinstance(value, str | int) else ""


def _shortened(text: str) -> str:
    return text if len(text) <= _MEANING_LENGTH else f"{text[:_MEANING_LENGTH]}..."
