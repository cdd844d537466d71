"""The options that select accounts: those of a unit or of all aggregates, and the quotas of a consumer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from dpmesh.cli.console import InputError

Unit = Annotated[
    str | None,
    typer.Argument(metavar="UNIT", help="The unit's id, as its field holds it.", show_default=False),
]
AsHex = Annotated[bool, typer.Option("--hex", help="UNIT is in hexadecimal, for a field of bytes.")]
IsGlobal = Annotated[
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
        # Servers do so, too: only the trust domain of an identity that rotates is stable.
        return account_hash(secret, consumer_key(self.unit, stable_name(self.consumer)))


def selector(unit: str | None, as_hex: bool, is_global: bool, consumer: str | None) -> AccountSelector:
    """The accounts that the options select.

    Raises:
        InputError: They contradict each other, or are no ids. The text never holds one.
    """
    if (unit is not None) == is_global:
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
