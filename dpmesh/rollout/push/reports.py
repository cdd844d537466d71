"""What a device reports of a policy: an outcome, and a noisy bit about refusals; each under a pseudonym of its own.

A pseudonym is made with a secret that never leaves the device. It makes a device count once, and two pseudonyms of one
device can't be linked without that secret.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Final

PSEUDONYM_BYTES: Final = 16
DIGEST_BYTES: Final = 32
REASON_LENGTH: Final = 200
"""The most characters of a reason."""

# How much of a reason is looked at: more takes long, as nobody wrote it for people.
_SCRUBBED: Final = 1000

_ACK: Final = b"dpmesh rollout ack"
_REFUSALS: Final = b"dpmesh rollout refusals"

# Paths and URLs, by which a reason could tell devices apart. A method's name, "/acme.v1.Fleet/Report", is none:
# the part before its second slash has a dot.
_PLACE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s,;'\"]*|(?<![\w.])\.{0,2}/[^\s:,;'\"]+")
_METHOD = re.compile(r"/[A-Za-z_]\w*(?:\.\w+)+/[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True)
class OutcomeReport:
    """Whether a device took a policy.

    Attributes:
        epoch: The policy's.
        digest: SHA-256 of its document.
        pseudonym: The device's, for reports about this epoch.
        taken: The policy is in force there.
        reason: Why it was not taken, as `scrubbed` leaves it; "" if it was.
    """

    epoch: int
    digest: bytes
    pseudonym: bytes
    taken: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RefusalReport:
    """Whether a device refused messages, after randomized response.

    Attributes:
        round: The timestamp's version with which the service asked.
        epoch: That of the policy in force on the device.
        pseudonym: The device's, for this round.
        noisy_refused: The answer.
    """

    round: int
    epoch: int
    pseudonym: bytes
    noisy_refused: bool


def outcome_pseudonym(secret: bytes, epoch: int) -> bytes:
    """A device's pseudonym for its reports about one epoch."""
    return _pseudonym(secret, _ACK, epoch)


def refusal_pseudonym(secret: bytes, round_: int) -> bytes:
    """A device's pseudonym for its answer in one round."""
    return _pseudonym(secret, _REFUSALS, round_)


def _pseudonym(secret: bytes, purpose: bytes, number: int) -> bytes:
    return hmac.digest(secret, purpose + number.to_bytes(8, "big"), hashlib.sha256)[:PSEUDONYM_BYTES]


def randomized(bit: bool) -> bool:
    """Randomized response: the bit with probability 3/4, else its opposite (Warner 1965).

    The ratio of the probabilities of an answer under both bits is 3 at most, so epsilon is ln 3, about 1.1.
    """
    return bit if secrets.randbelow(4) else not bit


def scrubbed(reason: str) -> str:
    """A reason as one short line, without what could tell devices apart (paths and URLs) or control a terminal."""
    start = reason[:_SCRUBBED]
    line = " ".join("".join(c if c.isprintable() else " " for c in start).split())
    without = _PLACE.sub(lambda found: found[0] if _METHOD.fullmatch(found[0]) else "(path)", line)
    return without[:REASON_LENGTH]
