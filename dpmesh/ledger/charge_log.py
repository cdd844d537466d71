"""The charge log: every durable change of an account is an entry, and entries form hash chains.

An entry's hash covers the entry and the hash of the one before it (Haber and Stornetta 1991). Altering, dropping or
reordering an entry changes every hash behind it. Each holder writes a chain of its own, so that holders do not wait for
each other. Pure functions, no I/O.
"""

from __future__ import annotations

import enum
import hashlib
import math
import secrets
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from dpmesh.errors import LedgerError, LostChargesError

CHAIN_BYTES = 16
HASH_BYTES = 32

_HEAD = struct.Struct(">BQI")
_POSTING = struct.Struct(">I16sQq")


class EntryKind(enum.IntEnum):
    """What an entry does.

    DEBIT: a holder leased amounts. CREDIT: a holder returned what it did not use. GRANT: an administrator raised caps.
    OPENING: what was debited before there was a log. ACCEPT: an administrator accepted a restored copy. POLICY: a
    holder is about to put a looser policy in force; the note says which and why, and no account changes.
    """

    DEBIT = 1
    CREDIT = 2
    GRANT = 3
    OPENING = 4
    ACCEPT = 5
    POLICY = 6


class Posting(NamedTuple):
    """What an entry does to one account.

    Attributes:
        budget: The budget's number in the ledger.
        account: The keyed hash of the unit, 16 bytes.
        window: When the window began that is charged, in seconds since the epoch.
        amount: A ledger amount; negative for what is returned.
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
        at: When it was written, in seconds since the epoch, by the ledger's clock.
        postings: What it does to each account, in order.
        note: An administrator's reason, or what is said of a policy, or "".
    """

    kind: EntryKind
    at: int
    postings: tuple[Posting, ...]
    note: str = ""


class Head(NamedTuple):
    """The end of a chain.

    Attributes:
        seq: How many entries it has, with those that were pruned.
        hash: The last entry's hash.
    """

    seq: int
    hash: bytes


def encode(kind: EntryKind, at: int, postings: Iterable[Posting], note: str = "") -> bytes:
    """An entry's canonical bytes: kind, time, number of postings, the postings in order, and the note in UTF-8."""
    ordered = sorted(postings)
    pack = _POSTING.pack
    return b"".join(
        (_HEAD.pack(kind, at, len(ordered)), *[pack(*posting) for posting in ordered], note.encode())
    )


def decode(body: bytes) -> Entry:
    """Reads an entry from its canonical bytes.

    Raises:
        LedgerError: The bytes are not an entry's canonical bytes.
    """
    try:
        kind, at, count = _HEAD.unpack_from(body)
        end = _HEAD.size + count * _POSTING.size
        postings = tuple(Posting(*posting) for posting in _POSTING.iter_unpack(body[_HEAD.size : end]))
        entry = Entry(EntryKind(kind), at, postings, body[end:].decode())
    except (struct.error, ValueError) as error:
        raise LedgerError("an entry of the charge log can't be read") from error
    if len(postings) != count or encode(entry.kind, at, postings, entry.note) != body:
        raise LedgerError("an entry of the charge log is not in canonical form")
    return entry


def begin(chain: bytes) -> Head:
    """The head of a chain without entries: its hash stands before the first entry."""
    return Head(0, hashlib.sha256(b"dpmesh chain" + chain).digest())


def link(head: Head, body: bytes) -> Head:
    """The head after one more entry: SHA-256 (FIPS 180-4) of the hash before it and its canonical bytes."""
    return Head(head.seq + 1, hashlib.sha256(head.hash + body).digest())


def follow(head: Head, seq: int, body: bytes, hash_: bytes) -> tuple[Head, Entry]:
    """Verifies and reads the next entry of a chain, and returns the head after it.

    Raises:
        LedgerError: The entry does not belong there; the text says why.
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


def wrong_end(head: Head, end: Head) -> str | None:
    """What is wrong with a chain whose last entry leads to one head, and which should have another; None if nothing."""
    if head.seq < end.seq:
        return f"entry {head.seq + 1} is missing"
    if head != end:
        return f"entry {end.seq} is not the last one, or not the one that was written"
    return None


class ChainWriter:
    """One holder's chain, as far as this holder knows. The store must hold that chain and no other.

    How it works: a commit that failed may have taken effect. Then several heads are possible, until a commit is
    acknowledged or the store is asked. A head that is not possible shows that the store lost committed charges.

        state     event                                        next state
        certain   `attempt`: a commit is about to be tried     trying: the old head or the new one
        trying    `acknowledge`: the entry is durable          certain: the new head
        trying    `withdraw`: the entry was not written        as before the attempt
        trying    the commit fails, and may have taken effect  doubtful: any of the possible heads
        certain   `doubt`: the store says that it has another  doubtful
        doubtful  `attempt`                                    trying: one more head is possible
        doubtful  `settle`: the store was asked, in a lock     certain: the head that it has

    In every state but certain, the head must be asked for, and `check` says whether it is a possible one.
    """

    def __init__(self) -> None:
        self.name = secrets.token_bytes(CHAIN_BYTES)
        self._certain: Head | None = None
        self._possible: set[Head] = set()
        self._tried: Head | None = None
        self._fresh = False  # whether the head tried last was not possible before
        self._at = 0

    def at(self, now: float) -> int:
        """The time to write into the next entry. Times never go back in a chain, whatever a clock does."""
        self._at = max(self._at, math.floor(now))
        return self._at

    def check(self, found: Head | None, ledger: str) -> Head:
        """The head to continue from.

        Args:
            found: The head that the store holds; None if it holds no such chain.
            ledger: What to call the store in an error.

        Raises:
            LostChargesError: It is not a possible head of this chain.
        """
        if self._certain is None and found in (None, begin(self.name)):
            return begin(self.name)
        if found is not None and (found == self._certain or found in self._possible):
            return found
        raise LostChargesError(
            f"{ledger} has lost charges that it had committed: an older copy was put in its place. Put the newest one "
            "back, or see `dpmesh ledger accept --help`"
        )

    def settle(self, found: Head | None, ledger: str) -> Head:
        """The head to continue from, which is certain if nothing can be written to the store meanwhile.

        Raises:
            LostChargesError: It is not a possible head of this chain.
        """
        head = self.check(found, ledger)
        self._certain, self._possible = found if found is not None and found.seq else self._certain, set()
        return head

    @property
    def doubtful(self) -> bool:
        """Whether the head must be asked for."""
        return bool(self._possible)

    def latest(self) -> Head:
        """The head, where it is certain."""
        return self._certain or begin(self.name)

    def attempt(self, head: Head) -> None:
        """Notes that a commit with this head is about to be tried."""
        self._tried, self._fresh = head, head not in self._possible
        self._possible.add(head)

    def withdraw(self) -> None:
        """Notes that the commit tried last was not written. An earlier try of the same bytes may have been."""
        if self._tried is not None:
            if self._fresh:
                self._possible.discard(self._tried)
            self._tried = None

    def acknowledge(self) -> None:
        """Notes that the commit tried last is durable."""
        if self._tried is not None:
            self._certain, self._tried = self._tried, None
            self._possible = set()

    def doubt(self) -> None:
        """Notes that the store says that it has another head."""
        self._possible.add(self.latest())
