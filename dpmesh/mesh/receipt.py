"""Receipt: what a release returns, and the two directions in which messages leave."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, final

Direction = Literal["request", "response"]


@final
class Receipt(NamedTuple):
    """What may be sent, and what it cost.

    Attributes:
        message: A protected copy. In observe mode, and for types that have nothing to protect, the message itself. For
            types that can hold google.protobuf.Any or extensions, an equal copy where nothing is protected.
        decision: "released", "suppressed", "replayed", "observed", or "unprotected" if it has nothing to protect.
        epsilon: The loss of all owners together; for mechanisms that are not pure, at the smallest budget's delta.
        rho: This loss as zCDP counts it.
    """

    message: Any
    decision: str
    epsilon: float
    rho: float


# Makes a Receipt of a tuple of its attributes, faster than the class does.
make_receipt: Callable[[tuple[Any, str, float, float]], Receipt] = functools.partial(tuple.__new__, Receipt)
