"""The network between holders and PostgreSQL: partitions, lost answers, delay."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace

import pytest

from dpmesh.accounting import AMOUNT
from dpmesh.errors import LedgerError
from dpmesh.ledger import Ledger, account_hash, inspect, open_store
from dpmesh.ledger.batching import MAX_WAITING
from tests.faults.holders import BUDGETS, LARGEST, MARGIN, Event, Holder, Record, Report, Work, check
from tests.support.postgres import Server
from tests.support.proxy import Proxy

PARTITION = 60.0


ANSWERS = (Event.RELEASED, Event.EXHAUSTED, Event.REFUSED)


def longest_gap(holder: Holder, begin: float, end: float) -> float:
    """The longest time in which a holder was not answered; that an account is used up is an answer."""
    answers = holder.of(Event.RELEASED, Event.EXHAUSTED)
    times = [record.ended for record in answers if begin <= record.ended <= end]
    return max(after - before for before, after in zip([begin, *times], [*times, end], strict=True))


def test_a_partition_of_a_minute(crew, make_ledger):
    """Four holders lose the database for a minute, each in another way, while a charge begins every 50 ms.

    One hears and sends nothing; one sends nothing; one hears no answers; one has its connections reset in the middle,
    and then hears nothing. Each charge is refused before its deadline, what waits and the memory stay bounded, and all
    are served soon after the network is back, also when the statements that it kept arrive then. Two others on the
    same accounts are served all the time.
    """
    with Server(max_connections=60) as server, ExitStack() as stack:
        url = make_ledger(server)
        proxies = [stack.enter_context(Proxy.before(url)) for _ in range(4)]
        cut_off = crew.start(
            *[Work(proxy.url, seed=i, every=0.05, cold=200) for i, proxy in enumerate(proxies)]
        )
        others = crew.start(*[Work(url, seed=10 + i, cold=200, pause=0.02) for i in range(2)])
        crew.wait_released()
        time.sleep(2)

        begin = time.monotonic()
        for proxy, up, down in zip(
            proxies, (True, True, False, True), (True, False, True, True), strict=True
        ):
            proxy.stall(up=up, down=down)
        silent = time.monotonic()
        time.sleep(PARTITION / 2)
        proxies[3].cut()
        time.sleep(PARTITION / 2)
        end = time.monotonic()
        for proxy in proxies:
            proxy.resume()
        served = crew.wait_released()

        gaps = [longest_gap(holder, begin, end) for holder in others]
        assert max(gaps) <= 5, gaps
        assert not [record for holder in others for record in holder.of(Event.REFUSED)]
        waited, grown = [], []
        for holder in cut_off:
            # Each waits for at most the ledger's time limit, which `check` sees to; so it is most of the hundreds that
            # began, however many those are on this machine.
            inside = [r for r in holder.of(*ANSWERS) if silent < r.began < end]
            assert len(inside) >= 100
            assert sum(r.event is Event.REFUSED for r in inside) >= len(inside) // 2
            # Only what a lease covers is released, and that is of a unit which the holder charged before.
            released = holder.of(Event.RELEASED)
            known = {r.unit for r in released if r.began <= silent + 6}
            assert {r.unit for r in released if silent + 6 < r.began and r.ended < end} <= known
            samples = [record for record in holder.of(Event.SAMPLE) if begin < record.began < end]
            waited.append(max(record.unit for record in samples))
            grown.append(max(record.amount for record in samples) - samples[0].amount)
        assert max(waited) <= 10 / 0.05
        assert max(grown) <= 32 << 20
        time.sleep(2)
        crew.stop()
        # Each lost answer is a commit that may have taken effect: the store gives up on one after four seconds.
        tally = check(url, crew.holders, faults=int(PARTITION / 4) + 2)
        print(
            f"at most {max(waited)} waiting, {max(grown) >> 20} MB more, served {served:.1f} s after, others without an "
            f"answer for {max(gaps):.1f} s at most: {tally}"
        )
        print(tally.refused)


def test_a_holder_that_is_cut_off_while_it_writes_budgets_keeps_no_lock(crew, make_ledger):
    """The network goes while a holder is in the transaction that writes new budgets, and holds the ledger's lock.

    The others are refused in time while the database waits for it, which it does for some seconds and not longer.
    """
    with Server(max_connections=60) as server:
        url = make_ledger(server)
        with Proxy.before(url) as proxy:
            proxy.trip(b"INSERT INTO dpmesh.budgets", "stall")
            crew.start(Work(proxy.url, seed=1))
            assert proxy.tripped.wait(40)
            others = crew.start(*[Work(url, seed=i) for i in (2, 3)])
            took = crew.wait(
                lambda: all(holder.chain for holder in others), 40, "the others have the ledger open"
            )
            crew.wait_released(holders=others)
            proxy.resume()
            crew.wait_released()
            crew.stop()
        print(f"others waited for {took:.1f} s: {check(url, crew.holders)}")


@pytest.mark.parametrize("action", ["cut", "stall"])
@pytest.mark.parametrize("done", [True, False], ids=["done", "not done"])
def test_the_answer_to_a_commit_is_lost(postgres, make_ledger, done, action):
    """The network goes at the moment of a commit, before the server has it or before its answer arrives.

    The charge is refused and counts as spent if the server has done it, otherwise not. The holder's next charges go on
    with the same chain, and nobody says that charges were lost. Also for the first commit of all, twice in a row, and
    for what is returned in the end.
    """
    url = make_ledger(postgres)

    async def run(proxy: Proxy) -> None:
        # Another holder begins the windows. The first debit in a new window writes nothing, and asks for its state.
        other = Ledger(open_store(url), BUDGETS)
        await other.open()
        await other.charge([(0, b"other", 1)])
        await other.close()
        ledger = Ledger(open_store(proxy.url), BUDGETS)
        await ledger.open()
        name = ledger._store._chain.name

        def debited() -> int:
            return sum(account.spent for account in inspect(url).accounts) - 1  # of the other holder

        async def lose() -> None:
            before = debited()
            # The chain's name is among the values of each statement that writes.
            proxy.trip(name, action, forward=done)
            began = time.monotonic()
            with pytest.raises(LedgerError, match="did not answer|closed the connection|can't be reached"):
                await ledger.charge([(0, b"unit", AMOUNT // 10)])
            assert time.monotonic() - began <= 5 + MARGIN
            if done:  # all of it counts as spent, a slice for later too
                assert AMOUNT // 10 <= debited() - before <= AMOUNT // 10 + BUDGETS[0].cap // 4
            else:
                assert debited() == before
            proxy.resume()

        await lose()
        await ledger.charge([(0, b"unit", AMOUNT // 10)])
        await lose()
        if action == "cut":  # the next statement that names the chain asks for its end
            await lose_the_question(proxy, ledger, name)
        for _ in range(2):
            await ledger.charge([(0, b"unit", AMOUNT // 10)])
        before = debited()
        known = ledger.usage(0, b"unit")
        assert known is not None
        held = before - known[0]
        if held:
            proxy.trip(name, "cut", forward=done)
        await ledger.close()
        assert debited() == before - (held if done else 0)

    async def lose_the_question(proxy: Proxy, ledger: Ledger, name: bytes) -> None:
        proxy.trip(name, "cut", forward=done)
        with pytest.raises(LedgerError):
            await ledger.charge([(0, b"unit", AMOUNT // 10)])

    with Proxy.before(url) as proxy:
        asyncio.run(run(proxy))
    check(url, [])


def test_a_slow_database_under_five_thousand_charges(postgres, make_ledger):
    """Five thousand charges wait for a database that is slow, then for one that is too slow, then for one that is not.

    All are served where there is time for it. Where there isn't, each is served or refused within the time limit, no
    more wait than may, those beyond are refused at once, and none is released without a debit.
    """
    url = make_ledger(postgres)
    budgets = BUDGETS[:2]
    # However slow this machine is itself, the first has time enough.
    patient, report = (Report(Work(url, budgets=budgets, timeout=seconds)) for seconds in (100.0, 5.0))

    async def run(proxy: Proxy) -> float:
        waiting, late = 0, 0.0

        async def opened(report: Report) -> Ledger:
            ledger = replace(report.work, url=proxy.url).ledger()
            await ledger.open()
            report.records.append(Record(Event.OPENED, 0, 0, 0, 0, ledger._store._chain.name))
            return ledger

        async def one(ledger: Ledger, report: Report, unit: int) -> Event:
            began = time.monotonic()
            event, payload = Event.RELEASED, b""
            try:
                await ledger.charge(report.work.charges(unit, LARGEST))
            except LedgerError as error:
                event, payload = Event.REFUSED, str(error).encode()
            report.records.append(Record(event, unit, LARGEST, began, time.monotonic(), payload))
            return event

        async def burst(ledger: Ledger, report: Report, count: int, delay: float) -> Counter[Event]:
            nonlocal waiting, late
            proxy.delay(delay)
            tasks = [asyncio.create_task(one(ledger, report, unit)) for unit in range(count)]
            while not all(task.done() for task in tasks):
                waiting = max(waiting, len(ledger._queue._waiting))
                began = time.monotonic()
                await asyncio.sleep(0.05)
                late = max(late, time.monotonic() - began - 0.05)
            return Counter(task.result() for task in tasks)

        ledger = await opened(patient)
        slow = await burst(ledger, patient, 5000, 0.3)
        assert slow[Event.RELEASED] == 5000
        proxy.delay(0)
        await ledger.close()
        patient.records.append(Record(Event.CLOSED, 0, 0, 0, 0, b""))

        ledger = await opened(report)
        too_slow = await burst(ledger, report, 5000, 3.0)
        assert too_slow[Event.REFUSED] >= 4990  # but for what a lease covers
        before = len(report.records)
        too_many = await burst(ledger, report, MAX_WAITING + 3000, 3.0)
        assert too_many[Event.REFUSED] >= MAX_WAITING + 2990
        at_once = [r for r in report.records[before:] if "are waiting already" in r.text]
        assert len(at_once) >= 2990
        assert waiting <= MAX_WAITING
        proxy.delay(0)
        async with asyncio.timeout(60):
            while await one(ledger, report, 1_000_000) is not Event.RELEASED:
                await asyncio.sleep(0.1)
        quick = await burst(ledger, report, 5000, 0)
        print(f"too slow: {too_slow}, too many: {too_many}, then: {quick}, late by {late:.2f} s")
        with contextlib.suppress(LedgerError):
            await ledger.close()
        return late

    with Proxy.before(url) as proxy:
        late = asyncio.run(run(proxy))
    # A burst of this size keeps the one event loop busy, so refusals are late by as much: when they are due, and when
    # those who wait are told.
    assert max(r.ended - r.began for r in report.records) <= 5 + MARGIN + 2 * late
    tally = check(url, [patient, report], faults=3, limit=math.inf)
    print(tally)
    secret = inspect(url).secret
    assert account_hash(secret, (1_000_000).to_bytes(4, "big")).hex() in {
        a.account for a in inspect(url).accounts
    }
