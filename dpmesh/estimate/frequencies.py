"""Frequencies of categories, from how many reports support each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dpmesh.estimate.binomial import interval
from dpmesh.estimate.result import Estimate, EstimateError
from dpmesh.estimate.spread import checked

# How sure it has to be that no sender under this policy made these values: for all categories together, but no surer
# than a float can say of one.
_OTHER_POLICY = 1e-10
_LEAST_CHANCE = 1e-14


def estimate_frequencies(
    path: str, seen: Sequence[int], n: int, truth: float, lie: float, confidence: float
) -> list[Estimate]:
    """The share of each category among what the senders held.

    A category whose share is f is supported by a report with probability q + f (p - q). That is turned around for the
    share of received reports and for both ends of its interval: see `binomial.interval`, which holds for rare
    categories too.

    Args:
        path: The field, for errors.
        seen: How many reports support each category.
        n: How many reports there are.
        truth: p, the probability that a report supports the category that its sender holds.
        lie: q, the probability that it supports another given one.
        confidence: Of each interval by itself.

    Returns:
        One estimate per category, in the order of `seen`.

    Raises:
        EstimateError: There are no reports; or a category is supported more often than p or less often than q
            allows, which happens once in 10^10 times under this policy.
    """
    checked(confidence)
    if not n:
        raise EstimateError(path, "there are no values")
    sure = 1 - max(_OTHER_POLICY / len(seen), _LEAST_CHANCE)

    def share(received: float) -> float:
        return (received - lie) / (truth - lie)

    found = []
    for supporting in seen:
        _refuse_other_policy(path, supporting, n, lie, truth, sure)
        low, high = interval(supporting, n, confidence)
        found.append(Estimate(share(supporting / n), share(low), share(high), n, confidence))
    return found


def _refuse_other_policy(path: str, seen: int, n: int, lie: float, truth: float, sure: float) -> None:
    """Refuses a category that is received more or less often than senders under this policy can make it."""
    least, most = interval(seen, n, sure)
    if least > truth or most < lie:
        raise EstimateError(
            path, "the values' shares are not ones that this policy gives: another policy has released them"
        )


def projected(found: Sequence[Estimate]) -> list[Estimate]:
    """The nearest shares, in squared distance, of which none is below 0 and which sum to 1.

    All shares move by the same amount, and those that would end below 0 become 0 (Duchi, Shalev-Shwartz, Singer,
    Chandra 2008, figure 1). The true shares are such shares, so the whole comes nearer to them, or stays where it
    is. Single shares are biased by it. Each interval is cut to what a share can be, which can't cut off the truth,
    and reaches the moved share.

    Args:
        found: Unbiased shares that sum to 1.
    """
    total, shift = 0.0, 0.0
    for count, value in enumerate(sorted((entry.value for entry in found), reverse=True), 1):
        total += value
        if value <= (total - 1) / count:
            break
        shift = (total - 1) / count
    moved = []
    for entry in found:
        value = min(max(entry.value - shift, 0.0), 1.0)
        low, high = (min(max(end, 0.0), 1.0) for end in (entry.low, entry.high))
        moved.append(replace(entry, value=value, low=min(low, value), high=max(high, value)))
    return moved
