"""Bringing back windows that a wrong clock began: what was spent in them counts in one that is about to begin.

Windows never move back by themselves, or a clock that is set back would refill budgets. So one clock that shows a time
far ahead locks a ledger until then, with no more than one cap for all of that time. `dpmesh ledger accept` undoes it.
A budget goes on in the window after the present one, as after any accept, and every account that was charged in a later
one has all of that debited there. Nothing is refilled: the next window pays for what the wrong ones gave. Pure
functions, no I/O.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from dpmesh.accounting import MAX_AMOUNT, window_start
from dpmesh.ledger.budget import Budget
from dpmesh.ledger.charge_log import Entry, EntryKind, Posting

AT_ONCE = 2000
"""How many accounts one entry of the charge log is about."""

Key = tuple[int, bytes]
"""(the budget's number in the ledger, the account's hash)."""


class Net(NamedTuple):
    """What the charge log says of one account in one window."""

    debited: int = 0
    granted: int = 0


@dataclass(frozen=True, slots=True)
class Carried:
    """An account after it was carried.

    Attributes:
        debited: In the target window.
        granted: In the target window; what was granted in later ones is gone.
        more: What the odometer has to count in addition, because the log can't tell what it was.
        debits: Lines that move the debits, first the one of the target window.
        grants: Lines that take back the grants of later windows.
    """

    debited: int
    granted: int
    more: int
    debits: tuple[Posting, ...]
    grants: tuple[Posting, ...]


def target(now: float, length: float, accepted: int) -> int:
    """The window that a budget goes on in: the latest that no wrong clock is needed for.

    Args:
        now: Seconds since the epoch.
        length: The window's length in seconds.
        accepted: How many older copies were accepted. Each may have moved the window by one, for good reason.
    """
    return window_start(now, length) + int(length) * max(1, accepted)


def ahead(
    budgets: Mapping[int, Budget], windows: Mapping[int, int], now: float, accepted: int
) -> dict[int, int]:
    """The budgets whose windows a wrong clock began, by number, and where they have to go on.

    Args:
        budgets: By number.
        windows: For each, the latest window that was ever in force.
        now: Seconds since the epoch.
        accepted: As in `target`.
    """
    found = {}
    for number, budget in budgets.items():
        if budget.window is not None and windows[number] > (at := target(now, budget.window, accepted)):
            found[number] = at
    return found


def accepted_copies(entries: Iterable[Entry]) -> int:
    """How many older copies were accepted, as the charge log tells."""
    return sum(entry.kind is EntryKind.ACCEPT and not entry.lines for entry in entries)


class Nets:
    """What the charge log says of accounts in their target windows and later ones.

    Args:
        keys: The accounts.
        targets: For each budget, its target window.
    """

    def __init__(self, keys: Collection[Key], targets: Mapping[int, int]) -> None:
        self._keys = keys
        self._targets = targets
        self._found: dict[Key, dict[int, Net]] = defaultdict(dict)

    def add(self, entry: Entry) -> None:
        """Counts an entry. The order doesn't matter."""
        for line in entry.lines:
            if line[:2] in self._keys and line.window >= self._targets[line.budget]:
                add(self._found[line[:2]], entry.kind, line)

    def of(self, key: Key) -> Mapping[int, Net]:
        """What was charged to an account, by windows."""
        return self._found.get(key, {})


def add(windows: dict[int, Net], kind: EntryKind, line: Posting) -> None:
    """Counts a line of an account in its window."""
    net = windows.get(line.window, Net())
    if kind is EntryKind.GRANT:
        windows[line.window] = net._replace(granted=net.granted + line.amount)
    else:
        windows[line.window] = net._replace(debited=net.debited + line.amount)


def carry(
    key: Key,
    row: tuple[int, int],
    windows: Mapping[int, Net],
    at: int,
    *,
    cap: int,
    whole: bool,
) -> Carried:
    """Carries one account into its target window.

    Args:
        key: The account.
        row: Its window, which is a later one, and what it is debited there.
        windows: What the charge log says of it (`Nets`).
        at: The target window.
        cap: The budget's cap.
        whole: Whether the log goes back to the target window. If not, the account counts as spent.
    """
    start, debited = row
    known = {start: Net(), **windows}
    logged = sum(net.debited for net in known.values())
    # The account itself may know more of its last window than a log that was pruned.
    total = max(0, logged) + max(0, debited - known[start].debited)
    if not whole:
        total = max(total, cap)
    total = min(total, MAX_AMOUNT)
    here = known.pop(at, Net())
    later = sorted(known.items())
    debits = [Posting(*key, at, total - here.debited), *[Posting(*key, w, -net.debited) for w, net in later]]
    grants = [Posting(*key, w, -net.granted) for w, net in later if net.granted]
    return Carried(total, max(0, here.granted), total - logged, tuple(debits), tuple(grants))


def entries(carried: Iterable[Carried]) -> Iterator[tuple[EntryKind, list[Posting]]]:
    """The entries of the charge log that say what was carried: all of an account's debits in one, and one at least."""
    rest = list(carried)
    if not rest:
        yield EntryKind.ACCEPT, []
    for first in range(0, len(rest), AT_ONCE):
        part = rest[first : first + AT_ONCE]
        yield EntryKind.ACCEPT, [line for one in part for line in one.debits]
        if grants := [line for one in part for line in one.grants]:
            yield EntryKind.GRANT, grants


def retracted(entry: Entry) -> Iterator[tuple[Key, int]]:
    """The accounts and windows that an entry of `entries` took everything out of."""
    if entry.kind is EntryKind.ACCEPT:
        before: Key | None = None
        for line in entry.lines:  # ordered, and an account's target window is the earliest
            if line[:2] == before:
                yield line[:2], line.window
            before = line[:2]
