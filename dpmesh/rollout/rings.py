"""Rings: which part of a fleet takes a new policy.

Each device decides for itself, by a secret that it shows to nobody: there is no list of devices, and the parts that two
epochs choose have nothing to do with each other.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec

from dpmesh import files

_SECRET_BYTES = 32


class Ring(msgspec.Struct, frozen=True):
    """What ring.json says.

    Attributes:
        epoch: The epoch of the policy that it is about.
        share: Which part of the fleet takes it, from 0 to 1.
    """

    epoch: Annotated[int, msgspec.Meta(ge=0)]
    share: float

    @classmethod
    def parse(cls, content: bytes) -> Ring:
        """Reads ring.json.

        Raises:
            ValueError: It is no ring.
        """
        try:
            ring = msgspec.json.decode(content, type=cls)
        except msgspec.DecodeError:
            raise ValueError("not an epoch and a share") from None
        if not 0 <= ring.share <= 1:
            raise ValueError("share: a number from 0 to 1")
        return ring

    def has(self, secret: bytes) -> bool:
        """Whether a device is in the ring.

        Args:
            secret: The device's.
        """
        # Python compares a whole number with a float exactly, and a product with a power of two is exact.
        return cohort(secret, self.epoch) < self.share * 2.0**64


def cohort(secret: bytes, epoch: int) -> int:
    """A device's place in the roll-out of one epoch, below 2**64. It says nothing of the places in others.

    Args:
        secret: The device's.
        epoch: The policy's, below 2**64.
    """
    message = b"dpmesh rollout" + epoch.to_bytes(8, "big")
    return int.from_bytes(hmac.digest(secret, message, hashlib.sha256)[:8], "big")


def device_secret(folder: Path) -> bytes:
    """The secret of the device that a folder belongs to; made at first use.

    Devices that begin with copies of one folder have one secret, and are in a ring together or not at all.

    Args:
        folder: It is there, and only the device's owner may write to it.

    Raises:
        OSError: It can't be read or written.
        NotPrivateError: Others may read it.
    """
    path = folder / "device-secret"
    if not path.exists():
        with suppress(FileExistsError):  # Another process was first.
            files.create(path, secrets.token_bytes(_SECRET_BYTES))
    return files.read_private(path)
