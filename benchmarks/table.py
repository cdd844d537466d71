"""The table that every benchmark fills."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: what was measured, the result and its unit, and what was asked for."""

    figure: str
    value: float
    unit: str
    bar: str


def show(rows: Iterable[Row]) -> None:
    """Prints the table."""
    table = Table("figure", "measured", "unit", "bar")
    table.columns[1].justify = "right"
    for row in rows:
        value = f"{row.value:,.0f}" if row.value >= 1000 else f"{row.value:.3g}"
        table.add_row(row.figure, value, row.unit, row.bar)
    Console(width=120).print(table)
