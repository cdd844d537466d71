"""EpochKeys: the keys of the epochs in force, as this process knows them. Each is fetched from the store once an epoch.

Pseudonyms and memoized answers depend on them, and on nothing else that is kept. The store overwrites a key when its
epoch is over, and from then on nobody can make the pseudonyms and answers of that epoch again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from typing_extensions import override

from dpmesh.errors import LedgerError
from dpmesh.ledger.batching import BatchQueue, Waiter
from dpmesh.ledger.store import LAST_SECOND, EpochKey, Store

MICROSECONDS = 1_000_000


class EpochKeys:
    """The keys that this process holds, by the lengths of their epochs. Any thread may read them."""

    def __init__(self) -> None:
        # With each key: the time from which it may be used, and the time at which its epoch ends.
        self._held: dict[float, tuple[EpochKey, float, float]] = {}

    def are_held(self, epochs: Sequence[float], now: float) -> bool:
        """Whether the keys of the epochs in force at `now` are held, for all of these lengths in seconds."""
        for epoch in epochs:
            held = self._held.get(epoch)
            if held is None or not held[1] <= now < held[2]:
                return False
        return True

    def of(self, epoch: float) -> EpochKey:
        """The key for epochs of a length in seconds that was held last.

        Raises:
            LedgerError: There was none.
        """
        try:
            return self._held[epoch][0]
        except KeyError:
            raise LedgerError("the key of an epoch was not fetched from the ledger") from None

    def put(self, epoch: float, key: EpochKey) -> None:
        """Holds a key, instead of the one for epochs of this length that was held before."""
        # As store.epoch_in_force says, a clock that was set back by less than an epoch goes on with the later one.
        self._held[epoch] = key, (key.number - 1) * epoch, (key.number + 1) * epoch

    def clear(self) -> None:
        """Forgets all keys."""
        self._held = {}


class EpochKeyQueue(BatchQueue[float, None]):
    """Fetches keys from the store: all that wait for the key of one length get it by one call."""

    def __init__(self, store: Store, keys: EpochKeys, *, now: Callable[[], float], timeout: float) -> None:
        super().__init__("keys of epochs", timeout)
        self._store = store
        self._keys = keys
        self._now = now

    @override
    async def _commit(self, waiters: Sequence[Waiter[float, None]]) -> None:
        now = self._now()
        if not 0 <= now < LAST_SECOND:
            raise LedgerError("the ledger's clock is broken: it shows no time")
        epochs = list(dict.fromkeys(waiter.item for waiter in waiters))
        lengths = [int(epoch * MICROSECONDS) for epoch in epochs]
        found = await self._store.epoch_keys(int(now * MICROSECONDS), lengths)
        for epoch, key in zip(epochs, found, strict=True):
            self._keys.put(epoch, key)
        for waiter in waiters:
            waiter.resolve(None)
