"""The demo from start to finish: flies the month, compares, prints."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dpmesh_fleet import show
from dpmesh_fleet.compare import compare
from dpmesh_fleet.data import Flight, load
from dpmesh_fleet.fly import Month, fly
from dpmesh_fleet.show_trace import traces
from dpmesh_fleet.tracing import Tracing, start


def run(
    console: Console,
    *,
    reports: int | None = None,
    keep: Path | None = None,
    endpoint: str | None = None,
    jaeger: bool = False,
) -> Month:
    """Runs the demo.

    Args:
        console: Where to print.
        reports: Only so many, from the first of the month on; all when absent.
        keep: An empty directory for the ledgers; one that is deleted afterwards when absent.
        endpoint: A collector's OTLP/gRPC address, or None.
        jaeger: Show the address of Jaeger's user interface.

    Raises:
        ImportError: There is an endpoint, and OpenTelemetry's exporter is not installed.
        DpmeshError: The ledgers can't be kept there, or an annotation was edited and is wrong.
    """
    flights, skipped = load()
    flights = flights[:reports]
    aircraft = len({flight.tail_number for flight in flights})
    tracing = start(endpoint)
    show.introduction(console, flights, aircraft, skipped)
    with tempfile.TemporaryDirectory(prefix="dpmesh-demo-") as temporary:
        month = _fly(console, flights, keep or Path(temporary), tracing)
    show.arrived(console, month)
    show.tables(console, compare(month))
    show.budgets(console, month)
    tracing.close()
    traces(console, tracing.album, endpoint, jaeger=jaeger)
    show.next_steps(console, month, keep)
    return month


def _fly(console: Console, flights: list[Flight], ledgers: Path, tracing: Tracing) -> Month:
    columns = (TextColumn("reporting"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(flights))
        flown = fly(
            flights,
            ledgers.resolve(),
            landed=lambda: progress.advance(task),
            client=tracing.client,
            server=tracing.server,
        )
        return asyncio.run(flown)
