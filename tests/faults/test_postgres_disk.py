"""PostgreSQL runs out of disk."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

from tests.faults.holders import Event, Holder, Work, check
from tests.support import disk
from tests.support.postgres import PostgresError, Server


def refusals(holder: Holder, since: float) -> list[str]:
    return [record.text for record in holder.of(Event.REFUSED) if record.began > since]


def test_a_full_disk_is_named_and_forgotten_when_there_is_room(crew, make_ledger):
    """The disk of the tables is full, and the write-ahead log has another: what has to grow is refused, and says why.

    When there is room again the same holders are served, and what was refused left no doubts behind.
    """
    with disk.small_disk(96) as folder, Server(folder=folder) as server:
        _move_log(server, folder / "data", server.log.parent / "wal")
        url = make_ledger(server)
        crew.start(*[Work(url, seed=i, cold=10**6, hot=0) for i in range(2)])
        crew.wait_released()
        disk.fill(folder)
        full = time.monotonic()
        crew.wait(lambda: all(refusals(h, full) for h in crew.holders), 60, "the disk is full")
        crew.wait(
            lambda: any(
                "the disk is full: free some space" in text
                for holder in crew.holders
                for text in refusals(holder, full)
            ),
            60,
            "somebody says so",
        )
        time.sleep(1)
        assert server.running
        disk.free(folder)
        served = crew.wait_released()
        crew.stop()
        tally = check(url, crew.holders)
        print(f"served {served:.1f} s after: {tally}")
        print(tally.refused)


def test_a_full_disk_that_ends_the_server_loses_nothing(crew, make_ledger):
    """The write-ahead log can't grow, on which PostgreSQL ends itself; it is started again when there is room.

    Until then everything is refused in time. Then the same holders are served, and nothing is lost.
    """
    with disk.small_disk(24) as folder, Server() as server:
        _move_log(server, server.log.parent / "data", folder / "wal")
        url = make_ledger(server)
        crew.start(*[Work(url, seed=i, cold=10**6, hot=0) for i in range(2)])
        crew.wait_released()
        disk.fill(folder)
        full = time.monotonic()
        while server.running:
            assert time.monotonic() - full < 120, "the write-ahead log still has room"
            with contextlib.suppress(PostgresError):
                server.execute("SELECT pg_switch_wal()")
            time.sleep(0.02)
        assert "No space left on device" in server.log.read_text()
        ended = time.monotonic()
        crew.wait(lambda: all(refusals(h, full) for h in crew.holders), 60, "the holders are refused")
        disk.free(folder)
        server.start()
        served = crew.wait_released()
        crew.stop()
        tally = check(url, crew.holders, faults=2)
        print(f"the server ended after {ended - full:.1f} s; served {served:.1f} s after the start: {tally}")
        print(tally.refused)


def _move_log(server: Server, data: Path, place: Path) -> None:
    """Moves a server's write-ahead log to another disk."""
    server.stop()
    original = data / "pg_wal"
    owner = original.stat()
    shutil.copytree(original, place, symlinks=True)
    for path in (place, *place.rglob("*")):
        shutil.chown(path, owner.st_uid, owner.st_gid)
        path.chmod(0o700 if path.is_dir() else 0o600)
    shutil.rmtree(original)
    original.symlink_to(place)
    server.start()
