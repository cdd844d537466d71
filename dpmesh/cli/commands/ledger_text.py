"""The texts of `dpmesh ledger`: what `accept` does, and the lines of `log`."""

from __future__ import annotations

from dpmesh.accounting import AMOUNT
from dpmesh.report.export_rows import decimal
from dpmesh.report.log_entries import LogEntry

ACCEPT = """\
An older copy of a ledger has forgotten what was charged since it was made. `accept` goes on with it all the same:
- Every budget with windows moves to the window after the one at hand, so nothing is spent twice within a window. What
  is left of the one at hand and all of the next have to do with one cap.
- Lifetime budgets have no next window: what was charged to them since the copy is lost, and may be spent again.
- Holders whose own charges the copy lacks refuse until they are restarted; the others go on by themselves.
- The charge log gets an entry with the reason. Nothing brings back the entries that the copy lacks.
Prefer to put the newest copy back, if there is one."""

ACCEPT_WINDOWS = """\
A clock that was wrong began windows that this ledger's clock has not reached. `accept` brings their budgets back:
- They go on in the window after the one at hand. What is left of the one at hand and all of the next have to do with
  one cap.
- What was spent in the wrong windows counts as spent there, so nothing is refilled.
- The charge log gets entries with the reason.
Correct the clock first, and restart every holder afterwards: those that run on refuse, or are slow. The clock
that is read now may be the one that is wrong: if it is behind, what was spent in the present window is forgotten."""

LOG_HEAD = f"{'time (UTC)':19}  {'kind':7}  {'chain':8}  {'number':>8}  {'accounts':>8}  amounts"
_CHAIN_DIGITS = 8


def log_line(entry: LogEntry) -> str:
    """A line of the log for people; amounts are in each budget's own accounting."""
    parts = [f"{budget} {symbol} {amount / AMOUNT:+.4g}" for budget, symbol, amount in entry.amounts]
    why = [f"{entry.by}: {entry.reason}" if entry.by else entry.reason] if entry.reason else []
    return (
        f"{entry.time:19}  {entry.kind.name.lower():7}  {entry.chain[:_CHAIN_DIGITS]}  {entry.number:8}  "
        f"{entry.accounts:8}  {'; '.join([', '.join(parts)] * bool(parts) + why)}".rstrip()
    )


def log_json_line(entry: LogEntry) -> str:
    """A line of the log for programs; amounts are numbers with nine digits behind the point."""
    import msgspec

    document = entry.document()
    amounts = document["amounts"].items()
    document["amounts"] = {budget: msgspec.Raw(decimal(amount).encode()) for budget, amount in amounts}
    return msgspec.json.encode(document).decode()
