"""When a roll-out halts by itself: more refused policies, or more refused messages, than chance explains.

Both tests are exact and one-sided, and may be made after every report: the chance that an innocent policy is ever
halted is at most `FALSE_ALARM`. A look at N reports has 1/(N(N+1)) of that, because these parts add up to 1 over all N.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

FALSE_ALARM: Final = 1e-6
"""The most probability with which a policy that changes nothing is ever halted, over all looks at its epoch."""

USUAL_NACKS: Final = 0.01
"""The part of a fleet that may refuse a policy without a halt: devices that are broken or too old anyway."""

_NEGLIGIBLE: Final = 1e-20


class Round(NamedTuple):
    """The noisy answers of one round.

    Attributes:
        ring: Devices that run the new policy and have answered.
        ring_refused: How many of their answers are "refused".
        control: Devices that run an older policy and have answered.
        control_refused: How many of their answers are "refused".
    """

    ring: int
    ring_refused: int
    control: int
    control_refused: int


def why_halt(acks: int, nacks: int, rounds: Sequence[Round]) -> str:
    """Why the roll-out of an epoch has to halt; "" if it may go on.

    Args:
        acks: Devices that took the policy.
        nacks: Devices that refused it.
        rounds: All rounds since it was published, in their order: that their list only grows is what the bound on false
            alarms rests on.
    """
    reports = acks + nacks
    chance = binomial_tail(nacks, reports, USUAL_NACKS)
    if reports and chance <= _part(FALSE_ALARM / 2, reports):
        return (
            f"{nacks} of {reports} devices refused the policy, more than {USUAL_NACKS:.0%} (p = {chance:.1e})"
        )
    for number, each in enumerate(rounds, 1):
        answers = each.ring + each.control
        chance = hypergeometric_tail(*each)
        if answers and chance <= _part(_part(FALSE_ALARM / 2, number), answers):
            return (
                f"{each.ring_refused} of {each.ring} answers under the new policy say that messages are refused, and "
                f"{each.control_refused} of {each.control} under older ones (p = {chance:.1e})"
            )
    return ""


def _part(chance: float, number: int) -> float:
    """The part of a chance that the look with this number has; all of them together have all of it."""
    return chance / (number * (number + 1))


def binomial_tail(successes: int, trials: int, chance: float) -> float:
    """The probability of at least so many successes. 1 where there are no more than expected: nobody asks there.

    Args:
        successes: How many there were.
        trials: How often it was tried.
        chance: The probability of each success, between 0 and 1.
    """
    if successes <= trials * chance:
        return 1.0
    first = (
        _log_choose(trials, successes)
        + successes * math.log(chance)
        + (trials - successes) * math.log1p(-chance)
    )
    odds = chance / (1 - chance)
    ratios = ((trials - i) / (i + 1) * odds for i in range(successes, trials))
    return _sum(first, ratios)


def hypergeometric_tail(ring: int, ring_refused: int, control: int, control_refused: int) -> float:
    """Fisher's exact test: the probability that at least so many of all that are refused fall into the ring by chance.

    1 where there are no more than expected: nobody asks there.

    Args:
        ring: Devices in the ring.
        ring_refused: How many of them are refused.
        control: Devices outside of it.
        control_refused: How many of them are refused.
    """
    total, refused = ring + control, ring_refused + control_refused
    if ring_refused * total <= ring * refused:
        return 1.0
    first = (
        _log_choose(ring, ring_refused) + _log_choose(control, control_refused) - _log_choose(total, refused)
    )
    ratios = (
        (ring - i) / (i + 1) * ((refused - i) / (control - refused + i + 1))
        for i in range(ring_refused, min(ring, refused))
    )
    return _sum(first, ratios)


def _sum(log_first: float, ratios: Iterable[float]) -> float:
    """The sum of terms of which the first's logarithm is given, and of the others the ratio to the one before."""
    term = total = 1.0
    for ratio in ratios:
        term *= ratio
        total += term
        if term < _NEGLIGIBLE * total:  # Ratios fall beyond the mean, so what follows is smaller still.
            break
    return min(1.0, math.exp(log_first + math.log(total)))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
