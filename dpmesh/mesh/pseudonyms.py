"""Pseudonyms: a unit's stand-in of 16 bytes, under a key that changes with every epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from dpmesh.bounded import BoundedTable
from dpmesh.ledger import Ledger

_PSEUDONYMS_KEPT = 1024
_LENGTHS_KEPT = 64


class _Epoch:
    """One epoch's key, and the pseudonyms of the units seen last: most senders have few units."""

    def __init__(self, number: float, key: bytes) -> None:
        self.number = number
        self.key = key
        self.pseudonyms: BoundedTable[bytes, bytes] = BoundedTable(_PSEUDONYMS_KEPT)


class Pseudonyms:
    """Makes pseudonyms under keys derived from the ledger's secret.

    Args:
        ledger: Holds the secret.
        clock: Seconds since 1970; tells which epoch it is.
    """

    def __init__(self, ledger: Ledger, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._clock = clock
        # The current epoch of each length. Each policy that is swapped in may have lengths of its own.
        self._epochs: BoundedTable[float, _Epoch] = BoundedTable(_LENGTHS_KEPT)

    def of(self, unit: bytes, epoch: float) -> bytes:
        """A unit's pseudonym: BLAKE2b (RFC 7693) keyed with this epoch's key, 16 bytes.

        Args:
            unit: The unit's canonical bytes.
            epoch: The length of an epoch in seconds.
        """
        number = self._clock() // epoch
        current = self._epochs.get(epoch)
        if current is None or current.number != number:
            label = b"dpmesh pseudonym %d %d" % (epoch * 1e6, number)
            key = hashlib.blake2b(label, key=self._ledger.secret).digest()
            current = self._epochs[epoch] = _Epoch(number, key)
        pseudonym = current.pseudonyms.get(unit)
        if pseudonym is None:
            pseudonym = hashlib.blake2b(unit, key=current.key, digest_size=16).digest()
            current.pseudonyms[unit] = pseudonym
        return pseudonym
