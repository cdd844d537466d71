"""Keys of epochs, as a process holds them: until the epoch ends, and never one that was not fetched."""

import pytest

from dpmesh.errors import LedgerError
from dpmesh.ledger import EpochKey, Ledger, MemoryStore
from dpmesh.ledger.epoch_keys import EpochKeys
from dpmesh.ledger.store import epoch_in_force


def test_a_key_is_held_to_the_end_of_its_epoch_and_for_a_clock_that_is_an_epoch_behind():
    keys = EpochKeys()
    assert not keys.are_held([10.0], 100.0)
    keys.put(10.0, EpochKey(10, b"k" * 32))
    assert [keys.are_held([10.0], now) for now in (89.9, 90.0, 100.0, 109.9, 110.0)] == [
        False,
        True,
        True,
        True,
        False,
    ]
    assert not keys.are_held([10.0, 20.0], 100.0)
    assert keys.of(10.0).key == b"k" * 32
    with pytest.raises(LedgerError):
        keys.of(20.0)
    keys.clear()
    with pytest.raises(LedgerError):
        keys.of(10.0)


def test_a_key_is_in_no_text():
    assert "kkk" not in repr(EpochKey(10, b"k" * 32))


@pytest.mark.parametrize(
    ("stored", "in_force"), [(None, 10), (9, 10), (10, 10), (11, 11), (12, 10), (0, 10), (10**12, 10)]
)
def test_an_epoch_goes_on_unless_it_is_over_or_was_begun_by_a_wrong_clock(stored, in_force):
    assert epoch_in_force(109, 10, stored) == in_force


@pytest.mark.parametrize("now", [float("nan"), float("inf")])
async def test_a_clock_that_shows_no_time_gives_no_key(now):
    clock = [1000.0]
    ledger = Ledger(MemoryStore(), [], clock=lambda: clock[0])
    await ledger.open()
    clock[0] = now
    with pytest.raises(LedgerError):
        await ledger.hold_keys([10.0])
    await ledger.close()
