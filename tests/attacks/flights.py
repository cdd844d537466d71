"""Real flights: which of 100 flights of a day is a report about? The attacker knows the airlines' records of all of them.

The records and the annotations are those of the demo (`examples/fleet`). The attacker has run the product on each record
many times, and takes the flight under whose laws the fields of a report are likeliest. The airport is public, so all 100
flights leave from one.
"""

from __future__ import annotations

import datetime

import numpy as np

import dpmesh
from dpmesh_fleet import data
from tests.attacks.outcomes import Finding, Guessed, among
from tests.attacks.worlds import ENFORCE, OBSERVE, config, received

FLIGHTS, LEARNED = 100, 300
EPSILON = 4.0
"""What a report costs its aircraft."""
DAY = datetime.date(2013, 1, 15)
BINS = 24


def flights() -> list[data.Flight]:
    """The first 100 flights of one day from one airport, each of another aircraft."""
    found: dict[str, data.Flight] = {}
    for flight in data.load()[0]:
        if flight.date == DAY and flight.origin == "ORIGIN_EWR":
            found.setdefault(flight.tail_number, flight)
    return list(found.values())[:FLIGHTS]


async def reports(mode: str, rounds: int) -> np.ndarray:
    """Delay, air time, carrier and flight number of what leaves: shape (rounds, FLIGHTS, 4)."""
    seen = []
    sent = [flight.report() for flight in flights()]
    async with dpmesh.open(config(mode=mode)) as mesh:
        for _ in range(rounds):
            for message in sent:
                got = (await received(mesh, message))[0]
                seen.append((got.dep_delay, got.air_time, got.carrier, got.flight_number))
    return np.array(seen).reshape(rounds, FLIGHTS, 4)


def found(learned: np.ndarray, shown: np.ndarray) -> Guessed:
    """How often the likeliest flight is the right one, by the laws of the fields as they were learned for each flight."""
    score = np.zeros((len(shown), FLIGHTS, FLIGHTS))
    for at in range(learned.shape[2]):
        edges = np.unique(np.quantile(learned[:, :, at], np.linspace(0, 1, BINS + 1)[1:-1]))
        bins = np.searchsorted(edges, learned[:, :, at], side="right")
        law = np.stack([np.bincount(column, minlength=len(edges) + 1) for column in bins.T]) + 0.5
        law /= law.sum(axis=1, keepdims=True)
        # Candidates last.
        score += np.log(law.T[np.searchsorted(edges, shown[:, :, at], side="right")])
    hits = int((score.argmax(axis=2) == np.arange(FLIGHTS)).sum())
    return Guessed(hits, len(shown) * FLIGHTS, FLIGHTS)


def recognised(records: np.ndarray, shown: np.ndarray) -> Guessed:
    """How often the record that agrees in most values is the right one."""
    agree = (shown[:, :, None, :] == records[None, None]).sum(axis=3)
    hits = int((agree.argmax(axis=2) == np.arange(FLIGHTS)).sum())
    return Guessed(hits, len(shown) * FLIGHTS, FLIGHTS)


async def findings(count: int) -> list[Finding]:
    """`count` reports, at least one of each flight."""
    records = await reports(OBSERVE, 1)
    learned = await reports(ENFORCE, LEARNED)
    shown = await reports(ENFORCE, max(1, count // FLIGHTS))
    return [
        Finding(
            "real flights: which of 100 of the demo's flights a report is about",
            among(FLIGHTS, EPSILON),
            "a report's epsilon of 4",
            found(learned, shown),
            recognised(records[0], records),
        )
    ]
