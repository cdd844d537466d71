"""Do the intervals of distributions and quantiles cover what they promise, and are they no wider than they have to be?

The false-alarm rate of each check is below 1e-6 (5 standard errors, two-sided). Reports are drawn from the laws that
tests/unit/estimate/test_output_laws.py compares with the mechanisms.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpmesh.estimate.distribution import _inverse, distribution_of, tally
from tests.unit.estimate.test_distribution import EDGES, HELD, RULES, numeric


def figures(received) -> dict[str, list[int]]:
    return {"n": [int(received.sum())], "received": received.tolist()}


@pytest.mark.parametrize(
    "rule", [*RULES[:2], *(pytest.param(rule, marks=pytest.mark.full) for rule in RULES[2:-1]), RULES[-1]]
)
def test_intervals_cover(rule):
    """1000 distributions from 400 reports each; slack of 1.5 % for the normal law."""
    plan = numeric(rule).plan.fields[0]
    inverse, made = _inverse("x", plan.payload, EDGES), tally(plan, EDGES)
    tried = 1000
    median = 50 + 20 * 0.05 / 0.35
    counts = np.random.default_rng(11).multinomial(400, np.maximum(inverse.law @ HELD, 0), size=tried)
    found = [distribution_of(plan, figures(each), made.setting, 0.95) for each in counts]
    sd = 5 * math.sqrt(0.05 * 0.95 / tried)
    for k, share in enumerate(HELD):
        covered = sum(each.shares[k].covers(share) for each in found) / tried
        assert 0.95 - sd - 0.015 <= covered
        values = np.array([each.shares[k].value for each in found])
        assert abs(values.mean() - share) <= 5 * values.std() / math.sqrt(tried)
        # Neither too wide, beside how far estimates are off.
        widths = np.array([each.shares[k].margin for each in found]) / 1.96
        assert 0.85 <= math.sqrt((widths**2).mean()) / values.std() <= 1.25
    for each in found[:300]:
        assert sum(share.value for share in each.shares) == pytest.approx(1, abs=1e-5)
    covered = sum(each.quantile(0.5).covers(median) for each in found[:300]) / 300
    assert covered >= 0.95 - 5 * math.sqrt(0.05 * 0.95 / 300) - 0.015
    below = sum(each.below(60).covers(0.45 + 0.35 / 2) for each in found) / tried
    assert below >= 0.95 - sd - 0.015
