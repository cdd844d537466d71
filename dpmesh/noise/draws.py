"""Draws: the randomness of a mechanism, made ahead of time, and how a value's index takes it in.

A code holds all of a draw's randomness and nothing of the value. Turning an index and a code into what is released is
the hot path of every protected field, so it is kept as the text of a few statements. Nothing is compiled here:
`dpmesh.policy.codegen` makes one function of the statements of all fields of a message.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

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
        block: Makes that many independent codes, each a number, or a row of `width` numbers.
        decode: Python statements from the index `x` and the `code` to the released index `y`. They consist of numbers
            and these three names, and may change `code`. They may call what is built into Python.
        width: How many numbers a code has.
    """

    key: Hashable
    block: Block
    decode: str
    width: int = 1

    def pool(self) -> Pool:
        """The pool of these codes, one for all that have the same law."""
        return pool.shared(self.key, self.block, self.width)


def joint(columns: Sequence[Draws]) -> Pool:
    """A pool of rows with one code for each of several mechanisms: all that one message takes, in one pop.

    Args:
        columns: The mechanisms, whose codes have a width of 1.
    """
    assert all(draws.width == 1 for draws in columns)

    def block(count: int, stream: KeyStream) -> NDArray[np.int64]:
        return np.column_stack([draws.block(count, stream) for draws in columns])

    return Pool(block, first=1 << 7, last=1 << 10)
