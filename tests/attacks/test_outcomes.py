"""What the table says is right, and what should make an attack fail does."""

import itertools
import math

import numpy as np
import pytest

from tests.attacks.attackers import told_apart
from tests.attacks.outcomes import (
    Distinguished,
    Finding,
    Guessed,
    among,
    among_by_loss,
    between_two,
    rate_interval,
    table,
)

PERFECT = Distinguished(500, 500, 0, 500)
BLIND = Distinguished(250, 500, 250, 500)


def finding(allowed, protected, unprotected=PERFECT):
    return Finding("an attack", allowed, "why", protected, unprotected)


def test_an_attack_fails_that_gains_more_than_is_allowed():
    assert finding(0.0, BLIND).problems() == []
    assert "0.000 is allowed" in finding(0.0, Distinguished(450, 500, 250, 500)).problems()[0]
    assert finding(between_two(1), Distinguished(450, 500, 250, 500)).problems() == []
    assert finding(None, PERFECT).problems() == []


def test_an_attack_fails_that_does_not_succeed_without_protection():
    assert "proves nothing" in finding(0.0, BLIND, BLIND).problems()[0]
    # More than half, and still no more than the policy allows.
    assert "proves nothing" in finding(0.9, BLIND, Distinguished(490, 500, 100, 500)).problems()[0]


def test_the_table_has_a_row_for_each_finding():
    row = table([finding(0.5, BLIND), finding(None, Guessed(3, 300, 100))]).splitlines()[2:]
    assert row[0] == "| an attack | 0.500 | +0.000 (-0.102 to +0.102) | +1.000 | why |"
    assert row[1].startswith("| an attack | no limit | +0.000 (-0.008 to +0.019) |")


@pytest.mark.parametrize(("hits", "trials"), [(0, 30), (1, 30), (15, 30), (30, 30)])
def test_intervals_of_rates_are_wrong_as_seldom_as_they_say(hits, trials):
    """At its limits, a rate gives so many hits or more (or fewer) with half of alpha."""
    low, high = rate_interval(hits, trials, 0.01)

    def at_least(count, p):
        return sum(math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(count, trials + 1))

    assert low == 0 if hits == 0 else math.isclose(at_least(hits, low), 0.005)
    assert high == 1 if hits == trials else math.isclose(1 - at_least(hits + 1, high), 0.005)


@pytest.mark.parametrize("epsilon", [0.5, 1, 4])
@pytest.mark.parametrize("count", [2, 10, 200])
def test_randomized_response_reaches_what_is_allowed_and_no_more(epsilon, count):
    e = math.exp(epsilon)
    right = e / (e + count - 1)
    assert math.isclose(among(count, epsilon), right - 1 / count)
    assert math.isclose(between_two(epsilon), 2 * among(2, epsilon))
    losses = epsilon * (1 - np.eye(count))
    assert math.isclose(among_by_loss(losses), among(count, epsilon))


def test_what_distances_allow_is_no_less_than_any_mechanism_that_keeps_them_gives():
    """Geometric noise on a line of five places, and on one with a place far from the others."""
    for places in ([0, 1, 2, 3, 4], [0, 1, 2, 3, 40]):
        outputs = np.arange(-200, 300)
        law = np.exp(-0.7 * abs(np.array(places)[:, None] - outputs))
        law /= law[0].sum()
        losses = 0.7 * abs(np.subtract.outer(places, places))
        assert law.max(axis=0).sum() / 5 - 1 / 5 <= among_by_loss(losses) <= 4 / 5


def test_the_attacker_is_as_good_as_the_best_on_a_known_law():
    """Three randomized responses of epsilon 1: within 0.05 of the best advantage, five standard errors."""
    rng, p = np.random.default_rng(1), 1 / (1 + math.exp(-1))
    worlds = [(rng.random((20_000, 3)) < rate).tolist() for rate in (p, 1 - p)]
    best = sum(
        max(0.0, p**k * (1 - p) ** (3 - k) - p ** (3 - k) * (1 - p) ** k)
        for k in map(sum, itertools.product((0, 1), repeat=3))
    )
    assert abs(told_apart(*worlds).advantage - best) < 0.05


def test_the_attacker_reads_floats():
    rng = np.random.default_rng(1)
    worlds = [[(value,) for value in (rng.normal(size=4000) + shift).tolist()] for shift in (0.0, 1.0)]
    # The best advantage is erf(1 / sqrt(8)).
    assert abs(told_apart(*worlds).advantage - math.erf(1 / math.sqrt(8))) < 0.08
