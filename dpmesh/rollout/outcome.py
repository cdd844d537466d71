"""Outcome: what became of a policy that a source offered."""

from __future__ import annotations

from dataclasses import dataclass


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
