"""An attacker's view of categories: what leaves through real RPCs, in the worst pair of worlds, shows the promised epsilon.

A device holds one value in one world and another in the other. A lower bound on epsilon is ln(p / q) for an event with
Clopper-Pearson bounds p (from below, first world) and q (from above, second world), each wrong with probability
ALPHA / 2. The events are those that the laws tell apart best, known before any message is sent:

- subsets: that the subset holds the first world's value and not the second's, which has p/(1-p) (k-w)/w to one;
- reports: that the report has the hash of the first world's text, where that of the second's is another one.

False alarms: a bound above epsilon, at most ALPHA = 2e-4 for each of two fields whatever the law, and below 8e-7 for these:
p and q have to be off together, by 4.8 standard errors of ln(p / q). A bound below the floor: its expectation is at least
4.8 deviations above that, so below 1e-6.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from dpmesh.noise.local_hashing import fingerprint
from tests.support.empirical import lower_bound, send_often
from tests.support.protos import compiled
from tests.unit.noise.test_local_hashing import H

EPSILON = 1.0
FLOOR = 0.9
# Each message has as many fields of either kind, each with a loss of its own: 80,000 values of a world.
MESSAGES, FIELDS = 20_000, 4
COLORS = 16
HASHES = 4
CAT = "(dpmesh.v1.field).categorical"
COLOR_FIELDS = [f"color{number}" for number in range(FIELDS)]
PAGE_FIELDS = [f"page{number}" for number in range(FIELDS)]
TYPES = compiled(
    f"""message M {{ string id = 99 [(dpmesh.v1.field).unit = {{form: SUPPRESSED}}];
    {
        " ".join(
            f"repeated Color {name} = {n} [{CAT} = {{epsilon: 1 mechanism: SUBSET_SELECTION}}];"
            for n, name in enumerate(COLOR_FIELDS, 1)
        )
    }
    {
        " ".join(
            f"dpmesh.v1.CategoryReport {name} = {n} [{CAT} = {{epsilon: 1}}];"
            for n, name in enumerate(PAGE_FIELDS, 11)
        )
    } }}
    enum Color {{ {" ".join(f"COLOR_{number} = {number};" for number in range(COLORS))} }}"""
)
WORLDS = tuple(
    {name: [color] for name in COLOR_FIELDS} | {name: {"value": page} for name in PAGE_FIELDS}
    for color, page in ((4, "/clinic"), (1, "/"))
)


async def received(world: dict, config: dict) -> tuple[list, list]:
    """Sends the messages of one world over a real channel; returns the subsets and the reports that the handler got."""
    subsets, reports = [], []

    def take(message):
        subsets.extend(tuple(getattr(message, name)) for name in COLOR_FIELDS)
        pages = [getattr(message, name) for name in PAGE_FIELDS]
        assert not any(page.value for page in pages)
        reports.extend((page.seed, page.hash) for page in pages)

    await send_often(TYPES.M(id="device", **world), MESSAGES, config, take)
    assert len(reports) == MESSAGES * FIELDS
    return subsets, reports


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> Sequence[tuple[list, list]]:
    config = {
        "ledger": {"url": f"sqlite:///{tmp_path_factory.mktemp('ledger')}/ledger.db"},
        "budget": [{"name": "b", "epsilon": 1e7, "accounting": "pure", "window": "lifetime"}],
    }
    return [asyncio.run(received(world, config)) for world in WORLDS]


def test_subsets(worlds):
    hits, misses = (sum(4 in color and 1 not in color for color in colors) for colors, _ in worlds)
    bound = lower_bound((hits, MESSAGES * FIELDS), (misses, MESSAGES * FIELDS))
    assert bound <= EPSILON, "more is lost than was promised"
    assert bound >= FLOOR * EPSILON, "more noise was added than was promised"


def test_reports(worlds):
    """Only seeds that tell the texts apart count: a seed is drawn whatever the text is."""
    assert fingerprint("/clinic") != fingerprint("/")
    counts = []
    for _, reports in worlds:
        told = [
            noisy == own
            for seed, noisy in reports
            if (own := H(seed, "/clinic", HASHES)) != H(seed, "/", HASHES)
        ]
        counts.append((sum(told), len(told)))
    bound = lower_bound(*counts)
    assert bound <= EPSILON, "more is lost than was promised"
    assert bound >= FLOOR * EPSILON, "more noise was added than was promised"
