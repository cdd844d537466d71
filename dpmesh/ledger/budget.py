"""Budget: a cap on privacy loss for one unit, or for everyone together, over one window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from dpmesh.accounting import Accounting, cap, check_length
from dpmesh.errors import ConfigError

KEYS = ("unit", "global")
ON_EXHAUSTED = ("reject", "suppress")

Charge = tuple[int, bytes, int]
"""(index into the ledger's budgets, the unit's canonical bytes or b"" for a global budget, ledger amount)."""


@dataclass(frozen=True)
class Budget:
    """A cap on privacy loss, (epsilon, delta), over one window.

    Attributes:
        name: What users call it.
        key: "unit": every unit has one of its own; "global": one for all.
        epsilon: The most loss, positive.
        delta: In (0, 1) with zcdp accounting, [0, 1) with pure (where it goes unused).
        accounting: How losses add up.
        window: The length of the tumbling window in whole seconds, or None for lifetime.
        on_exhausted: What happens to a message that the budget doesn't cover.
        cap: What one account may be charged in one window, as a ledger amount.

    Raises:
        ConfigError: A value is wrong; the text names the key, the value and what is allowed.
    """

    name: str
    key: Literal["unit", "global"] = "unit"
    epsilon: float = 8.0
    delta: float = 1e-6
    accounting: Accounting = Accounting.ZCDP
    window: float | None = 86400.0
    on_exhausted: Literal["reject", "suppress"] = "reject"
    cap: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isprintable() or not 0 < len(self.name) <= 200:
            raise ConfigError(f"budget.name: {self.name!r} must be 1 to 200 printable characters")
        self._one_of("key", KEYS)
        self._one_of("accounting", tuple(Accounting))
        self._one_of("on_exhausted", ON_EXHAUSTED)
        object.__setattr__(self, "accounting", Accounting(self.accounting))
        try:
            check_length(self.window)
            amount = cap(self.accounting, self.epsilon, self.delta)
        except ValueError as error:
            raise ConfigError(f"budget {self.name!r}: {error}") from error
        object.__setattr__(self, "cap", amount)

    def _one_of(self, key: str, allowed: Sequence[str]) -> None:
        value = getattr(self, key)
        if value not in allowed:
            raise ConfigError(
                f"budget.{key}: {value!r} (budget {self.name!r}) is not one of {', '.join(allowed)}"
            )


def check_names(budgets: Sequence[Budget]) -> None:
    """Checks that no two budgets share a name.

    Raises:
        ConfigError: Two do.
    """
    names = [budget.name for budget in budgets]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"budget.name: {name!r} occurs twice; every budget needs a name of its own")


def check_unchanged(stored: Budget, configured: Budget) -> None:
    """Checks that a budget means the same as when its ledger first saw it; epsilon and delta may change.

    Raises:
        ConfigError: Its key, accounting or window differ, which would refill it.
    """
    for key in ("key", "accounting", "window"):
        old, new = getattr(stored, key), getattr(configured, key)
        if old != new:
            shown = ["lifetime" if value is None else str(value) for value in (old, new)]
            raise ConfigError(
                f"budget.{key}: {shown[1]!r} for budget {stored.name!r}, which the ledger holds with "
                f"{shown[0]!r}. Changing it would refill what is spent: restore the old value, or give the budget "
                "a new name"
            )
