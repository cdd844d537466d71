"""k-ary randomized response: exact probabilities and the codes that realise them."""

from fractions import Fraction

import mpmath
import numpy as np
import pytest

from dpmesh.noise.entropy import KeyStream
from dpmesh.noise.randomized_response import RandomizedResponse
from dpmesh.noise.thresholds import ONE
from tests.unit.noise.streams import KEY, Tape


@pytest.mark.parametrize(
    "epsilon", [Fraction(1, 10**9), Fraction(1, 2), Fraction(1), Fraction(8), Fraction(64)], ids=str
)
@pytest.mark.parametrize("k", [2, 3, 16, 105, 2**31])
def test_exact_epsilon(k, epsilon):
    truth = Fraction(RandomizedResponse(k, epsilon).threshold, ONE)
    ratio = truth / ((1 - truth) / (k - 1))
    with mpmath.workprec(600):
        bound = mpmath.exp(mpmath.mpf(epsilon.numerator) / epsilon.denominator)
        assert mpmath.mpf(ratio.numerator) / ratio.denominator <= bound
        assert mpmath.mpf(ratio.numerator) / ratio.denominator > bound * (1 - mpmath.mpf(2) ** -30)
    assert truth * k >= 1 - Fraction(1, 2**90)


def test_truth_of_the_reference_file(vectors):
    for case in vectors("local_mechanisms.json")["cases"]:
        for k, truth in case["krr_truth"].items():
            law = RandomizedResponse(int(k), Fraction(case["epsilon"]))
            assert law.threshold / ONE == pytest.approx(float(truth), rel=1e-12)


@pytest.mark.parametrize("k", [2, 7])
def test_known_answer_from_a_fixed_key(k):
    count, tape = 20_000, Tape()
    law = RandomizedResponse(k, Fraction(1))
    words = np.frombuffer(tape.take(2 * count), np.uint16).tolist()
    truth = []
    for word in words:
        tie = word == law.threshold >> 112
        truth.append((word << 112 | (int.from_bytes(tape.take(14), "big") if tie else 0)) < law.threshold)
    others = [1 + word % (k - 1) for word in np.frombuffer(tape.take(8 * count), np.uint64).tolist()]
    expected = [0 if told else other for told, other in zip(truth, others, strict=True)]
    assert law.block(count, KeyStream(KEY)).tolist() == expected


@pytest.mark.parametrize("count", [0, 1, 5000])
def test_block_lengths(count):
    assert RandomizedResponse(3, Fraction(1)).block(count).shape == (count,)
