"""Subsets and reports as the samplers draw them in blocks: how often they support what is held, and what is not.

The variance of a share follows from both rates, p and q: it is q (1-q) / (p-q)^2 for a symbol that nobody holds. It has to
be within 1 % of its formula. False alarms: the rates come from so many draws that 1 % is at least 5 standard deviations of
that variance (asserted), 6e-7 for each test; rates themselves are allowed 5 of their own.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from dpmesh.noise import categorical
from dpmesh.noise.categorical import CategoricalMechanism
from dpmesh.noise.local_hashing import LocalHashing, fingerprint, support
from dpmesh.noise.subset_selection import SubsetSelection

SIZES = [(Fraction(1, 2), 20_000_000), (Fraction(1), 6_000_000), (Fraction(4), 2_000_000)]
BLOCK = 100_000
SYMBOLS, HELD = 16, 5
TEXTS = np.array([fingerprint(f"text-{number}") for number in range(24)], np.uint64)


def subsets(epsilon: Fraction, count: int, size: int) -> tuple[float, float, int]:
    """The rates at which subsets hold the symbol and another one, and on how many cases the latter rests."""
    law = SubsetSelection(SYMBOLS, size, epsilon)
    seen = np.zeros(SYMBOLS, np.int64)
    for _ in range(count // BLOCK):
        seen += np.bincount(((law.block(BLOCK) + HELD) % SYMBOLS).ravel(), minlength=SYMBOLS)
    # Of the others each subset holds as many, or one less: they vary less than independent cases.
    return seen[HELD] / count, np.delete(seen, HELD).mean() / count, count * (SYMBOLS - 1)


def reports(epsilon: Fraction, count: int, size: int) -> tuple[float, float, int]:
    """The rates at which reports have the hash of their text and that of another one, and of how many cases."""
    law = LocalHashing(size, epsilon)
    seen = np.zeros(len(TEXTS), np.int64)
    high, low = (np.uint64(half) for half in divmod(int(TEXTS[HELD]), 1 << 32))
    for _ in range(count // BLOCK):
        offsets, *columns = law.block(BLOCK).T.copy()
        seeds, a, b, c = (column.view(np.uint64) for column in columns)
        hashes = ((a * high + b * low + c) >> np.uint64(32)).astype(np.int64) * size >> 32
        seen += support(seeds, ((hashes + offsets) % size).astype(np.uint64), TEXTS, size)
    return seen[HELD] / count, np.delete(seen, HELD).mean() / count, count * (len(TEXTS) - 1)


def is_wrong(mechanism: CategoricalMechanism, rates: tuple[float, float, int], count: int) -> bool:
    """Whether the rates, or the variance that they give, are not those of the mechanism."""
    truth, lie, lies = rates
    p, q = mechanism.truth, mechanism.lie
    off_p, off_q = math.sqrt(p * (1 - p) / count), math.sqrt(q * (1 - q) / lies)
    # The derivatives of the variance's logarithm.
    deviation = math.hypot(off_p * 2 / (p - q), off_q * ((1 - 2 * q) / (q * (1 - q)) + 2 / (p - q)))
    assert 5 * deviation < 0.01, "more draws are needed"
    variance = lie * (1 - lie) / (truth - lie) ** 2
    return (
        abs(truth - p) > 5 * off_p
        or abs(lie - q) > 5 * off_q
        or abs(variance / mechanism.variance() - 1) > 0.01
    )


@pytest.mark.full
@pytest.mark.parametrize(
    "factor", [1, Fraction(97, 100), Fraction(103, 100)], ids=["right", "too-much", "too-little"]
)
@pytest.mark.parametrize(("epsilon", "count"), SIZES, ids=str)
@pytest.mark.parametrize(
    ("make", "draw"),
    [
        (lambda epsilon: categorical.make_subset(SYMBOLS, epsilon), subsets),
        (categorical.make_hashing, reports),
    ],
    ids=["subsets", "reports"],
)
def test_categories_have_the_variance_that_they_promise_and_noise_for_3_percent_more_or_less_is_rejected(
    make, draw, epsilon, count, factor
):
    mechanism = make(epsilon)
    rates = draw(epsilon * factor, count, mechanism.size)
    assert is_wrong(mechanism, rates, count) == (factor != 1)
