"""Holdings: the slices that this process has debited and not yet spent. No I/O; safe in threads."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

from dpmesh.accounting import window_start
from dpmesh.ledger.budget import Budget, Charge

_REMEMBERED = 4096  # accounts per budget whose standing is known although nothing is held of them

Key = tuple[int, bytes]
"""(index into the budgets, the unit's canonical bytes)."""


class _Lease:
    """What is left of one account's slices, and what all holders have debited from it."""

    __slots__ = ("debited", "left")

    def __init__(self, left: int, debited: int) -> None:
        self.left = left
        self.debited = debited


class _Window:
    """One budget's leases, all of one window; a new window begins with none."""

    __slots__ = ("cap", "end", "leases", "length", "start", "used_up")

    def __init__(self, budget: Budget) -> None:
        self.length = budget.window
        self.cap = budget.cap
        self.begin(0)

    def begin(self, start: int) -> None:
        self.start = start
        self.end = math.inf if self.length is None else start + self.length
        self.leases: dict[bytes, _Lease] = {}
        self.used_up: dict[bytes, int] = {}  # account: debited

    def keep(self, key: bytes, left: int, debited: int) -> None:
        if left > 0:
            self.leases[key] = _Lease(left, debited)
            self.used_up.pop(key, None)
        else:
            self.remember(key, debited)

    def remember(self, key: bytes, debited: int) -> None:
        self.used_up[key] = debited
        if len(self.used_up) > _REMEMBERED:
            del self.used_up[next(iter(self.used_up))]


class Holdings:
    """The leases of one process, by budget and account.

    Args:
        clock: Seconds since the epoch. It may jump; windows here never move back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._windows: dict[int, _Window] = {}

    def start(self, budgets: Sequence[Budget], starts: Sequence[int]) -> None:
        """Begins with nothing held.

        Args:
            budgets: The ledger's budgets.
            starts: For each, the latest window that any holder ever charged.
        """
        windows = {index: _Window(budget) for index, budget in enumerate(budgets)}
        for index, start in enumerate(starts):
            windows[index].begin(start)
        with self._lock:
            self._windows = windows

    def spend(self, charges: Sequence[Charge]) -> bool:
        """Pays for all charges from what is held, or for none. The hot path: no I/O, one lock.

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
                    self._roll(now)
                    break
                lease = window.leases.get(key)
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
                given_back = windows[budget].leases.get(key)
                if given_back is not None:  # None: its window ended just now
                    given_back.left += amount
        return False

    def standing(self, budget: int, key: bytes) -> tuple[int, int] | None:
        """What an account has (spent, cap) in the window in force, as far as this process knows.

        Other holders' slices count as spent. None if this process doesn't know the account (any more).
        """
        now = self._clock()
        with self._lock:
            window = self._windows.get(budget)
            if window is None or not now < window.end:
                return None
            lease = window.leases.get(key)
            if lease is not None:
                return lease.debited - lease.left, window.cap
            debited = window.used_up.get(key)
            return None if debited is None else (debited, window.cap)

    def roll(self, now: float) -> tuple[int, ...]:
        """Begins the windows that are due.

        Args:
            now: Seconds since the epoch.

        Returns:
            For each budget, when the window in force began.

        Raises:
            ValueError: now is not a time.
        """
        with self._lock:
            for window in self._windows.values():
                self._advance(window, window_start(now, window.length))
            return self._starts()

    def take(self, keys: Iterable[Key]) -> tuple[tuple[int, ...], dict[Key, tuple[int, int]]]:
        """Takes these accounts' leases away, while the store decides.

        Returns:
            For each budget, when the window in force began; for each account, what was left of its slices and
            what all holders had debited, (0, 0) where nothing was held.
        """
        with self._lock:
            taken = {}
            for budget, key in keys:
                lease = self._windows[budget].leases.pop(key, None)
                taken[budget, key] = (0, 0) if lease is None else (lease.left, lease.debited)
            return self._starts(), taken

    def put(self, starts: Sequence[int], leases: Mapping[Key, tuple[int, int]]) -> None:
        """Puts leases back; nothing where the window is over, or after `clear`.

        Args:
            starts: For each budget, the window that the leases belong to.
            leases: For each account, what is left, and what all holders have debited.
        """
        with self._lock:
            for index, window in self._windows.items():
                self._advance(window, starts[index])
            for (budget, key), (left, debited) in leases.items():
                window_now = self._windows.get(budget)
                if window_now is not None and window_now.start == starts[budget]:
                    window_now.keep(key, left, debited)

    def end(self, budget: int) -> float:
        """When the window in force ends, in seconds since the epoch; infinite for lifetime."""
        with self._lock:
            window = self._windows.get(budget)
            return math.inf if window is None else window.end

    def clear(self) -> tuple[tuple[int, ...], dict[Key, int]]:
        """Takes everything; from now on nothing can be spent.

        Returns:
            For each budget, when the window in force began; for each account, what was left.
        """
        with self._lock:
            starts = self._starts()
            left = {
                (index, key): lease.left
                for index, window in self._windows.items()
                for key, lease in window.leases.items()
            }
            self._windows = {}
        return starts, left

    def forked(self) -> None:
        """Forgets all leases: they are the parent's. Called in a forked child."""
        self._lock = threading.Lock()  # the parent's may be held by a thread that doesn't exist here
        for window in self._windows.values():
            window.begin(window.start)

    def _starts(self) -> tuple[int, ...]:
        return tuple(self._windows[index].start for index in range(len(self._windows)))

    def _roll(self, now: float) -> None:
        """Begins the windows that are due, if the clock shows a time at all. The lock is held."""
        with suppress(ValueError):
            for window in self._windows.values():
                self._advance(window, window_start(now, window.length))

    def _drop_empty(self, charges: Sequence[Charge]) -> None:
        """Forgets the leases that a payment used up. The lock is held."""
        for budget, key, _ in charges:
            window = self._windows[budget]
            lease = window.leases.get(key)
            if lease is not None and not lease.left:
                del window.leases[key]
                window.remember(key, lease.debited)

    @staticmethod
    def _advance(window: _Window, start: int) -> None:
        if start > window.start:
            window.begin(start)
