"""Store: what keeps the debits; and `decide`, by which every store admits or denies charges."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from dpmesh.accounting import MAX_AMOUNT, window_end, window_start
from dpmesh.errors import LedgerError
from dpmesh.ledger.budget import Budget

ACCOUNT_BYTES = 16
SECRET_BYTES = 32
KEY_BYTES = 32
NAME_BYTES = 32
LAST_SECOND = 1 << 62
"""The latest time that a clock or a caller may give, in seconds since the epoch."""

AccountId = tuple[int, bytes]
"""(index into the budgets the store was opened with, keyed hash of the unit)."""

_NOTHING: Mapping[AccountId, int] = {}


def account_hash(secret: bytes, unit: bytes) -> bytes:
    """The name under which a unit's account is stored: a hash keyed with the ledger's secret, never the id.

    Args:
        secret: The ledger's secret, 32 bytes.
        unit: The unit's canonical bytes; b"" is the one account of a global budget.
    """
    return hashlib.blake2b(unit, digest_size=ACCOUNT_BYTES, key=secret, person=b"dpmesh account").digest()


class Window(NamedTuple):
    """The window of a budget that is in force, for all holders.

    Attributes:
        start: When it began, in seconds since the epoch; 0 for lifetime.
        length: The budget's length when it began, in seconds; None for lifetime.
        cap: The smallest cap of all holders that opened, adopted or charged the budget in it; a ledger amount.
    """

    start: int
    length: int | None
    cap: int

    @property
    def end(self) -> float:
        """When it ends, in seconds since the epoch; infinite for lifetime. The next one may begin then, or later."""
        return math.inf if self.length is None else (self.start // self.length + 1) * self.length


def first_window(budget: Budget) -> Window:
    """The window of a budget that nobody has charged."""
    return Window(0, None if budget.window is None else int(budget.window), budget.cap)


def window_in_force(stored: Window, budget: Budget, now: float) -> Window:
    """The window in force for a holder that charges a budget. Every store writes it where it differs. Pure.

    A window keeps its beginning and its end, whatever length the holder knows. Its cap falls to the holder's, and never
    rises. The holder that begins the next window decides its length and its cap.

    Args:
        stored: The window that was in force last.
        budget: What the holder knows of the budget.
        now: Seconds since the epoch.
    """
    if now < stored.end:
        return stored._replace(cap=min(stored.cap, budget.cap))
    start = max(int(stored.end), window_start(now, budget.window))
    return first_window(budget)._replace(start=start)


def window_at_opening(stored: Window | None, budget: Budget) -> Window:
    """The window of a budget once a holder with these terms opened the store, or adopted them. Pure.

    Args:
        stored: The window that was in force last; None if the store does not know the budget.
        budget: The holder's terms.
    """
    if stored is None or (stored.start == 0 and stored.length is not None):
        return first_window(budget)  # Nothing was charged yet.
    return stored._replace(cap=min(stored.cap, budget.cap))


def account_end(start: int, window: Window) -> int | None:
    """When the window ended, or ends, that an account was charged in last. None for lifetime.

    Args:
        start: When that window began.
        window: The budget's latest window, which may have another length.
    """
    end = window_end(start, window.length)
    return min(end, window.start) if end is not None and start < window.start else end


@dataclass(frozen=True, slots=True)
class Account:
    """What one account was charged in the last window in which it was charged anything.

    Attributes:
        budget: The budget's name.
        account: The keyed hash of the unit, in hex.
        window_start: When that window began, in seconds since the epoch; 0 for lifetime.
        window_end: When it ends, or None for lifetime.
        spent: What is debited, with what holders leased and have not used yet; a ledger amount.
        cap: What every account of the budget may be debited in one window.
        granted: By how much the cap was raised for this account in this window.
        lifetime: The odometer: what was debited in all windows together. It never starts anew.
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
        """Whether the window in which the account was last charged has not ended at `now`."""
        return self.window_end is None or now < self.window_end

    def spent_at(self, now: float) -> int:
        """What is spent of the window that holds `now`: nothing once a new one has begun."""
        return self.spent if self.holds(now) else 0

    def cap_at(self, now: float) -> int:
        """What may be debited in the window that holds `now`."""
        return self.cap + self.granted if self.holds(now) else self.cap


@dataclass(frozen=True, slots=True, eq=False)
class EpochKey:
    """What pseudonyms and memoized answers of one epoch depend on.

    Attributes:
        number: How many epochs of this length there were before, since 1970.
        key: 32 random bytes, which no other epoch has, and no epoch of another length.
    """

    number: int
    key: bytes = field(repr=False)


def epoch_in_force(now: int, length: int, stored: int | None) -> int:
    """The number of the epoch whose key is in force. If it is not the stored one, a fresh key takes its place.

    After a clock that goes back into the epoch before, the later epoch goes on. If the stored epoch is further ahead, a
    wrong clock had begun it. With its key, pseudonyms would link for as long as that clock was ahead.

    Args:
        now: Microseconds since 1970.
        length: The length of an epoch, in microseconds.
        stored: The number of the epoch whose key is stored, or None.
    """
    number = now // length
    return stored if stored is not None and number <= stored <= number + 1 else number


@dataclass(frozen=True, slots=True)
class Opened:
    """What a store tells the ledger when it is opened.

    Attributes:
        secret: 32 bytes, made with the ledger and as durable as it.
        windows: For each budget, the latest window that was in force for any holder. Windows never move back.
        others: Budgets that only the store knows, if anything is spent of them in their latest window; each with the
            time when that window began.
    """

    secret: bytes = field(repr=False)
    windows: tuple[Window, ...]
    others: tuple[tuple[Budget, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests that are decided, and committed, together.

    Attributes:
        windows: For each budget, when the window in force began, as far as the holder knows.
        leased: For each account in question, what the holder has left of an earlier lease (in `windows`).
        requests: The amounts that each request charges its accounts, all or nothing.
        forecast: For accounts that the holder charges often, how much it would use before long.
        known: For each account, what all holders had debited when this holder last heard of it (in `windows`). It may
            be out of date, so it serves for a first guess, never for a decision.
        now: The holder's time, in seconds since the epoch.
    """

    windows: tuple[int, ...]
    leased: Mapping[AccountId, int]
    requests: Sequence[Mapping[AccountId, int]]
    forecast: Mapping[AccountId, int] = field(default_factory=dict)
    known: Mapping[AccountId, int] = field(default_factory=dict)
    now: float = 0.0

    def time(self, budget: int) -> float:
        """The holder's time, which is not before the window that it knows of a budget, in seconds since the epoch."""
        return max(self.now, self.windows[budget])


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a batch.

    Attributes:
        windows: For each budget, the window that the batch was charged to.
        denied_by: For each request, None if it was admitted, or the first budget that doesn't cover it.
        debits: What is to be debited durably, slices included.
        remaining: For each account, what the holder has leased in `windows` and not used.
        debited: For each account, what all holders have debited in `windows`, after the batch.
        caps: For each account, what may be debited in `windows`, grants included.
    """

    windows: tuple[Window, ...]
    denied_by: Sequence[int | None]
    debits: Mapping[AccountId, int]
    remaining: Mapping[AccountId, int]
    debited: Mapping[AccountId, int]
    caps: Mapping[AccountId, int]


def decide(
    batch: Batch,
    windows: tuple[Window, ...],
    debited: Mapping[AccountId, int],
    granted: Mapping[AccountId, int] = _NOTHING,
) -> Outcome:
    """Admits requests in their order, each all or nothing, and sizes the slices. Pure.

    A request is admitted if every account it names has its amount left: the cap, less what all holders have
    debited, plus what this holder has leased. Slices beyond the need are sized only after all requests were decided,
    so a slice never makes a request of the batch fail. A slice is at most the holder's forecast, what the account
    already used in this window (a unit that sends once wastes nothing) and a quarter of what remains (other holders
    find some).

    Args:
        batch: The requests.
        windows: For each budget, the window in force.
        debited: For each account of `batch.leased`, what is debited in that window so far.
        granted: For accounts whose cap an administrator raised in that window, by how much.
    """
    caps = {a: min(MAX_AMOUNT, windows[a[0]].cap + granted.get(a, 0)) for a in batch.leased}
    # What was leased in an older window can't be spent in this one.
    leased = {
        a: amount if windows[a[0]].start == batch.windows[a[0]] else 0 for a, amount in batch.leased.items()
    }
    free = {a: caps[a] - debited[a] + amount for a, amount in leased.items()}
    drawn = dict.fromkeys(leased, 0)
    largest = dict.fromkeys(leased, 1)
    denied_by: list[int | None] = []
    for request in batch.requests:
        short = next((a[0] for a, amount in request.items() if free[a] < amount), None)
        denied_by.append(short)
        if short is None:
            for a, amount in request.items():
                free[a] -= amount
                drawn[a] += amount
                largest[a] = max(largest[a], amount)
    debits = {}
    for a, amount in drawn.items():
        need = amount - leased[a]
        if need > 0:
            slice_ = min(batch.forecast.get(a, 0), debited[a], (caps[a] - debited[a]) // 4)
            # Whole charges: what is left of a slice in the end would be too little for any charge.
            debits[a] = need + max(0, slice_ - need) // largest[a] * largest[a]
    return Outcome(
        windows=windows,
        denied_by=denied_by,
        debits=debits,
        remaining={a: leased[a] + debits.get(a, 0) - drawn[a] for a in leased},
        debited={a: debited[a] + debits.get(a, 0) for a in leased},
        caps=caps,
    )


class Store(Protocol):
    """Where debits are kept. Every store passes tests/contract.

    The ledger calls one method at a time, except `accounts`, `redeem_once`, `redeemed`, `epoch_keys`, `record`,
    `may_adopt` and `ping`. If a method raises LedgerError, it is unknown whether the call took effect, and the ledger
    counts it as spent.

    Attributes:
        clock: The store's own clock, in seconds since the epoch, which windows follow. None: the store has none, and
            windows follow the holders' clocks.
    """

    clock: Callable[[], float] | None = None

    async def open(self, budgets: Sequence[Budget]) -> Opened:
        """Opens the store. A store that can be made without an administrator is made first where there is none.

        Raises:
            ConfigError: A budget's key or accounting is not what the store holds, or only one of the two is for a
                lifetime.
            LedgerError: The store can't be opened.
        """

    async def may_adopt(self, budgets: Sequence[Budget]) -> None:
        """Returns if budgets could be adopted now. Nothing changes.

        Raises:
            ConfigError: As of `adopt`; so is LedgerError.
        """

    async def adopt(self, budgets: Sequence[Budget], now: float) -> tuple[Window, ...]:
        """Takes other budgets in place of those that the store was opened with, all or none, and durably.

        First the windows begin that are due by `window_in_force`, under the old terms: a larger cap has to wait for the
        next window, also where nothing was charged in this one.

        Args:
            budgets: The first ones have the names and the order of those before. Those behind them are new here.
            now: The holder's time, in seconds since the epoch.

        Returns:
            For each budget, the window in force.

        Raises:
            ConfigError: As for `open`; or a lifetime budget would get a larger cap.
            LedgerError: The store can't answer. Caps may have been lowered, and `budgets` are those before.
        """

    async def debit(self, batch: Batch) -> Outcome:
        """Decides a batch by `decide` on the latest state, and returns once the debits are durable.

        The windows in force are those of `window_in_force`, by the store's clock, or `Batch.time` if it has none. They
        are the same for all holders, and never move back.

        Raises:
            LedgerError: The store can't answer.
        """

    async def credit(self, windows: tuple[int, ...], unspent: Mapping[AccountId, int]) -> None:
        """Returns what a holder leased in these windows and did not use.

        Where a later window has begun, only the odometer is credited.

        Raises:
            LedgerError: The store can't answer.
        """

    async def redeem_once(self, now: int, redemptions: Sequence[tuple[bytes, int]]) -> list[bool]:
        """Redeems names, and returns once that is durable. For each: whether nobody had redeemed it before.

        The store's time is the latest that any holder gave. A name may be forgotten once that time has reached the
        second that came with it. From then on the name with that second counts as redeemed.

        Args:
            now: The holder's time, in seconds since the epoch.
            redemptions: (32 bytes, the second in which they may be forgotten) each. A name always comes with the same
                second.

        Raises:
            LedgerError: The store can't answer.
        """

    async def redeemed(self, names: Sequence[bytes]) -> list[bool]:
        """For each name: whether it is known that somebody redeemed it. It may be forgotten, as `redeem_once` says.

        Raises:
            LedgerError: The store can't answer.
        """

    async def epoch_keys(self, now: int, lengths: Sequence[int]) -> list[EpochKey]:
        """The key of the epoch in force, for each length. It is made if there is none, and durable.

        There is one key for each length. When its epoch is over by `epoch_in_force`, a fresh one overwrites it, so that
        nobody can find it in the store any more. All holders of the store get the same keys.

        The time is the latest of the store's clock, or `now` if it has none, and of the beginnings of the windows that
        budgets were ever charged in. So each answer of an epoch is paid for in a window that holds the epoch, if the
        epoch's length divides the window's.

        Args:
            now: The holder's time, in microseconds since 1970.
            lengths: The lengths of epochs, in microseconds, each one once.

        Raises:
            LedgerError: The store can't answer.
        """

    async def accounts(self, budget: str | None, account: bytes | None) -> list[Account]:
        """All accounts, or those of one budget, or of one unit's hash, ordered by budget and hash.

        Raises:
            LedgerError: The store can't answer.
        """

    async def record(self, note: str) -> None:
        """Writes that a looser policy is about to be put in force, and returns once that is durable.

        A store with a charge log writes an entry of EntryKind.POLICY.

        Args:
            note: Which policy, and why.

        Raises:
            LedgerError: The store can't answer.
        """
        raise LedgerError(
            "this ledger's store can't record policies, so that no looser policy can be put in force"
        )

    async def ping(self) -> None:
        """Checks that the store could take a debit now.

        Raises:
            LedgerError: It could not.
        """

    async def close(self) -> None:
        """Releases all resources. A closed store may be opened again."""

    def after_fork_in_child(self) -> None:
        """Forgets what belongs to the parent, without touching it. The ledger calls it in a forked child."""
