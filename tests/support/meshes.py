"""Meshes put together from parts: a test hands in the ledger, the clocks or the telemetry that it is about."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from dpmesh import Mesh
from dpmesh.config import budgets, load
from dpmesh.ledger import Charge, Ledger, Store, open_store
from dpmesh.policy import Policy
from tests.support.steady import no_time_passes


class WatchedLedger(Ledger):
    """Remembers what it was asked to pay.

    Attributes:
        bills: What held leases were asked to pay, paid or not.
        charges: What `charge` was asked to pay.
        before_charge: Awaited before each charge.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.bills: list[Sequence[Charge]] = []
        self.charges: list[Sequence[Charge]] = []
        self.before_charge: Callable[[], Awaitable[None]] | None = None
        spend = self.spend

        def watched(charges: Sequence[Charge]) -> bool:
            self.bills.append(charges)
            return spend(charges)

        self.spend = watched

    async def charge(self, charges: Sequence[Charge]) -> None:
        self.charges.append(charges)
        if self.before_charge is not None:
            await self.before_charge()
        await super().charge(charges)


SteadyLedger = partial(WatchedLedger, monotonic=no_time_passes)
"""A ledger whose leases are as large on a machine that stalls between two charges."""


def assembled(
    config: Mapping[str, Any],
    *,
    policy: Any = None,
    clock: Callable[[], float] = time.time,
    ledger: Callable[..., Ledger] = WatchedLedger,
    store: Store | None = None,
    **parts: Any,
) -> Mesh:
    """What dpmesh.open makes of a configuration, with other parts.

    Args:
        config: What dpmesh.toml holds.
        policy: Overlays.
        clock: Seconds since 1970.
        ledger: Makes the ledger.
        store: The ledger's store; the configuration's by default.
        parts: What else the mesh is handed.
    """
    settings = load(config)
    made = ledger(store or open_store(settings.ledger.url), budgets(settings), clock=clock)
    return Mesh(Policy(policy), made, mode=settings.mode, grpc=settings.grpc, **parts)
