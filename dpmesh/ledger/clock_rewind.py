"""Clock rewind: where windows continue that a wrong clock began, and where what was spent in them counts.

Windows never move back by themselves, because a clock that is set back would refill budgets. A clock that shows a time
far ahead therefore locks a ledger until that time. `dpmesh ledger accept` undoes it: the budget continues in the window
after the present one, and whatever an account was debited in later windows is debited in that one. Nothing is refilled.
Pure functions, no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from dpmesh.accounting import MAX_AMOUNT, window_start
from dpmesh.ledger.budget import Budget
from dpmesh.ledger.charge_log import Entry, EntryKind, Posting

ACCOUNTS_PER_ENTRY = 2000
"""How many accounts one entry of the charge log changes."""

Key = tuple[int, bytes]
"""(the budget's number in the ledger, the account's hash)."""


class Net(NamedTuple):
    """What the charge log says of one account in one window."""

    debited: int = 0
    granted: int = 0


Charged = dict[Key, dict[int, Net]]
"""For each account: what the charge log says of it in each window."""


@dataclass(frozen=True, slots=True)
class Carried:
    """An account after it was moved into its target window.

    Attributes:
        debited: What is debited in the target window.
        granted: What is granted in the target window. Grants in later windows are gone.
        more: What the odometer has to count in addition, because the pruned log does not have it.
        debits: Postings that move the debits; that of the target window is the first.
        grants: Postings that take back the grants of later windows.
    """

    debited: int
    granted: int
    more: int
    debits: tuple[Posting, ...]
    grants: tuple[Posting, ...]


def ahead(
    budgets: Mapping[int, Budget], windows: Mapping[int, int], now: float, accepted: int
) -> dict[int, int]:
    """The budgets whose windows began by a wrong clock, by number, and the windows in which they have to continue.

    A budget continues in the latest window that it can have reached by a right clock.

    Args:
        budgets: By number.
        windows: For each budget, the latest window that was ever in force.
        now: Seconds since the epoch.
        accepted: How many older copies were accepted. Each may have moved the window by one, for good reason.
    """
    found = {}
    for number, budget in budgets.items():
        if budget.window is not None:
            at = window_start(now, budget.window) + int(budget.window) * max(1, accepted)
            if windows[number] > at:
                found[number] = at
    return found


def accepted_copies(entries: Iterable[Entry]) -> int:
    """How many older copies were accepted, by the charge log."""
    return sum(entry.kind is EntryKind.ACCEPT and not entry.postings for entry in entries)


def count(entry: Entry, charged: Charged, since: Mapping[int, int]) -> None:
    """Adds an entry to what accounts were charged. The order of entries doesn't matter.

    Args:
        entry: The entry.
        charged: The accounts in question, and what was counted so far. Other accounts don't count.
        since: For each budget, the first window that counts; all windows if it is missing.
    """
    for posting in entry.postings:
        windows = charged.get(posting[:2])
        if windows is None or posting.window < since.get(posting.budget, 0):
            continue
        net = windows.get(posting.window, Net())
        if entry.kind is EntryKind.GRANT:
            windows[posting.window] = net._replace(granted=net.granted + posting.amount)
        else:
            windows[posting.window] = net._replace(debited=net.debited + posting.amount)


def carry(
    key: Key, row: tuple[int, int], windows: Mapping[int, Net], at: int, *, cap: int, complete: bool
) -> Carried:
    """Moves one account into its target window.

    Args:
        key: The account.
        row: Its window, which is a later one, and what it is debited there.
        windows: What the charge log says of it (`count`).
        at: The target window.
        cap: The budget's cap.
        complete: Whether the log goes back to the target window. If not, the account counts as spent.
    """
    start, debited = row
    known = {start: Net(), **windows}
    logged = sum(net.debited for net in known.values())
    # The account itself may know more of its last window than a log that was pruned.
    total = max(0, logged) + max(0, debited - known[start].debited)
    if not complete:
        total = max(total, cap)
    total = min(total, MAX_AMOUNT)
    target_net = known.pop(at, Net())
    later = sorted(known.items())
    debits = [
        Posting(*key, at, total - target_net.debited),
        *[Posting(*key, w, -net.debited) for w, net in later],
    ]
    grants = [Posting(*key, w, -net.granted) for w, net in later if net.granted]
    return Carried(total, max(0, target_net.granted), total - logged, tuple(debits), tuple(grants))


def entries(carried: Iterable[Carried]) -> Iterator[tuple[EntryKind, list[Posting]]]:
    """The entries of the charge log for moved accounts: one at least, and all debits of an account in one."""
    rest = list(carried)
    if not rest:
        yield EntryKind.ACCEPT, []
    for first in range(0, len(rest), ACCOUNTS_PER_ENTRY):
        part = rest[first : first + ACCOUNTS_PER_ENTRY]
        yield EntryKind.ACCEPT, [posting for one in part for posting in one.debits]
        if grants := [posting for one in part for posting in one.grants]:
            yield EntryKind.GRANT, grants


def retracted(entry: Entry) -> Iterator[tuple[Key, int]]:
    """The accounts and windows that an entry of `entries` took everything out of."""
    if entry.kind is EntryKind.ACCEPT:
        before: Key | None = None
        for posting in entry.postings:  # ordered, and an account's target window is the earliest
            if posting[:2] == before:
                yield posting[:2], posting.window
            before = posting[:2]
