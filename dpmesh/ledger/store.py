"""What the ledger asks of a store, and what a store decides: the same for all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dpmesh.ledger.budget import Budget

ACCOUNT_BYTES = 16
SECRET_BYTES = 32
NAME_BYTES = 32
LAST_SECOND = 1 << 62
"""No time is later, whatever a clock or a caller says."""

AccountId = tuple[int, bytes]
"""(index into the budgets the store was opened with, keyed hash of the unit)."""


def account_hash(secret: bytes, unit: bytes) -> bytes:
    """The name under which a unit's account is stored: a hash keyed with the ledger's secret, never the id.

    Args:
        secret: The ledger's secret, 32 bytes.
        unit: The unit's canonical bytes; b"" is the one account of a global budget.
    """
    return hashlib.blake2b(unit, digest_size=ACCOUNT_BYTES, key=secret, person=b"dpmesh account").digest()


@dataclass(frozen=True, slots=True)
class Account:
    """What one account was charged in the last window in which it was charged anything.

    Attributes:
        budget: The budget's name.
        account: The keyed hash of the unit, in hex.
        window_start: When that window began, in seconds since the epoch; 0 for lifetime.
        window_end: When it ends, or None for lifetime.
        spent: What is debited, slices included that a holder has not used yet; a ledger amount.
        cap: What the budget lets every account be debited in one window.
        granted: By how much the cap was raised for this account in this window.
        lifetime: The odometer: what was debited in all windows together. Windows renew; this never does.
    """

    budget: str
    account: str
    window_start: int
    window_end: int | None
    spent: int
    cap: int
    granted: int
    lifetime: int

    def holds(self, now: float) -> bool:
        """Whether `now` is not beyond the window that the account was last charged in."""
        return self.window_end is None or now < self.window_end

    def spent_at(self, now: float) -> int:
        """What is spent of the window that holds `now`: nothing once a new one has begun."""
        return self.spent if self.holds(now) else 0

    def cap_at(self, now: float) -> int:
        """What may be debited in the window that holds `now`."""
        return self.cap + self.granted if self.holds(now) else self.cap


@dataclass(frozen=True, slots=True)
class Opened:
    """What a store tells the ledger at the start.

    Attributes:
        secret: 32 bytes, made with the ledger and as durable as it.
        windows: For each budget, the latest window that any holder ever charged: time never moves back.
        others: Budgets that the store holds and that it was opened without, if anything is spent of them in their
            latest window; each with the time when that window began.
    """

    secret: bytes = field(repr=False)
    windows: tuple[int, ...]
    others: tuple[tuple[Budget, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests that are decided, and committed, together.

    Attributes:
        windows: For each budget, when the window in force began by the holder's clock.
        held: For each account in question, what the holder has left of an earlier slice (in `windows`).
        requests: The amounts that each wants from its accounts, all or nothing.
        wants: For accounts that the holder charges often, how much it would use before long.
        known: For each account, what all holders had debited when this holder last heard of it (in `windows`). It may
            be out of date: good for a first guess, never for a decision.
    """

    windows: tuple[int, ...]
    held: Mapping[AccountId, int]
    requests: Sequence[Mapping[AccountId, int]]
    wants: Mapping[AccountId, int] = field(default_factory=dict)
    known: Mapping[AccountId, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a batch.

    Attributes:
        windows: For each budget, when the window began that the batch was charged to.
        lacking: For each request, None if it was admitted, or the first budget that doesn't cover it.
        debits: What is to be debited durably, slices included.
        left: For each account, what the holder has left in `windows`.
        debited: For each account, what all holders have debited in `windows`, after the batch.
        caps: For each account, what may be debited in `windows`, grants included.
    """

    windows: tuple[int, ...]
    lacking: Sequence[int | None]
    debits: Mapping[AccountId, int]
    left: Mapping[AccountId, int]
    debited: Mapping[AccountId, int]
    caps: Mapping[AccountId, int]


def decide(
    batch: Batch, caps: Mapping[AccountId, int], windows: tuple[int, ...], debited: Mapping[AccountId, int]
) -> Outcome:
    """Admits requests in their order, each all or nothing, and sizes the slices. Pure.

    A request is admitted if every account it names has its amount left: the cap, less what all holders have
    debited, plus what this holder has in hand. Only after all were decided is a slice larger than the need
    taken, so a slice never makes a request of the batch fail. A slice is at most what the holder would use before
    long at its rate, what the account already used in this window (a unit that sends once wastes nothing) and a
    quarter of what remains (other holders find some).

    Args:
        batch: What is asked.
        caps: For each account of `batch.held`, what may be debited in a window.
        windows: For each budget, when the window in force began; never before `batch.windows`.
        debited: For each account of `batch.held`, what is debited in that window so far.
    """
    # What was held in an older window is worthless in this one.
    held = {a: amount if windows[a[0]] == batch.windows[a[0]] else 0 for a, amount in batch.held.items()}
    free = {a: caps[a] - debited[a] + amount for a, amount in held.items()}
    drawn = dict.fromkeys(held, 0)
    largest = dict.fromkeys(held, 1)
    lacking: list[int | None] = []
    for request in batch.requests:
        short = next((a[0] for a, amount in request.items() if free[a] < amount), None)
        lacking.append(short)
        if short is None:
            for a, amount in request.items():
                free[a] -= amount
                drawn[a] += amount
                largest[a] = max(largest[a], amount)
    debits = {}
    for a, amount in drawn.items():
        need = amount - held[a]
        if need > 0:
            slice_ = min(batch.wants.get(a, 0), debited[a], (caps[a] - debited[a]) // 4)
            # Whole charges: what is left of a slice in the end would be too little for anybody.
            debits[a] = need + max(0, slice_ - need) // largest[a] * largest[a]
    return Outcome(
        windows=windows,
        lacking=lacking,
        debits=debits,
        left={a: held[a] + debits.get(a, 0) - drawn[a] for a in held},
        debited={a: debited[a] + debits.get(a, 0) for a in held},
        caps=caps,
    )


class Store(Protocol):
    """Where debits are kept. Every store passes tests/contract.

    The ledger calls one method at a time, except `accounts`, `spend_once` and `ping`. Each raises LedgerError if the
    store can't answer; then it is unknown whether the call took effect, and the ledger counts it as spent.

    Attributes:
        clock: The store's own clock, in seconds since the epoch, for stores that have one: windows follow it. None:
            they follow the holders' clocks.
    """

    clock: Callable[[], float] | None

    async def open(self, budgets: Sequence[Budget]) -> Opened:
        """Opens the store, and makes it first where there is none.

        Raises:
            ConfigError: A budget's key, accounting or window is not what the store holds.
            LedgerError: The store can't be opened.
        """

    async def debit(self, batch: Batch) -> Outcome:
        """Decides a batch by `decide` on the latest state, and returns once the debits are durable.

        Windows never move back: those in force are the latest ever charged, or the batch's, or, where the store has a
        clock, the clock's, if that is later.

        Raises:
            LedgerError: The store can't answer.
        """

    async def credit(self, windows: tuple[int, ...], unspent: Mapping[AccountId, int]) -> None:
        """Returns what a holder has left of its slices of these windows; the odometer alone where a new one has begun.

        Raises:
            LedgerError: The store can't answer.
        """

    async def spend_once(self, now: int, spends: Sequence[tuple[bytes, int]]) -> list[bool]:
        """Spends names, and returns once that is durable. For each: whether it was not spent before, by anybody.

        The store's time is the latest that any holder gave, and never moves back. A name may be forgotten once that
        time has reached the second that came with it; from then on the name with that second counts as spent.

        Args:
            now: The holder's time, in seconds since the epoch.
            spends: (32 bytes, the second in which they may be forgotten) each, the same second for a name each time.

        Raises:
            LedgerError: The store can't answer.
        """

    async def accounts(self, budget: str | None, account: bytes | None) -> list[Account]:
        """All accounts, or those of one budget, or of one unit's hash, ordered by budget and hash.

        Raises:
            LedgerError: The store can't answer.
        """

    async def ping(self) -> None:
        """Asks whether the store could take a debit now.

        Raises:
            LedgerError: It couldn't.
        """

    async def close(self) -> None:
        """Lets go of everything. A closed store may be opened again."""

    def forked(self) -> None:
        """Called in a forked child: forget what belongs to the parent, and don't touch it."""
