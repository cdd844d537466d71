"""Runs all attacks, or those that are named, and prints the table: `python -m tests.attacks [places timing ...]`."""

from __future__ import annotations

import asyncio
import logging
import sys
import time

from tests.attacks.outcomes import table
from tests.attacks.suite import ATTACKS


def main(names: list[str]) -> int:
    """Prints the table, then what is wrong; 1 if anything is."""
    logging.disable()  # Thousands of refusals are what some attacks are about.
    rows, begun = [], time.monotonic()
    for name in names or ATTACKS:
        rows += asyncio.run(ATTACKS[name].findings(ATTACKS[name].full))
        print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
    print(table(rows))
    problems = [problem for row in rows for problem in row.problems()]
    print("\n".join(problems), file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
