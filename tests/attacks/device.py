"""A stolen device: what its files tell of what it sent, and of whom."""

from __future__ import annotations

import sqlite3
import struct
from pathlib import Path
from tempfile import TemporaryDirectory

import dpmesh
from tests.attacks.attackers import told_apart
from tests.attacks.linkage import DAY, IDS, UNITS
from tests.attacks.linkage import TYPES as PINGS
from tests.attacks.outcomes import Finding, Guessed
from tests.attacks.worlds import CAT, NUM, UNIT, config, received
from tests.support.protos import compiled

TYPES = compiled(
    f"""message Report {{ string id = 1 [{UNIT} = {{}}]; bool sick = 2 [{CAT} = {{epsilon: 0.5}}];
      double load = 3 [{NUM} = {{lower: 0 upper: 100 epsilon: 0.5}}]; string note = 4 [(dpmesh.v1.field).suppress = {{}}]; }}"""
)
WORLDS = (
    {"sick": True, "load": 87.125, "note": "ward seven"},
    {"sick": False, "load": 12.625, "note": "at home"},
)
NEEDLES = [
    [
        struct.pack("<d", world["load"]),
        struct.pack(">d", world["load"]),
        str(world["load"]).encode(),
        world["note"].encode(),
    ]
    for world in WORLDS
]


async def files_after(world: dict) -> tuple:
    """What a thief reads in all files of a device that sent three reports of a world."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        async with dpmesh.open(config(url=f"sqlite:///{path}")) as mesh:
            for _ in range(3):
                await mesh.release(TYPES.Report(id="device", **world))
            running = _found(Path(folder))  # The power is cut before the ledger is closed.
        return running + _found(Path(folder)) + _rows(path)


def outbox_after(world: dict) -> tuple:
    """What a thief reads of a device that keeps what it sends in a file of its own."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "outbox").write_bytes(TYPES.Report(id="device", **world).SerializeToString() * 3)
        return _found(Path(folder))


def _found(folder: Path) -> tuple:
    """Which of the values stand in any file, how many files there are, and how long each is."""
    contents = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    joined = b"\n".join(contents.values())
    hits = tuple(needle in joined for needles in NEEDLES for needle in needles)
    return (hits, tuple((name, len(content)) for name, content in contents.items()))


def _rows(path: Path) -> tuple:
    """The numbers of all tables of the ledger, and the lengths of all else, by column."""
    columns = []
    connection = sqlite3.connect(path)
    try:
        tables = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"
        ).fetchall()
        for (table,) in tables:
            rows = connection.execute(f"SELECT * FROM {table}").fetchall()
            names = [entry[1] for entry in connection.execute(f"PRAGMA table_info({table})").fetchall()]
            for at, name in enumerate(names):
                held = [row[at] if isinstance(row[at], int | float) else len(row[at] or "") for row in rows]
                columns.append((table, name, tuple(sorted(held))))
    finally:
        connection.close()
    return (tuple(columns), *columns)


async def pseudonyms_made_again(*, has_ledger: bool, over: bool) -> Guessed:
    """Finds whose a receiver's pseudonyms of a day are, by making those of all known ids again with a stolen ledger.

    Args:
        has_ledger: The ledger is the sender's, not another one.
        over: The ledger is stolen days later, and its thief sets the clock back to that day.
    """
    with TemporaryDirectory() as folder:
        shown = await _pseudonyms(Path(folder) / "ledger.db", 1.0)
        at = Path(folder) / ("ledger.db" if has_ledger else "another.db")
        if over:
            await _pseudonyms(at, 5 * DAY)
        again = dict(zip(await _pseudonyms(at, 1.0), IDS, strict=True))
    hits = sum(again.get(name, IDS[0]) == id_ for name, id_ in zip(shown, IDS, strict=True))
    return Guessed(hits, UNITS, UNITS)


async def _pseudonyms(path: Path, now: float) -> list[str]:
    async with dpmesh.open(config(url=f"sqlite:///{path}"), clock=lambda: now) as mesh:
        return [(await received(mesh, PINGS.Ping(id=id_)))[0].id for id_ in IDS]


async def findings(count: int) -> list[Finding]:
    """`count` stolen devices in either world, half of them to learn from; each has a ledger of its own."""
    # In turn, so that the times in the files tell nothing of the world.
    stolen: tuple[list, list] = ([], [])
    for _ in range(count):
        for seen, world in zip(stolen, WORLDS, strict=True):
            seen.append(await files_after(world))
    kept = [[outbox_after(world) for _ in range(200)] for world in WORLDS]
    claim = "no value and no noise is stored (unprotected: the device keeps what it sends)"
    same_day = await pseudonyms_made_again(has_ledger=True, over=False)
    return [
        Finding("a stolen device: its ledger's files", 0.0, claim, told_apart(*stolen), told_apart(*kept)),
        Finding(
            "a stolen receiver, and another device's ledger: past pseudonyms of 100 known ids",
            0.0,
            "each ledger has keys of its own (unprotected: the sender's own ledger, on the same day)",
            await pseudonyms_made_again(has_ledger=False, over=True),
            same_day,
        ),
        Finding(
            "a stolen receiver and the sender's ledger: past pseudonyms of 100 known ids",
            0.0,
            "the ledger overwrites the key of an epoch that is over (unprotected: on the same day)",
            await pseudonyms_made_again(has_ledger=True, over=True),
            same_day,
        ),
        Finding(
            "a stolen receiver and the sender's ledger: pseudonyms of the same day of 100 known ids",
            None,
            "not promised: the ledger holds the key of the epoch in force",
            same_day,
            same_day,
        ),
    ]
