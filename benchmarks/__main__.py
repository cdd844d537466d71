"""Runs all benchmarks, or those named in ALL: `python -m benchmarks [release noise ...]`."""

from __future__ import annotations

import importlib
import sys

from benchmarks.table import show

ALL = (
    "imports",
    "opening",
    "release",
    "noise",
    "utility",
    "estimates",
    "ledger",
    "rpc",
    "identity",
    "rotation",
    "rollout",
)


def main(names: list[str]) -> None:
    """Prints one table per benchmark, as each is done."""
    for name in names or ALL:
        show(importlib.import_module(f"benchmarks.{name}").rows())


if __name__ == "__main__":
    main(sys.argv[1:])
