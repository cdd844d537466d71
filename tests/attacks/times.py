"""Times: when something happened, by the Timestamp that a message holds."""

from __future__ import annotations

import dpmesh
from tests.attacks.attackers import told_apart
from tests.attacks.outcomes import Distinguished, Finding, between_two
from tests.attacks.worlds import ENFORCE, HIDDEN, OBSERVE, config, received
from tests.support.protos import compiled

MONTH = 'earliest: "2026-01-01T00:00:00Z" latest: "2026-01-31T00:00:00Z" epsilon: 1'
TYPES = compiled(
    f"""message Event {{ string id = 1 {HIDDEN};
      google.protobuf.Timestamp at = 2 [(dpmesh.v1.field).time = {{{MONTH}}}]; }}
    message Near {{ string id = 1 {HIDDEN};
      google.protobuf.Timestamp at = 2 [(dpmesh.v1.field).time = {{{MONTH} largest_shift: {{seconds: 7200}}}}]; }}"""
)
FIRST, NOON = 1_767_225_600, 1_768_478_400
"""1 January 2026 at midnight, 15 January at noon (UTC)."""
ROWS = (
    (
        "times: a moment at the beginning or at the end of a month",
        TYPES.Event(id="d", at={"seconds": FIRST}),
        TYPES.Event(id="d", at={"seconds": FIRST + 30 * 86_400}),
        1.0,
        "epsilon 1 of any two moments",
    ),
    (
        "times: moments an hour apart, `largest_shift` of two hours",
        TYPES.Near(id="d", at={"seconds": NOON}),
        TYPES.Near(id="d", at={"seconds": NOON + 3600}),
        0.5,
        "half of epsilon 1, which is lost over two hours",
    ),
    (
        "times: the nanoseconds of a moment",
        TYPES.Event(id="d", at={"seconds": NOON, "nanos": 1}),
        TYPES.Event(id="d", at={"seconds": NOON, "nanos": 499_999_999}),
        0.0,
        "both are one second of the public grid",
    ),
)


async def between(one, other, count: int, mode: str) -> Distinguished:
    """Tells messages apart by all that they show."""
    async with dpmesh.open(config(mode=mode)) as mesh:
        worlds = [[await _seen(mesh, message) for _ in range(count)] for message in (one, other)]
    return told_apart(*worlds)


async def _seen(mesh, message) -> tuple:
    seen, size = await received(mesh, message)
    return size, float(seen.at.seconds), float(seen.at.nanos), seen.id


async def findings(count: int) -> list[Finding]:
    """`count` messages in either world, half of them to learn from."""
    return [
        Finding(
            name,
            between_two(epsilon),
            claim,
            await between(one, other, count, ENFORCE),
            await between(one, other, 200, OBSERVE),
        )
        for name, one, other, epsilon, claim in ROWS
    ]
