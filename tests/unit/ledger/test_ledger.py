"""The ledger against stores that are slow, stuck or broken, and callers that give up."""

import asyncio
import contextlib
import gc
import threading
import weakref

import pytest

from dpmesh.errors import BudgetExhaustedError, ConfigError, LedgerError
from dpmesh.ledger import Ledger, MemoryStore, batching
from dpmesh.ledger import ledger as ledger_module
from tests.contract.suite import AMOUNT, BUDGETS, TENTH, Clock
from tests.support.steady import no_time_passes


class SlowStore(MemoryStore):
    """Debits when it is let, or fails."""

    def __init__(self):
        super().__init__()
        self.go = asyncio.Event()
        self.go.set()
        self.fault = None
        self.batches = []

    async def debit(self, batch):
        self.batches.append(batch)
        await self.go.wait()
        if self.fault is not None:
            raise self.fault
        return await super().debit(batch)


@pytest.fixture
def store():
    return SlowStore()


@pytest.fixture
async def ledger(store):
    ledger = Ledger(store, BUDGETS, clock=Clock(), monotonic=no_time_passes, timeout=60)
    await ledger.open()
    yield ledger
    store.go.set()
    await ledger.close()


@pytest.fixture
async def hasty(store):
    """A ledger that gives up soon."""
    ledger = Ledger(store, BUDGETS, clock=Clock(), monotonic=no_time_passes, timeout=0.05)
    await ledger.open()
    yield ledger
    store.go.set()
    await ledger.close()


async def insist(ledger, charges):
    """Charges, however slow the machine is."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(LedgerError):
                return await ledger.charge(charges)


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0)


async def test_charges_that_arrive_during_a_commit_go_into_the_next(ledger, store):
    store.go.clear()
    first = asyncio.create_task(ledger.charge([(0, b"0", 1)]))
    await until(lambda: store.batches)
    rest = [asyncio.create_task(ledger.charge([(0, bytes([i]), 1)])) for i in range(50)]
    await asyncio.sleep(0)
    store.go.set()
    await asyncio.gather(first, *rest)
    assert [len(batch.requests) for batch in store.batches] == [1, 50]


@pytest.mark.lazy_tasks
async def test_a_stuck_store_holds_nobody_for_ever(hasty, store):
    store.go.clear()
    waiting = [asyncio.create_task(hasty.charge([(0, b"a", 1)])) for _ in range(10)]
    await until(lambda: store.batches)
    waiting += [asyncio.create_task(hasty.charge([(0, b"b", 1)])) for _ in range(10)]
    async with asyncio.timeout(60):
        results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, LedgerError) for result in results)
    assert "did not answer within 0.05 s" in str(results[-1])
    assert len(store.batches) == 1  # nothing else was started meanwhile
    store.go.set()
    await insist(hasty, [(0, b"c", 1)])
    # What timed out while it was being debited counts as spent; what had not begun does not.
    spent = [sum(a.spent for a in await hasty.accounts(unit=unit)) for unit in (b"a", b"b", b"c")]
    assert spent[:2] == [10, 0]
    assert spent[2] >= 1


async def test_a_failed_commit_refuses_all_who_wait_and_the_next_serves(ledger, store):
    for fault in (
        LedgerError("the file is locked"),
        RuntimeError("a bug"),
        BudgetExhaustedError("other", None),
    ):
        store.fault = fault
        results = await asyncio.gather(
            *[ledger.charge([(0, b"a", 1)]) for _ in range(20)], return_exceptions=True
        )
        assert {type(result) for result in results} == {LedgerError}
        assert len(set(map(id, results))) == 20  # tracebacks of their own
    assert "locked" not in str(results[0])
    store.fault = None
    await ledger.charge([(0, b"a", AMOUNT)])


async def test_leases_survive_a_failed_commit(ledger, store):
    for _ in range(3):
        await ledger.charge([(0, b"a", TENTH)])  # one tenth is left
    store.fault = LedgerError("no")
    with pytest.raises(LedgerError):
        await ledger.charge([(0, b"a", 2 * TENTH)])
    assert ledger.usage(0, b"a") == (3 * TENTH, AMOUNT)
    assert ledger.spend([(0, b"a", TENTH)])
    store.fault = None


async def test_a_cancelled_charge_counts_as_spent_once_it_is_under_way(ledger, store):
    store.go.clear()
    under_way = asyncio.create_task(ledger.charge([(0, b"a", 1)]))
    await until(lambda: store.batches)
    queued = asyncio.create_task(ledger.charge([(0, b"b", 1)]))
    await asyncio.sleep(0)
    for task in (under_way, queued):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    store.go.set()
    await ledger.charge([(0, b"c", 1)])
    assert [len(await ledger.accounts(unit=unit)) for unit in (b"a", b"b", b"c")] == [1, 0, 1]


async def test_the_queue_is_bounded(ledger, store, monkeypatch):
    monkeypatch.setattr(batching, "MAX_WAITING", 5)
    store.go.clear()
    tasks = [asyncio.create_task(ledger.charge([(0, b"a", 1)]))]
    await until(lambda: store.batches)
    tasks += [asyncio.create_task(ledger.charge([(0, b"a", 1)])) for _ in range(8)]
    await asyncio.sleep(0)
    store.go.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results.count(None) == 6
    assert all("5 charges are waiting" in str(result) for result in results if result is not None)


@pytest.mark.lazy_tasks
async def test_large_queues_are_committed_in_parts(ledger, store, monkeypatch):
    monkeypatch.setattr(batching, "MAX_BATCH", 7)
    await asyncio.gather(*[ledger.charge([(0, bytes([i]), 1)]) for i in range(20)])
    assert [len(batch.requests) for batch in store.batches] == [7, 7, 6]


async def test_close_refuses_who_waits_and_waits_for_what_is_under_way(ledger, store):
    store.go.clear()
    under_way = asyncio.create_task(ledger.charge([(0, b"a", 1)]))
    await until(lambda: store.batches)
    queued = asyncio.create_task(ledger.charge([(0, b"b", 1)]))
    await asyncio.sleep(0)
    closing = asyncio.create_task(ledger.close())
    await asyncio.sleep(0)
    store.go.set()
    await asyncio.gather(under_way, closing)
    with pytest.raises(LedgerError, match="closing"):
        await queued


async def test_close_gives_up_on_a_stuck_store(hasty, store, caplog):
    for _ in range(3):
        await insist(hasty, [(0, b"a", TENTH)])

    async def stuck(*_):
        await asyncio.Event().wait()

    store.credit = stuck
    async with asyncio.timeout(60):
        await hasty.close()
    assert "could not return its unspent leases within 0.05 s" in caplog.text


async def test_a_flusher_that_is_cancelled_leaves_nobody_waiting(ledger, store):
    store.go.clear()
    task = asyncio.create_task(ledger.charge([(0, b"a", 1)]))
    await until(lambda: store.batches)
    ledger._queue._flusher.cancel()
    with pytest.raises(LedgerError, match="CancelledError"):
        await task


async def test_other_event_loops_may_charge(ledger):
    def elsewhere():
        async def charge():
            outcomes = await asyncio.gather(
                *[ledger.charge([(1, b"", AMOUNT)]) for _ in range(6)], return_exceptions=True
            )
            with pytest.raises(BudgetExhaustedError):
                await ledger.charge([(1, b"", 11 * AMOUNT)])
            return outcomes

        return asyncio.run(charge())

    results = await asyncio.gather(*[asyncio.to_thread(elsewhere) for _ in range(3)])
    outcomes = [outcome for result in results for outcome in result]
    assert outcomes.count(None) == 10
    assert sum(isinstance(outcome, BudgetExhaustedError) for outcome in outcomes) == 8


async def test_another_loop_may_close(ledger):
    await ledger.charge([(0, b"a", 1)])
    await asyncio.to_thread(lambda: asyncio.run(ledger.close()))
    with pytest.raises(LedgerError, match="not open"):
        await ledger.charge([(0, b"a", 1)])


async def test_a_close_that_is_cancelled_closes_all_the_same(store):
    """It can't be called again: the ledger is not open any more."""
    closed = asyncio.Event()
    store.close = lambda: asyncio.sleep(0, closed.set())
    ledger = Ledger(store, BUDGETS, clock=Clock(), monotonic=no_time_passes, timeout=60)
    await ledger.open()
    for _ in range(3):
        await ledger.charge([(0, b"a", TENTH)])
    assert [a.spent for a in await ledger.accounts()] == [4 * TENTH]
    store.go.clear()
    under_way = asyncio.create_task(ledger.charge([(0, b"b", 1)]))
    await until(lambda: len(store.batches) == 4)
    closing = asyncio.create_task(ledger.close())
    await until(lambda: not ledger._open)
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert not closed.is_set()
    store.go.set()
    await under_way
    await asyncio.wait_for(closed.wait(), 60)
    assert sorted(a.spent for a in await store.accounts(None, None)) == [1, 3 * TENTH]


def test_a_loop_that_follows_a_closed_one_takes_over():
    ledger = Ledger(MemoryStore(), BUDGETS)
    asyncio.run(ledger.open())
    asyncio.run(ledger.charge([(0, b"a", AMOUNT)]))
    with pytest.raises(BudgetExhaustedError):
        asyncio.run(ledger.charge([(0, b"a", 1)]))
    asyncio.run(ledger.close())


def test_an_owner_that_stopped_running_is_an_error_not_a_hang(monkeypatch):
    monkeypatch.setattr(ledger_module, "_GRACE", 0.01)
    owner = asyncio.new_event_loop()
    ledger = Ledger(MemoryStore(), BUDGETS, timeout=0.01)
    owner.run_until_complete(ledger.open())
    with pytest.raises(LedgerError, match="does not answer"):
        asyncio.run(ledger.charge([(0, b"a", 1)]))
    owner.run_until_complete(asyncio.sleep(0))
    owner.run_until_complete(ledger.close())
    owner.close()


async def test_spend_from_many_threads_while_charging(ledger):
    spent = [0] * 4
    stop = threading.Event()

    def spender(me):
        while not stop.is_set():
            if ledger.spend([(1, b"", 1000)]):
                spent[me] += 1

    threads = [threading.Thread(target=spender, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    charged = 0
    with contextlib.suppress(BudgetExhaustedError):
        while True:
            await ledger.charge([(1, b"", TENTH)])
            charged += 1
    stop.set()
    for thread in threads:
        thread.join()
    (account,) = await ledger.accounts("all")
    left = ledger._leases.clear()[1].get((1, b""), 0)
    assert charged * TENTH + sum(spent) * 1000 + left == account.spent <= 10 * AMOUNT


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_timeout_that_is_none_is_refused(timeout):
    with pytest.raises(ConfigError, match="timeout"):
        Ledger(MemoryStore(), BUDGETS, timeout=timeout)


async def test_a_dropped_ledger_is_collected():
    ledger = Ledger(MemoryStore(), BUDGETS)
    await ledger.open()
    await ledger.charge([(0, b"a", 1)])
    await ledger.close()
    gone = weakref.ref(ledger)
    del ledger
    gc.collect()
    assert gone() is None
