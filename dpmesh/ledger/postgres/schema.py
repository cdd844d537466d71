"""The tables and functions of a PostgreSQL ledger. `dpmesh ledger migrate` makes them; holders only call them."""

from __future__ import annotations

from importlib.resources import files

VERSION = 3
"""The version of what the migrations make."""

MIGRATIONS = (
    ("tables", "append_only", "clock", "prepare", "state", "debit", "credit", "probe", "spend_once"),
    ("epoch_keys",),
    ("terms", "state_by_terms", "debit_by_terms"),
)
"""MIGRATIONS[n] brings a database from version n to n + 1, by these files of sql/ in one transaction."""


def migration(number: int) -> list[str]:
    """The statements of MIGRATIONS[number], a text for each file."""
    folder = files(__package__) / "sql"
    return [(folder / f"{name}.sql").read_text("utf-8") for name in MIGRATIONS[number]]
