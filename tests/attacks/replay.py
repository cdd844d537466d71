"""Memoized answers: asking for one's own to learn another unit's, and making a unit's again with a stolen ledger."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import dpmesh
from tests.attacks.attackers import told_apart
from tests.attacks.outcomes import Distinguished, Finding, between_two
from tests.attacks.worlds import ENFORCE, OBSERVE, UNIT, config, received
from tests.support.protos import compiled

EPSILON = 0.5
NOW = 1000.0
DAY = 86_400.0
TYPES = compiled(
    f"""message Memoized {{ string id = 1 [{UNIT} = {{form: RAW}}];
      bool sick = 2 [(dpmesh.v1.field) = {{categorical: {{epsilon: {EPSILON}}} memoize: {{}}}}]; }}"""
)


async def answer(mesh, id_: str, sick: bool) -> bool:
    """What leaves of a unit's value."""
    return (await received(mesh, TYPES.Memoized(id=id_, sick=sick)))[0].sick


async def both(mesh, id_: str) -> tuple[bool, bool]:
    """A unit's answers to both values."""
    return await answer(mesh, id_, True), await answer(mesh, id_, False)


async def by_asking(count: int, mode: str) -> Distinguished:
    """Tells victims' values apart by their answers and by those of units of the attacker's own, on one ledger."""
    async with dpmesh.open(config(mode=mode), clock=lambda: NOW) as mesh:
        worlds = [
            [
                (
                    (
                        await answer(mesh, f"victim-{sick}-{unit}", sick),
                        *await both(mesh, f"thief-{sick}-{unit}"),
                    ),
                )
                for unit in range(count)
            ]
            for sick in (True, False)
        ]
    return told_apart(*worlds)


async def with_the_ledger(count: int, mode: str, *, over: bool) -> Distinguished:
    """Tells victims' values apart by recorded answers, and the answers that the stolen ledger gives to both values.

    Args:
        count: Victims in either world.
        mode: ENFORCE or OBSERVE.
        over: The ledger is stolen days later, and its thief sets the clock back to that day.
    """
    worlds = []
    for sick in (True, False):
        with TemporaryDirectory() as folder:
            settings = config(mode=mode, url=f"sqlite:///{folder}/ledger.db")
            async with dpmesh.open(settings, clock=lambda: NOW) as mesh:
                recorded = [await answer(mesh, f"unit-{unit}", sick) for unit in range(count)]
            assert (Path(folder) / "ledger.db").exists()
            if over:
                async with dpmesh.open(settings, clock=lambda: NOW + 5 * DAY) as mesh:
                    await answer(mesh, "unit", sick)
            async with dpmesh.open(settings, clock=lambda: NOW) as mesh:
                worlds.append(
                    [((said, *await both(mesh, f"unit-{unit}")),) for unit, said in enumerate(recorded)]
                )
    return told_apart(*worlds)


async def findings(count: int) -> list[Finding]:
    """`count` victims in either world, half of them to learn from; at most 200 with a ledger on disk."""
    return [
        Finding(
            "replay: answers of other units, on the sender's own ledger",
            between_two(EPSILON),
            "epsilon 0.5 of the victim's answer: each unit has answers of its own",
            await by_asking(count, ENFORCE),
            await by_asking(200, OBSERVE),
        ),
        Finding(
            "replay: recorded answers of a past day and the sender's stolen ledger",
            between_two(EPSILON),
            "epsilon 0.5 of the answer: the ledger overwrites the key of an epoch that is over",
            await with_the_ledger(min(count, 200), ENFORCE, over=True),
            await with_the_ledger(140, OBSERVE, over=True),
        ),
        Finding(
            "replay: recorded answers and the sender's stolen ledger, on the same day",
            None,
            "not promised: the ledger holds the key of the epoch in force",
            await with_the_ledger(min(count, 200), ENFORCE, over=False),
            await with_the_ledger(140, OBSERVE, over=False),
        ),
    ]
