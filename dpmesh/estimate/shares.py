"""Frequencies of categories from k-ary randomized response."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

from dpmesh.estimate.binomial import interval
from dpmesh.estimate.result import Estimate, EstimateError
from dpmesh.estimate.spread import checked


def shares(
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
        EstimateError: There are no values, or one that is not in the domain.
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
        seen = counts[category] / n
        low, high = interval(counts[category], n, confidence)
        found.append(Estimate(share(seen), share(low), share(high), n, confidence))
    return found
