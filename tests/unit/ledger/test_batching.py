"""What both queues of the ledger have in common, without a store."""

import asyncio

import pytest

from dpmesh.errors import LedgerError
from dpmesh.ledger import batching
from dpmesh.ledger.batching import BatchQueue
from tests.support.virtual_time import in_virtual_time


class Doubling(BatchQueue[int, int]):
    """Answers with twice the number, as soon as it is let."""

    def __init__(self, timeout=5.0):
        super().__init__("numbers", timeout)
        self.go = asyncio.Event()
        self.batches = []
        self.chores = 0

    def _answer_early(self, waiter):
        if waiter.item == 0:
            waiter.resolve(0)
        return waiter.item == 0

    async def _commit(self, waiters):
        self.batches.append([waiter.item for waiter in waiters])
        await self.go.wait()
        for waiter in waiters:
            if waiter.item < 0:
                raise ValueError(f"the secret was {waiter.item}")
            waiter.resolve(2 * waiter.item)

    async def _after_batch(self):
        self.chores -= self.chores > 0
        return self.chores > 0


@in_virtual_time
async def test_what_joins_during_a_commit_goes_into_the_next():
    queue = Doubling()
    answers = [queue.join(1)]
    await asyncio.sleep(0)
    answers += [queue.join(number) for number in (2, 0, 3)]
    queue.go.set()
    assert await asyncio.gather(*answers) == [2, 4, 0, 6]
    assert queue.batches == [[1], [2, 3]]


@in_virtual_time
async def test_what_is_given_up_before_its_commit_has_no_effect():
    queue = Doubling()
    first, second = queue.join(1), queue.join(2)
    second.cancel()
    queue.go.set()
    assert await first == 2
    assert queue.batches == [[1]]


@in_virtual_time
async def test_a_failed_commit_refuses_everything_and_shows_no_text_but_the_ledger_s():
    queue = Doubling()
    answers = [queue.join(-7)]
    await asyncio.sleep(0)
    answers.append(queue.join(1))
    queue.go.set()
    results = await asyncio.gather(*answers, return_exceptions=True)
    assert [str(result) for result in results] == ["the ledger failed: ValueError"] * 2
    assert results[0] is not results[1]
    assert await queue.join(1) == 2


@in_virtual_time
async def test_a_deadline_holds_in_the_commit_and_behind_it():
    queue = Doubling(timeout=2.0)
    loop = asyncio.get_running_loop()
    began = loop.time()
    first = queue.join(1)
    await asyncio.sleep(1)
    second = queue.join(2)
    for answer, seconds in ((first, 2), (second, 3)):
        with pytest.raises(LedgerError, match="did not answer within 2 s"):
            await answer
        assert seconds <= loop.time() - began <= seconds + 0.1
    assert queue.batches == [[1]]


@in_virtual_time
async def test_stopping_refuses_what_waits_and_lets_the_commit_finish(monkeypatch):
    monkeypatch.setattr(batching, "MAX_BATCH", 1)
    queue = Doubling()
    first, second = queue.join(1), queue.join(2)
    await asyncio.sleep(0)
    stopping = asyncio.create_task(queue.stop())
    await asyncio.sleep(0)
    queue.go.set()
    await stopping
    assert await first == 2
    with pytest.raises(LedgerError, match="closing"):
        await second
    assert queue.batches == [[1]]


@in_virtual_time
async def test_stopping_answers_every_request_of_a_commit_that_does_not_end():
    queue = Doubling(timeout=2.0)
    queue.go.set()
    await queue.join(1)  # the search for expired requests follows this one's deadline
    queue.go.clear()
    await asyncio.sleep(0.03)
    answer = queue.join(2)
    await asyncio.sleep(0.01)
    await queue.stop()
    with pytest.raises(LedgerError, match="closing"):
        async with asyncio.timeout(10):
            await answer


@pytest.mark.lazy_tasks  # an eager task commits the first request before the others join
@in_virtual_time
async def test_an_error_while_a_batch_is_taken_refuses_everything_that_waits():
    class Failing(Doubling):
        def _answer_early(self, waiter):
            if waiter.item == 2:
                raise ValueError("the clock is broken")
            return False

    queue = Failing()
    answers = [queue.join(number) for number in (1, 2, 3)]
    results = await asyncio.wait_for(asyncio.gather(*answers, return_exceptions=True), 1)
    assert [str(result) for result in results] == ["the ledger failed: ValueError"] * 3
    queue.go.set()
    assert await queue.join(1) == 2


@in_virtual_time
async def test_more_than_may_wait_are_refused_at_once(monkeypatch):
    monkeypatch.setattr(batching, "MAX_WAITING", 2)
    queue = Doubling()
    answers = [queue.join(1)]
    await asyncio.sleep(0)  # its commit begins
    answers += [queue.join(2), queue.join(3)]
    with pytest.raises(LedgerError, match="too slow: 2 numbers are waiting already"):
        queue.join(4)
    queue.go.set()
    assert await asyncio.gather(*answers) == [2, 4, 6]


@in_virtual_time
async def test_chores_between_batches_go_on_until_there_are_none():
    queue = Doubling()
    queue.chores = 3
    queue.wake()
    await asyncio.sleep(0.1)
    assert (queue.chores, queue.batches) == (0, [])
