"""All attacks, in the order of the table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from tests.attacks import (
    averaging,
    database,
    device,
    errors,
    flights,
    histograms,
    linkage,
    low_bits,
    metadata,
    places,
    presence,
    replay,
    rollout,
    times,
    timing,
)
from tests.attacks.outcomes import Finding


class Attack(NamedTuple):
    """Findings of one module.

    Attributes:
        findings: Makes its rows of the table, from so many trials.
        full: The trials of `make attacks`.
        quick: The trials of `make test`; 0 if that has no time for it.
    """

    findings: Callable[[int], Awaitable[list[Finding]]]
    full: int
    quick: int


ATTACKS = {
    "averaging": Attack(averaging.findings, 1000, 0),
    "linkage": Attack(linkage.findings, 2000, 300),
    "rollout": Attack(rollout.findings, 10_000, 0),
    "places": Attack(places.findings, 4000, 200),
    "flights": Attack(flights.findings, 10_000, 0),
    "presence": Attack(presence.findings, 10_000, 500),
    "histograms": Attack(histograms.findings, 10_000, 500),
    "times": Attack(times.findings, 10_000, 500),
    "timing": Attack(timing.findings, 1000, 0),
    "low_bits": Attack(low_bits.findings, 4000, 300),
    "metadata": Attack(metadata.findings, 240, 0),
    "replay": Attack(replay.findings, 2000, 0),
    "errors": Attack(errors.findings, 200, 0),
    "database": Attack(database.findings, 4000, 0),
    "device": Attack(device.findings, 100, 0),
}
