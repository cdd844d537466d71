"""What a source of policies offers."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from dpmesh.v1 import policy_pb2


class State(enum.StrEnum):
    """How far a source can be believed to show the newest policy.

    FRESH: it answered, and its answer is in time. STALE: it did not answer, or its answer is too old. EXPIRED: it has
    been stale for longer than `[policy] max_offline`.
    """

    FRESH = "fresh"
    STALE = "stale"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Offer:
    """A policy that a source has, as it was read.

    Attributes:
        document: The policy.
        content: The bytes that `document` was parsed from; if signed, those that were signed.
        signers: How many distinct keys of the role "targets" signed it; 0 for a source without signatures.
        not_before: Seconds since 1970 before which it may not be put in force; 0 if it may at once.
        reason: Why it was published, in the words of its officers; "" if they gave none.
        kept: What its source needs to believe the offer again without a network; b"" if `content` is enough.
    """

    document: policy_pb2.Policy
    content: bytes
    signers: int = 0
    not_before: float = 0.0
    reason: str = ""
    kept: bytes = b""


class PolicySource(Protocol):
    """Where policies come from. One task at a time uses it."""

    async def fetch(self) -> Offer | None:
        """Asks for a policy.

        Returns:
            The policy, or None if it has not changed since the last offer.

        Raises:
            ConfigError: There is an answer that can't be taken: it is unreadable, not signed as it has to be, or
                older than one before.
            PolicyUnavailableError: There is no answer.
        """

    @property
    def state(self) -> State:
        """FRESH or STALE, as of the last fetch."""
