"""Pseudonyms: the stand-in of an id, 16 bytes, under a key for each epoch, namespace and consumer."""

from __future__ import annotations

import hmac
from collections.abc import Callable

from dpmesh.bounded import BoundedTable
from dpmesh.ledger import Ledger
from dpmesh.policy import Pseudonymise

_BYTES = 16
# Kept for each namespace of a consumer, because most senders have few ids. Long ids would fill the memory.
_PSEUDONYMS_KEPT = 1024
_LONGEST_KEPT = 128
_NAMESPACES_KEPT = 64
_CONSUMERS_KEPT = 1024


class _Epoch:
    """One epoch's key, and the pseudonyms of the ids seen last."""

    def __init__(self, number: float, key: bytes) -> None:
        self.number = number
        self.key = key
        self.pseudonyms: BoundedTable[bytes, bytes] = BoundedTable(_PSEUDONYMS_KEPT)

    def of(self, value: bytes) -> bytes:
        pseudonym = self.pseudonyms.get(value)
        if pseudonym is None:
            pseudonym = hmac.digest(self.key, value, "sha256")[:_BYTES]
            if len(value) <= _LONGEST_KEPT:
                self.pseudonyms[value] = pseudonym
        return pseudonym


class _Consumer:
    """Makes the pseudonyms that one consumer receives."""

    def __init__(self, ledger: Ledger, clock: Callable[[], float], name: str) -> None:
        self._ledger = ledger
        self._clock = clock
        self._name = name.encode()
        # The current epoch of each length, for each namespace. Policies that are swapped in may have others.
        self._epochs: BoundedTable[tuple[float, str], _Epoch] = BoundedTable(_NAMESPACES_KEPT)

    def pseudonymise(self, value: bytes, epoch: float, namespace: str = "") -> bytes:
        """The pseudonym, as of Pseudonymise."""
        number = self._clock() // epoch
        current = self._epochs.get((epoch, namespace))
        if current is None or current.number != number:
            key = self._key(epoch, number, namespace.encode())
            current = self._epochs[epoch, namespace] = _Epoch(number, key)
        return current.of(value)

    def _key(self, epoch: float, number: float, namespace: bytes) -> bytes:
        """The key of one epoch: equal for no two epochs, namespaces and consumers."""
        label = b"dpmesh pseudonym %d %d %d " % (epoch * 1e6, number, len(namespace))
        return hmac.digest(self._ledger.secret, label + namespace + self._name, "sha256")


class Pseudonyms:
    """Makes pseudonyms: HMAC-SHA-256 (RFC 2104), cut to 16 bytes, under keys derived from the ledger's secret.

    Two consumers that compare what they received find no pseudonym in common, and neither does one consumer in two
    epochs or namespaces. The ledger's secret makes all keys again, those of past epochs too.

    Args:
        ledger: Holds the secret.
        clock: Seconds since 1970; tells which epoch it is.
    """

    def __init__(self, ledger: Ledger, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._clock = clock
        self._consumers: BoundedTable[str, Pseudonymise] = BoundedTable(_CONSUMERS_KEPT)

    def to(self, consumer: str) -> Pseudonymise:
        """What makes the pseudonyms that one consumer receives.

        Args:
            consumer: The consumer's id, as for quotas; "" for all that are not known.
        """
        try:
            return self._consumers[consumer]
        except KeyError:
            made = _Consumer(self._ledger, self._clock, consumer).pseudonymise
            self._consumers[consumer] = made
            return made
