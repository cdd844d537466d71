"""What a source of policies offers, and which of two policies is older."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from dpmesh.v1 import policy_pb2

LARGEST_DOCUMENT = 256_000
"""The largest policy that a source offers, in bytes. Devices parse it while they serve."""


class State(enum.StrEnum):
    """Whether a mesh is known to have the newest policy.

    FRESH: its source answered, and the answer is in time. STALE: the source did not answer, or its answer is too old.
    EXPIRED: the source has been stale for longer than `[policy] max_offline`.
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
        taken: This device has had it in force before.
        kept: What its source needs to verify the offer again without a network; b"" if `content` is enough.
    """

    document: policy_pb2.Policy
    content: bytes
    signers: int = 0
    not_before: float = 0.0
    reason: str = ""
    taken: bool = False
    kept: bytes = b""


class PolicySource(Protocol):
    """Where policies come from. One task or thread at a time uses it.

    Attributes:
        name: What to call it in logs.
        signed: Its policies have signatures.
    """

    name: str
    signed: bool

    @property
    def state(self) -> State:
        """FRESH or STALE, as of the last fetch."""

    def first(self) -> list[Offer]:
        """Policies to begin with, without a network: the best one first, and none that is older than what was kept.

        Raises:
            PolicyUnavailableError: There is none. The text says why.
            ConfigError: What was taken last can't be read, so that nobody knows which policies are too old.
        """

    def has_taken(self) -> bool:
        """Whether this device has ever taken a policy of it, even one that can't be used any more.

        Raises:
            ConfigError: As of `first`.
        """

    async def fetch(self) -> Offer | None:
        """Asks for a policy.

        Returns:
            The policy, or None if it has not changed since the last offer.

        Raises:
            ConfigError: There is an answer that can't be taken: it is unreadable, not signed as it has to be, or
                older than one before. As long as the answer stays, each call raises this.
            PolicyUnavailableError: There is no answer.
        """

    def keep(self, offer: Offer) -> None:
        """Makes an offer durable, so that `first` has it after a restart. It is called before the offer is in force.

        Raises:
            ConfigError: A newer one is stored.
            DpmeshError: It can't be stored now.
        """


def is_older(document: policy_pb2.Policy, before: policy_pb2.Policy) -> bool:
    """Whether a policy was published before another one, or beside it under one epoch."""
    return document.epoch < before.epoch or (
        bool(document.epoch) and document.epoch == before.epoch and document != before
    )
