"""Tally: what estimates need of a field's values, as integers that are added up."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LARGEST = (1 << 63) - 1
# Integers by name, such as a sum or the counts of categories. Adding them up is exact, in any order.
Figures = dict[str, list[int]]


@dataclass(frozen=True, slots=True)
class Tally:
    """How the values of a field are turned into figures.

    Attributes:
        lengths: How many integers each figure has.
        count: Gives the figures of values that were received. It reads columns and any iterable, in blocks, and raises
            EstimateError for values that the policy can't have released.
        setting: What else has to be equal for figures to be added up, as JSON; such as the candidates.
        key: The type of keys that values bring, or None. Each key has a figure, whose name is the key as JSON.
        per_key: How many integers the figure of a key has.
    """

    lengths: Mapping[str, int]
    count: Callable[[Any], Figures]
    setting: Any = None
    key: type | None = None
    per_key: int = 0

    def nothing(self) -> Figures:
        """The figures of no values."""
        return {name: [0] * length for name, length in self.lengths.items()}

    def fits(self, figures: Any) -> bool:
        """Whether an object has the form of this tally's figures."""
        return (
            isinstance(figures, Mapping)
            and figures.keys() >= self.lengths.keys()
            and all(
                isinstance(figure, list)
                and len(figure) == self._length(name)
                and all(type(each) is int for each in figure)
                for name, figure in figures.items()
            )
            and figures["n"][0] >= 0
        )

    def _length(self, name: Any) -> int | None:
        """How many integers the figure of a name has; None if there is no such figure."""
        if name in self.lengths:
            return self.lengths[name]
        try:
            key = json.loads(name)
        except (TypeError, ValueError, RecursionError):
            return None
        return self.per_key if type(key) is self.key and json.dumps(key) == name else None


def added(first: Figures, second: Figures) -> Figures:
    """The figures of the values of both."""
    both = dict(first)
    for name, figure in second.items():
        before = first.get(name, [0] * len(figure))
        both[name] = [a + b for a, b in zip(before, figure, strict=True)]
    return both


def powers(block: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The exact sum of each column of a block, shape (rows, columns), and of its squares."""
    if int(np.abs(block).max(initial=0)) ** 2 <= _LARGEST // max(1, len(block)):
        return block.sum(axis=0).astype(object), (block * block).sum(axis=0).astype(object)
    exact = block.astype(object)
    return exact.sum(axis=0), (exact * exact).sum(axis=0)
