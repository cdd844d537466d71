"""Mechanisms for vectors: mean, error, the probability of the upper part, and how uniform the rotation is.

False alarms: a mean is allowed 5 standard errors (6e-7) of each coordinate or cosine. An error is allowed 1 %, which is
at least 5 standard errors of the sample's (asserted), so below 6e-7, too. The other tests say it themselves.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from dpmesh.estimate import Reader
from dpmesh.noise.entropy import KeyStream
from dpmesh.noise.numeric import NumericKind
from dpmesh.noise.priv_unit import _ROOTS, PrivUnit, _moments
from dpmesh.noise.thresholds import ONE
from dpmesh.policy.kinds import vector_mechanism
from dpmesh.policy.kinds.vector_mechanism import Room
from tests.support.protos import compiled

ROOM = Room(52, 1e300, 1e-300, None)
DIMENSION = 64
HELD = np.full(DIMENSION, 1 / 8)
HELD[:5] = 0.3, -0.3, 0, 0.2, -0.2
HELD /= np.linalg.norm(HELD)


def made(name, epsilon):
    if name == "directions":
        return vector_mechanism.directions(DIMENSION, 1.0, False, epsilon, ROOM)
    if name == "coordinates":
        return vector_mechanism.coordinates(DIMENSION, 1.0, epsilon, ROOM)
    if name == "gaussian":
        kind, loss = NumericKind.DISCRETE_GAUSSIAN, (epsilon, epsilon**2 / 2)
    else:
        kind, loss = NumericKind.DISCRETE_LAPLACE, (epsilon, None)
    return vector_mechanism.noised(DIMENSION, 1.0, 1.0, kind, loss, ROOM)


def outputs(mechanism, count, vector=HELD):
    return np.array([mechanism.release(np.asarray(vector).tolist()) for _ in range(count)])


def is_wrong(values, mechanism, vector=HELD):
    """Whether the mean, or the squared error over the mechanism's formula, is not what it should be."""
    errors = values - vector
    off = np.abs(errors.mean(axis=0)) / np.sqrt(mechanism.variance(vector) / len(values))
    cosines = errors @ vector
    off_along = abs(cosines.mean()) / (cosines.std() / math.sqrt(len(values)))
    total = (errors**2).sum(axis=1)
    # The first term is the allowance of 1 %; sizes are chosen so that it is 5 standard errors, or more.
    wrong_size = abs(total.mean() / mechanism.variance(vector).sum() - 1)
    standard_error = total.std() / math.sqrt(len(values)) / total.mean()
    assert 5 * standard_error < 0.01
    # 64 coordinates: 5.5 standard errors for each.
    return off.max() > 5.5 or off_along > 5 or wrong_size > 0.01


COUNTS = {"directions": 12_000, "coordinates": 200_000, "gaussian": 12_000, "laplace": 30_000}


@pytest.mark.full
@pytest.mark.parametrize("epsilon", ["0.5", "1", "4", "8"])
@pytest.mark.parametrize("name", COUNTS)
def test_mean_and_error(name, epsilon):
    mechanism = made(name, Fraction(epsilon))
    assert not is_wrong(outputs(mechanism, COUNTS[name]), mechanism)


@pytest.mark.full
@pytest.mark.parametrize("factor", ["0.97", "1.03"], ids=["too-small", "too-large"])
@pytest.mark.parametrize("name", COUNTS)
def test_three_percent_more_or_less_epsilon_is_rejected(name, factor):
    other = made(name, Fraction(factor))
    assert is_wrong(outputs(other, COUNTS[name]), made(name, Fraction(1)))


@pytest.mark.parametrize("epsilon", ["1", "8"])
def test_a_few_thousand_directions(epsilon):
    """A small run of the test above: 5 standard errors of each mean, and 5 of the squared error."""
    mechanism = made("directions", Fraction(epsilon))
    errors = outputs(mechanism, 2000) - HELD
    off = np.abs(errors.mean(axis=0)) / np.sqrt(mechanism.variance(HELD) / 2000)
    total = (errors**2).sum(axis=1)
    assert off.max() < 5.5
    assert abs(total.mean() - mechanism.variance(HELD).sum()) < 5 * total.std() / math.sqrt(2000)


@pytest.mark.full
@pytest.mark.parametrize("epsilon", ["1", "4"])
@pytest.mark.parametrize("vector", [np.eye(8)[0], np.full(8, 8**-0.5), np.eye(8)[1] / 3])
def test_mean_and_error_of_few_dimensions(epsilon, vector):
    """Frames are drawn ahead here: 6 standard errors of each mean (2e-9), and 1.5 % of the error (5 standard errors)."""
    mechanism = vector_mechanism.directions(8, 1.0, False, Fraction(epsilon), ROOM)
    errors = outputs(mechanism, 40_000, vector) - vector
    off = np.abs(errors.mean(axis=0)) / np.sqrt(mechanism.variance(vector) / 40_000)
    total = (errors**2).sum(axis=1)
    assert 5 * total.std() / 200 / total.mean() < 0.015
    assert off.max() < 6
    assert abs(total.mean() / mechanism.variance(vector).sum() - 1) < 0.015


@pytest.mark.parametrize("epsilon", ["0.5", "4", "16"])
def test_places_are_as_probable_as_the_threshold_says(epsilon):
    """The upper part, and chi-square over places in both parts: p >= 1e-7 each.

    A probability of the upper part that is a tenth smaller is rejected: it is 15 standard errors off, or more.
    """
    law = PrivUnit(2, Fraction(epsilon))
    blocks = [law.block(100, KeyStream()) for _ in range(200 // law.copies)]
    codes = np.array([code for block in blocks for row in block for code in row[0]])
    upper = int((codes < law.top).sum())
    p = law.threshold / ONE
    assert stats.binomtest(upper, len(codes), p).pvalue > 1e-7
    assert not stats.binomtest(upper, len(codes), p * 0.9).pvalue > 1e-7
    first = np.bincount(codes[codes < law.top], minlength=law.top)
    rest = np.bincount((codes[codes >= law.top] - law.top) * 20 // (law.directions - law.top), minlength=20)
    edges = np.bincount(np.arange(law.directions - law.top) * 20 // (law.directions - law.top))
    assert stats.chisquare(first).pvalue > 1e-7
    assert stats.chisquare(rest, edges / edges.sum() * rest.sum()).pvalue > 1e-7


def upper_parts(law, vector, count):
    """Of `count` rotations, the mean cosine of the upper part and its mean vector, times sqrt(D)."""
    half, stream = law.directions // 4, KeyStream()
    point = np.zeros(2 * half)
    point[: len(vector)] = vector
    phases = np.empty((count, 3, half), np.uint8)
    stream.fill(phases)
    turned = np.broadcast_to(point.view(complex), (count, half))
    for step in range(3):
        turned = np.fft.fft(turned * _ROOTS[phases[:, step]], norm="ortho")
    cosines = np.ascontiguousarray(turned).view(float)
    top = np.abs(cosines).argpartition(-law.top, axis=1)[:, -law.top :]
    chosen = np.zeros_like(cosines)
    np.put_along_axis(chosen, top, np.sign(np.take_along_axis(cosines, top, 1)), 1)
    scale = math.sqrt(2 * half) / law.top
    back = chosen.view(complex)
    for step in (2, 1, 0):
        back = np.fft.ifft(back, norm="ortho") * _ROOTS[phases[:, step]].conj()
    return (chosen * cosines).sum(axis=1) * scale, np.ascontiguousarray(back).view(float).sum(axis=0) * scale


@pytest.mark.full
@pytest.mark.parametrize("epsilon", ["1", "4"])
@pytest.mark.parametrize("name", ["one", "flat", "mixed", "geometric"])
def test_the_rotation_biases_no_vector_by_a_thousandth(epsilon, name):
    """Spiky and flat vectors have the mean cosine of a uniform rotation, and no other direction in their mean.

    60,000 rotations show a difference of 4e-4 in the cosine (5 standard errors, 6e-7). Across the vector, the mean is
    as long as 511 coordinates with the noise of so many rotations make it, within 20 % (6 standard deviations).
    """
    vector = {
        "one": np.ones(1),
        "flat": np.full(256, 1 / 16),
        "mixed": np.r_[0.8, np.full(255, 0.6 / math.sqrt(255))],
        "geometric": 0.5 ** np.arange(20.0),
    }[name]
    vector = vector / np.linalg.norm(vector)
    law, count = PrivUnit(256, Fraction(epsilon)), 60_000
    cosines, total = [], 0.0
    for _ in range(count // 500):
        cosine, back = upper_parts(law, vector, 500)
        cosines.append(cosine)
        total = total + back
    cosines = np.concatenate(cosines)
    uniform, _ = _moments(law.directions // 4, law.top, 1.0)
    error = cosines.std() / math.sqrt(count)
    assert 5 * error < 4e-4 * uniform
    assert abs(cosines.mean() - uniform) < 5 * error
    across = total / count
    across[: len(vector)] -= cosines.mean() * vector
    expected = (law.directions / 2 / law.top - np.mean(cosines**2)) / count
    assert float(across @ across) / expected == pytest.approx(1, abs=0.4)


RULES = {
    "directions": "l2_norm: 1 dimension: 16 epsilon: {}",
    "coordinates": "linf_norm: 1 dimension: 16 epsilon: {} mechanism: COORDINATE_SAMPLING",
    "gaussian": "l2_norm: 50 dimension: 16 epsilon: {} delta: 1e-6 sensitivity: 1",
}


@pytest.mark.full
@pytest.mark.parametrize("epsilon", [1, 2, 4])
@pytest.mark.parametrize("name", RULES)
def test_intervals_hold_as_often_as_they_say(name, epsilon):
    """400 means of 100 senders that differ: 6,400 intervals of 95 % are within 93 and 97 %, 7 standard errors.

    Coordinate sampling shows a coordinate in a few of 100 reports; its intervals hold more often.
    """
    rule = RULES[name].format(epsilon)
    types = compiled(f"message M {{ repeated double v = 1 [(dpmesh.v1.field).vector = {{{rule}}}]; }}")
    reader = Reader(types.M)
    (field,) = reader.plan.fields
    random = np.random.default_rng(epsilon)
    covered = 0
    for _ in range(400):
        vectors = random.uniform(-0.25, 0.25, (100, 16)) + np.linspace(-0.1, 0.3, 16)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        held = vectors / np.maximum(1, lengths) if name == "directions" else vectors
        released = [field.payload.release(np.asarray(vector).tolist()) for vector in vectors]
        covered += int(reader.mean_vector("v", released).covers(held.mean(axis=0)).sum())
    assert covered / 6400 > 0.93
    assert covered / 6400 < (1 if name == "coordinates" else 0.97)
