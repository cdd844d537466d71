"""Answers: the memoized answers of each unit in each epoch, and whether the unit has paid for them.

How it works: a unit's epoch is in one of these states.

    | state   | what is durable                     | a message of the unit                                     |
    |---------|-------------------------------------|-----------------------------------------------------------|
    | unpaid  | nothing                             | charges the ledger for all answers, and then records that |
    | charged | the charge                          | as if unpaid: after a crash here, the unit pays twice      |
    | paid    | the charge, and a name redeemed     | costs nothing for its memoized fields                     |

No answer is stored. Each is drawn with bits that a function keyed with the epoch's key gives for the unit and the
field, so that all replicas of a ledger give the same one, also after a restart. The names that are redeemed depend on
that key, too: whatever makes the ledger take another key, nobody gets answers under it that were not paid for. The
ledger overwrites the key when the epoch is over, and then nobody can make the answers again.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from weakref import WeakValueDictionary

from dpmesh.bounded import BoundedTable
from dpmesh.errors import LedgerError
from dpmesh.ledger import Charge, EpochKey, Ledger
from dpmesh.ledger.budget import consumer_key
from dpmesh.mesh.pricing import PricedMemos, merged
from dpmesh.noise.draws import Draws
from dpmesh.noise.entropy import KeyStream
from dpmesh.policy import Pseudonymise

# Which answers, the unit's id or its digest, and the consumer.
_Place = tuple[bytes, bytes, str]
# What is charged once: the name that is redeemed once it is paid, and the charges.
_Due = tuple[bytes, Sequence[Charge]]
_Charging = Callable[[Sequence[Charge]], Awaitable[None]]

_UNITS_KEPT = 4096
_LONGEST_KEPT = 64  # of a longer id a digest is kept
# After the end of its epoch a record is of use only to a replica whose clock is behind.
_KEPT_SECONDS = 3600.0


class UnitEpoch:
    """One unit in one epoch: what it owes, and its answers.

    Attributes:
        length: The length of the epoch, in seconds.
        until: The second from which nobody needs the record of what is paid.
        loss: The epsilon and rho of all answers.
        dues: What has to be paid once.
        paid: All of it is paid for, durably.
    """

    __slots__ = ("_codes", "_key", "dues", "length", "loss", "paid", "until")

    def __init__(self, number: int, priced: PricedMemos, key: bytes, dues: Sequence[_Due]) -> None:
        self.length = priced.memos.epoch
        self.until = (number + 1) * self.length + _KEPT_SECONDS
        self.loss = priced.loss
        self.dues = dues
        self.paid = False
        self._key = key
        self._codes: dict[str, list[int]] = {}

    def codes(self, label: str, draws: Draws, states: int) -> Sequence[int]:
        """The codes of a field's answers, as of Answering.

        All are drawn at once, so that the time that an answer takes does not tell whether its value is new.
        """
        codes = self._codes.get(label)
        if codes is None:
            key = hmac.digest(self._key, label.encode(), "sha256")
            codes = self._codes[label] = draws.block(states, KeyStream(key)).tolist()
        return codes


class Answering:
    """The pseudonym function for a message of a unit that has paid, as of dpmesh.policy.plan.Answering."""

    __slots__ = ("_pseudonymise", "codes")

    def __init__(self, unit_epoch: UnitEpoch, pseudonymise: Pseudonymise) -> None:
        self._pseudonymise = pseudonymise
        self.codes = unit_epoch.codes

    def __call__(self, value: bytes, epoch: float, namespace: str = "", /) -> bytes:
        """The pseudonym."""
        return self._pseudonymise(value, epoch, namespace)


class Answers:
    """The answers of all units, and who has paid.

    Args:
        ledger: Takes the charges, and keeps the epochs' keys and the names of what is paid.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        # For each length of epochs, the key of the last one, and its units.
        self._epochs: dict[float, tuple[EpochKey, BoundedTable[_Place, UnitEpoch]]] = {}
        # Messages of one unit pay one after the other in each event loop, so that one pays and the others find it paid.
        self._paying: WeakValueDictionary[tuple[int, bytes], asyncio.Lock] = WeakValueDictionary()

    def of(self, priced: PricedMemos, content: Any, consumer: str) -> UnitEpoch:
        """The epoch of a message's unit, by the key that the ledger holds.

        Args:
            priced: The message's memoized fields, and who pays.
            content: The message's snapshot.
            consumer: Who receives it. With quotas each consumer pays for itself.

        Raises:
            LedgerError: The ledger holds no key.
            ProtectionError: The unit's id is missing.
        """
        unit = priced.memos.unit(content)
        consumer = consumer if priced.quotas else ""
        # Its number is the store's. By this process's clock, which may be ahead, a table could be paid for in the
        # window before the one that holds its epoch.
        key = self._ledger.epoch_key(priced.memos.epoch)
        held, units = self._epochs.get(priced.memos.epoch, (None, None))
        if units is None or held is not key:
            units = BoundedTable(_UNITS_KEPT)
            self._epochs[priced.memos.epoch] = key, units
        place = priced.label, _short(unit, key), consumer
        found = units.get(place)
        if found is None:
            found = units[place] = _begin(priced, unit, consumer, key)
        return found

    async def pay(
        self, unit_epoch: UnitEpoch, charges: Sequence[Charge], charge: _Charging
    ) -> tuple[Sequence[Charge], bool]:
        """Charges for a message, and for all answers of its unit and epoch where they are not paid yet.

        Args:
            unit_epoch: The unit's epoch.
            charges: What the message costs besides.
            charge: Charges all accounts, or none.

        Returns:
            All charges, and whether the answers are among them.

        Raises:
            BudgetExhaustedError: A budget does not cover it. Nothing is charged.
            LedgerError: The ledger can't tell what is paid, or can't record it. What was charged stays charged.
        """
        if not unit_epoch.paid:
            async with self._lock(unit_epoch):
                owed = [] if unit_epoch.paid else await self._owed(unit_epoch)
                if owed:
                    dues = [due for _, dues in owed for due in dues]
                    total = merged([*charges, *dues])
                    self._check_windows(unit_epoch, dues)
                    await charge(total)
                    self._check_windows(unit_epoch, dues)  # Others may have begun while the charge waited.
                    # Only now: a record without its charge would let answers out that nobody paid for.
                    await self._record(unit_epoch, [name for name, _ in owed])
                    return total, True
                _settle(unit_epoch)
        await charge(charges)
        return charges, False

    def _check_windows(self, unit_epoch: UnitEpoch, dues: Sequence[Charge]) -> None:
        """Refuses to pay in windows that are not made of whole epochs: the answers would leave in others, too.

        Such windows come from other terms of a budget, those of before a swap or those of another holder.

        Raises:
            LedgerError: One is not.
        """
        for budget, _, _ in dues:
            if not self._ledger.is_whole(budget, unit_epoch.length):
                raise LedgerError(
                    f"budget {self._ledger.budgets[budget].name!r} is in a window of another length, which can't pay "
                    "for memoized answers: they are refused until it ends"
                )

    def _lock(self, unit_epoch: UnitEpoch) -> asyncio.Lock:
        place = id(asyncio.get_running_loop()), unit_epoch.dues[0][0]
        return self._paying.setdefault(place, asyncio.Lock())

    async def _owed(self, unit_epoch: UnitEpoch) -> list[_Due]:
        """What is not known to be paid for."""
        known = await self._ledger.redeemed([name for name, _ in unit_epoch.dues])
        return [due for due, is_paid in zip(unit_epoch.dues, known, strict=True) if not is_paid]

    async def _record(self, unit_epoch: UnitEpoch, names: Sequence[bytes]) -> None:
        """Records that dues are paid. Another replica may have recorded it too, and then both have paid."""
        await asyncio.gather(*(self._ledger.redeem_once(name, unit_epoch.until) for name in names))
        _settle(unit_epoch)


def _settle(unit_epoch: UnitEpoch) -> None:
    """Notes that all dues are paid, and forgets them: they name the unit."""
    unit_epoch.paid, unit_epoch.dues = True, ()


def _short(unit: bytes, key: EpochKey) -> bytes:
    """A unit's id, or a keyed digest of a long one."""
    if len(unit) <= _LONGEST_KEPT:
        return unit
    return hashlib.blake2b(unit, digest_size=32, key=key.key, person=b"dpmesh answers").digest()


def _begin(priced: PricedMemos, unit: bytes, consumer: str, key: EpochKey) -> UnitEpoch:
    charges = [(budget, unit, amount) for budget, amount in priced.amounts]
    dues: list[_Due] = [(_derived(key, b"paid", priced.label, b"", unit), charges)]
    account = consumer_key(unit, consumer)
    limits = [(quota, account, n) for quota, n in priced.quotas if priced.budgets[quota].is_for(consumer)]
    if limits:
        dues.append((_derived(key, b"counted", priced.label, consumer.encode(), unit), limits))
    return UnitEpoch(key.number, priced, _derived(key, b"answers", priced.memos.label, b"", unit), dues)


def _derived(key: EpochKey, use: bytes, *parts: bytes) -> bytes:
    """32 bytes that differ for each epoch, use and list of parts."""
    lengths = b"".join(b" %d" % len(part) for part in parts)
    return hmac.digest(key.key, b"".join((b"dpmesh memoized ", use, lengths, b"\0", *parts)), "sha256")
