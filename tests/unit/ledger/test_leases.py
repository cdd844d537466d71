"""Leases in memory: threads, memory, and what the hot path must not do."""

import gc
import sys
import threading

from dpmesh.ledger.leases import Lease, LeaseTable
from dpmesh.ledger.store import Window, first_window
from tests.contract.suite import AMOUNT, DAY, Clock, pure

BUDGETS = [pure("unit"), pure("all", key="global")]
TWO = [pure("day"), pure("two", window=2 * DAY)]


def lease(amount: int) -> Lease:
    """All of one slice, in the hands of this holder."""
    return Lease(amount, amount, amount, 0.0)


def holding(left: dict[tuple[int, bytes], int]) -> LeaseTable:
    leases = LeaseTable(Clock(0.0))
    leases.start(BUDGETS, [*map(first_window, BUDGETS)])
    leases.put((0, 0), {key: lease(amount) for key, amount in left.items()})
    return leases


def test_threads_never_spend_more_than_is_held():
    leases = holding({(0, b"a"): 20_000, (1, b""): 30_000})
    spent = [0] * 4

    def worker(me):
        while leases.spend([(1, b"", 1), (0, b"a", 1)]):
            spent[me] += 1
            if spent[me] % 100 == 0:
                leases.usage(0, b"a")

    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=worker, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(old)
    assert sum(spent) == 20_000
    assert leases.clear()[1] == {(1, b""): 10_000}


def test_a_payment_that_fails_in_the_middle_gives_back():
    leases = holding({(0, b"a"): 10, (0, b"b"): 10, (1, b""): 10})
    for last in [(0, b"b", 11), (0, b"c", 1), (9, b"", 1), (0, b"b", -1), (0, b"b", 0.5), (0, b"a", 1)]:
        assert not leases.spend([(1, b"", 10), (0, b"a", 4), (0, b"a", 6), last])
    assert leases.clear()[1] == {(0, b"a"): 10, (0, b"b"): 10, (1, b""): 10}


def test_a_window_that_ends_during_a_payment_takes_its_leases_along():
    clock = Clock(0.0)
    leases = LeaseTable(clock)
    leases.start(TWO, [*map(first_window, TWO)])
    leases.put((0, 0), {(0, b"a"): lease(10), (1, b"a"): lease(10)})
    clock.now = DAY
    assert not leases.spend([(1, b"a", 5), (0, b"a", 5)])
    assert leases.clear() == ((DAY, 0), {(1, b"a"): 10})


def test_what_is_used_up_takes_no_memory():
    leases = holding({})
    for i in range(10_000):
        key = i.to_bytes(4, "big")
        leases.put((0, 0), {(0, key): lease(5)})
        assert leases.spend([(0, key, 5)])
    gc.collect()
    window = leases._windows[0]
    assert len(window.in_use) == 0
    assert len(window.used_up) <= 4096
    assert leases.usage(0, key) == (5, AMOUNT)
    assert leases.usage(0, bytes(4)) is None


def test_leases_of_another_window_are_not_put_back():
    leases = holding({})
    leases.roll(DAY)
    leases.put((0, 0), {(0, b"a"): lease(5)})
    assert not leases.spend([(0, b"a", 1)])
    assert leases.ended() == [((0, 0), {(0, b"a"): 5})]
    assert leases.ended() == []
    kept = lease(5)
    leases.settle([Window(2 * DAY, DAY, AMOUNT), Window(2 * DAY, DAY, AMOUNT)])
    leases.put((2 * DAY, 2 * DAY), {(0, b"a"): kept})
    assert leases.take([(0, b"a")]) == ((2 * DAY, 2 * DAY), {(0, b"a"): kept})
    assert (kept.left, kept.debited) == (5, 5)
    assert leases.take([(0, b"a")]) == ((2 * DAY, 2 * DAY), {})


def test_what_is_left_when_windows_end_is_told_once():
    clock = Clock(0.0)
    leases = LeaseTable(clock)
    leases.start(TWO, [*map(first_window, TWO)])
    leases.put((0, 0), {(0, b"a"): lease(10), (0, b"b"): lease(5), (1, b"a"): lease(7)})
    leases.rotate()  # idle, and still there
    assert leases.spend([(0, b"b", 4)])
    clock.now = DAY
    assert not leases.spend([(0, b"a", 1)])
    ended = leases.ended()
    assert all(starts == (0, 0) for starts, _ in ended)
    assert {key: amount for _, left in ended for key, amount in left.items()} == {(0, b"a"): 10, (0, b"b"): 1}
    leases.roll(2 * DAY)
    assert leases.ended() == [((2 * DAY, 0), {(1, b"a"): 7})]
    leases.put((2 * DAY, 2 * DAY), {(0, b"a"): lease(1)})
    leases.after_fork_in_child()
    leases.roll(9 * DAY)
    assert leases.ended() == []  # it is the parent's


def test_nothing_can_be_spent_after_clear():
    leases = holding({(0, b"a"): 10})
    assert leases.clear() == ((0, 0), {(0, b"a"): 10})
    leases.put((0, 0), {(0, b"a"): lease(10)})
    assert not leases.spend([(0, b"a", 1)])
    assert leases.usage(0, b"a") is None
    assert leases.clear() == ((), {})


def test_leases_of_a_cap_that_falls_can_t_be_spent_and_are_told_once():
    leases = holding({(0, b"a"): 10, (0, b"b"): 5, (1, b""): 7})
    leases.rotate()
    assert leases.spend([(0, b"a", 4)])
    leases.settle([Window(0, DAY, AMOUNT // 2), Window(0, DAY, AMOUNT)])
    assert not leases.spend([(0, b"a", 1)])
    assert not leases.spend([(0, b"b", 1)])
    assert {key: n for _, left in leases.ended() for key, n in left.items()} == {(0, b"a"): 6, (0, b"b"): 5}
    assert leases.ended() == []
    assert leases.spend([(1, b"", 7)])


def test_a_window_that_another_holder_began_with_another_length_takes_the_place_of_a_guess():
    clock = Clock(0.0)
    leases = LeaseTable(clock)
    leases.start(BUDGETS, [*map(first_window, BUDGETS)])
    clock.now = 3 * DAY
    leases.roll(clock.now)
    assert leases.end(0) == 4 * DAY
    leases.settle([Window(DAY, 7 * DAY, AMOUNT // 2), Window(0, DAY, AMOUNT)])
    assert (leases.end(0), leases.end(1)) == (7 * DAY, 4 * DAY)  # the second is over already
    leases.put((DAY, 3 * DAY), {(0, b"a"): lease(10)})
    clock.now = 6 * DAY
    assert leases.spend([(0, b"a", 4)])
    clock.now = 7 * DAY
    assert not leases.spend([(0, b"a", 4)])
    assert leases.end(0) == 8 * DAY


def test_windows_of_whole_epochs():
    leases = holding({})
    leases.settle([Window(DAY, 7 * DAY, AMOUNT), Window(0, DAY, AMOUNT)])
    assert leases.is_whole(0, DAY)
    assert not leases.is_whole(0, 7 * DAY)
    assert leases.is_whole(1, DAY / 4)
    assert not leases.is_whole(1, DAY / 3.5)
    assert not leases.is_whole(2, DAY)
