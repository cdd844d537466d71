"""A difference between two policies, and what it does to their promises."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass


class Order(enum.StrEnum):
    """What a difference does.

    EQUAL: there is none. TIGHTER: it weakens nothing. OTHER: no promise gets weaker, but what leaves has another law
    or another cost, which receivers and budgets have to know. LOOSER: it weakens a promise, or can't be judged.
    """

    EQUAL = "equal"
    TIGHTER = "tighter"
    OTHER = "other"
    LOOSER = "looser"


RANK = list(Order)
"""From the best to the worst."""


@dataclass(frozen=True, slots=True, order=True)
class Difference:
    """One difference between two policies.

    Attributes:
        element: The full name of a field, message, oneof or method; "budget NAME", "quota NAME" or "mode".
        order: What it does.
        text: Both sides, in words.
    """

    element: str
    order: Order
    text: str


Judged = Iterator[tuple[Order, str]]
"""What differences of one element do, and both sides in words."""
