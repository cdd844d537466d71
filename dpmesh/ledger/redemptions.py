"""RedemptionQueue: names that can be redeemed once, as tokens are. They are redeemed in the store batch by batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from typing_extensions import override

from dpmesh.errors import LedgerError
from dpmesh.ledger.batching import BatchQueue, Waiter
from dpmesh.ledger.store import LAST_SECOND, NAME_BYTES, Store

Redemption = tuple[bytes, int]
"""(name, the second in which it may be forgotten)."""


class RedemptionQueue(BatchQueue[Redemption, bool]):
    """Redeems names, batch by batch."""

    def __init__(self, store: Store, *, clock: Callable[[], float], timeout: float) -> None:
        super().__init__("redemptions", timeout)
        self._store = store
        self._clock = clock

    async def redeem(self, name: bytes, until: float) -> bool:
        """Redeems a name, as Ledger.redeem_once says."""
        if type(name) is not bytes or len(name) != NAME_BYTES:
            raise LedgerError(f"a name that is spent must be {NAME_BYTES} bytes")
        if not isinstance(until, int | float) or not 0 <= until < LAST_SECOND:
            raise LedgerError("a spent name must be kept until some time in seconds since the epoch")
        return await self.join((name, math.ceil(until)))

    @override
    async def _commit(self, waiters: Sequence[Waiter[Redemption, bool]]) -> None:
        now = self._clock()
        if not 0 <= now < LAST_SECOND:
            raise LedgerError("the ledger's clock is broken: it shows no time")
        fresh = await self._store.redeem_once(math.floor(now), [waiter.item for waiter in waiters])
        for waiter, is_fresh in zip(waiters, fresh, strict=True):
            waiter.resolve(is_fresh)
