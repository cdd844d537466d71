"""The automatic halt: tails against scipy, false alarms by exact calculation and by simulation, and its power."""

import math
import random
from fractions import Fraction
from pathlib import Path

import pytest
from scipy import stats

from dpmesh.rollout.push.counts import rate
from dpmesh.rollout.push.halting import (
    FALSE_ALARM,
    USUAL_NACKS,
    Round,
    binomial_tail,
    hypergeometric_tail,
    why_halt,
)

DOCS = (Path(__file__).resolve().parents[4] / "docs" / "policy.md").read_text()


@pytest.mark.parametrize("trials", [1, 7, 100, 5_000, 1_000_000])
def test_the_binomial_tail_is_scipys(trials):
    for part in (0.011, 0.02, 0.1, 1):
        successes = math.ceil(trials * part)
        expected = stats.binom.logsf(successes - 1, trials, USUAL_NACKS)
        found = binomial_tail(successes, trials, USUAL_NACKS)
        if expected > -600:
            assert math.log(found) == pytest.approx(expected, rel=1e-7, abs=1e-7)
        else:
            assert found < 1e-200


@pytest.mark.parametrize("ring", [1, 20, 1_000, 50_000])
@pytest.mark.parametrize("control", [1, 1_000, 200_000])
def test_the_hypergeometric_tail_is_scipys(ring, control):
    for parts in ((0.3, 0.25), (0.5, 0.25), (1, 0), (0.26, 0.25)):
        refused = math.ceil(ring * parts[0]), math.floor(control * parts[1])
        if refused[0] * control <= refused[1] * ring:
            continue
        expected = stats.hypergeom.logsf(refused[0] - 1, ring + control, sum(refused), ring)
        found = hypergeometric_tail(ring, refused[0], control, refused[1])
        if expected > -600:
            assert math.log(found) == pytest.approx(expected, rel=1e-6, abs=1e-6)
        else:
            assert found < 1e-200


def test_tails_are_one_where_there_are_no_more_than_expected():
    assert binomial_tail(1, 100, 0.01) == binomial_tail(0, 0, 0.01) == 1
    assert hypergeometric_tail(10, 5, 10, 5) == hypergeometric_tail(0, 0, 10, 3) == 1
    assert hypergeometric_tail(10, 3, 0, 0) == 1


def test_the_looks_have_no_more_than_the_whole_chance():
    """Exact parts, in the form in which `why_halt` gives them out: nacks one half, all rounds and answers the other."""
    looks = sum(Fraction(1, n * (n + 1)) for n in range(1, 2000))
    assert looks < 1
    assert looks / 2 + sum(looks * Fraction(1, r * (r + 1)) for r in range(1, 50)) / 2 < 1


def test_an_exact_bound_on_false_alarms_of_nacks():
    """The probability that some look at the first 400 reports halts, by the law of a walk: at most half of the bound.

    Each device refuses with the usual probability; state: how many did, as long as no look has halted.
    """
    law, alarm = {0: 1.0}, 0.0
    for n in range(1, 401):
        following: dict[int, float] = {}
        for nacks, chance in law.items():
            for now, part in ((nacks, 1 - USUAL_NACKS), (nacks + 1, USUAL_NACKS)):
                if why_halt(n - now, now, ()):
                    alarm += chance * part
                else:
                    following[now] = following.get(now, 0.0) + chance * part
        law = following
    assert 0 < alarm <= FALSE_ALARM / 2


def test_a_fleet_that_changes_nothing_is_not_halted():
    """150 roll-outs of 300 devices in the ring and 300 outside, a look after each answer.

    The chance that this test fails is at most 150 times FALSE_ALARM, 1.5e-4, if answers come as they do from a
    generator that is seeded: it does not fail by chance.
    """
    rng = random.Random(7)
    for _ in range(150):
        usual = rng.choice((0.25, 0.5, 0.75))
        now, rounds = [0, 0, 0, 0], []
        for _ in range(600):
            group = rng.choice((0, 2))
            now[group] += 1
            now[group + 1] += rng.random() < usual
            rounds = [Round(*now)]
            assert not why_halt(0, 0, rounds)


def test_a_policy_that_a_tenth_of_the_devices_refuses_is_halted_within_500_reports():
    rng = random.Random(3)
    nacks = 0
    for n in range(1, 501):
        nacks += rng.random() < 0.1
        if why_halt(n - nacks, nacks, ()):
            break
    else:
        pytest.fail("not halted")
    assert "devices refused the policy" in why_halt(n - nacks, nacks, ())


def test_the_table_of_the_docs():
    for reports, nacks in ((100, 13), (1000, 40), (10_000, 187)):
        assert why_halt(reports - nacks, nacks, ())
        assert not why_halt(reports - nacks + 1, nacks - 1, ())
        assert f"{nacks} " in DOCS
    refused = next(n for n in range(1000) if why_halt(0, 0, [Round(1000, n, 19_000, 19_000 // 4)]))
    assert round(rate(refused, 1000), 2) == 0.24
    assert "about 24 % of 1,000" in DOCS


def test_a_policy_under_which_half_of_the_devices_refuse_messages_is_halted():
    """Half of 1,000 devices in the ring refuse, none outside: answers are "refused" with 1/2 and 1/4."""
    assert "under the new policy" in why_halt(1000, 0, [Round(10, 3, 10, 3), Round(1000, 500, 1000, 250)])
    assert not why_halt(1000, 0, [Round(1000, 250, 1000, 500)])  # Fewer are refused: nobody complains.
    assert not why_halt(0, 0, ())
