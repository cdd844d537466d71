"""Pseudonyms: the stand-in of an id, 16 bytes, under a key for each epoch, namespace and consumer."""

from __future__ import annotations

import hmac

from dpmesh.bounded import BoundedTable
from dpmesh.ledger import EpochKey, Ledger
from dpmesh.policy import Pseudonymise

_BYTES = 16
# Kept for each namespace of a consumer, because most senders have few ids. Long ids would fill the memory.
_PSEUDONYMS_KEPT = 1024
_LONGEST_KEPT = 128
_NAMESPACES_KEPT = 64
_CONSUMERS_KEPT = 1024


class _Epoch:
    """The key of one epoch, namespace and consumer, and the pseudonyms of the ids seen last."""

    def __init__(self, epoch_key: EpochKey, key: bytes) -> None:
        self.epoch_key = epoch_key
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

    def __init__(self, ledger: Ledger, name: str) -> None:
        self._epoch_key = ledger.epoch_key
        self._name = name.encode()
        # The current epoch of each length, for each namespace. Policies that are swapped in may have others.
        self._epochs: BoundedTable[tuple[float, str], _Epoch] = BoundedTable(_NAMESPACES_KEPT)

    def pseudonymise(self, value: bytes, epoch: float, namespace: str = "") -> bytes:
        """The pseudonym, as of Pseudonymise."""
        epoch_key = self._epoch_key(epoch)
        current = self._epochs.get((epoch, namespace))
        if current is None or current.epoch_key is not epoch_key:
            current = self._epochs[epoch, namespace] = _Epoch(
                epoch_key, self._key(epoch_key, namespace.encode())
            )
        return current.of(value)

    def _key(self, epoch_key: EpochKey, namespace: bytes) -> bytes:
        """A key that differs for each epoch, namespace and consumer."""
        return hmac.digest(
            epoch_key.key, b"dpmesh pseudonym %d " % len(namespace) + namespace + self._name, "sha256"
        )


class Pseudonyms:
    """Makes pseudonyms: HMAC-SHA-256 (RFC 2104), cut to 16 bytes, under keys derived from the epoch's key.

    Two consumers that compare what they received find no pseudonym in common, and neither does one consumer in two
    epochs or namespaces. The ledger's store overwrites the key of an epoch that is over.

    Args:
        ledger: Holds the keys of the epochs in force: await Ledger.hold_keys before pseudonyms are made.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._consumers: BoundedTable[str, Pseudonymise] = BoundedTable(_CONSUMERS_KEPT)

    def to(self, consumer: str) -> Pseudonymise:
        """What makes the pseudonyms that one consumer receives.

        Args:
            consumer: The consumer's id, as for quotas; "" for all that are not known.
        """
        try:
            return self._consumers[consumer]
        except KeyError:
            made = _Consumer(self._ledger, consumer).pseudonymise
            self._consumers[consumer] = made
            return made
