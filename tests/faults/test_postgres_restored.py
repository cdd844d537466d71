"""An older copy of the database is put in its place while holders run."""

from __future__ import annotations

import asyncio
import subprocess
import time

from dpmesh.errors import LedgerError
from dpmesh.ledger.postgres.admin import PostgresAdmin
from tests.faults.holders import Crew, Event, Holder, Work, check
from tests.support.postgres import Server


def lost(holder: Holder, since: float) -> bool:
    """Whether a holder said that charges were lost, of something that it tried after a moment."""
    return any(
        record.began > since and "lost charges" in record.text
        for record in holder.of(Event.REFUSED, Event.UNOPENED)
    )


def served(holder: Holder, since: float) -> int:
    return sum(record.began > since for record in holder.of(Event.RELEASED))


def test_an_older_copy_is_refused_until_it_is_accepted(crew: Crew, make_ledger):
    """A copy of the data folder that lacks charges is put in place of the newest one, under running holders.

    The holders notice it at their next commit and refuse, and so does every holder that opens the ledger later, until
    an administrator accepts the loss. Then new holders are served. Those whose charges are lost don't stop them, and
    say that they have to be restarted.
    """
    with Server() as server:
        url = make_ledger(server)
        data = server.log.parent / "data"
        crew.start(*[Work(url, seed=i, hot=0, cold=10**6, pause=0.01) for i in range(2)])
        crew.wait_released()
        server.stop()
        subprocess.run(["cp", "-a", data, data.with_name("copy")], check=True, timeout=60)
        server.start()
        crew.wait_released()
        time.sleep(1)
        check(url, crew.holders)

        server.stop()
        data.rename(data.with_name("newest"))
        data.with_name("copy").rename(data)
        back = time.monotonic()
        server.start()
        old = list(crew.holders)
        crew.wait(lambda: all(lost(holder, back) for holder in old), 40, "the holders notice the loss")
        noticed = time.monotonic()
        late = crew.start(*[Work(url, seed=10 + i, hot=0, cold=10**6) for i in range(2)])
        crew.wait(lambda: all(lost(holder, noticed) for holder in late), 40, "the late ones refuse")
        time.sleep(2)
        assert not any(holder.chain for holder in late)
        # What waits needs a commit, because every account is another.
        assert not any(served(holder, noticed + 0.5) for holder in old)
        assert asyncio.run(refused(url))

        assert asyncio.run(PostgresAdmin(url).accept("a test restored a copy")) == ("unit", "all")
        accepted = time.monotonic()
        crew.wait(lambda: all(served(holder, accepted) for holder in late), 40, "the late ones are served")
        time.sleep(2)
        for holder in late:
            assert not lost(holder, accepted + 1), (
                "a holder that lost its charges has stopped the others again"
            )
        now = time.monotonic()
        crew.wait(lambda: all(served(holder, now) for holder in late), 40, "the late ones are still served")
        crew.wait(
            lambda: all("restart this holder" in holder.of(Event.REFUSED)[-1].text for holder in old),
            40,
            "the old ones say that they have to be restarted",
        )
        for holder in old:
            assert not served(holder, accepted)
            holder.kill()
        crew.stop()
        # What was accepted is charged to the window after the one at hand.
        tally = check(url, late, lost=True, windows=False)
        print(f"noticed after {noticed - back:.1f} s: {tally}")
        print(tally.refused)


def test_the_newest_copy_is_as_good_as_before(crew: Crew, make_ledger):
    """An older copy is put in place and noticed, and then the newest one is put back: the same holders go on."""
    with Server() as server:
        url = make_ledger(server)
        data = server.log.parent / "data"
        crew.start(*[Work(url, seed=i, hot=0, cold=10**6, pause=0.01) for i in range(2)])
        crew.wait_released()
        server.stop()
        subprocess.run(["cp", "-a", data, data.with_name("copy")], check=True, timeout=60)
        server.start()
        crew.wait_released()
        server.stop()
        data.rename(data.with_name("newest"))
        data.with_name("copy").rename(data)
        back = time.monotonic()
        server.start()
        crew.wait(
            lambda: all(lost(holder, back) for holder in crew.holders), 40, "the holders notice the loss"
        )
        server.stop()
        data.rename(data.with_name("copy"))
        data.with_name("newest").rename(data)
        server.start()
        took = crew.wait_released()
        crew.stop()
        print(f"served {took:.1f} s after: {check(url, crew.holders, faults=2, lost=True)}")


async def refused(url: str) -> bool:
    """Whether a new holder's check of the ledger says that it has lost charges."""
    ledger = Work(url).ledger()
    try:
        await ledger.open()
    except LedgerError as error:
        return "lost charges" in str(error)
    await ledger.close()
    return False
