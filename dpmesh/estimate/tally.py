"""Tally: what estimates need of a field's values, as integers that are added up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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
    """

    lengths: Mapping[str, int]
    count: Callable[[Any], Figures]
    setting: Any = None

    def nothing(self) -> Figures:
        """The figures of no values."""
        return {name: [0] * length for name, length in self.lengths.items()}

    def fits(self, figures: Any) -> bool:
        """Whether an object has the form of this tally's figures."""
        return (
            isinstance(figures, Mapping)
            and figures.keys() == self.lengths.keys()
            and all(
                isinstance(figures[name], list)
                and len(figures[name]) == length
                and all(type(each) is int for each in figures[name])
                for name, length in self.lengths.items()
            )
            and figures["n"][0] >= 0
        )


def added(first: Figures, second: Figures) -> Figures:
    """The figures of the values of both."""
    return {name: [a + b for a, b in zip(each, second[name], strict=True)] for name, each in first.items()}
