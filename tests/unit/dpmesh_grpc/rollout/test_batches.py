"""Batches: what waits while one is written, who gets which answer, and what a failure or a caller that leaves does."""

import asyncio

import pytest

from dpmesh_grpc.rollout import batches
from dpmesh_grpc.rollout.batches import Batches, FullError


class Disk:
    """Writes one batch at each `let`, and answers with the item times ten."""

    def __init__(self):
        self.written, self.gate, self.error = [], asyncio.Semaphore(0), None

    async def write(self, items):
        await self.gate.acquire()
        self.written.append(list(items))
        if self.error is not None:
            raise self.error
        return [item * 10 for item in items]

    def let(self, batches=100):
        for _ in range(batches):
            self.gate.release()


async def begun(added, items):
    """Tasks that have added their items."""
    tasks = [asyncio.ensure_future(added.add(item)) for item in items]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


async def test_items_that_come_while_a_batch_is_written_make_up_the_next_one():
    disk = Disk()
    added = Batches(disk.write)
    first = await begun(added, [1])
    rest = await begun(added, [2, 3, 4])
    disk.let()
    assert await asyncio.gather(*first, *rest) == [10, 20, 30, 40]
    assert disk.written == [[1], [2, 3, 4]]
    assert await added.add(5) == 50


async def test_a_failure_is_that_of_its_batch_alone():
    disk = Disk()
    added = Batches(disk.write)
    disk.error = OSError("full")
    failing = await begun(added, [1])
    disk.let(1)
    with pytest.raises(OSError, match="full"):
        await failing[0]
    disk.error = None
    disk.let()
    assert await added.add(2) == 20


async def test_a_caller_that_leaves_does_not_disturb_the_others():
    disk = Disk()
    added = Batches(disk.write)
    tasks = await begun(added, [1, 2])
    tasks[0].cancel()
    disk.let()
    assert await tasks[1] == 20


async def test_batches_and_what_waits_are_bounded(monkeypatch):
    monkeypatch.setattr(batches, "_MOST", 2)
    monkeypatch.setattr(batches, "_WAITING", 3)
    disk = Disk()
    added = Batches(disk.write)
    tasks = await begun(added, [1])
    tasks += await begun(added, [2, 3, 4])
    with pytest.raises(FullError):
        await added.add(5)
    disk.let()
    assert await asyncio.gather(*tasks) == [10, 20, 30, 40]
    assert disk.written == [[1], [2, 3], [4]]
