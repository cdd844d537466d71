"""The options by which an administrator says who acts and why, for the charge log."""

from __future__ import annotations

import os
import re
from typing import Annotated

import typer

from dpmesh.cli.console import InputError
from dpmesh.cli.options.accounts import AccountSelector

_LONGEST_REASON, _LONGEST_NAME = 500, 100
# Shorter ids occur in ordinary words and numbers.
_SHORTEST_ID = 3

Reason = Annotated[
    str, typer.Option("--reason", metavar="TEXT", help="Why; it stays in the charge log.", show_default=False)
]
By = Annotated[
    str | None,
    typer.Option("--by", metavar="NAME", help="Who says so; by default the login name.", show_default=False),
]


def note(reason: str, by: str | None, about: AccountSelector | None = None) -> str:
    """What the charge log keeps of an administrator's act: who, and why.

    Args:
        reason: Why.
        by: Who; None is the login name.
        about: Whose account it is about, whose id the log must not learn.

    Raises:
        InputError: One of them is empty, too long or not printable, or the reason names the unit.
    """
    from dpmesh.report.log_entries import NOTE_SEPARATOR

    name = _login() if by is None else by.strip()
    reason = reason.strip()
    for option, text, longest in (("--reason", reason, _LONGEST_REASON), ("--by", name, _LONGEST_NAME)):
        if not text.isprintable() or not 0 < len(text) <= longest:
            raise InputError(f"{option} must be 1 to {longest} printable characters")
    if NOTE_SEPARATOR in f"{name} ":
        raise InputError(f"--by must not hold {NOTE_SEPARATOR!r}, nor end with a colon")
    for option, text in (("--reason", reason), ("--by", name)):
        if about is not None and _names(text, about):
            raise InputError(
                f"{option} names the unit or consumer, and the charge log holds nobody's id: leave it out"
            )
    return f"{name}{NOTE_SEPARATOR}{reason}"


def _login() -> str:
    """The name of the account that this process runs under; the environment could say anything."""
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
