"""What one release costs, in every accounting at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import ClassVar

from dpmesh.accounting.amounts import AMOUNT, amount_up
from dpmesh.accounting.conversions import Accounting, pure_to_rho, rho_to_epsilon


@dataclass(frozen=True, slots=True)
class Cost:
    """The privacy loss of a release, in ledger amounts (integers of 1e-9, rounded up).

    Attributes:
        epsilon: The pure loss, or None where there is none (discrete Gaussian).
        rho: The zCDP loss.
        pure_epsilon: Where the whole has no pure loss: the pure loss of those of its parts that have one.
        pure_rho: The zCDP loss of these parts.
        delta: The probability that these bounds fail, for releases that hold them but for a delta (histograms without
            public keys). The delta of the discrete Gaussian is none of it: rho tells all of its loss.
    """

    epsilon: int | None
    rho: int
    pure_epsilon: int = 0
    pure_rho: int = 0
    delta: Fraction = Fraction(0)

    ZERO: ClassVar[Cost]

    def __post_init__(self) -> None:
        for name, value in (
            ("epsilon", self.epsilon),
            ("rho", self.rho),
            ("pure_epsilon", self.pure_epsilon),
            ("pure_rho", self.pure_rho),
        ):
            if value is None and name == "epsilon":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} must be a non-negative integer of 1e-9, not {value!r}")
        if not isinstance(self.delta, Fraction) or self.delta < 0:
            raise ValueError("delta must be a Fraction of at least 0")

    @classmethod
    @lru_cache(maxsize=1024, typed=True)
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

    @classmethod
    def approximate(cls, epsilon: Fraction, delta: Fraction) -> Cost:
        """The cost of one (epsilon, delta)-DP release.

        But for probability delta such a release is epsilon-DP (Kairouz, Oh, Viswanath 2015, theorem 3.4), so it is
        delta-approximately as zCDP as an epsilon-DP one (Bun, Steinke 2016, section 8).

        Raises:
            ValueError: epsilon is NaN, infinite, negative, or more than a ledger can hold; or delta is outside (0, 1).
        """
        if not 0 < delta < 1:
            raise ValueError("delta must be between 0 and 1")
        pure = cls.pure(epsilon)
        assert pure.epsilon is not None
        return cls(None, pure.rho, pure.epsilon, pure.rho, delta)

    def __add__(self, other: Cost) -> Cost:
        if not isinstance(other, Cost):
            return NotImplemented
        rho, delta = self.rho + other.rho, self.delta + other.delta
        if self.epsilon is not None and other.epsilon is not None:
            return Cost(self.epsilon + other.epsilon, rho)
        (pure, pure_rho), (others, others_rho) = self._pure_part(), other._pure_part()
        return Cost(None, rho, pure + others, pure_rho + others_rho, delta)

    def _pure_part(self) -> tuple[int, int]:
        """The epsilon and rho of the parts that have a pure loss."""
        return (self.pure_epsilon, self.pure_rho) if self.epsilon is None else (self.epsilon, self.rho)

    def times(self, m: int) -> Cost:
        """The cost of m such releases.

        Raises:
            ValueError: m is not a non-negative integer.
        """
        if isinstance(m, bool) or not isinstance(m, int) or m < 0:
            raise ValueError(f"m must be a non-negative integer, not {m!r}")
        if m == 0:
            return Cost.ZERO
        epsilon = None if self.epsilon is None else self.epsilon * m
        return Cost(epsilon, self.rho * m, self.pure_epsilon * m, self.pure_rho * m, self.delta * m)

    def largest(self, other: Cost) -> Cost:
        """What covers either of two releases of which only one takes place."""
        rho = max(self.rho, other.rho)
        if self.epsilon is not None and other.epsilon is not None:
            return Cost(max(self.epsilon, other.epsilon), rho)
        (pure, pure_rho), (others, others_rho) = self._pure_part(), other._pure_part()
        gaussian = max(self.rho - pure_rho, other.rho - others_rho)
        return Cost(None, rho, max(pure, others), rho - gaussian, max(self.delta, other.delta))

    def epsilon_at(self, delta: float) -> float:
        """The epsilon of this loss, at a delta where it has no pure one: the smaller of two that both hold.

        It fails with probability `delta` and the cost's own delta together.

        All parts may be converted together, as zCDP. Or the pure parts add up by themselves, and the others are
        converted (basic composition), which is less where a large pure part stands beside a small Gaussian.

        Raises:
            ValueError: The loss is not pure, and delta is outside (0, 1).
        """
        if self.epsilon is not None:
            return self.epsilon / AMOUNT
        together = rho_to_epsilon(self.rho / AMOUNT, delta)
        return min(
            together, self.pure_epsilon / AMOUNT + rho_to_epsilon((self.rho - self.pure_rho) / AMOUNT, delta)
        )

    def amount(self, accounting: Accounting, cap: int = 0, threshold_delta: float = 0.0) -> int:
        """What a budget with this accounting is charged.

        A cost with a delta takes of the cap, besides its rho, the part that the delta is of `threshold_delta`. So the
        rhos that a cap admits add up to at most the cap and the deltas to at most `threshold_delta`, in whatever order
        releases are chosen (Whitehouse, Ramdas, Rogers, Wu 2023: a filter for approximate zCDP).

        Args:
            accounting: How losses add up.
            cap: What the budget admits in all, as a ledger amount; for costs with a delta.
            threshold_delta: What deltas may add up to; for costs with a delta.

        Raises:
            ValueError: The accounting is pure and this release has no pure guarantee; or the cost has a delta, and the
                budget admits none.
        """
        if accounting is Accounting.ZCDP:
            if not self.delta:
                return self.rho
            if not threshold_delta > 0:
                raise ValueError("delta: a budget without threshold_delta can't pay for it")
            return self.rho + math.ceil(self.delta * cap / Fraction(threshold_delta))
        if self.epsilon is None:
            raise ValueError(
                "epsilon: a budget with pure accounting can't pay for a release without a pure guarantee"
            )
        return self.epsilon


Cost.ZERO = Cost(0, 0)
