"""Prints what the demo found: statistics, budgets, and what to try next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from dpmesh.accounting import AMOUNT
from dpmesh.estimate import Estimate, Reader
from dpmesh_fleet import fleet_pb2
from dpmesh_fleet.compare import Comparison, Row
from dpmesh_fleet.data import Flight
from dpmesh_fleet.fly import Month, Refusal

_WIDTH = 100
Format = Callable[[float], str]


def say(console: Console, text: str | Text) -> None:
    """A paragraph, in lines that can be read."""
    console.print(text, width=min(_WIDTH, console.width))


def heading(console: Console, text: str) -> None:
    """A new part."""
    console.print()
    console.print(Rule(text, align="left", style="dim"), width=min(_WIDTH, console.width))


def minutes(value: float) -> str:
    """One decimal, and no minus before nothing."""
    return f"{round(value, 1) + 0.0:.1f}"


def percent(value: float) -> str:
    """A share, with one decimal."""
    return minutes(value * 100)


def introduction(console: Console, flights: Sequence[Flight], aircraft: int, skipped: int) -> None:
    """What is about to happen."""
    heading(console, "dpmesh demo: one month of a fleet")
    say(
        console,
        f"{len(flights):,} flights of {aircraft:,} aircraft from New York, {dates(flights)} (public records, CC0; "
        f"{skipped:,} of the month were cancelled or diverted and make no report).",
    )
    say(
        console, "Local model: each aircraft reports over gRPC, and noise is added before a report leaves it."
    )
    say(console, "Central model: an analyst asks the operator, and noise is added to the answer.")
    say(console, "Neither service knows of privacy: the annotations in fleet.proto and three lines do it.")
    console.print()


def dates(flights: Sequence[Flight]) -> str:
    """The dates of the first and the last flight, in words."""
    first, last = flights[0].date, flights[-1].date
    if first == last:
        return f"{first.day} {first:%B %Y}"
    if (first.year, first.month) == (last.year, last.month):
        return f"{first.day} to {last.day} {last:%B %Y}"
    return f"{first.day} {first:%B %Y} to {last.day} {last:%B %Y}"


def arrived(console: Console, month: Month) -> None:
    """What became of the reports."""
    rate = len(month.flights) / month.seconds
    say(
        console,
        f"{len(month.received):,} reports arrived and {month.refused:,} were refused, in {month.seconds:.0f} s "
        f"({rate:,.0f} RPCs a second).",
    )


def tables(console: Console, comparison: Comparison) -> None:
    """The statistics, each with the truth, both estimates and their intervals."""
    heading(console, "what can still be told")
    console.print(
        _table("airport", "Mean departure delay by origin, minutes", comparison.delays, minutes, cut=True)
    )
    console.print(_table("", "Mean air time, minutes", [comparison.air_time], minutes))
    console.print(_table("carrier", "Share of each carrier, percent", comparison.shares, percent))
    held, of = comparison.held()
    say(
        console,
        f"{held} of {of} intervals hold the truth; of 95 % intervals about {0.95 * of:.0f} should. Delays are cut "
        "to -30..180 minutes before any noise, because noise has to hide the longest one: what the intervals "
        "promise to hold is the mean of the cut ones. An aircraft's flights beyond three a day are in neither "
        "estimate.",
    )


def _table(first: str, title: str, rows: Sequence[Row], shown: Format, *, cut: bool = False) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first)
    table.add_column("truth", justify="right")
    if cut:
        table.add_column("cut", justify="right")
    for model in ("noisy reports", "noisy answer"):
        table.add_column(f"{model}, 95 %", justify="right", style="cyan", no_wrap=True)
        table.add_column("holds", justify="center")
    for row in rows:
        truths = [shown(row.raw), shown(row.truth)] if cut else [shown(row.truth)]
        table.add_row(row.label, *truths, *_cells(row, row.local, shown), *_cells(row, row.central, shown))
    return table


def _cells(row: Row, estimate: Estimate, shown: Format) -> tuple[str, Text]:
    # With very few flights the divisor of a mean may be 0, and then no mean is ruled out.
    interval = f"{shown(estimate.low)} .. {shown(estimate.high)}" if math.isfinite(estimate.low) else "any"
    holds = Text("yes", "green") if estimate.covers(row.truth) else Text("no", "yellow")
    return f"{shown(estimate.value)} ({interval})", holds


def budgets(console: Console, month: Month) -> None:
    """What was spent, and what was refused."""
    heading(console, "what it cost")
    say(
        console,
        f"A report costs its aircraft epsilon {_cost(fleet_pb2.FlightReport):g}, out of 12 for each day "
        f"(aircraft-day). Spent, over {len(month.spent):,} days of aircraft:",
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for name in ("median", "95th percentile", "maximum", "reports refused"):
        table.add_column(name, justify="right")
    ordered = sorted(month.spent)
    spent = (median(ordered), ordered[math.ceil(0.95 * len(ordered)) - 1], ordered[-1])
    refused = f"{month.refused:,} of {len(month.flights):,}"
    table.add_row(*(f"{value:g}" for value in spent), refused)
    console.print(Padding(table, (0, 2), expand=False))
    if month.refusal:
        _refused(
            console, "A busy aircraft that has spent its day is told, before anything is sent:", month.refusal
        )
    say(
        console,
        f"An answer to the analyst costs epsilon {_cost(fleet_pb2.FleetSummary):g}, out of 5 for a month "
        "(analyst-month, at delta 1e-6; zCDP makes repeated answers add up slower).",
    )
    if month.answer_refusal:
        times = f"The same question was answered {len(month.answers)} times. Then:"
        _refused(console, times, month.answer_refusal)
    say(
        console,
        "Both budgets are about one day of one aircraft, in the worst case; what several days tell adds up.",
    )


def _cost(message_type: Any) -> float:
    """The loss of one message, as its annotations say."""
    return (Reader(message_type).plan.cost.epsilon or 0) / AMOUNT


def _refused(console: Console, first: str, refusal: Refusal) -> None:
    say(console, first)
    wait = f", retry after {refusal.retry_after:,.0f} s" if refusal.retry_after is not None else ""
    for line, style in (
        (f"{refusal.status}: {refusal.details}", "red"),
        (f"ErrorInfo {refusal.reason}{wait}", "dim"),
    ):
        say(console, Text(f"  {line}", style))


def next_steps(console: Console, month: Month, kept: Path | None) -> None:
    """Commands that go on from here, with the files of this installation."""
    heading(console, "what to try next")
    files = resources.files("dpmesh_fleet")
    proto, config = (shlex.quote(str(files.joinpath(name))) for name in ("fleet.proto", "fleet.toml"))
    steps = [
        ("What is wrong with annotations:", f"dpmesh check {proto}"),
        ("What leaves with each RPC, at what loss and error:", f"dpmesh plan {proto} --config {config}"),
    ]
    if kept:
        # Not `budget list`: it shows the windows of today, in which nothing was spent.
        why = f"What was spent in the windows of {dates(month.flights)}, from the ledger:"
        ledger = shlex.quote(f"sqlite:///{kept.resolve() / 'operator.db'}")
        steps.append((why, f"dpmesh budget export --ledger {ledger}"))
    else:
        steps.append(
            ("The same with the ledgers kept, for dpmesh budget:", "dpmesh demo --keep fleet-ledgers")
        )
    steps.append(("All spans in a Jaeger on this machine:", "dpmesh demo --jaeger"))
    for why, command in steps:
        console.print(Text(why, "dim"))
        console.print(Text(f"  {command}"), soft_wrap=True)
