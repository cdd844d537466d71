"""Draws made ahead of time in blocks and handed out once.

A pool is a plain list: `list.pop` is atomic, so threads and tasks share a pool without a lock, and no draw is
handed out twice. A forked child empties every pool before it runs on, and drops a block that was being made
when it was forked: parent and child never hand out the same draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from dpmesh import forks
from dpmesh.noise.entropy import KeyStream

Block = Callable[[int, KeyStream], NDArray[np.int64]]

# A device that sends one message pays for a small block; a busy one soon amortises the cost of a large one. A
# full pool is 160 kB of Python integers.
_FIRST_BLOCK = 1 << 10
_LAST_BLOCK = 1 << 12

_shared: WeakValueDictionary[Hashable, Pool] = WeakValueDictionary()


class Pool:
    """A stock of draws from one distribution.

    Hot code binds `pop` once, catches its IndexError, and calls `refill` then:

        try:
            draw = pop()
        except IndexError:
            draw = refill()

    Args:
        block: Makes that many independent draws from a stream; a draw may be a row of several numbers.
        first: How many it makes at first.
        last: How many it makes at most, when it has come to be used much.
    """

    __slots__ = ("__weakref__", "_block", "_forks", "_items", "_last", "_size", "pop")

    def __init__(self, block: Block, *, first: int = _FIRST_BLOCK, last: int = _LAST_BLOCK) -> None:
        self._block = block
        self._forks = 0  # How many times this process was forked from one that had the pool.
        self._items: list[Any] = []
        self._size = first
        self._last = last
        self.pop = self._items.pop
        forks.register(self)

    def refill(self) -> Any:
        """Adds a block and takes one draw."""
        while True:
            forks_before = self._forks
            self._items.extend(self._block(self._size, KeyStream()).tolist())
            # This thread may have been forked meanwhile (by a signal handler): what it was making is its
            # parent's. Other threads may have taken the whole block: make another.
            if forks_before != self._forks:
                self._items.clear()
                continue
            self._size = min(2 * self._size, self._last)
            try:
                return self.pop()
            except IndexError:
                continue

    def after_fork_in_child(self) -> None:
        """Throws away all draws, and the block that is being made: they are the parent's."""
        self._forks += 1
        self._items.clear()


def shared(key: Hashable, block: Block, width: int = 1) -> Pool:
    """The pool of a distribution, one for all mechanisms with its law.

    Args:
        key: The distribution and its parameters.
        block: Makes draws, if there is no pool yet.
        width: How many numbers a draw has. Wide ones are kept in smaller blocks: 20 times wider takes four times the
            memory.
    """
    smaller = math.isqrt(width)
    return _shared.setdefault(key, Pool(block, first=_FIRST_BLOCK // smaller, last=_LAST_BLOCK // smaller))
