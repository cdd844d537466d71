"""Which ledger a command is about, and how commands read it and change it while others use it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from dpmesh.cli import console
from dpmesh.cli.console import InputError
from dpmesh.cli.options import inputs
from dpmesh.errors import LedgerError

if TYPE_CHECKING:
    from dpmesh.ledger import Budget
    from dpmesh.ledger.admin import LedgerAdmin, LedgerView

_T = TypeVar("_T")

# How often a read is tried; once somebody has the ledger open, the next attempt succeeds.
_ATTEMPTS = 5

LedgerUrl = Annotated[
    str | None,
    typer.Option(
        "--ledger",
        metavar="URL",
        help="The ledger, instead of the configuration's; a relative path starts in the working directory.",
        show_default=False,
    ),
]


def budget_named(budgets: Iterable[Budget], name: str) -> Budget:
    """The budget or quota of this name.

    Raises:
        InputError: There is none; the text lists those that there are.
    """
    by_name = {budget.name: budget for budget in budgets}
    if name in by_name:
        return by_name[name]
    listed = ", ".join(by_name) or "none"
    raise InputError(f"--budget: the ledger holds no budget {name!r}; there are {listed}")


# Remarks about ledgers that stderr has got.
_written_remarks: set[str] = set()


@asynccontextmanager
async def viewing(admin: LedgerAdmin) -> AsyncIterator[LedgerView]:
    """The ledger as it is now. A remark about it goes to stderr, once."""
    async with admin.view() as view:
        if view.remark and view.remark not in _written_remarks:
            _written_remarks.add(view.remark)
            console.note(view.remark)
        yield view


def ledger_url(config_file: Path | None, url: str | None) -> str:
    """The ledger's URL: the one given, or else the configuration's.

    Raises:
        ConfigError: The configuration is wrong.
        InputError: The URL is empty, as from a shell variable that is not set.
    """
    from dpmesh import config

    if url is not None and not url.strip():
        raise InputError("--ledger is empty: give a URL, or leave it out for the configuration's")
    return url or config.load(inputs.config_file(config_file)).ledger.url


def configured_names(config_file: Path | None, url: str | None) -> frozenset[str] | None:
    """The names of the configured budgets and quotas; None if a ledger was named and no configuration with it.

    Raises:
        ConfigError: The configuration is wrong.
    """
    from dpmesh import config

    if url and config_file is None:
        return None
    settings = config.load(inputs.config_file(config_file))
    return frozenset([budget.name for budget in settings.budget] + [quota.name for quota in settings.quota])


def open_admin(config_file: Path | None, url: str | None) -> LedgerAdmin:
    """The administration of the ledger that the options name.

    Raises:
        ConfigError: The configuration or the URL is wrong.
    """
    from dpmesh.ledger import backends

    return backends.open_admin(ledger_url(config_file, url))


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """Runs what uses a ledger.

    Raises:
        InputError: The ledger can't be used.
    """
    import asyncio

    try:
        return asyncio.run(work)
    except LedgerError as error:
        raise InputError(str(error)) from None


def read(work: Callable[[], Coroutine[Any, Any, _T]], may_repeat: Callable[[], bool] = lambda: True) -> _T:
    """Reads a ledger, and begins anew if somebody opened it meanwhile: then the read may mix two moments.

    Args:
        work: What reads. It may be called more than once.
        may_repeat: Whether it may be called again.

    Raises:
        InputError: The ledger can't be read.
    """
    from dpmesh.ledger.admin import ReadAgainError

    async def attempts() -> _T:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await work()
            except ReadAgainError as error:
                if attempt == _ATTEMPTS or not may_repeat():
                    raise InputError(str(error)) from None
            except LedgerError as error:
                raise InputError(f"{error} (--ledger or --config names another)") from None
        raise AssertionError("the last attempt returns or raises")

    return run(attempts())


def ask(admin: LedgerAdmin, question: Callable[[LedgerView], Awaitable[_T]]) -> _T:
    """The answer to a question about the ledger as it is now, which may be asked more than once.

    Raises:
        InputError: The ledger can't be read.
    """

    async def answer() -> _T:
        async with viewing(admin) as view:
            return await question(view)

    return read(answer)
