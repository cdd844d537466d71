"""Slices follow the rate, idle ones come back, and closing is bounded, whatever the store does."""

import asyncio
import time

import pytest

from dpmesh.errors import LedgerError, LostChargesError
from dpmesh.ledger import Ledger, MemoryStore, batching
from tests.contract.suite import AMOUNT, DAY, TENTH, Clock, pure
from tests.support.steady import no_time_passes
from tests.support.virtual_time import in_virtual_time

COST = AMOUNT // 1000
BUDGETS = [pure("all", 100.0, key="global"), pure("unit")]


async def opened(store=None, budgets=BUDGETS, timeout=5.0, monotonic=no_time_passes):
    ledger = Ledger(store or MemoryStore(), budgets, clock=Clock(), monotonic=monotonic, timeout=timeout)
    await ledger.open()
    return ledger


@pytest.fixture
def monotonic():
    """The clock that rates are measured by."""
    return Clock(0.0)


async def spent(ledger):
    return [account.spent for account in await ledger.accounts()]


# Rates


async def test_a_unit_that_sends_rarely_takes_only_what_it_needs(monotonic):
    ledger = await opened(monotonic=monotonic)
    for count in range(1, 50):
        await ledger.charge([(1, b"a", COST)])
        assert await spent(ledger) == [count * COST]
        monotonic.now += 60
    await ledger.close()


async def test_a_pause_is_no_reason_to_take_less_for_long(monotonic):
    ledger = await opened(monotonic=monotonic)
    commits = []
    ledger.on_commit = commits.append
    for burst in range(3):
        monotonic.now += 3600
        before = len(commits)
        for _ in range(1000):
            monotonic.now += 0.001
            await ledger.charge([(0, b"", COST)])
        assert len(commits) - before < 20, burst
    await ledger.close()


@pytest.mark.parametrize("rate", [1, 10, 100])
async def test_a_slice_lasts_about_two_seconds(monotonic, rate):
    ledger = await opened(monotonic=monotonic)
    commits, held = [], []
    ledger.on_commit = commits.append
    for count in range(1, 20 * rate):
        monotonic.now += 1 / rate
        await ledger.charge([(0, b"", COST)])
        (debited,) = await spent(ledger)
        held.append(debited - count * COST)
    assert max(held) <= 2 * rate * COST
    assert len(commits) <= 12 + 10
    await ledger.close()


async def test_a_slice_is_never_more_than_a_quarter_of_what_remains(monotonic):
    ledger = await opened(monotonic=monotonic)
    count = 0
    while True:
        count += 1
        await ledger.charge([(1, b"a", COST)])  # all at once: an endless rate
        (debited,) = await spent(ledger)
        assert debited - count * COST <= (AMOUNT - count * COST) // 4
        if count == 1000:
            break
    await ledger.close()


# What is idle


@in_virtual_time
async def test_an_idle_lease_is_handed_back():
    ledger = await opened()
    for _ in range(3):
        await ledger.charge([(1, b"a", TENTH)])
    assert await spent(ledger) == [4 * TENTH]
    await asyncio.sleep(9)
    assert await spent(ledger) == [4 * TENTH]
    await asyncio.sleep(12)
    assert await spent(ledger) == [3 * TENTH]
    assert not ledger.spend([(1, b"a", 1)])
    await ledger.charge([(1, b"a", 7 * TENTH)])
    await ledger.close()


@in_virtual_time
async def test_a_lease_that_is_used_is_kept():
    ledger = await opened()
    for _ in range(3):
        await ledger.charge([(1, b"a", TENTH), (1, b"b", TENTH)])
    for _ in range(30):
        await asyncio.sleep(9)
        assert ledger.spend([(1, b"a", 1)])
    assert sorted(await spent(ledger)) == [3 * TENTH, 4 * TENTH]
    await ledger.close()
    assert sorted(a.spent for a in await ledger._store.accounts(None, None)) == [3 * TENTH, 3 * TENTH + 30]


@in_virtual_time
async def test_what_one_holder_left_idle_another_may_spend():
    store = MemoryStore()
    first, second = await opened(store), await opened(store)
    for _ in range(3):
        await first.charge([(1, b"a", TENTH)])
    await second.charge([(1, b"a", 6 * TENTH)])
    with pytest.raises(Exception, match="exhausted|spent|budget"):
        await second.charge([(1, b"a", TENTH)])
    await asyncio.sleep(21)
    await second.charge([(1, b"a", TENTH)])
    await first.close()
    await second.close()


@in_virtual_time
async def test_nothing_wakes_up_when_nothing_is_held():
    ledger = await opened()
    await ledger.charge([(1, b"a", TENTH)])
    assert ledger._queue._rotation is None
    for _ in range(2):
        await ledger.charge([(1, b"a", TENTH)])
    assert ledger._queue._rotation is not None
    await asyncio.sleep(60)
    assert ledger._queue._rotation is None
    assert ledger._queue._flusher.done()
    await ledger.close()


@in_virtual_time
async def test_what_was_left_in_an_older_window_comes_back_without_another_charge():
    ledger = await opened()
    for _ in range(3):
        await ledger.charge([(1, b"a", TENTH)])
    ledger._clock.now += DAY
    assert not ledger.spend([(1, b"a", 1)])
    await asyncio.sleep(21)
    assert [a.lifetime for a in await ledger.accounts()] == [3 * TENTH]
    await ledger.close()


@in_virtual_time
async def test_a_store_that_takes_nothing_back_wastes_it_and_goes_on(caplog):
    class Broken(MemoryStore):
        async def credit(self, windows, unspent):
            raise LedgerError("the file is locked")

    ledger = await opened(Broken())
    for _ in range(3):
        await ledger.charge([(1, b"a", TENTH)])
    await asyncio.sleep(21)
    assert "could not take back 1 idle leases: the file is locked" in caplog.text
    assert not ledger.spend([(1, b"a", 1)])  # it may have come back all the same
    await ledger.charge([(1, b"a", 6 * TENTH)])
    await ledger.close()


@in_virtual_time
async def test_many_idle_leases_come_back_in_parts(monkeypatch):
    monkeypatch.setattr(batching, "MAX_BATCH", 3)
    parts = []

    class Counting(MemoryStore):
        async def credit(self, windows, unspent):
            parts.append(len(unspent))
            await super().credit(windows, unspent)

    ledger = await opened(Counting())
    for _ in range(3):
        await asyncio.gather(*[ledger.charge([(1, bytes([i]), TENTH)]) for i in range(8)])
    await asyncio.sleep(21)
    assert parts == [3, 3, 2]
    assert await spent(ledger) == [3 * TENTH] * 8
    await ledger.close()


# Closing


class Stuck(MemoryStore):
    """Answers until it is told not to."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.ill = False
        self.calls = []

    async def _maybe(self, name):
        if self.ill:
            self.calls.append(name)
            if self.how == "fails":
                raise LedgerError("the file is locked")
            await asyncio.Event().wait()

    async def debit(self, batch):
        await self._maybe("debit")
        return await super().debit(batch)

    async def credit(self, windows, unspent):
        await self._maybe("credit")
        await super().credit(windows, unspent)

    async def redeem_once(self, now, spends):
        await self._maybe("redeem_once")
        return await super().redeem_once(now, spends)

    async def close(self):
        await self._maybe("close")
        await super().close()


@pytest.mark.parametrize("how", ["fails", "hangs"])
@in_virtual_time
async def test_closing_is_bounded_whatever_the_store_does(how, monkeypatch, caplog):
    monkeypatch.setattr(batching, "MAX_BATCH", 2)
    store = Stuck(how)
    ledger = await opened(store)
    for _ in range(3):
        await asyncio.gather(*[ledger.charge([(1, bytes([i]), TENTH)]) for i in range(9)])
    store.ill = True
    waiting = [
        asyncio.create_task(ledger.charge([(1, b"new", 1)])),
        asyncio.create_task(ledger.redeem_once(b"n" * 32, 1e10)),
    ]
    await asyncio.sleep(0.01)
    began = asyncio.get_running_loop().time()
    await ledger.close()
    assert asyncio.get_running_loop().time() - began <= 4 * 5.0
    assert store.calls.count("credit") == 1  # of five parts: who can't take the first back is not asked again
    assert store.calls[-1] == "close"
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, LedgerError) for result in results)
    assert "could not return its unspent leases" in caplog.text
    assert "could not close its store" in caplog.text
    with pytest.raises(LedgerError, match="not open"):
        await ledger.charge([(1, b"a", 1)])


@in_virtual_time
async def test_a_slow_store_takes_nothing_back_twice_when_the_ledger_closes(monkeypatch):
    """What the last commit still hands back is not handed back by closing, too."""
    monkeypatch.setattr(batching, "MAX_BATCH", 1)

    class Slow(MemoryStore):
        pause = 0.0
        credits = 0

        def __init__(self):
            super().__init__()
            self.turn = asyncio.Lock()

        async def credit(self, windows, unspent):
            async with self.turn:  # one call at a time, as all stores do it
                await asyncio.sleep(self.pause)
                self.credits += 1
                await super().credit(windows, unspent)

    store = Slow()
    ledger = await opened(store, timeout=1.0)
    for _ in range(3):
        await asyncio.gather(*[ledger.charge([(1, bytes([i]), TENTH)]) for i in range(5)])
    assert await spent(ledger) == [4 * TENTH] * 5
    store.pause = 0.6
    ledger._queue._rotate()
    ledger._queue._rotate()
    await asyncio.sleep(0.1)
    await ledger.close()
    await asyncio.sleep(60)
    assert store.credits == 5
    assert [a.spent for a in await store.accounts(None, None)] == [3 * TENTH] * 5


@in_virtual_time
async def test_a_charge_waits_no_longer_behind_a_credit_that_hangs():
    class Hanging(MemoryStore):
        async def credit(self, windows, unspent):
            await asyncio.Event().wait()

    ledger = await opened(Hanging())
    for _ in range(3):
        await ledger.charge([(1, b"a", TENTH)])
    ledger._queue._rotate()
    ledger._queue._rotate()
    await asyncio.sleep(0.01)
    began = asyncio.get_running_loop().time()
    async with asyncio.timeout(60):
        with pytest.raises(LedgerError, match="did not answer within 5 s"):
            await ledger.charge([(1, b"b", TENTH)])
    assert asyncio.get_running_loop().time() - began < 5.2
    await ledger.close()
    assert asyncio.get_running_loop().time() - began < 5.2 + 4 * 5.0


@in_virtual_time
async def test_a_closed_ledger_wakes_up_no_more():
    class Slow(MemoryStore):
        async def debit(self, batch):
            await asyncio.sleep(1)
            return await super().debit(batch)

    ledger = await opened(Slow())
    first = ledger._queue
    for _ in range(2):
        await ledger.charge([(1, b"a", TENTH)])
    under_way = asyncio.create_task(ledger.charge([(1, b"a", TENTH)]))  # it is going to hold one more tenth
    await asyncio.sleep(0.5)
    assert first._rotation is None
    await ledger.close()
    await under_way
    await ledger.open()
    for _ in range(3):
        await ledger.charge([(1, b"b", TENTH)])
    assert first._rotation is None
    assert first._flusher.done()
    await ledger.close()


async def test_what_was_still_to_be_handed_back_is_when_it_closes():
    ledger = await opened()
    for _ in range(3):
        await ledger.charge([(0, b"", COST)])
    (held,) = await spent(ledger)
    assert held > 3 * COST
    ledger._queue._credits.extend(ledger._queue.to_credit([ledger._leases.rotate(), ledger._leases.rotate()]))
    await ledger.close()
    await ledger.open()
    assert await spent(ledger) == [3 * COST]
    await ledger.close()


@in_virtual_time
async def test_thousands_that_wait_too_long_are_refused_in_a_few_looks():
    """Each look goes through all that wait, so there must not be one for each."""

    class Silent(MemoryStore):
        async def debit(self, batch):
            await asyncio.Event().wait()

    ledger = await opened(Silent(), timeout=0.5)
    looks = 0
    expire = ledger._queue._expire

    def counted():
        nonlocal looks
        looks += 1
        expire()

    ledger._queue._expire = counted

    async def one(index):
        await asyncio.sleep(index / 20_000)
        with pytest.raises(LedgerError, match="did not answer"):
            await ledger.charge([(1, index.to_bytes(4, "big"), COST)])

    loop = asyncio.get_running_loop()
    start = loop.time()
    await asyncio.gather(*[one(index) for index in range(5000)])
    assert looks <= 2 + (loop.time() - start) / 0.05
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


@pytest.mark.parametrize("how", ["debit", "credit", "ping"])
async def test_what_the_store_forgot_is_not_spent(how):
    """Slices in hand were debited in a ledger that is no longer there."""

    class Restored(MemoryStore):
        forgot = False

        async def debit(self, batch):
            self.fail("debit")
            return await super().debit(batch)

        async def credit(self, windows, unspent):
            self.fail("credit")
            await super().credit(windows, unspent)

        async def ping(self):
            self.fail("ping")

        def fail(self, what):
            if self.forgot and what == how:
                raise LostChargesError("an older copy was put in its place")

    ledger = await opened(Restored())
    for _ in range(3):
        await ledger.charge([(0, b"", COST), (1, b"a", COST)])
    assert ledger.spend([(1, b"a", 1)])
    ledger._store.forgot = True
    if how == "debit":
        with pytest.raises(LedgerError, match="older copy"):
            await ledger.charge([(1, b"b", COST)])
    elif how == "credit":
        ledger._queue._credits.append(((0, 0), {(0, b"x" * 16): 1}))
        await ledger.charge([(1, b"b", COST)])
        while not ledger._queue._flusher.done():
            await asyncio.sleep(0)
    else:
        with pytest.raises(LostChargesError):
            await ledger.check()
    assert not ledger.spend([(0, b"", 1)])
    assert not ledger.spend([(1, b"a", 1)])
    await ledger.close()


# Eager tasks: a commit that never waits is over before create_task returns


@pytest.fixture
def eager_tasks():
    """The running loop's tasks begin, and may end, in create_task."""
    if not hasattr(asyncio, "eager_task_factory"):
        pytest.skip("eager tasks came with Python 3.12")

    def start():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)

    return start


async def test_a_second_charge_is_committed_where_tasks_are_eager(eager_tasks):
    eager_tasks()
    ledger = await opened()
    for unit in (b"a", b"b", b"c"):
        async with asyncio.timeout(30):
            await ledger.charge([(1, unit, COST)])
    assert await spent(ledger) == [COST] * 3
    await ledger.close()


async def test_a_second_name_is_spent_where_tasks_are_eager(eager_tasks):
    eager_tasks()
    ledger = await opened()
    answers = []
    for name in (b"a" * 32, b"b" * 32, b"a" * 32):
        async with asyncio.timeout(30):
            answers.append(await ledger.redeem_once(name, time.time() + 60))
    assert answers == [True, True, False]
    await ledger.close()


@in_virtual_time
async def test_a_charge_is_refused_in_time_whatever_became_of_the_task_that_commits():
    ledger = await opened(timeout=2.0)
    ledger._queue._flush = lambda: asyncio.sleep(3600)  # A task that never looks at what waits.
    began = asyncio.get_running_loop().time()
    with pytest.raises(LedgerError, match="did not answer within 2 s"):
        await ledger.charge([(1, b"a", COST)])
    assert asyncio.get_running_loop().time() - began <= 2.1
    ledger._queue._flusher.cancel()
