"""Codes: what a mechanism draws ahead of time, and how a value's index takes it in.

A code holds all of a draw's randomness and nothing of the value. Turning an index and a code into what is released is
the hot path of every protected field, so it is kept as the text of a few statements: compiled alone it is a function,
and `dpmesh.policy` compiles those of all fields of a message into one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from textwrap import indent
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpmesh.noise import pool
from dpmesh.noise.entropy import KeyStream
from dpmesh.noise.pool import Block, Pool


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """The codes of one mechanism with its parameters.

    Attributes:
        key: Equal for codes with the same law, which then share a pool.
        block: Makes that many independent codes.
        decode: Python statements from the index `x` and the `code` to the released index `y`. They consist of numbers
            and these three names, and may change `code`.
    """

    key: Hashable
    block: Block
    decode: str

    def draw(self) -> Callable[[int], int]:
        """Maps an index to the released one; safe in threads, tasks and forked children."""
        return self.draw_from(pool.shared(self.key, self.block))

    def draw_from(self, stock: Pool) -> Callable[[int], int]:
        """The same with codes from another pool."""
        draw: Callable[[int], int] = taking(stock, "draw", "x", "code", self.decode, "y")
        return draw


def taking(stock: Pool, name: str, arguments: str, codes: str, body: str, result: str, **known: Any) -> Any:
    """Compiles a function that takes its randomness from a pool.

    Args:
        stock: The pool.
        name: The function's name, for tracebacks.
        arguments: Its parameters.
        codes: What a draw is assigned to.
        body: Its statements. They are written in this package, with nothing in them from outside but numbers and the
            names of fields, which are identifiers.
        result: What it returns.
        known: What the statements refer to besides.
    """
    take = f"try:\n    {codes} = pop()\nexcept IndexError:\n    {codes} = refill()\n"
    return function(name, arguments, take + body, result, {**known, "pop": stock.pop, "refill": stock.refill})


def function(name: str, arguments: str, body: str, result: str, known: dict[str, Any]) -> Any:
    """Compiles a function; the arguments are those of `taking`."""
    exec(f"def {name}({arguments}):\n{indent(body, '    ')}\n    return {result}", known)  # noqa: S102
    return known[name]


def joint(all_codes: Sequence[Draws]) -> Pool:
    """A pool of rows with one code for each of several mechanisms: all that one message takes, in one pop."""

    def block(count: int, stream: KeyStream) -> NDArray[np.int64]:
        return np.column_stack([codes.block(count, stream) for codes in all_codes])

    return Pool(block, first=1 << 7, last=1 << 10)
