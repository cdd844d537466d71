"""Holders and the PostgreSQL server are killed at random moments, statements and charges are cancelled."""

from __future__ import annotations

import os
import random
import signal
import time

from tests.faults.holders import Event, Work, check
from tests.support.postgres import Server

KILLS = 200


def test_a_holder_that_is_killed_wastes_a_slice_and_no_more(crew, make_ledger):
    """Holders are killed 200 times, at work, while they open the ledger, and before.

    Nothing was released that isn't debited, no cap is exceeded, and each dead holder took at most a slice of each
    account with it. The others are served all the time, and whoever is left returns all that it holds.
    """
    chance = random.Random(1)
    with Server(max_connections=60) as server:
        url = make_ledger(server)
        at_work = crew.start(*[Work(url, seed=i, senders=4) for i in range(4)])
        for number in range(KILLS):
            work = Work(url, seed=100 + number, senders=4, pause=chance.choice([0, 0.002, 0.01]))
            (new,) = crew.start(work)
            if number % 4:
                victim = chance.choice(at_work)
                at_work.remove(victim)
                at_work.append(new)
                if number % 4 == 1:  # on a slow machine many would never come to their first charge
                    crew.wait(
                        lambda victim=victim: bool(victim.of(Event.RELEASED)), 40, "the victim is served"
                    )
                time.sleep(chance.expovariate(1 / 0.08))
            else:  # before it has opened the ledger, while it does, or just afterwards; on a fast machine, too
                victim = new
                time.sleep(chance.expovariate(1 / 0.03) if number % 16 else 0)
            victim.kill()
            if number % 50 == 49:
                crew.wait_released(holders=at_work)
                check(url, crew.holders)
        early = sum(holder.killed and holder.chain is None for holder in crew.holders)
        busy = sum(holder.killed and len(holder.of(Event.RELEASED)) > 0 for holder in crew.holders)
        assert early >= 10
        assert busy >= KILLS // 4
        crew.stop()
        tally = check(url, crew.holders)
        print(f"{KILLS} kills, {early} before the ledger was open, {busy} after releases: {tally}")


def test_a_holder_that_freezes_keeps_nobody_waiting(crew, make_ledger):
    """Holders are stopped where they stand, twenty times, once for longer than a charge waits, and then go on.

    Nobody else waits for what a frozen one may have locked, and the frozen ones go on with the chain that they have.
    """
    chance = random.Random(4)
    with Server(max_connections=60) as server:
        url = make_ledger(server)
        frozen = crew.start(*[Work(url, seed=i) for i in range(2)])
        free = crew.start(*[Work(url, seed=10 + i) for i in range(2)])
        crew.wait_released()
        longest, slowest = 7.0, 0.0
        for number in range(20):
            victim = frozen[number % 2]
            os.kill(victim.pid, signal.SIGSTOP)
            time.sleep(longest if number == 10 else chance.expovariate(1 / 0.2))
            slowest = max(slowest, crew.wait_released(holders=free))
            os.kill(victim.pid, signal.SIGCONT)
            time.sleep(chance.uniform(0, 0.1))
        crew.wait_released()
        crew.stop()
        check(url, free)
        # What a frozen one waited for may be given up when it goes on.
        tally = check(url, crew.holders, faults=2)
        print(f"the others waited for {slowest:.1f} s at most: {tally}")
        print(tally.refused)


def test_a_killed_server_refuses_in_time_and_serves_again(crew, make_ledger):
    """PostgreSQL is killed with kill -9 under load, six times, once for longer than a charge waits.

    What no lease covers is refused in time while it is down. When it is up again, the same holders are served without
    a restart; nothing that was committed is lost, and nobody says so.
    """
    chance = random.Random(2)
    with Server(max_connections=60) as server:
        url = make_ledger(server)
        crew.start(*[Work(url, seed=i) for i in range(4)])
        downs, recoveries = [0.0, 0.3, 8.0, 0.0, 1.5, 0.1], []
        refused_for_long = 0
        for number, down in enumerate(downs):
            crew.wait_released()
            time.sleep(chance.uniform(0.3, 1.5))
            killed = time.monotonic()
            server.kill()
            time.sleep(down)
            if down > 5:
                refused_for_long = sum(
                    killed <= record.began and record.event is Event.REFUSED
                    for holder in crew.holders
                    for record in list(holder.records)
                )
            server.start()
            recoveries.append(crew.wait_released())
            check(url, crew.holders, faults=number + 1)
        assert refused_for_long >= 4
        crew.stop()
        tally = check(url, crew.holders, faults=len(downs))
        assert sum(tally.refused.values()) >= refused_for_long
        print(f"{len(downs)} kills of the server, served after {max(recoveries):.1f} s at most: {tally}")
        print(tally.refused)


def test_what_is_cancelled_while_it_commits_counts_as_spent(crew, make_ledger):
    """Charges are cancelled at random moments, and the server cancels statements and ends connections, all the time.

    Nothing is released without a debit, what was cancelled is debited at most once, and nobody has to be restarted.
    """
    chance = random.Random(3)
    with Server(max_connections=60) as server:
        url = make_ledger(server)
        crew.start(*[Work(url, seed=i, cancel=0.3, pause=0.002) for i in range(3)])
        crew.wait_released()
        hits = {"pg_cancel_backend": 0, "pg_terminate_backend": 0}
        began = time.monotonic()
        while (took := time.monotonic() - began) < 12 or min(hits.values()) < 5:
            assert took < 120, hits
            function = "pg_terminate_backend" if chance.random() < 0.15 else "pg_cancel_backend"
            # Those that do something now: a cancellation of an idle connection does nothing.
            count = server.execute(
                f"SELECT count({function}(pid)) FROM pg_stat_activity "
                "WHERE application_name = 'dpmesh' AND state = 'active'"
            )
            hits[function] += int(count)
            time.sleep(chance.uniform(0, 0.02))
        served = crew.wait_released()
        crew.stop()
        tally = check(url, crew.holders, faults=hits["pg_terminate_backend"])
        assert tally.cancelled > 20
        print(f"{hits}, served after {served:.1f} s: {tally}")
        print(tally.refused)


def test_a_storm_of_connections_is_refused_and_then_served(crew, make_ledger):
    """Sixty processes open one ledger at once, on a server that takes twenty connections.

    Nobody hangs; who finds no connection is told so in time, tries again and is served when others have finished.
    """
    with Server(max_connections=20) as server:
        url = make_ledger(server)
        began = time.monotonic()
        crew.start(*[Work(url, seed=i, senders=2, pause=0.05, most=80) for i in range(60)])
        for holder in crew.holders:
            assert holder.join(max(1.0, began + 300 - time.monotonic())) == 0, holder.failure()
        took = time.monotonic() - began
        tally = check(url, crew.holders)
        assert all(len(holder.of(Event.RELEASED)) >= 80 for holder in crew.holders)
        unopened = [record.text for holder in crew.holders for record in holder.of(Event.UNOPENED)]
        assert unopened
        assert any("no connection free" in text for text in unopened)
        print(f"60 holders in {took:.1f} s, {len(unopened)} refusals: {tally}")
        print(tally.refused)
