"""LeaseTable: what this process has debited and not yet spent. No I/O; any thread may use it.

How it works: a lease is a slice of one account's budget, which the store debited for this process. Each lease is in one
of four states. Each budget has one window in force, and its leases belong to that window.

    state    event                                        next state
    in use   `spend` pays from it, and something is left  in use
    in use   `spend` takes the last of it                 used up: nothing is held, but its usage is known
    in use   `rotate`                                     idle
    idle     `spend` pays from it                         in use
    idle     `rotate` a second time                       gone: `rotate` returns what was left, to be credited
    any      `take`                                       gone, while the store decides; `put` brings it back
    any      the window ends                              gone: `ended` returns what was left, for the odometer
    any      the window's cap falls                       gone: `ended` returns what was left, to be credited
    any      `clear`, `drop` or a fork                    gone
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from dpmesh.accounting import window_start
from dpmesh.ledger.budget import Budget, Charge
from dpmesh.ledger.store import Window, first_window

_REMEMBERED = 4096  # accounts per budget whose usage is known although nothing is leased of them
_AHEAD_SECONDS = 2.0  # a slice covers what the process would use in this time

Key = tuple[int, bytes]
"""(index into the budgets, the unit's canonical bytes)."""

Unspent = tuple[tuple[int, ...], dict[Key, int]]
"""(for each budget, when the window began; for each account, what was left in it)."""

_NO_CAPS: Mapping[Key, int] = {}


@dataclass(slots=True)
class Lease:
    """What is left of one account's slices, and what all holders have debited from it.

    Attributes:
        left: What may be spent; a ledger amount.
        debited: What all holders had debited when the slice was taken.
        size: What was leased then, with what was used at once.
        since: When that was, on the monotonic clock. Leases that were taken together share the object.
    """

    left: int
    debited: int
    size: int
    since: float

    def forecast(self, now: float) -> int:
        """What is going to be used before long, at the rate at which this lease was used."""
        used = self.size - self.left
        return int(used * _AHEAD_SECONDS / max(now - self.since, 1e-3))


class _Window:
    """One budget's leases in the window in force: in use, idle, or used up. A new window begins with none.

    `budget` has the terms that this process begins windows with.
    """

    __slots__ = ("budget", "cap", "end", "idle", "in_use", "raised", "start", "used_up")

    def __init__(self, budget: Budget, window: Window) -> None:
        self.budget = budget
        self.begin(window)

    def begin(self, window: Window) -> None:
        self.start, self.end, self.cap = window.start, window.end, window.cap
        self.in_use: dict[bytes, Lease] = {}
        self.idle: dict[bytes, Lease] = {}
        self.used_up: dict[bytes, Lease] = {}
        self.raised: dict[bytes, int] = {}  # caps that an administrator raised

    def revive(self, key: bytes) -> Lease | None:
        """Moves an idle lease back into use."""
        lease = self.idle.pop(key, None)
        if lease is not None:
            self.in_use[key] = lease
        return lease

    def known(self, key: bytes) -> Lease | None:
        """The account's lease, used up or not."""
        return self.in_use.get(key) or self.idle.get(key) or self.used_up.get(key)

    def pop(self, key: bytes) -> Lease | None:
        """Removes an account's lease, and returns it; a used-up lease is returned and stays."""
        lease = self.in_use.pop(key, None) or self.idle.pop(key, None)
        return self.used_up.get(key) if lease is None else lease

    def keep(self, key: bytes, lease: Lease) -> None:
        """Adds a lease, in use or used up."""
        self.used_up.pop(key, None)
        if lease.left > 0:
            self.in_use[key] = lease
        else:
            self.used_up[key] = lease  # behind all others: the youngest is forgotten last
            if len(self.used_up) > _REMEMBERED:
                del self.used_up[next(iter(self.used_up))]

    def raise_cap(self, key: bytes, cap: int) -> None:
        """Notes an account's cap, where it differs from the budget's."""
        if cap != self.cap:
            self.raised[key] = cap
        elif self.raised:
            self.raised.pop(key, None)

    def lower_cap(self, cap: int) -> list[dict[bytes, Lease]]:
        """Notes that the budget's cap fell; removes all leases and returns them."""
        self.raised = {key: raised - (self.cap - cap) for key, raised in self.raised.items()}
        self.cap = cap
        removed, self.in_use, self.idle = [self.in_use, self.idle], {}, {}
        return removed

    def rotate(self) -> dict[bytes, int]:
        """Removes the idle leases, and makes those in use idle; returns what was left of the removed ones."""
        unused, self.idle, self.in_use = self.idle, self.in_use, {}
        return {key: lease.left for key, lease in unused.items()}


class LeaseTable:
    """The leases of one process, by budget and account.

    Args:
        clock: Seconds since the epoch. It may jump; windows here never move back.

    Attributes:
        latest_start: When the latest of all windows in force began, in seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._windows: dict[int, _Window] = {}
        self.latest_start = 0
        # Leases that can't be spent any more, because their window ended or its cap fell: (all windows' starts, budget,
        # leases).
        self._ended: list[tuple[tuple[int, ...], int, dict[bytes, Lease]]] = []

    def start(self, budgets: Sequence[Budget], windows: Sequence[Window]) -> None:
        """Begins without any lease, for each budget in the latest window that was in force for any holder."""
        pairs = zip(budgets, windows, strict=True)
        begun = {index: _Window(budget, window) for index, (budget, window) in enumerate(pairs)}
        with self._lock:
            self._windows, self._ended = begun, []
            self.latest_start = max((window.start for window in windows), default=0)

    def adopt(self, budgets: Sequence[Budget], windows: Sequence[Window]) -> None:
        """Takes other terms for budgets, and new budgets behind them. Where a cap fell, no lease is left.

        Args:
            budgets: All budgets.
            windows: For each budget, the window in force.
        """
        with self._lock:
            for index, (budget, window) in enumerate(zip(budgets, windows, strict=True)):
                if index in self._windows:
                    self._windows[index].budget = budget
                else:
                    self._windows[index] = _Window(budget, window)
                    self.latest_start = max(self.latest_start, window.start)
            self._settle(windows)

    def settle(self, windows: Sequence[Window]) -> None:
        """Notes the windows in force, of which the store knows best. Where a cap fell, no lease is left."""
        with self._lock:
            if self._windows:
                self._settle(windows)

    def spend(self, charges: Sequence[Charge]) -> bool:
        """Pays for all charges from leases, or for none. The hot path: no I/O, one lock.

        Returns:
            Whether everything was paid for.
        """
        now = self._clock()
        paid = 0
        emptied = False
        with self._lock:
            windows = self._windows
            for budget, key, amount in charges:
                window = windows.get(budget)
                if window is None:
                    break
                if not now < window.end:  # also when now is NaN
                    with suppress(ValueError):
                        self._roll(now)
                    break
                lease = window.in_use.get(key) or window.revive(key)
                if lease is None or amount.__class__ is not int or not 0 <= amount <= lease.left:
                    break
                lease.left -= amount
                paid += 1
                if not lease.left:
                    emptied = True
            else:
                if emptied:
                    self._drop_empty(charges)
                return True
            for budget, key, amount in charges[:paid]:
                paid_from = windows[budget].in_use.get(key)
                if paid_from is not None:  # None: its window ended just now
                    paid_from.left += amount
        return False

    def usage(self, budget: int, key: bytes) -> tuple[int, int] | None:
        """The answer to Ledger.usage. What other holders leased counts as spent."""
        now = self._clock()
        with self._lock:
            window = self._windows.get(budget)
            if window is None or not now < window.end:
                return None
            lease = window.known(key)
            if lease is None:
                return None
            cap = window.raised.get(key, window.cap) if window.raised else window.cap
            return lease.debited - lease.left, cap

    def roll(self, now: float) -> None:
        """Begins the windows that are due.

        Raises:
            ValueError: now is not a time.
        """
        with self._lock:
            self._roll(now)

    def take(self, keys: Iterable[Key]) -> tuple[tuple[int, ...], dict[Key, Lease]]:
        """Removes these accounts' leases, while the store decides.

        Returns:
            For each budget, when the window in force began; for each account that is known, its lease, used up or not.
        """
        with self._lock:
            taken = {}
            for key in keys:
                lease = self._windows[key[0]].pop(key[1])
                if lease is not None:
                    taken[key] = lease
            return self._starts(), taken

    def put(
        self, starts: Sequence[int], leases: Mapping[Key, Lease], caps: Mapping[Key, int] = _NO_CAPS
    ) -> None:
        """Adds leases. Where their window is over, they join the ended ones; after `clear` they are forgotten.

        Args:
            starts: For each budget, the window that the leases belong to.
            leases: By account.
            caps: What accounts may be debited, as far as the store said so.
        """
        with self._lock:
            for (budget, key), lease in leases.items():
                window = self._windows.get(budget)
                if window is None:
                    continue
                if window.start != starts[budget]:
                    self._ended.append((tuple(starts), budget, {key: lease}))
                    continue
                window.keep(key, lease)
                cap = caps.get((budget, key))
                if cap is not None:
                    window.raise_cap(key, cap)

    def rotate(self) -> Unspent:
        """Removes the leases that nobody used since the last call, and returns them."""
        with self._lock:
            left = {
                (index, key): amount
                for index, window in self._windows.items()
                for key, amount in window.rotate().items()
            }
            return self._starts(), left

    def ended(self) -> list[Unspent]:
        """What was left where windows ended, or caps fell, since the last call. It can't be spent any more."""
        with self._lock:
            ended, self._ended = self._ended, []
        found = []
        for starts, budget, leases in ended:
            left = {(budget, key): lease.left for key, lease in leases.items() if lease.left}
            if left:
                found.append((starts, left))
        return found

    def any_left(self) -> bool:
        """Whether anything is left of any lease."""
        with self._lock:
            return any(window.in_use or window.idle for window in self._windows.values())

    def end(self, budget: int) -> float:
        """When the window in force ends, in seconds since the epoch; infinite for lifetime."""
        with self._lock:
            window = self._windows.get(budget)
            return math.inf if window is None else window.end

    def is_whole(self, budget: int, epoch: float) -> bool:
        """The answer to Ledger.is_whole."""
        now = self._clock()
        with self._lock:
            with suppress(ValueError):
                self._roll(now)
            window = self._windows.get(budget)
            if window is None:
                return False
            return not window.start % epoch and (window.end == math.inf or not window.end % epoch)

    def clear(self) -> Unspent:
        """Removes all leases, and returns them. From now on nothing can be spent."""
        with self._lock:
            starts = self._starts()
            left = {
                (index, key): lease.left
                for index, window in self._windows.items()
                for leases in (window.in_use, window.idle)
                for key, lease in leases.items()
            }
            self._windows = {}
        return starts, left

    def drop(self) -> None:
        """Forgets all leases, because the store has forgotten that they were debited."""
        with self._lock:
            self._ended = []
            for window in self._windows.values():
                window.in_use, window.idle, window.used_up, window.raised = {}, {}, {}, {}

    def after_fork_in_child(self) -> None:
        """Forgets all leases: they are the parent's."""
        self._lock = threading.Lock()  # the parent's may be held by a thread that doesn't exist here
        self.drop()

    def _starts(self) -> tuple[int, ...]:
        return tuple(self._windows[index].start for index in range(len(self._windows)))

    def _roll(self, now: float) -> None:
        """Begins the windows that are due. The caller holds the lock."""
        for index, window in self._windows.items():
            start = window_start(now, window.budget.window)
            if now >= window.end:
                # The store may know of another window that holds this time, and `settle` takes it then.
                following = first_window(window.budget)
                self._begin(index, following._replace(start=max(int(window.end), start)))

    def _settle(self, windows: Sequence[Window]) -> None:
        """Takes the windows that are in force by the store. The caller holds the lock."""
        for index, window in enumerate(windows):
            mine = self._windows[index]
            if (window.start, window.end) != (mine.start, mine.end):
                # It may be an earlier one, if this process began one by its own terms, which nobody charged.
                if window.end > mine.start:
                    self._begin(index, window)
            elif window.cap < mine.cap:
                starts = self._starts()
                self._ended += [(starts, index, leases) for leases in mine.lower_cap(window.cap) if leases]

    def _drop_empty(self, charges: Sequence[Charge]) -> None:
        """Forgets the leases that a payment used up. The caller holds the lock."""
        for budget, key, _ in charges:
            window = self._windows[budget]
            lease = window.in_use.get(key)
            if lease is not None and not lease.left:
                del window.in_use[key]
                window.keep(key, lease)

    def _begin(self, index: int, window: Window) -> None:
        """Begins another window of a budget. The caller holds the lock."""
        mine, starts = self._windows[index], self._starts()
        self._ended += [(starts, index, leases) for leases in (mine.in_use, mine.idle) if leases]
        mine.begin(window)
        self.latest_start = max(self.latest_start, window.start)
