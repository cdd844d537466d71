"""Outcome: what became of a policy that a source offered."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from dpmesh.rollout.source import Offer


@dataclass(frozen=True, slots=True)
class Outcome:
    """A policy was put in force, or refused.

    Attributes:
        epoch: The policy's.
        digest: SHA-256 of its bytes, in hexadecimal.
        taken: It is in force.
        reason: Why it was refused, without values; "" if it was not.
        at: When, in seconds since 1970.
    """

    epoch: int
    digest: str
    taken: bool
    reason: str
    at: float

    @classmethod
    def of(cls, offer: Offer, refused: str, at: float) -> Outcome:
        """What became of an offer.

        Args:
            offer: The policy.
            refused: Why it was refused; "" if it is in force.
            at: When, in seconds since 1970.
        """
        digest = hashlib.sha256(offer.content).hexdigest()
        return cls(offer.document.epoch, digest, not refused, refused, at)
