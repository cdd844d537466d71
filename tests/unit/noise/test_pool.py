"""Pools: every draw is handed out once, in threads and over forks."""

import gc
import os
import threading
import weakref

import numpy as np
import pytest

from dpmesh import forks
from dpmesh.noise import pool
from dpmesh.noise.pool import Pool


class Counter:
    """Makes 0, 1, 2, ... instead of noise, so that a draw that is lost or given twice shows."""

    def __init__(self):
        self.next = 0
        self.sizes = []
        self.lock = threading.Lock()

    def __call__(self, count, stream):
        with self.lock:
            start, self.next = self.next, self.next + count
            self.sizes.append(count)
        return np.arange(start, start + count)


def take(stock):
    try:
        return stock.pop()
    except IndexError:
        return stock.refill()


def test_blocks_grow_and_stay_bounded():
    counter = Counter()
    stock = Pool(counter)
    assert counter.sizes == []  # nothing is drawn before it is needed
    draws = [take(stock) for _ in range(20_000)]
    assert sorted(draws + stock._items) == list(range(counter.next))
    assert counter.sizes[:3] == [1024, 2048, 4096]
    assert set(counter.sizes[3:]) == {4096}


def test_threads_share_a_pool_without_losing_or_doubling_a_draw():
    counter = Counter()
    stock = Pool(counter)
    taken = [[] for _ in range(8)]

    def work(mine):
        mine.extend(take(stock) for _ in range(20_000))

    threads = [threading.Thread(target=work, args=(mine,)) for mine in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted([draw for mine in taken for draw in mine] + stock._items) == list(range(counter.next))


def test_every_block_has_a_key_of_its_own():
    streams = []

    def block(count, stream):
        streams.append(stream)
        return stream.words(count).view(np.int64)

    stock = Pool(block)
    draws = [take(stock) for _ in range(5000)]
    assert len(set(map(id, streams))) == len(streams) == 3
    assert len(set(draws)) == 5000


def test_pools_are_shared_and_freed():
    counter = Counter()
    first = pool.shared(("test", 1), counter)
    assert pool.shared(("test", 1), Counter()) is first
    assert pool.shared(("test", 2), Counter()) is not first
    gone = weakref.ref(first)
    assert id(first) in forks._registered
    del first
    gc.collect()
    assert gone() is None
    assert ("test", 1) not in pool._shared


def in_child(work):
    """Runs `work` in a forked child and returns the text it returns."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, work().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return text


def test_a_forked_child_starts_empty():
    stock = Pool(Counter())
    take(stock)
    assert len(stock._items) == 1023
    assert in_child(lambda: str(len(stock._items))) == "0"
    assert len(stock._items) == 1023


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_block_that_is_being_made_at_a_fork_stays_with_the_parent(moment):
    """The fork happens inside the block function, as in a signal handler that runs then."""
    reader, writer = os.pipe()
    children = []

    def block(count, stream):
        draws = stream.words(count).view(np.int64) if moment == "before" else None
        if not children:
            children.append(os.fork())
        return stream.words(count).view(np.int64) if draws is None else draws

    stock = Pool(block)
    mine = [take(stock) for _ in range(1024)]
    if not children[0]:
        try:
            os.write(writer, repr(mine[:100]).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        theirs = eval(answer.read())
    os.waitpid(children[0], 0)
    assert len(theirs) == 100
    assert not set(theirs) & set(mine)
