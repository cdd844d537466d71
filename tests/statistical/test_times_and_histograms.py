"""The noise of times and histograms, as their plans draw it, has the mean and variance that they state.

False alarms: a mean is allowed 5 standard errors (6e-7). A variance is allowed 1 %, which is at least 5 standard errors of
the sample's variance (asserted, from its fourth moment), so below 6e-7 too.
"""

import math

import pytest

from dpmesh.noise.entropy import KeyStream
from dpmesh.policy import Policy
from tests.support.protos import compiled

FIELDS = {
    "shift": '{declared} = 1 [(dpmesh.v1.field).time = {{earliest: "0s" latest: "86400s" largest_shift: {{seconds: 300}} %s}}];',
    "keys": 'map<string, int64> m = 1 [(dpmesh.v1.field).histogram = {{keys: ["a"] contribution: 100 %s}}];',
    "selected": "map<string, int64> m = 1 [(dpmesh.v1.field).histogram = {{contribution: 100 delta: 1e-6 %s}}];",
}
EPSILONS = [0.5, 1.0, 4.0]
COUNT = 2_500_000


def drawn(name, epsilon, count):
    """Noise as the plan draws it, with mean 0, and the variance that the plan states."""
    text = FIELDS[name].format(declared="google.protobuf.Duration m") % f"epsilon: {epsilon}"
    (field,) = Policy().plan(compiled(f"message M {{ {text} }}").M.DESCRIPTOR).fields
    if name == "selected":
        law = field.payload.law
        return law.block(count, KeyStream()) - (law.middle - law.mean), law.variance
    reading = field.kind.reading(field)
    number = getattr(reading, "number", reading)
    return number.mechanism.draws.block(count, KeyStream()), number.mechanism.worst_variance


def wrong(noise, variance):
    off = abs(noise.mean()) > 5 * math.sqrt(variance / len(noise))
    return off or abs((noise.astype(float) ** 2).mean() / variance - 1) > 0.01


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("name", FIELDS)
def test_mean_and_variance(name, epsilon):
    noise, variance = drawn(name, epsilon, COUNT)
    squares = noise.astype(float) ** 2
    assert 5 * squares.std() / math.sqrt(COUNT) < 0.01 * variance
    assert not wrong(noise, variance)


@pytest.mark.parametrize("factor", [0.97, 1.03], ids=["too-small", "too-large"])
@pytest.mark.parametrize("name", FIELDS)
def test_three_percent_more_or_less_epsilon_is_rejected(name, factor):
    noise, _ = drawn(name, factor, COUNT // 2)
    assert wrong(noise, drawn(name, 1.0, 1)[1])
