"""Categories: the error of what a receiver learns, beside its formula and multi-freq-ldpy, and the time to learn it.

Senders hold one of K values. The error of a share is measured over all values and many collections of reports, so
that it is known to 0.4 %. multi-freq-ldpy cuts its estimates at 0 and scales them to sum to 1, which makes them biased:
its reports are counted by its own code here, and turned into shares by its own probabilities, without that last step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from multi_freq_ldpy.pure_frequency_oracles import GRR, LH, SS
from numpy.typing import NDArray

from benchmarks.table import Row, show
from dpmesh.estimate import supports
from dpmesh.noise import categorical
from dpmesh.noise.categorical import CategoricalKind, CategoricalMechanism
from dpmesh.noise.local_hashing import fingerprint
from dpmesh.policy.codegen.source import draw_function

K, REPORTS, COLLECTIONS = 100, 200, 1500
EPSILONS = (Fraction(1, 2), Fraction(1), Fraction(4))
# How many reports multi-freq-ldpy is timed with, and how many times as many dpmesh.
TIMED, TIMES = 2000, 20
RESPONSE, SUBSET, HASHING = CategoricalKind
DOMAIN: dict[CategoricalKind, tuple[Any, ...]] = {
    RESPONSE: tuple(range(K)),
    SUBSET: tuple(range(K)),
    HASHING: tuple(map(str, range(K))),
}
# What the senders of one collection hold: each value two of them.
HELD = [number % K for number in range(REPORTS)]

_MODULES = {RESPONSE: GRR, SUBSET: SS, HASHING: LH}
_CLIENTS = {RESPONSE: GRR.GRR_Client, SUBSET: SS.SS_Client, HASHING: LH.LH_Client}
_AGGREGATORS = {RESPONSE: GRR.GRR_Aggregator_MI, SUBSET: SS.SS_Aggregator_MI, HASHING: LH.LH_Aggregator_MI}


def _mechanisms(epsilon: Fraction) -> tuple[CategoricalMechanism, ...]:
    return (
        categorical.make(K, epsilon),
        categorical.make_subset(K, epsilon),
        categorical.make_hashing(epsilon),
    )


def _shares(mechanism: CategoricalMechanism, seen: Any, n: int) -> NDArray[np.float64]:
    return (np.asarray(seen) / n - mechanism.lie) / (mechanism.truth - mechanism.lie)


def _ours(mechanism: CategoricalMechanism) -> Callable[[list[int]], list[Any]]:
    draw: Callable[[int], Any] = draw_function(mechanism.draws)
    if mechanism.kind is HASHING:
        prints = [fingerprint(text) for text in DOMAIN[HASHING]]
        return lambda held: [draw(prints[value]) for value in held]
    return lambda held: [draw(value) for value in held]


def _theirs(mechanism: CategoricalMechanism) -> Callable[[list[int]], list[Any]]:
    client, epsilon = _CLIENTS[mechanism.kind], float(mechanism.epsilon)
    return lambda held: [client(value, K, epsilon) for value in held]


def _aggregate(mechanism: CategoricalMechanism, reports: list[Any]) -> Any:
    return _AGGREGATORS[mechanism.kind](reports, K, float(mechanism.epsilon))


def _count_theirs(mechanism: CategoricalMechanism, reports: list[Any]) -> NDArray[np.float64]:
    """The shares by their aggregator, without its last step."""
    module = _MODULES[mechanism.kind]
    original = module.MI
    module.MI = lambda seen, n, p, q: (seen / n - q) / (p - q)
    try:
        found: NDArray[np.float64] = _aggregate(mechanism, reports)
    finally:
        module.MI = original
    return found


def _error(collect: Callable[[], NDArray[np.float64]]) -> float:
    """The mean squared error over all values and collections, times the number of reports."""
    truth = np.bincount(HELD, minlength=K) / REPORTS
    return float(REPORTS * np.mean([np.mean((collect() - truth) ** 2) for _ in range(COLLECTIONS)]))


def _errors() -> Iterator[Row]:
    shares = np.bincount(HELD, minlength=K) / REPORTS
    for epsilon in EPSILONS:
        for mechanism in _mechanisms(epsilon):
            theory = float(np.mean([mechanism.variance(share) for share in shares]))
            error = _error(_learning(mechanism))
            yield Row(f"{mechanism.kind}, {K} values, epsilon {float(epsilon):g}: n Var", error, "", "")
            yield Row("  dpmesh / theory", error / theory, "times", "0.98 to 1.02")
            if epsilon == 1:
                other = _error(_learning_theirs(mechanism))
                yield Row("  dpmesh / multi-freq-ldpy", error / other, "times", "0.98 to 1.02")


def _learning(mechanism: CategoricalMechanism) -> Callable[[], NDArray[np.float64]]:
    release, domain = _ours(mechanism), DOMAIN[mechanism.kind]
    return lambda: _shares(mechanism, *supports.count("", release(HELD), domain, mechanism))


def _learning_theirs(mechanism: CategoricalMechanism) -> Callable[[], NDArray[np.float64]]:
    release = _theirs(mechanism)
    return lambda: _count_theirs(mechanism, release(HELD))


def _seconds(run: Callable[[], object]) -> float:
    """Seconds of the fastest of three runs."""
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def _times() -> Iterator[Row]:
    for mechanism in _mechanisms(Fraction(1)):
        yield from _time(mechanism)


def _time(mechanism: CategoricalMechanism) -> Iterator[Row]:
    held, domain = [number % K for number in range(TIMED)], DOMAIN[mechanism.kind]
    reports, others = _ours(mechanism)(held) * TIMES, _theirs(mechanism)(held)
    columns = np.array(reports, np.uint64 if mechanism.kind is HASHING else np.int64)
    arrays = _seconds(lambda: supports.count("", columns, domain, mechanism)) / TIMES
    lists = _seconds(lambda: supports.count("", reports, domain, mechanism)) / TIMES
    other = _seconds(lambda: _aggregate(mechanism, others))
    yield Row(f"{mechanism.kind}: shares of {K} values", arrays / TIMED * 1e9, "ns/report", "")
    yield Row("  multi-freq-ldpy / dpmesh, from an array", other / arrays, "times", ">= 20")
    yield Row("  multi-freq-ldpy / dpmesh, from a list", other / lists, "times", ">= 20 for hashes")


def run() -> Iterator[Row]:
    """All figures."""
    yield from _errors()
    yield from _times()


if __name__ == "__main__":
    show(run())
