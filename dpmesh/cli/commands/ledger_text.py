"""The texts of `dpmesh ledger`: what `accept` does, and the lines of `log`."""

from __future__ import annotations

from collections.abc import Sequence

from dpmesh.accounting import AMOUNT
from dpmesh.cli.console import say
from dpmesh.report.export_rows import decimal
from dpmesh.report.log_entries import LogEntry

_ACCEPT_COPY = """\
An older copy of a ledger has forgotten what was charged since it was made. `accept` goes on with it all the same:
- Every budget with windows moves to the window after the current one, so nothing is spent twice within a window. The
  rest of the current window and all of the next share one cap.
- Lifetime budgets have no next window: what was charged to them since the copy is lost, and may be spent again.
- Holders whose own charges the copy lacks refuse until they are restarted; the others go on by themselves.
- The charge log gets an entry with the reason. Nothing brings back the entries that the copy lacks.
Prefer to put the newest copy back, if there is one."""

_ACCEPT_WINDOWS = """\
A wrong clock began windows that this ledger's clock has not reached. `accept` brings their budgets back:
- They go on in the window after the current one. The rest of the current window and all of the next share one cap.
- What was spent in the wrong windows counts as spent there, so nothing is refilled.
- The charge log gets entries with the reason.
Correct the clock first, and restart every holder afterwards: a holder that runs on refuses, or is slow. The present
clock may be the wrong one: if it is behind, what was spent in the present window is forgotten."""

LOG_HEAD = f"{'time (UTC)':19}  {'kind':7}  {'chain':8}  {'number':>8}  {'accounts':>8}  amounts"
_CHAIN_DIGITS = 8


def write_explanation(lifetime: Sequence[str], ahead: Sequence[str], *, only_ahead: bool) -> None:
    """Writes what `accept` would do.

    Args:
        lifetime: The lifetime budgets.
        ahead: The budgets whose windows are ahead of the clock.
        only_ahead: The ledger is no older copy; only these windows need accepting.
    """
    if not only_ahead:
        say(*_ACCEPT_COPY.split("\n"))
        if lifetime:
            say(f"Lifetime budgets here: {', '.join(lifetime)}")
    if ahead:
        say(*_ACCEPT_WINDOWS.split("\n"))
        say(f"Ahead of the clock here: {', '.join(ahead)}")


def write_accepted(lifetime: Sequence[str], ahead: Sequence[str], *, only_ahead: bool) -> None:
    """Writes what `accept` did; the arguments are those of `write_explanation`."""
    if ahead:
        say(
            f"accepted: back from windows that the clock has not reached: {', '.join(ahead)}. What was spent in them "
            "counts in the window after the current one. Restart every holder now"
        )
    if only_ahead:
        return
    say("accepted: every budget with windows goes on in the window after the current one")
    if lifetime:
        say(
            f"lifetime budgets that may have been charged more than the ledger knows: {', '.join(lifetime)}. "
            "What they lost since the copy is unknown"
        )


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
