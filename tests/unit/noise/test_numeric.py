"""The numeric mechanisms' interface, and what they promise: epsilon, rho, mean, variance, range, support."""

import math
from fractions import Fraction

import mpmath
import pytest

from dpmesh.noise import numeric
from dpmesh.noise.discrete_gaussian import DiscreteGaussian
from dpmesh.noise.discrete_laplace import DiscreteLaplace
from dpmesh.noise.numeric import NumericKind
from dpmesh.policy.codegen.source import draw_function
from tests.unit.noise import exact

LOCAL = [kind for kind in NumericKind if kind is not NumericKind.DISCRETE_GAUSSIAN]
IN_RANGE = [NumericKind.DISCRETE_LAPLACE, NumericKind.DUCHI, NumericKind.OPTIMIZED_PIECEWISE]


def laplace_tables(size, epsilon, sensitivity, low, high):
    law = DiscreteLaplace(numeric.padded(Fraction(sensitivity) / epsilon))
    reach = max(high, size - low)
    noise = exact.laplace(law, reach, cut=math.ceil(120 * law.scale))
    # All of what lies beyond belongs to the ends.
    rest = (1 - mpmath.fsum(noise.values())) / 2
    noise[-reach] += rest
    noise[reach] += rest
    return [exact.clamped(noise, x, low, high) for x in range(size + 1)]


@pytest.mark.parametrize("in_range", [False, True])
@pytest.mark.parametrize(
    ("size", "sensitivity", "epsilon"),
    [
        (1, 1, Fraction(1)),
        (6, 6, Fraction(1)),
        (5, 5, Fraction(10)),
        (3, 3, Fraction(64)),
        (8, 2, Fraction(3)),
        (4, 1, Fraction(64)),
    ],
)
def test_laplace_keeps_epsilon_exactly(size, sensitivity, epsilon, in_range):
    """The largest ratio of any output's probabilities at distance `sensitivity` is at most e^epsilon, unrounded."""
    mechanism = numeric.make(NumericKind.DISCRETE_LAPLACE, size, sensitivity, epsilon, in_range=in_range)
    low, high = (0, size) if in_range else (max(mechanism.low, -60), min(mechanism.high, size + 60))
    with mpmath.workdps(120):
        tables = laplace_tables(size, epsilon, sensitivity, low, high)
        bound = mpmath.exp(mpmath.mpf(epsilon.numerator) / epsilon.denominator)
        worst = 0
        for x in range(size + 1 - sensitivity):
            for y in range(low, high + 1):
                first, second = tables[x][y], tables[x + sensitivity][y]
                assert max(first, second) <= min(first, second) * bound
                worst = max(worst, first / second, second / first)
        assert worst > bound * (1 - mpmath.mpf(10) ** -9)


@pytest.mark.parametrize("size", [1, 2, 9])
@pytest.mark.parametrize("epsilon", [Fraction(1, 4), Fraction(1), Fraction(6)])
def test_in_range_laplace_is_unbiased_with_its_substitutes(size, epsilon):
    mechanism = numeric.make(NumericKind.DISCRETE_LAPLACE, size, size, epsilon, in_range=True)
    assert (mechanism.low, mechanism.high) == (0, size)
    with mpmath.workdps(60):
        values = {0: mechanism.unbiased_low, size: mechanism.unbiased_high}
        for x, table in enumerate(laplace_tables(size, epsilon, size, 0, size)):
            mean = sum(p * values.get(y, y) for y, p in table.items())
            variance = sum(p * (values.get(y, y) - mean) ** 2 for y, p in table.items())
            assert float(mean) == pytest.approx(x, abs=1e-12 * size / epsilon)
            assert mechanism.variance(x) == pytest.approx(float(variance), rel=1e-9)
    assert mechanism.worst_variance == pytest.approx(max(map(mechanism.variance, range(size + 1))))


@pytest.mark.parametrize("rho", [Fraction(1, 50), Fraction(1, 2), Fraction(20)])
@pytest.mark.parametrize("sensitivity", [1, 3])
def test_gaussian_keeps_rho(rho, sensitivity):
    """Renyi divergence of every order is at most rho times the order, for the sampler's own thresholds."""
    law = DiscreteGaussian(numeric.padded(Fraction(sensitivity) ** 2 / (2 * rho)))
    reach = 16 * law._t + 30
    with mpmath.workdps(80):
        s2 = mpmath.mpf(law.sigma2.numerator) / law.sigma2.denominator
        centre = s2 / law._t
        proposals = exact.laplace(law._proposals, reach, cut=120 * law._t)
        weights = {z: p * mpmath.exp(-((abs(z) - centre) ** 2) / (2 * s2)) for z, p in proposals.items()}
        total = mpmath.fsum(weights.values())
        bound = mpmath.mpf(rho.numerator) / rho.denominator
        for order in (mpmath.mpf("1.001"), mpmath.mpf("1.5"), 2, 5, 10):
            moment = mpmath.fsum(
                (p / total) ** order * (weights[z + sensitivity] / total) ** (1 - order)
                for z, p in weights.items()
                if z + sensitivity in weights
            )
            divergence = mpmath.log(moment) / (order - 1)
            assert divergence <= bound * order
            if rho < 2:
                assert divergence > bound * order * (1 - mpmath.mpf(10) ** -6)


@pytest.mark.parametrize("kind", NumericKind)
@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("epsilon", [Fraction(1, 3), Fraction(2), Fraction(64)])
def test_outputs_are_integers_in_the_public_range(kind, size, epsilon):
    for in_range in (False, True):
        if in_range and kind not in IN_RANGE:
            continue
        gaussian = kind is NumericKind.DISCRETE_GAUSSIAN
        mechanism = numeric.make(
            kind,
            size,
            size,
            None if gaussian else epsilon,
            rho=epsilon if gaussian else None,
            in_range=in_range,
        )
        assert (mechanism.epsilon, mechanism.rho) == ((None, epsilon) if gaussian else (epsilon, None))
        assert mechanism.kind is kind
        draw = draw_function(mechanism.draws)
        for x in {0, size // 2, size}:
            outputs = [draw(x) for _ in range(500)]
            assert all(type(y) is int and mechanism.low <= y <= mechanism.high for y in outputs)
            assert mechanism.outputs is None or set(outputs) <= set(mechanism.outputs)
        if in_range:
            assert (mechanism.low, mechanism.high) == (0, size)
        if in_range and kind is NumericKind.OPTIMIZED_PIECEWISE:
            assert mechanism.stretch >= 1
            assert mechanism.unbiased_low is mechanism.unbiased_high is None
        elif in_range:
            assert mechanism.stretch == 1
            assert mechanism.unbiased_low < 0 or mechanism.unbiased_low == pytest.approx(0, abs=1e-20)
            assert mechanism.unbiased_high - size == pytest.approx(
                -mechanism.unbiased_low, rel=1e-6, abs=1e-9
            )
        else:
            assert mechanism.unbiased_low is mechanism.unbiased_high is None
            assert mechanism.stretch == 1


def test_the_clamp_of_unbiased_noise_is_beyond_reach():
    for epsilon in (Fraction(1, 100), Fraction(1), Fraction(64)):
        mechanism = numeric.make(NumericKind.DISCRETE_LAPLACE, 10, 10, epsilon)
        assert mechanism.low + mechanism.high == 10
        assert math.exp(mechanism.low * float(epsilon) / 10) < 1e-15
    gaussian = numeric.make(NumericKind.DISCRETE_GAUSSIAN, 10, 10, None, rho=Fraction(1, 2))
    assert math.erfc(-gaussian.low / math.sqrt(2 * gaussian.worst_variance)) < 1e-15


def test_the_clamp_holds():
    class Stub:
        def __init__(self, noise):
            self.pop = iter(noise).__next__

        def refill(self):
            raise AssertionError

    draws = numeric.make(NumericKind.DISCRETE_LAPLACE, 10, 10, Fraction(64), in_range=True).draws
    draw = draw_function(draws, Stub([-100, 100, 3, -5, 5]))
    assert [draw(x) for x in (5, 5, 5, 0, 10)] == [0, 10, 8, 0, 10]


def test_equal_parameters_share_one_mechanism():
    for kind in LOCAL:
        assert numeric.make(kind, 10, 10, Fraction(3)) is numeric.make(kind, 10, 10, Fraction(6, 2))
        with pytest.raises(TypeError):
            numeric.make(kind, 10, 10, 3.0)


def test_the_same_parameters_share_one_pool():
    first = numeric.make(NumericKind.DISCRETE_LAPLACE, 10, 10, Fraction(1))
    second = numeric.make(NumericKind.DISCRETE_LAPLACE, 20, 10, Fraction(1))
    other = numeric.make(NumericKind.DISCRETE_LAPLACE, 10, 10, Fraction(2))
    draws = [draw_function(mechanism.draws) for mechanism in (first, second, other)]
    lists = [draw.__globals__["pop"].__self__ for draw in draws]
    assert lists[0] is lists[1]
    assert lists[0] is not lists[2]


GOOD = {
    "kind": NumericKind.DUCHI,
    "size": 10,
    "sensitivity": 10,
    "epsilon": Fraction(1),
    "rho": None,
    "in_range": False,
}


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"kind": "gaussian"}, ValueError),
        ({"size": 0}, ValueError),
        ({"size": -1}, ValueError),
        ({"size": 2**40 + 1}, ValueError),
        ({"size": 10.0}, TypeError),
        ({"size": True}, TypeError),
        ({"sensitivity": 0}, ValueError),
        ({"sensitivity": 1.5}, TypeError),
        ({"epsilon": Fraction(0)}, ValueError),
        ({"epsilon": Fraction(-1)}, ValueError),
        ({"epsilon": Fraction(64) + Fraction(1, 10**9)}, ValueError),
        ({"epsilon": 1.0}, TypeError),
        ({"epsilon": math.nan}, TypeError),
        ({"epsilon": math.inf}, TypeError),
        ({"epsilon": None}, ValueError),
        ({"rho": Fraction(1)}, ValueError),
        ({"kind": NumericKind.DISCRETE_GAUSSIAN}, ValueError),
        ({"kind": NumericKind.DISCRETE_GAUSSIAN, "rho": Fraction(0)}, ValueError),
        ({"kind": NumericKind.DISCRETE_GAUSSIAN, "rho": 0.5}, TypeError),
        ({"kind": NumericKind.DISCRETE_GAUSSIAN, "rho": Fraction(1), "in_range": True}, ValueError),
        ({"kind": NumericKind.PIECEWISE, "in_range": True}, ValueError),
        ({"kind": NumericKind.HYBRID, "in_range": True}, ValueError),
        (
            {"kind": NumericKind.DISCRETE_LAPLACE, "sensitivity": 2**40, "epsilon": Fraction(1, 2**13)},
            ValueError,
        ),
    ],
    ids=str,
)
def test_bad_arguments(changes, error):
    arguments = {**GOOD, **changes}
    with pytest.raises(error):
        numeric.make(
            arguments["kind"],
            arguments["size"],
            arguments["sensitivity"],
            arguments["epsilon"],
            rho=arguments["rho"],
            in_range=arguments["in_range"],
        )
