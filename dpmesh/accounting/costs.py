"""What one release costs, in every accounting at once."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from dpmesh.accounting.amounts import amount_up
from dpmesh.accounting.conversions import Accounting, pure_to_rho


@dataclass(frozen=True, slots=True)
class Cost:
    """The privacy loss of a release, in ledger amounts (integers of 1e-9, rounded up).

    Attributes:
        epsilon: The pure loss, or None where there is none (discrete Gaussian).
        rho: The zCDP loss.
    """

    epsilon: int | None
    rho: int

    ZERO: ClassVar[Cost]

    def __post_init__(self) -> None:
        for name, value in (("epsilon", self.epsilon), ("rho", self.rho)):
            if value is None and name == "epsilon":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} must be a non-negative integer of 1e-9, not {value!r}")

    @classmethod
    def pure(cls, epsilon: Fraction) -> Cost:
        """The cost of one epsilon-DP release.

        Raises:
            ValueError: epsilon is NaN, infinite, negative, or more than a ledger can hold.
        """
        return cls(amount_up(epsilon, "epsilon"), amount_up(pure_to_rho(epsilon), "epsilon"))

    @classmethod
    def gaussian(cls, rho: Fraction) -> Cost:
        """The cost of one rho-zCDP release that has no pure guarantee.

        Raises:
            ValueError: rho is NaN, infinite, negative, or more than a ledger can hold.
        """
        return cls(None, amount_up(rho, "rho"))

    def __add__(self, other: Cost) -> Cost:
        if not isinstance(other, Cost):
            return NotImplemented
        both_pure = self.epsilon is not None and other.epsilon is not None
        epsilon = self.epsilon + other.epsilon if both_pure else None  # type: ignore[operator]
        return Cost(epsilon, self.rho + other.rho)

    def times(self, m: int) -> Cost:
        """The cost of m such releases.

        Raises:
            ValueError: m is not a non-negative integer.
        """
        if isinstance(m, bool) or not isinstance(m, int) or m < 0:
            raise ValueError(f"m must be a non-negative integer, not {m!r}")
        if m == 0:
            return Cost.ZERO
        return Cost(None if self.epsilon is None else self.epsilon * m, self.rho * m)

    def amount(self, accounting: Accounting) -> int:
        """What a budget with this accounting is charged.

        Raises:
            ValueError: The accounting is pure and this release has no pure guarantee.
        """
        if accounting is Accounting.ZCDP:
            return self.rho
        if self.epsilon is None:
            raise ValueError(
                "epsilon: a budget with pure accounting can't pay for a discrete Gaussian release"
            )
        return self.epsilon


Cost.ZERO = Cost(0, 0)
