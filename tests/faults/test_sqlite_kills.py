"""Holders of one SQLite file are killed at random moments and at random lines, and their charges are cancelled."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from dpmesh import sqlite_file
from dpmesh.ledger import Ledger
from dpmesh.ledger.sqlite import queries, rollback_guard, schema, store
from tests.faults.holders import Event, Holder, Work, check

LEDGERS = 8
KILLS = 34  # of each, or nearly: some end by themselves just before
CANCELLED = 4000
TRACED = tuple(each.__file__ for each in (store, schema, queries, sqlite_file, rollback_guard))
ALARMS = ("lost charges", "older copy", "is missing", "another ledger", "is gone", "replaced", "damaged")


def dying_at_line(number: int) -> Callable[[Work], Ledger]:
    """Makes ledgers of a process that kills itself before it runs so many lines of the store."""

    def make(work: Work) -> Ledger:
        left = number

        def line(frame: Any, event: str, _: Any) -> Any:
            nonlocal left
            left -= event == "line"
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return line

        threading.settrace(lambda frame, *_: line if frame.f_code.co_filename in TRACED else None)
        return Ledger(work.store(), work.budgets, timeout=work.timeout)

    return make


def kill(holder: Holder) -> bool:
    """Kills a holder that may end by itself just then, because it was told to; returns whether it was killed."""
    holder.killed = True
    os.kill(holder.pid, signal.SIGKILL)
    code = holder.join(60)
    assert code in (0, -signal.SIGTERM, -signal.SIGKILL), holder.failure()
    return code != 0


def test_holders_are_killed_wherever_they_stand(crew, tmp_path):
    """Holders of one file are killed 200 times: at random moments, at random lines of the store, and while they close.

    The first of each file are killed while they make it. Nothing was released that isn't debited, no cap is exceeded,
    each dead holder took at most a slice of each account with it, the others are served all the time, and nobody takes
    what a killed holder left for an older copy, a missing witness or a damaged file.
    """
    chance = random.Random(1)
    ways: Counter[str] = Counter()
    served = 0.0
    for ledger in range(LEDGERS):
        url = f"sqlite:///{tmp_path}/{ledger}/ledger.db"
        first = len(crew.holders)
        at_work: list[Holder] = []
        for number in range(KILLS):
            seed = 100 * ledger + number
            way = chance.choice(["moment", "line", "closing"]) if number > 2 else "moment"
            if way == "line":
                lines = int(10 ** chance.uniform(0, 4))
                (victim,) = crew.start(Work(url, seed=seed, senders=4, make=dying_at_line(lines)))
                victim.killed = True
                assert victim.join(60) == -signal.SIGKILL, victim.failure()
                ways[way] += 1
                continue
            (victim,) = crew.start(Work(url, seed=seed, senders=4))
            time.sleep(chance.expovariate(1 / (0.03 if number < 3 else 0.06)))
            if len(at_work) == 2:
                at_work.append(victim)
                victim = at_work.pop(chance.randrange(3))
            elif number > 2:
                at_work.append(victim)
                continue
            if number > 2 and number % 2:  # on a slow machine many would never come to their first charge
                crew.wait(lambda victim=victim: bool(victim.of(Event.RELEASED)), 40, "the victim is served")
            if way == "closing":
                os.kill(victim.pid, signal.SIGTERM)
                time.sleep(chance.expovariate(1 / 0.01))
            ways[way] += kill(victim)
        served = max(served, crew.wait_released())
        check(url, crew.holders[first:])
        crew.stop()
        tally = check(url, crew.holders[first:])
        texts = [text for text in tally.refused if any(alarm in text for alarm in ALARMS)]
        assert not texts, texts
    early = sum(holder.killed and holder.chain is None for holder in crew.holders)
    busy = sum(holder.killed and len(holder.of(Event.RELEASED)) > 0 for holder in crew.holders)
    assert ways.total() >= 200, ways
    assert early >= 20
    assert busy >= 60
    print(f"{dict(ways)}, {early} before the ledger was open, {busy} after releases; {served:.1f} s: {tally}")


def test_what_is_cancelled_while_it_commits_counts_as_spent(crew, tmp_path):
    """Thousands of charges are cancelled at random moments, several processes at a time.

    Nothing is released without a debit, what was cancelled is debited at most once, and what is left comes back.
    """
    url = f"sqlite:///{tmp_path}/ledger.db"
    crew.start(*[Work(url, seed=i, senders=32, cancel=0.9, pause=0.0, timeout=40.0) for i in range(3)])
    crew.wait(
        lambda: sum(len(holder.of(Event.CANCELLED)) for holder in crew.holders) >= CANCELLED,
        180,
        f"{CANCELLED} charges were cancelled",
    )
    served = crew.wait_released()
    crew.stop()
    tally = check(url, crew.holders)
    assert not tally.refused, tally.refused
    print(f"served after {served:.1f} s: {tally}")
