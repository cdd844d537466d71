"""Mechanisms for a category: one of k public symbols, known by their index."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from dpmesh.noise import checks
from dpmesh.noise.draws import Draws
from dpmesh.noise.randomized_response import RandomizedResponse
from dpmesh.noise.thresholds import ONE


@dataclass(frozen=True, eq=False)
class CategoricalMechanism:
    """k-ary randomized response.

    Attributes:
        k: The number of symbols.
        epsilon: The loss of one draw, at most.
        draws: The offsets, and how an index 0..k-1 takes one in.
        truth: The probability of releasing the symbol itself; every other one has (1 - truth)/(k - 1).
        worst_variance: n times the variance of the estimated frequency of a symbol that nobody has,
            (E+k-2)/(E-1)^2.
    """

    k: int
    epsilon: Fraction
    draws: Draws
    truth: float
    worst_variance: float


def make(k: int, epsilon: Fraction) -> CategoricalMechanism:
    """Makes the mechanism of a categorical field.

    Args:
        k: The number of symbols, 2 to 2^31.
        epsilon: Above 0 and at most 64.

    Raises:
        ValueError: An argument is out of range.
        TypeError: An argument is not exact.
    """
    checks.integer("the number of symbols", k, 2, 1 << 31)
    checks.epsilon(epsilon)
    return _made(k, epsilon)


@lru_cache(maxsize=1024)
def _made(k: int, epsilon: Fraction) -> CategoricalMechanism:
    law = RandomizedResponse(k, epsilon)
    truth, lie = law.threshold * (k - 1), ONE - law.threshold
    return CategoricalMechanism(
        k=k,
        epsilon=epsilon,
        draws=law.draws,
        truth=law.threshold / ONE,
        worst_variance=lie * (ONE * (k - 1) - lie) / (truth - lie) ** 2,
    )
