"""The disk area mechanism: its ratio from the threshold in use, and draws."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from scipy import stats

from dpmesh.noise.disk_area import DiskArea

CASES = [
    (2, 1, Fraction(1)),
    (7, 1, Fraction(1, 2)),
    (900, 130, Fraction(1)),
    (913, 1, Fraction(20)),
    (50, 49, Fraction(64)),
]


@pytest.mark.parametrize(("cells", "near", "epsilon"), CASES)
def test_near_and_far_ranks_have_at_most_the_ratio(cells, near, epsilon):
    inside = DiskArea(cells, near, epsilon).inside
    ratio = (inside / near) / ((1 - inside) / (cells - near))
    with mpmath.workprec(400):
        bound = mpmath.exp(mpmath.mpf(epsilon.numerator) / epsilon.denominator)
        found = mpmath.mpf(ratio.numerator) / ratio.denominator
        assert bound * (1 - mpmath.mpf(10) ** -9) < found <= bound


def test_one_near_cell_is_randomized_response():
    assert float(DiskArea(17, 1, Fraction(2)).inside) == pytest.approx(
        math.e**2 / (math.e**2 + 16), rel=1e-15
    )


@pytest.mark.parametrize(("cells", "near", "epsilon"), CASES[:3])
def test_draws_have_the_law_of_every_rank(cells, near, epsilon):
    """Chi-square over all ranks, 200,000 draws. False alarm 1e-7 each."""
    law = DiskArea(cells, near, epsilon)
    count = 200_000
    seen = np.bincount(law.block(count), minlength=cells)
    inside = float(law.inside)
    expected = count * np.where(np.arange(cells) < near, inside / near, (1 - inside) / (cells - near))
    chi = float(((seen - expected) ** 2 / expected).sum())
    assert 1e-7 / 2 < stats.chi2.sf(chi, cells - 1) < 1 - 1e-7 / 2


@pytest.mark.parametrize(("cells", "near"), [(1, 1), (5, 5), (5, 0)])
def test_disks_of_no_or_of_all_cells_are_refused(cells, near):
    with pytest.raises(ValueError, match="number of"):
        DiskArea(cells, near, Fraction(1))
