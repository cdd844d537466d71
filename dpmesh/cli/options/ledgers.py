"""What all commands about a ledger share: which ledger, whose account, who says why, and how far it has come."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
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

_LONGEST_REASON, _LONGEST_NAME = 500, 100
# What a name and a reason are joined by in the charge log.
_BETWEEN = ": "
# Shorter ids occur in ordinary words and numbers.
_SHORTEST_ID = 3
# Of reading a ledger; once somebody has it open, the next one succeeds.
_ATTEMPTS = 5
# Of a progress bar: often enough for the eye, and too seldom to cost anything.
_STRIDE = 1000

LedgerUrl = Annotated[
    str | None,
    typer.Option(
        "--ledger",
        metavar="URL",
        help="The ledger, instead of the configuration's; a relative path starts in the working directory.",
        show_default=False,
    ),
]
Unit = Annotated[
    str | None,
    typer.Argument(metavar="UNIT", help="The unit's id, as its field holds it.", show_default=False),
]
AsHex = Annotated[bool, typer.Option("--hex", help="UNIT is in hexadecimal, for a field of bytes.")]
OfAll = Annotated[
    bool, typer.Option("--global", help="The budgets of all aggregates, which are nobody's, instead of UNIT.")
]
Consumer = Annotated[
    str | None,
    typer.Option(
        "--consumer",
        metavar="ID",
        help='The quotas of this consumer; "" stands for all that are not authenticated.',
        show_default=False,
    ),
]
Reason = Annotated[
    str, typer.Option("--reason", metavar="TEXT", help="Why; it stays in the charge log.", show_default=False)
]
By = Annotated[
    str | None,
    typer.Option("--by", metavar="NAME", help="Who says so; by default the login name.", show_default=False),
]


@dataclass(frozen=True, slots=True)
class AccountSelector:
    """Whose accounts are meant, and towards whom.

    Attributes:
        unit: The unit's canonical bytes; b"" for aggregates.
        consumer: Whose quotas are meant, or None for budgets.
    """

    unit: bytes
    consumer: str | None

    @property
    def key(self) -> str:
        """The Budget.key of the budgets or quotas that have such accounts."""
        return ("unit" if self.unit else "global") + ("" if self.consumer is None else "/consumer")

    def account(self, secret: bytes) -> bytes:
        """The keyed hash under which a ledger with this secret keeps the accounts."""
        from dpmesh.identity.ca.profile import stable_name
        from dpmesh.ledger import account_hash
        from dpmesh.ledger.budget import consumer_key

        if self.consumer is None:
            return account_hash(secret, self.unit)
        # As servers do: of an identity that rotates, only the trust domain lasts.
        return account_hash(secret, consumer_key(self.unit, stable_name(self.consumer)))


def holder(unit: str | None, as_hex: bool, of_all: bool, consumer: str | None) -> AccountSelector:
    """Whose accounts the arguments mean.

    Raises:
        InputError: They don't go together, or are no ids. The text never holds one.
    """
    if (unit is not None) == of_all:
        raise InputError("give UNIT, or --global: one of them (see --help)")
    if as_hex and unit is None:
        raise InputError("--hex goes with UNIT only")
    if consumer is not None and not _encodable(consumer):
        raise InputError("--consumer is not in UTF-8, and every consumer's id is")
    return AccountSelector(b"" if unit is None else _canonical(unit, as_hex), consumer)


def _canonical(unit: str, as_hex: bool) -> bytes:
    if not as_hex and not _encodable(unit):
        raise InputError(
            "UNIT is not in UTF-8; the id of a field of bytes is given in hexadecimal, with --hex"
        )
    try:
        canonical = bytes.fromhex(unit) if as_hex else unit.encode()
    except ValueError:
        raise InputError("UNIT is not hexadecimal") from None
    if not canonical:
        raise InputError("UNIT is empty, and no unit's id is")
    return canonical


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def pick(budgets: list[Budget], name: str) -> Budget:
    """The budget or quota of this name.

    Raises:
        InputError: There is none; the text lists those that there are.
    """
    for budget in budgets:
        if budget.name == name:
            return budget
    listed = ", ".join(budget.name for budget in budgets) or "none"
    raise InputError(f"--budget: the ledger holds no budget {name!r}; there are {listed}")


def note(reason: str, by: str | None, about: AccountSelector | None = None) -> str:
    """What the charge log is told of an administrator's doing: who, and why.

    Args:
        reason: Why.
        by: Who; None is the login name.
        about: Whose account it is about, whose id the log must not learn.

    Raises:
        InputError: One of them is empty, too long or not printable, or the reason names the unit.
    """
    name = _login() if by is None else by.strip()
    reason = reason.strip()
    for option, text, longest in (("--reason", reason, _LONGEST_REASON), ("--by", name, _LONGEST_NAME)):
        if not text.isprintable() or not 0 < len(text) <= longest:
            raise InputError(f"{option} must be 1 to {longest} printable characters")
    if _BETWEEN in f"{name} ":
        raise InputError(f"--by must not hold {_BETWEEN!r}, nor end with a colon")
    for option, text in (("--reason", reason), ("--by", name)):
        if about is not None and _names(text, about):
            raise InputError(
                f"{option} names the unit or consumer, and the charge log holds nobody's id: leave it out"
            )
    return f"{name}{_BETWEEN}{reason}"


def told(text: str) -> tuple[str, str]:
    """Who, and why: the parts of what `note` made."""
    name, between, reason = text.partition(_BETWEEN)
    return (name, reason) if between else ("", text)


def _login() -> str:
    """The name of the account that this runs under; the environment could say anything."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        raise InputError("--by: this user has no login name; say who it is") from None


def _names(text: str, about: AccountSelector) -> bool:
    """Whether a text holds a unit's or a consumer's id as a word, in plain or in hexadecimal."""
    ids = {about.unit.decode(errors="replace"), about.unit.hex(), about.consumer or ""}
    words = [re.escape(word) for word in ids if len(word) >= _SHORTEST_ID]
    return bool(words) and bool(re.search(rf"(?<!\w)(?:{'|'.join(words)})(?!\w)", text, re.IGNORECASE))


_REMARKED: set[str] = set()


@asynccontextmanager
async def viewing(books: LedgerAdmin) -> AsyncIterator[LedgerView]:
    """The ledger as it is now; what has to be known of it goes to stderr, once."""
    async with books.view() as view:
        if view.remark and view.remark not in _REMARKED:
            _REMARKED.add(view.remark)
            console.note(view.remark)
        yield view


def address(config_file: Path | None, url: str | None) -> str:
    """The ledger's URL: the one given, or else the configuration's.

    Raises:
        ConfigError: The configuration is wrong.
        InputError: What was given is empty, as a variable is that nobody has set.
    """
    from dpmesh import config

    if url is not None and not url.strip():
        raise InputError("--ledger is empty: give a URL, or leave it out for the configuration's")
    return url or config.load(inputs.config_file(config_file)).ledger.url


def configured(config_file: Path | None, url: str | None) -> frozenset[str] | None:
    """The names of the configured budgets and quotas; None if a ledger was named and no configuration with it.

    Raises:
        ConfigError: The configuration is wrong.
    """
    from dpmesh import config

    if url and config_file is None:
        return None
    settings = config.load(inputs.config_file(config_file))
    return frozenset([budget.name for budget in settings.budget] + [quota.name for quota in settings.quota])


def books(config_file: Path | None, url: str | None) -> LedgerAdmin:
    """The administration of the ledger that is meant.

    Raises:
        ConfigError: The configuration or the URL is wrong.
    """
    from dpmesh.ledger.backends import open_admin

    return open_admin(address(config_file, url))


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """Does what has to wait for a ledger.

    Raises:
        InputError: The ledger can't be used.
    """
    import asyncio

    try:
        return asyncio.run(work)
    except LedgerError as error:
        raise InputError(str(error)) from None


def read(work: Callable[[], Coroutine[Any, Any, _T]], may_repeat: Callable[[], bool] = lambda: True) -> _T:
    """Reads a ledger, and begins anew if somebody opened it under way: what was read may then be of no one moment.

    Args:
        work: What reads. It may be called more than once.
        may_repeat: Whether it may, still.

    Raises:
        InputError: The ledger can't be read.
    """
    from dpmesh.ledger.admin import ReadAgainError

    async def patient() -> _T:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await work()
            except ReadAgainError as error:
                if attempt == _ATTEMPTS or not may_repeat():
                    raise InputError(str(error)) from None
            except LedgerError as error:
                raise InputError(f"{error} (--ledger or --config names another)") from None
        raise AssertionError("the last attempt returns or raises")

    return run(patient())


def number(count: int, one: str, many: str) -> str:
    """A number of things for people."""
    return f"{count} {one if count == 1 else many}"


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Shows on a terminal's stderr that something is being done."""
    with _progress(what, counted=False):
        yield


async def counted(items: AsyncIterator[_T], what: str, *, quiet: bool = False) -> AsyncIterator[_T]:
    """The same items; on a terminal's stderr, how many there were so far.

    Args:
        items: Of which nobody knows how many there are.
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
