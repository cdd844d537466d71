"""Progress on a terminal's stderr, while somebody waits for a ledger."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

_T = TypeVar("_T")

# The bar moves once for so many items: often enough for the eye, and too seldom to cost anything.
_STRIDE = 1000


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Shows that something is being done."""
    with _progress(what, counted=False):
        yield


async def counted(items: AsyncIterator[_T], what: str, *, quiet: bool = False) -> AsyncIterator[_T]:
    """Passes items on, and shows how many there were so far.

    Args:
        items: Any number of them.
        what: What they are.
        quiet: Show nothing, because the items themselves go to the terminal.
    """
    done = 0
    with _progress(what, counted=True, quiet=quiet) as bar:
        async for item in items:
            yield item
            done += 1
            if bar is not None and done % _STRIDE == 0:
                bar.update(bar.task_ids[0], completed=done)


@contextmanager
def _progress(what: str, *, counted: bool, quiet: bool = False) -> Iterator[Any]:
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    number = (MofNCompleteColumn(),) if counted else ()
    columns = (TextColumn("{task.description}"), BarColumn(), *number, TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        bar.add_task(what, total=None)
        yield bar
