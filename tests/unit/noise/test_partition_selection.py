"""Partition selection: its whole law, from the thresholds in use."""

import json
import math
from fractions import Fraction
from pathlib import Path

import mpmath
import numpy as np
import pytest

from dpmesh.noise.entropy import KeyStream
from dpmesh.noise.partition_selection import MAX_ENTRIES, PartitionSelection, delta_of
from dpmesh.noise.thresholds import ONE
from tests.unit.noise.streams import KEY, Script

VECTORS = json.loads((Path(__file__).parents[2] / "vectors/partition_selection.json").read_text())["cases"]
CASES = [
    ("0.5", 1, "1e-5"),
    ("1", 1, "1e-6"),
    ("4", 1, "1e-6"),
    ("1", 4, "1e-4"),
    ("4", 3, "1e-3"),
    ("0.5", 2, "0.1"),
]


def law_of(epsilon, sensitivity, delta):
    return PartitionSelection(Fraction(epsilon), sensitivity, Fraction(delta))


def masses(law):
    """2^128 P(J = j) for j = 1, 2, ..."""
    return [
        int(after) - before for before, after in zip([0, *law.thresholds[:-1]], law.thresholds, strict=True)
    ]


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: case["epsilon"])
def test_keys_are_released_as_often_as_is_optimal(case):
    law = law_of(case["epsilon"], 1, case["delta"])
    for n, wanted in enumerate(case["pi_from_n_1"]):
        got = Fraction(law.thresholds[min(n, len(law.thresholds) - 1)], ONE)
        assert abs(got / Fraction(wanted) - 1) < Fraction(1, 10**28)  # The vectors have 30 digits.


def output_law(law, count, last):
    """2^128 P(output) for one key: no output, or n + middle - J for J <= n."""
    table = {None: 0} | dict.fromkeys(range(law.middle, law.middle + last), 0)
    for j, mass in enumerate(masses(law), 1):
        table[count + law.middle - j if j <= count else None] += mass
    return table


def excess(one, other, epsilon):
    """The least delta with which one law stays within exp(epsilon) of the other, with 60 digits."""
    ratio = mpmath.exp(mpmath.mpf(epsilon.numerator) / epsilon.denominator)
    return mpmath.fsum(max(mpmath.mpf(0), one[y] - ratio * other[y]) for y in one) / ONE


@pytest.mark.parametrize(("epsilon", "sensitivity", "delta"), CASES)
def test_counts_that_one_unit_tells_apart_stay_within_epsilon_and_delta(epsilon, sensitivity, delta):
    """Selection and released count together, for one key, every count and every move, both ways."""
    law = law_of(epsilon, sensitivity, delta)
    last = len(law.thresholds) + sensitivity + 1
    with mpmath.workdps(60):
        growth = mpmath.exp(mpmath.mpf(epsilon) / sensitivity)
        allowed = [
            mpmath.mpf(delta) * (growth**d - 1) / (growth**sensitivity - 1) for d in range(sensitivity + 1)
        ]
        worst = mpmath.mpf(0)
        for count in range(last - sensitivity):
            for move in range(1, sensitivity + 1):
                tables = [output_law(law, n, last) for n in (count, count + move)]
                for one, other in (tables, tables[::-1]):
                    found = excess(one, other, Fraction(epsilon) * move / sensitivity)
                    assert found <= allowed[move]
                    worst = max(worst, found)
        assert worst >= 0.999 * mpmath.mpf(delta)


def test_a_unit_that_adds_to_two_keys_stays_within_epsilon_and_delta():
    """One step on each of two keys, against a contribution of two, by the joint law of both outputs."""
    delta = Fraction(1, 1000)
    law, last = law_of("1", 2, "0.001"), 40
    with mpmath.workdps(60):
        ratio = mpmath.exp(1)
        worst = mpmath.mpf(0)
        tables = [{y: mpmath.mpf(p) / ONE for y, p in output_law(law, n, last).items()} for n in range(12)]
        for a in range(0, 11, 2):
            for b in range(a, 11, 5):
                near = [
                    (tables[a][x] * tables[b][y], tables[a + 1][x] * tables[b + 1][y])
                    for x in tables[a]
                    for y in tables[b]
                ]
                for sign in (1, -1):
                    found = mpmath.fsum(
                        max(mpmath.mpf(0), pair[::sign][0] - ratio * pair[::sign][1]) for pair in near
                    )
                    worst = max(worst, found)
        assert 0 < worst <= mpmath.mpf(delta.numerator) / delta.denominator


def test_a_weaker_law_is_noticed():
    """The exact sum says by how much a table exceeds its delta."""
    law = law_of("1", 1, "1e-6")
    growth = Fraction(math.e)
    assert delta_of(law.thresholds, growth * (1 + Fraction(1, 10**15))) <= ONE * Fraction("1e-6")
    louder = [min(ONE, 2 * threshold) for threshold in law.thresholds]
    assert delta_of(louder, growth) > ONE * Fraction("1.9e-6")
    shifted = [law.thresholds[0], *law.thresholds[2:]]
    assert delta_of(shifted, growth) > ONE * Fraction("2e-6")


def test_draws_have_the_law_of_the_thresholds():
    """Chi-square of 200,000 draws on the cells that expect 20 or more; p below 1e-7 is an alarm."""
    from scipy import stats

    for law, wanted in [
        (law_of("1", 1, "1e-6"), True),
        (law_of("1.05", 1, "1e-6"), False),
        (law_of("0.95", 1, "1e-6"), False),
    ]:
        right = law_of("1", 1, "1e-6")
        j = right.middle - (law.block(200_000) + right.middle - law.middle)
        p = np.array([mass / ONE for mass in masses(right)])
        j = np.clip(j, 1, len(p))
        seen = np.bincount(j, minlength=len(p) + 1)[1:]
        usual = p * len(j) >= 20
        seen, expected = (
            np.append(seen[usual], seen[~usual].sum()),
            np.append(p[usual], p[~usual].sum()) * len(j),
        )
        value = stats.chi2.sf(((seen - expected) ** 2 / expected).sum(), len(seen) - 1)
        assert bool(value > 1e-7) is wanted


def test_ties_are_decided_by_all_128_bits():
    law = law_of("1", 1, "1e-6")
    for n in (1, 7, 14, len(law.thresholds) - 1):
        threshold = law.thresholds[n - 1]
        high, low = threshold >> 64, threshold & (2**64 - 1)
        word = int(high).to_bytes(8, "little")
        for below, wanted in [(low - 1, n), (low, n + 1)]:
            drawn = law.block(1, Script(word + below.to_bytes(8, "big")))
            assert law.middle - drawn.tolist()[0] == wanted
    # Without a tie no more bits are drawn.
    assert law.middle - law.block(1, Script(bytes(8))).tolist()[0] == 1


def test_draws_from_a_fixed_key_are_those_of_rational_code():
    law = law_of("1", 3, "1e-6")
    words = KeyStream(KEY).words(1000)
    exact = [
        next(j for j, threshold in enumerate(law.thresholds, 1) if int(word) << 64 < threshold)
        for word in words
    ]
    assert (law.middle - law.block(1000, KeyStream(KEY))).tolist() == exact


def test_mean_and_variance_are_those_of_the_law():
    law = law_of("1", 1, "1e-6")
    mean = sum(Fraction(mass, ONE) * j for j, mass in enumerate(masses(law), 1))
    assert law.mean == pytest.approx(float(mean))
    assert law.middle == round(mean)
    variance = sum(Fraction(mass, ONE) * (j - mean) ** 2 for j, mass in enumerate(masses(law), 1))
    assert law.variance == pytest.approx(float(variance))


def test_bad_parameters_are_refused():
    with pytest.raises(ValueError, match="too many steps"):
        law_of("0.01", MAX_ENTRIES, "1e-6")
    with pytest.raises(ValueError, match="delta is too small"):
        law_of("1", 1, "1e-39")
    with pytest.raises(ValueError, match="delta must be above 0"):
        law_of("1", 1, "0")
    with pytest.raises(ValueError, match="sensitivity must be from 1"):
        law_of("1", 0, "1e-6")
    with pytest.raises(TypeError):
        PartitionSelection(1.0, 1, Fraction(1, 10))
