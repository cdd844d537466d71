"""Checkpoints: how far a ledger had come at one moment, signed and kept elsewhere.

A user who may write to a ledger may rewrite all of it consistently. A checkpoint shows that: it holds the heads of all
chains, and a chain may grow but never become shorter or different.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from dpmesh.errors import LedgerError
from dpmesh.ledger.admin import LedgerView
from dpmesh.ledger.charge_log import CHAIN_BYTES, HASH_BYTES, Head

_FORMAT = "dpmesh checkpoint 1"
_FINGERPRINT_BYTES = 16
_SIGNATURE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a ledger had come at one moment.

    Attributes:
        ledger: The ledger's fingerprint: a hash of its secret, in hex.
        time: The moment, in seconds since the epoch.
        heads: The head of each chain.
        signature: Ed25519 (RFC 8032), or b"".
    """

    ledger: str
    time: int
    heads: Mapping[bytes, Head]
    signature: bytes = b""

    def sign(self, key: Ed25519PrivateKey) -> Checkpoint:
        """Returns this checkpoint with a signature."""
        return replace(self, signature=key.sign(self._signed()))

    def check(self, key: Ed25519PublicKey) -> None:
        """Checks the signature.

        Raises:
            LedgerError: The signature is missing, or by another key, or the checkpoint was altered.
        """
        if not self.signature:
            raise LedgerError("the checkpoint is not signed")
        try:
            key.verify(self.signature, self._signed())
        except InvalidSignature as error:
            raise LedgerError("the checkpoint was altered, or another key signed it") from error

    def to_json(self) -> str:
        """Writes the checkpoint as text."""
        content = {**self._content(), "signature": base64.b64encode(self.signature).decode()}
        return json.dumps(content, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Checkpoint:
        """Reads what to_json wrote.

        Raises:
            LedgerError: The text is not a checkpoint of this version.
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
        """The canonical bytes that are signed."""
        return json.dumps(self._content(), sort_keys=True, separators=(",", ":")).encode()


def _octets(text: str, length: int) -> bytes:
    octets = bytes.fromhex(text)
    if len(octets) != length:
        raise ValueError("length")
    return octets


def fingerprint(secret: bytes) -> str:
    """A ledger's name for checkpoints, in hex. It does not reveal the ledger's secret, from which it is made."""
    return hashlib.sha256(b"dpmesh ledger fingerprint" + secret).digest()[:_FINGERPRINT_BYTES].hex()


async def checkpoint(view: LedgerView) -> Checkpoint:
    """Makes a checkpoint, without a signature.

    Raises:
        LedgerError: The ledger can't be read.
    """
    heads = {chain.name: chain.head for chain in await view.chains()}
    return Checkpoint(fingerprint(view.secret), int(time.time()), heads)
