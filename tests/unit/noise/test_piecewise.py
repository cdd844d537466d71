"""The Piecewise mechanism: exact probabilities of cells and of outputs, from the code that decodes draws."""

from fractions import Fraction

import mpmath
import numpy as np
import pytest

from dpmesh.noise import numeric
from dpmesh.noise.entropy import KeyStream
from dpmesh.noise.numeric import NumericKind
from dpmesh.noise.piecewise import Piecewise
from dpmesh.noise.pool import Pool
from dpmesh.policy.codegen.source import draw_function
from tests.unit.noise import exact

EPSILONS = [Fraction(1, 1000), Fraction(1, 2), Fraction(1), Fraction(3), Fraction(12), Fraction(64)]
SIZES = [1, 2, 3, 10, 41]


def cells(law, x):
    """P(cell | x): uniform over the window, uniform over the rest."""
    window = range(x, x + law.width)
    outside = (1 - law.inside) / law.size
    return {y: law.inside / law.width if y in window else outside for y in range(law.cells)}


def codes_of(law, x, cell):
    """The code of a cell for v = 0: `code(v)` for any v."""
    if x <= cell < x + law.width:
        return lambda v: (cell - x) * law.slope + v
    rest = cell if cell < x else cell - law.width
    return lambda v: ~((rest << law.shift) | v)


def table(law, x):
    """P(output | x). v is uniform over 0..2^shift-1: the output is a floor, or one more from some v on."""
    whole, outputs, decode = 1 << law.shift, {}, exact.decoding(law)
    for cell, p in cells(law, x).items():
        code = codes_of(law, x, cell)
        first = decode(x, code(0))
        point = cell * law.slope + law.base
        ups = point - first * whole
        assert 0 <= ups < whole
        for y, share, v_low, v_high in (
            (first, whole - ups, 0, whole - ups - 1),
            (first + 1, ups, whole - ups, whole - 1),
        ):
            if share:
                assert decode(x, code(v_low)) == decode(x, code(v_high)) == y
                outputs[y] = outputs.get(y, Fraction(0)) + p * Fraction(share, whole)
    return outputs


@pytest.mark.parametrize("epsilon", EPSILONS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_exact_epsilon_mean_and_variance(size, epsilon):
    law = Piecewise(size, epsilon)
    with mpmath.workprec(600):
        bound = mpmath.exp(mpmath.mpf(epsilon.numerator) / epsilon.denominator)
        for tables in ([cells(law, x) for x in range(size + 1)], [table(law, x) for x in range(size + 1)]):
            assert all(sum(t.values()) == 1 for t in tables)
            ratio = exact.worst_ratio(tables)
            assert mpmath.mpf(ratio.numerator) / ratio.denominator <= bound
    for x, t in enumerate(tables):
        mean = sum(y * p for y, p in t.items())
        assert abs(mean - x) * 2**100 < size  # exact but for the rounding of `inside` to 2^-128
        variance = sum((y - mean) ** 2 * p for y, p in t.items())
        assert law.variance(x) == pytest.approx(float(variance), rel=1e-6, abs=1e-9)
        assert law.low <= min(t)
        assert max(t) <= law.high
    worst = numeric.make(NumericKind.PIECEWISE, size, size, epsilon).worst_variance
    assert worst == pytest.approx(max(law.variance(x) for x in range(size + 1)), rel=0.02)


@pytest.mark.parametrize("epsilon", ["0.25", "0.5", "1", "2", "4", "8"])
def test_large_grids_have_the_papers_worst_variance(epsilon, vectors):
    case = next(case for case in vectors("local_mechanisms.json")["cases"] if case["epsilon"] == epsilon)
    size = 1 << 20
    mechanism = numeric.make(NumericKind.PIECEWISE, size, size, Fraction(epsilon))
    scaled = mechanism.worst_variance / (size / 2) ** 2
    assert scaled == pytest.approx(float(case["piecewise_worst"]), rel=1e-3)


@pytest.mark.parametrize("size", [1, 5, 10_000, 2**40])
def test_codes_fit_their_words(size):
    law = Piecewise(size, Fraction(1))
    codes = law.block(20_000, KeyStream())
    inside = codes[codes >= 0]
    rest = ~codes[codes < 0] >> law.shift
    assert inside.max() < law.width * law.slope + (1 << law.shift)
    assert rest.min() >= 0
    assert rest.max() < size
    decode = exact.decoding(law)
    for x in (0, size // 2, size):
        outputs = [decode(x, code) for code in codes.tolist()]
        assert law.low <= min(outputs)
        assert max(outputs) <= law.high
    assert abs(len(inside) / 20_000 - float(law.inside)) < 6 * 0.5 / 141  # six standard errors


def test_a_range_that_is_too_wide():
    with pytest.raises(ValueError, match="too fine"):
        Piecewise(2**40, Fraction(1, 10**6))


def test_draw_decodes_the_pool():
    law = Piecewise(9, Fraction(1))
    # 0 and -1 are the codes of the first cell of the window and of the rest, which chance will not show.
    codes = np.append(law.block(4998, KeyStream()), [0, -1])
    draw, decode = draw_function(law.draws, Pool(lambda count, stream: codes)), exact.decoding(law)
    xs = [x % 10 for x in range(5000)]
    assert [draw(x) for x in xs] == [
        decode(x, code) for x, code in zip(xs, codes[::-1].tolist(), strict=True)
    ]


def test_all_cells_of_both_parts_are_drawn():
    law = Piecewise(6, Fraction(1))
    codes = law.block(50_000, KeyStream())
    assert set(np.unique(codes[codes >= 0] // law.slope)) >= set(range(law.width))
    assert set(np.unique(~codes[codes < 0] >> law.shift)) == set(range(6))
