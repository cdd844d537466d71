"""Verification: whether a ledger's chains are whole, and its accounts what the charge log says; and checkpoints.

Whoever may write to a ledger may rewrite all of it consistently. A signed checkpoint, kept elsewhere, shows that too:
it holds the ends of all chains, and a chain may grow but never be shorter or different.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from dpmesh.accounting import MAX_AMOUNT
from dpmesh.errors import LedgerError
from dpmesh.ledger import clock_rewind
from dpmesh.ledger.admin import Chain, LedgerView, StoredEntry
from dpmesh.ledger.charge_log import (
    CHAIN_BYTES,
    HASH_BYTES,
    Entry,
    EntryKind,
    Head,
    Posting,
    begin,
    break_in,
    decode,
    follow,
)
from dpmesh.ledger.store import Account

_FORMAT = "dpmesh checkpoint 1"
_FINGERPRINT_BYTES = 16
_SIGNATURE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a ledger had come at one moment.

    Attributes:
        ledger: The ledger's fingerprint: a hash of its secret, in hex.
        time: When that was, in seconds since the epoch.
        heads: For each chain, its end.
        signature: Ed25519 (RFC 8032), or nothing.
    """

    ledger: str
    time: int
    heads: Mapping[bytes, Head]
    signature: bytes = b""

    def sign(self, key: Ed25519PrivateKey) -> Checkpoint:
        """The same with a signature."""
        return replace(self, signature=key.sign(self._signed()))

    def check(self, key: Ed25519PublicKey) -> None:
        """Checks the signature.

        Raises:
            LedgerError: It is missing, or not by this key, or something was changed since.
        """
        if not self.signature:
            raise LedgerError("the checkpoint is not signed")
        try:
            key.verify(self.signature, self._signed())
        except InvalidSignature as error:
            raise LedgerError("the checkpoint was altered, or another key signed it") from error

    def to_json(self) -> str:
        """As text, which from_json reads."""
        content = {**self._content(), "signature": base64.b64encode(self.signature).decode()}
        return json.dumps(content, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Checkpoint:
        """Reads what to_json wrote.

        Raises:
            LedgerError: It is something else.
        """
        try:
            return cls._read(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise LedgerError(
                "that is no checkpoint of a dpmesh ledger, or one of another version"
            ) from error

    @classmethod
    def _read(cls, content: Any) -> Checkpoint:
        if content["format"] != _FORMAT or type(content["time"]) is not int:
            raise ValueError("format")
        heads = {}
        for name, (seq, hash_) in content["chains"].items():
            if type(seq) is not int or seq < 0:
                raise ValueError("number")
            heads[_octets(name, CHAIN_BYTES)] = Head(seq, _octets(hash_, HASH_BYTES))
        signature = base64.b64decode(content["signature"], validate=True)
        if len(signature) not in (0, _SIGNATURE_BYTES):
            raise ValueError("signature")
        ledger = _octets(content["ledger"], _FINGERPRINT_BYTES).hex()
        return cls(ledger, content["time"], heads, signature)

    def _content(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "ledger": self.ledger,
            "time": self.time,
            "chains": {name.hex(): [head.seq, head.hash.hex()] for name, head in self.heads.items()},
        }

    def _signed(self) -> bytes:
        """Canonical bytes of all but the signature."""
        return json.dumps(self._content(), sort_keys=True, separators=(",", ":")).encode()


def _octets(text: str, length: int) -> bytes:
    octets = bytes.fromhex(text)
    if len(octets) != length:
        raise ValueError("length")
    return octets


def fingerprint(secret: bytes) -> str:
    """A ledger's name for checkpoints, in hex; it does not tell the secret.

    Args:
        secret: The ledger's secret.
    """
    return hashlib.sha256(b"dpmesh ledger fingerprint" + secret).digest()[:_FINGERPRINT_BYTES].hex()


async def checkpoint(view: LedgerView) -> Checkpoint:
    """How far a ledger has come.

    Raises:
        LedgerError: It can't be read.
    """
    heads = {chain.name: chain.head for chain in await view.chains()}
    return Checkpoint(fingerprint(view.secret), int(time.time()), heads)


async def verify(view: LedgerView, checkpoint: Checkpoint | None = None) -> list[str]:
    """Checks every chain entry by entry, and every account against the sum of its lines.

    Memory grows with the accounts and chains, not with the entries.

    Args:
        view: The ledger.
        checkpoint: An earlier one of this ledger, whose signature was checked.

    Returns:
        What is wrong, each with the chain and the number of the entry, or the account's hash and the budget.
        Nothing if the ledger is whole.

    Raises:
        LedgerError: It can't be read.
    """
    chains = await view.chains()
    if not chains and [account async for account in view.accounts()]:
        return [
            "the ledger has accounts, and no charge log: it was removed, or `dpmesh ledger migrate` has yet to make it"
        ]
    walk = _Walk(chains, {} if checkpoint is None else checkpoint.heads)
    sums = _Sums(view, any(chain.pruned.seq for chain in chains))
    async for written in view.entries():
        entry = walk.step(written)
        if entry is not None:
            sums.add(entry)
    if sums.retracted:
        async for written in view.entries():
            with suppress(LedgerError):
                sums.count_again(decode(written.body))
        sums.correct()
    found = [*walk.finish(view.pruned_before), *walk.compare(view, checkpoint)]
    async for account in view.accounts():
        found += sums.check(account)
    return [*found, *sums.without_account()]


class _Walk:
    """Follows all chains at once, entry by entry; of a broken one only the first break is told.

    Args:
        chains: All chains.
        marks: The ends that chains had earlier.
    """

    def __init__(self, chains: list[Chain], marks: Mapping[bytes, Head]) -> None:
        self._chains = {chain.name: chain for chain in chains}
        self._at = {chain.name: chain.pruned for chain in chains}
        self._broken: dict[bytes, str] = {}
        self._marks = marks
        self._marked: dict[bytes, bytes] = {}  # what is at the places of the marks now

    def step(self, written: StoredEntry) -> Entry | None:
        """Follows one entry; returns what it says, if that can be read."""
        name = written.chain
        mark = self._marks.get(name)
        if mark is not None and mark.seq == written.seq:
            self._marked[name] = written.hash
        if name not in self._at:
            self._broken.setdefault(name, "has entries, and no end")
        if name not in self._broken:
            try:
                self._at[name], entry = follow(self._at[name], *written[1:])
            except LedgerError as error:
                self._broken[name] = str(error)
            else:
                return entry
        try:
            return decode(written.body)
        except LedgerError:
            return None

    def finish(self, pruned_before: int) -> Iterator[str]:
        """What is wrong with the chains."""
        for name, chain in self._chains.items():
            wrong = self._broken.get(name) or break_in(self._at[name], [], chain.head)
            if chain.pruned.seq == 0 and chain.pruned != begin(name):
                wrong = "its beginning was altered"
            elif chain.pruned.seq and not pruned_before:
                wrong = f"entries up to {chain.pruned.seq} are missing, and none was ever pruned"
            if wrong:
                yield f"chain {name.hex()}: {wrong}"
        for name, wrong in self._broken.items():
            if name not in self._chains:
                yield f"chain {name.hex()}: {wrong}"

    def compare(self, view: LedgerView, checkpoint: Checkpoint | None) -> Iterator[str]:
        """What a checkpoint knows better."""
        if checkpoint is None:
            return
        if checkpoint.ledger != fingerprint(view.secret):
            yield "the checkpoint is of another ledger"
            return
        for name, mark in checkpoint.heads.items():
            wrong = self._change_since(name, mark)
            if wrong:
                yield f"chain {name.hex()}: {wrong}"

    def _change_since(self, name: bytes, mark: Head) -> str | None:
        chain = self._chains.get(name)
        if chain is None:
            return f"it is gone, and at the checkpoint it had {mark.seq} entries"
        if chain.head.seq < mark.seq:
            return f"it has {chain.head.seq} entries, and at the checkpoint it had {mark.seq}"
        if chain.pruned.seq > mark.seq:
            return f"entry {mark.seq} was pruned, so this checkpoint can't tell: use one that is not as old"
        there = chain.pruned.hash if chain.pruned.seq == mark.seq else self._marked.get(name)
        if there != mark.hash:
            return f"entry {mark.seq} is not the one that was there at the checkpoint"
        return None


@dataclass(slots=True)
class _Sum:
    """What the lines of one account add up to.

    Attributes:
        window: The latest that is charged.
        debited: In that window.
        granted: In that window.
        lifetime: In all windows.
        gross: As lifetime, without what came back. An odometer stands still at the largest amount.
    """

    window: int = 0
    debited: int = 0
    granted: int = 0
    lifetime: int = 0
    gross: int = 0

    def add(self, kind: EntryKind, line: Posting) -> None:
        if line.window > self.window:
            self.window, self.debited, self.granted = line.window, 0, 0
        if kind is EntryKind.GRANT:
            if line.window == self.window:
                self.granted += line.amount
            return
        if line.window == self.window:
            self.debited += line.amount
        self.lifetime += line.amount
        self.gross += max(0, line.amount)


@dataclass(slots=True)
class _Sums:
    """All accounts, as the charge log has them.

    The sum of an account forgets a window when it finds a later one. Where an administrator took everything out of
    later windows, which a wrong clock began, that is too early: these accounts are counted again, window by window.

    Attributes:
        view: The ledger.
        pruned: Whether any chain was.
        retracted: For each account, the windows that everything was taken out of.
    """

    view: LedgerView
    pruned: bool
    retracted: dict[tuple[int, bytes], set[int]] = field(default_factory=lambda: defaultdict(set))
    _windows: dict[tuple[int, bytes], dict[int, clock_rewind.Net]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    _sums: dict[tuple[int, bytes], _Sum] = field(default_factory=dict)
    _numbers: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self._numbers = {budget.name: number for number, budget in self.view.budgets.items()}

    def add(self, entry: Entry) -> None:
        """Counts an entry. The order doesn't matter."""
        for line in entry.lines:
            found = self._sums.get(line[:2])
            if found is None:
                found = self._sums[line[:2]] = _Sum()
            found.add(entry.kind, line)
        for key, window in clock_rewind.retracted(entry):
            self.retracted[key].add(window)

    def count_again(self, entry: Entry) -> None:
        """Counts an entry by windows, for the accounts of which anything was taken out of one."""
        for line in entry.lines:
            if line[:2] in self.retracted:
                clock_rewind.add(self._windows[line[:2]], entry.kind, line)

    def correct(self) -> None:
        """Takes for the latest window of an account the latest that has anything in it, or was never retracted."""
        for key, windows in self._windows.items():
            gone = self.retracted[key]
            left = [w for w, net in windows.items() if w not in gone or net.debited > 0 or net.granted > 0]
            found = self._sums[key]
            found.window = max(left, default=0)
            found.debited, found.granted = windows.get(found.window, clock_rewind.Net())

    def check(self, account: Account) -> Iterator[str]:
        """What is wrong with an account. Call it once for each."""
        where = f"account {account.account} of budget {account.budget!r}"
        key = self._numbers[account.budget], bytes.fromhex(account.account)
        logged = self._sums.pop(key, None)
        if logged is None:
            logged = _Sum(account.window_start)
            if not self.pruned and (account.spent or account.granted or account.lifetime):
                yield f"{where}: no entry of the charge log is about it"
                return
        # Where entries were pruned, the rest adds up to no more than the account has; but what windows that began
        # later were charged is all there.
        whole = not self.pruned or (
            account.window_end is not None and account.window_start >= self.view.pruned_before
        )
        if logged.window > account.window_start or (whole and logged.window != account.window_start):
            yield f"{where}: its window began at {account.window_start}, and by the charge log at {logged.window}"
        elif logged.window == account.window_start:
            yield from _differ(where, "debited", account.spent, logged.debited, whole)
            yield from _differ(where, "granted", account.granted, logged.granted, whole)
        if logged.gross <= MAX_AMOUNT:
            yield from _differ(
                where, "debited in all windows", account.lifetime, logged.lifetime, not self.pruned
            )

    def without_account(self) -> Iterator[str]:
        """Accounts that are only in the charge log; to be called after all were checked."""
        for number, account in sorted(self._sums):
            budget = self.view.budgets.get(number)
            name = f"number {number}, which is gone too" if budget is None else repr(budget.name)
            yield f"account {account.hex()} of budget {name}: it is gone, and the charge log has entries about it"


def _differ(where: str, what: str, stored: int, logged: int, whole: bool) -> Iterator[str]:
    if stored < logged or (whole and stored != logged):
        yield f"{where}: {what} is {stored}, and by the charge log {logged if whole else f'at least {logged}'}"
