"""Frequencies of categories from k-ary randomized response."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace

from dpmesh.estimate.binomial import interval
from dpmesh.estimate.result import Estimate, EstimateError
from dpmesh.estimate.spread import checked

# How sure it has to be that no sender under this policy made these values.
_OTHER_POLICY = 1 - 1e-10


def estimate_frequencies(
    path: str, values: Iterable[Hashable], domain: Sequence[Hashable], truth: float, confidence: float
) -> list[Estimate]:
    """The share of each category among what the senders held.

    With p the probability of the truth and q = (1-p)/(k-1) of each lie, a category whose share is f is
    received with probability q + f (p - q). That is turned around for the share of received values and for
    both ends of its interval: see `binomial.interval`, which holds for rare categories too.

    Args:
        path: The field, for errors.
        values: What was received, each a member of the domain.
        domain: All categories.
        truth: p.
        confidence: Of each interval by itself.

    Returns:
        One estimate per category, in the domain's order. They sum to 1.

    Raises:
        EstimateError: There are no values, or one that is not in the domain; or a category is received more often
            than p or less often than q allows, which happens once in 10^10 times under this policy.
    """
    try:
        counts = Counter(values)
    except TypeError:
        raise EstimateError(path, "one of the values is not one of its categories") from None
    n = counts.total()
    if not n:
        raise EstimateError(path, "there are no values")
    if not counts.keys() <= set(domain):
        raise EstimateError(path, "one of the values is not one of its categories")
    lie = (1 - truth) / (len(domain) - 1)
    checked(confidence)

    def share(received: float) -> float:
        return (received - lie) / (truth - lie)

    found = []
    for category in domain:
        seen = counts[category]
        _refuse_other_policy(path, seen, n, lie, truth)
        low, high = interval(seen, n, confidence)
        found.append(Estimate(share(seen / n), share(low), share(high), n, confidence))
    return found


def _refuse_other_policy(path: str, seen: int, n: int, lie: float, truth: float) -> None:
    """Refuses a category that is received more or less often than senders under this policy can make it."""
    least, most = interval(seen, n, _OTHER_POLICY)
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
