"""The charge log: every durable change of an account is an entry, and entries form chains that can't be bent unseen.

An entry's hash covers the entry and the hash of the one before it (Haber and Stornetta 1991), so whoever alters, drops
or reorders an entry changes every hash behind it. Each holder writes a chain of its own: one chain for all would make
them wait for each other. Pure functions, no I/O.
"""

from __future__ import annotations

import enum
import hashlib
import math
import secrets
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dpmesh.errors import LedgerError, LostChargesError

CHAIN_BYTES = 16
HASH_BYTES = 32

_HEAD = struct.Struct(">BQI")
_LINE = struct.Struct(">I16sQq")


class EntryKind(enum.IntEnum):
    """What an entry does.

    DEBIT: slices that a holder took. CREDIT: what it returned of them. GRANT: caps that an administrator raised.
    OPENING: what was debited before there was a log. ACCEPT: an administrator went on with a restored copy.
    """

    DEBIT = 1
    CREDIT = 2
    GRANT = 3
    OPENING = 4
    ACCEPT = 5


class Posting(NamedTuple):
    """What an entry does to one account.

    Attributes:
        budget: The budget's number in the ledger.
        account: The keyed hash of the unit, 16 bytes.
        window: When the window began that is charged, in seconds since the epoch.
        amount: In ledger amounts; negative for what comes back.
    """

    budget: int
    account: bytes
    window: int
    amount: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a chain.

    Attributes:
        kind: What it does.
        at: When, in seconds since the epoch, by the ledger's clock.
        lines: To which accounts, ordered.
        note: An administrator's reason, or nothing.
    """

    kind: EntryKind
    at: int
    lines: tuple[Posting, ...]
    note: str = ""


class Head(NamedTuple):
    """The end of a chain.

    Attributes:
        seq: How many entries it has, those that were pruned included.
        hash: The last one's hash.
    """

    seq: int
    hash: bytes


def encode(kind: EntryKind, at: int, lines: Iterable[Posting], note: str = "") -> bytes:
    """An entry's canonical bytes: kind, time and number of lines, then the lines in order, then the note in UTF-8."""
    ordered = sorted(lines)
    pack = _LINE.pack
    return b"".join((_HEAD.pack(kind, at, len(ordered)), *[pack(*line) for line in ordered], note.encode()))


def decode(body: bytes) -> Entry:
    """The entry that canonical bytes say.

    Raises:
        LedgerError: They are none.
    """
    try:
        kind, at, count = _HEAD.unpack_from(body)
        end = _HEAD.size + count * _LINE.size
        lines = tuple(Posting(*line) for line in _LINE.iter_unpack(body[_HEAD.size : end]))
        entry = Entry(EntryKind(kind), at, lines, body[end:].decode())
    except (struct.error, ValueError) as error:
        raise LedgerError("an entry of the charge log can't be read") from error
    if len(lines) != count or encode(entry.kind, at, lines, entry.note) != body:
        raise LedgerError("an entry of the charge log is not in canonical form")
    return entry


def begin(chain: bytes) -> Head:
    """Where a chain begins: the hash that stands before its first entry."""
    return Head(0, hashlib.sha256(b"dpmesh chain" + chain).digest())


def link(head: Head, body: bytes) -> Head:
    """The head after one more entry: SHA-256 (FIPS 180-4) of the hash before it and its canonical bytes."""
    return Head(head.seq + 1, hashlib.sha256(head.hash + body).digest())


def follow(head: Head, seq: int, body: bytes, hash_: bytes) -> tuple[Head, Entry]:
    """One entry further along a chain.

    Args:
        head: The end so far.
        seq: The entry's number.
        body: Its canonical bytes.
        hash_: Its hash.

    Returns:
        The end with it, and what it says.

    Raises:
        LedgerError: It doesn't belong there; the text says why.
    """
    if seq != head.seq + 1:
        raise LedgerError(f"entry {head.seq + 1} is missing")
    head = link(head, body)
    if head.hash != hash_:
        raise LedgerError(f"entry {seq} was altered, or the one before it")
    try:
        return head, decode(body)
    except LedgerError as error:
        raise LedgerError(f"entry {seq}: {error}") from error


def break_in(head: Head, entries: Sequence[tuple[int, bytes, bytes]], end: Head) -> str | None:
    """What is wrong with a chain, or None.

    Args:
        head: Where the entries begin.
        entries: (number, canonical bytes, hash) each, in order.
        end: The chain's head.
    """
    try:
        for seq, body, hash_ in entries:
            head, _ = follow(head, seq, body, hash_)
    except LedgerError as error:
        return str(error)
    if head.seq < end.seq:
        return f"entry {head.seq + 1} is missing"
    if head != end:
        return f"entry {end.seq} is not the last one, or not the one that was written"
    return None


class ChainWriter:
    """One holder's chain, as far as this holder knows: what it finds in the store must be that.

    A commit that failed may have taken effect all the same, so more than one end is possible until the next one is
    acknowledged. An end that is none of them means that the store has lost what was committed.
    """

    def __init__(self) -> None:
        self.name = secrets.token_bytes(CHAIN_BYTES)
        self._sure: Head | None = None
        self._possible: set[Head] = set()
        self._tried: Head | None = None
        self._fresh = False  # what was tried last was not possible before
        self._at = 0

    def at(self, now: float) -> int:
        """The time to write into the next entry: times never go back in a chain, whatever a clock does."""
        self._at = max(self._at, math.floor(now))
        return self._at

    def check(self, found: Head | None, ledger: str) -> Head:
        """The end to go on from.

        Args:
            found: The end that the store holds; None if it holds no such chain.
            ledger: What to call the store in an error.

        Raises:
            LedgerError: It is not what this holder left there.
        """
        if self._sure is None and found in (None, begin(self.name)):
            return begin(self.name)
        if found is not None and (found == self._sure or found in self._possible):
            return found
        raise LostChargesError(
            f"{ledger} has lost charges that it had committed: an older copy was put in its place. Put the newest one "
            "back, or see `dpmesh ledger accept --help`"
        )

    def settle(self, found: Head | None, ledger: str) -> Head:
        """The end to go on from, where nothing can be written to the store meanwhile: no other end is possible then.

        Raises:
            LostChargesError: It is not what this holder left there.
        """
        head = self.check(found, ledger)
        self._sure, self._possible = found if found is not None and found.seq else self._sure, set()
        return head

    @property
    def doubtful(self) -> bool:
        """Whether the end must be asked for."""
        return bool(self._possible)

    def latest(self) -> Head:
        """The end, if there is no doubt."""
        return self._sure or begin(self.name)

    def attempt(self, head: Head) -> None:
        """Notes that a commit with this end is about to be tried."""
        self._tried, self._fresh = head, head not in self._possible
        self._possible.add(head)

    def withdraw(self) -> None:
        """Notes that what was tried last was not written. The same bytes, tried before, may have been."""
        if self._tried is not None:
            if self._fresh:
                self._possible.discard(self._tried)
            self._tried = None

    def acknowledge(self) -> None:
        """Notes that what was tried last is durable."""
        if self._tried is not None:
            self._sure, self._tried = self._tried, None
            self._possible = set()

    def doubt(self) -> None:
        """Notes that the store says that the end is another."""
        self._possible.add(self.latest())
