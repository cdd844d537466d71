"""Transforms: one value in, one protected value out. The hot path of every protected field.

A transform is the text of a few statements, so that those of all fields of a message become one function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dpmesh.noise.draws import Draws
from dpmesh.policy.codegen.source import drawing_function

# In the names that a transform's text refers to: what tells it from others in the same function.
_MARK = "@"


@dataclass(frozen=True, slots=True, eq=False)
class Transform:
    """What a field's plan does to each of its values.

    Attributes:
        codes: The randomness that one value takes; None where nothing is drawn.
        text: Python statements from a `value`, a `code` (where something is drawn) and the `alias` function to what
            leaves, `out`.
        known: What they refer to, by names that end in "@".
        reads: The statements use the value; otherwise the field is not even read.
    """

    codes: Draws | None
    text: str
    known: Mapping[str, Any]
    reads: bool = True

    def marked(self, mark: str) -> tuple[str, dict[str, Any]]:
        """The text, and what it refers to, with names that end in `mark`."""
        return self.text.replace(_MARK, mark), {
            name.replace(_MARK, mark): held for name, held in self.known.items()
        }

    def function(self) -> Callable[[Any], Any]:
        """The same as a function of the value alone."""
        assert self.codes is not None
        text, known = self.marked("")
        stock = self.codes.pool()
        made: Callable[[Any], Any] = drawing_function(stock, "transform", "value", "code", text, "out", known)
        return made
