"""Mean vectors: unbiased, with intervals that hold as often as they say; foreign vectors are refused.

False alarms: each test that can fail by chance says how often.
"""

import math

import numpy as np
import pytest

from dpmesh.estimate import EstimateError, Reader
from tests.support.protos import compiled

RULE = "(dpmesh.v1.field).vector"
TYPES = compiled(
    f"""message Own {{ string id = 1 [(dpmesh.v1.field).unit = {{}}];
        repeated float v = 2 [{RULE} = {{l2_norm: 2 dimension: 40 epsilon: 4}}]; }}
    message Cube {{ string id = 1 [(dpmesh.v1.field).unit = {{}}];
        repeated double v = 2 [{RULE} = {{linf_norm: 2 dimension: 40 epsilon: 1}}]; }}
    message Sum {{ repeated float v = 1
        [{RULE} = {{l2_norm: 50 dimension: 40 epsilon: 1 delta: 1e-6 sensitivity: 2}}]; }}
    message Number {{ double n = 1 [(dpmesh.v1.field).numeric = {{lower: 0 upper: 1 epsilon: 1}}]; }}"""
)
KINDS = ["Own", "Cube", "Sum"]
HELD = np.linspace(-0.5, 0.5, 40)


def field_of(kind):
    return next(field for field in Reader(kind).plan.fields if field.path == "v")


def released(kind, count, vector=HELD):
    release = field_of(kind).payload.release
    return [kind(v=release(np.array(vector))) for _ in range(count)]


@pytest.mark.parametrize("name", KINDS)
def test_the_mean_of_many_lies_in_its_intervals(name):
    """40 intervals at 1 - 1e-8: one in 2.5e6 runs of each fails."""
    kind = getattr(TYPES, name)
    found = Reader(kind).mean_vector("v", iter(released(kind, 1500)), confidence=1 - 1e-8)
    assert found.n == 1500
    assert found.covers(HELD).all()
    assert not found.covers(HELD + 4 * (found.high - found.low)).any()
    assert found.values == pytest.approx((found.low + found.high) / 2)


@pytest.mark.parametrize("name", KINDS)
def test_the_standard_error_is_that_of_the_mechanism(name):
    """The mean square of 40 errors is within a factor of 4 but for 4e-7 (chi-square of 40 degrees).

    The standard errors are allowed 10 %, at least 6 of their own deviations.
    """
    kind = getattr(TYPES, name)
    found = Reader(kind).mean_vector("v", released(kind, 1000))
    variance = field_of(kind).payload.variance(HELD).mean() / 1000
    assert found.standard_error == pytest.approx(math.sqrt(variance), rel=0.1)
    assert found.error == pytest.approx(math.sqrt(40 * variance), rel=0.1)
    assert 1 / 4 < np.mean((found.values - HELD) ** 2) / variance < 4


@pytest.mark.parametrize("name", KINDS)
def test_few_vectors_have_intervals_as_wide_as_the_mechanism_makes_them(name):
    """Coordinate sampling shows 0 for most coordinates: the interval of one report still has to hold what is held."""
    kind = getattr(TYPES, name)
    least = float(field_of(kind).payload.variance(np.array([0.0, 2.0])).min())
    for count in (1, 2):
        found = Reader(kind).mean_vector("v", released(kind, count))
        assert (found.high - found.low).min() > 3.9 * math.sqrt(least / count)


def test_a_difference_between_senders_widens_the_intervals():
    kind = TYPES.Sum
    apart = released(kind, 20, np.full(40, 40.0)) + released(kind, 20, np.full(40, -40.0))
    found = Reader(kind).mean_vector("v", apart)
    assert found.standard_error == pytest.approx(40 / math.sqrt(39), rel=0.1)


def test_vectors_may_come_without_messages():
    kind = TYPES.Own
    vectors = [list(message.v) for message in released(kind, 5)]
    assert Reader(kind).mean_vector("v", vectors).values == pytest.approx(np.mean(vectors, axis=0))


def test_a_message_that_left_without_a_vector_is_no_report():
    kind = TYPES.Own
    messages = [*released(kind, 3), kind()]
    assert Reader(kind).mean_vector("v", messages).n == 3


@pytest.mark.parametrize(
    ("vectors", "text"),
    [
        ([], "there are no vectors"),
        ([[0.0] * 39], "has not 40 coordinates"),
        ([[[0.0]] * 40], "has not 40 coordinates"),
        ([[1e9] * 40], "none of its policy's outputs"),
        ([[1e-7] * 40], "none of its policy's outputs"),
        ([[float("nan")] * 40], "none of its policy's outputs"),
        ([["secret"] * 40], "not a vector of numbers"),
        ([7.5], "not a vector of numbers"),
    ],
)
def test_what_the_policy_can_not_have_released_is_refused(vectors, text):
    with pytest.raises(EstimateError, match=text) as caught:
        Reader(TYPES.Own).mean_vector("v", vectors)
    assert "secret" not in str(caught.value)


def test_a_number_has_no_mean_vector_and_a_vector_no_mean():
    with pytest.raises(EstimateError, match="is numeric, not a vector"):
        Reader(TYPES.Number).mean_vector("n", [[0.5]])
    with pytest.raises(EstimateError, match="is vector, not numeric"):
        Reader(TYPES.Own).mean("v", released(TYPES.Own, 1))


@pytest.mark.parametrize("confidence", [0, 1, -1, float("nan")])
def test_a_confidence_that_is_none_is_refused(confidence):
    with pytest.raises(ValueError, match="confidence"):
        Reader(TYPES.Own).mean_vector("v", released(TYPES.Own, 1), confidence=confidence)
