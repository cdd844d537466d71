"""Devices, certificates and proofs for tests of the issuer's records."""

from __future__ import annotations

import hashlib

import pytest

from dpmesh.errors import IdentityError
from dpmesh.identity.ca.proof import Proven

NOW = 1_800_000_000.0
LATER = NOW + 1800


def fingerprint(name):
    return hashlib.sha256(f"certificate {name}".encode()).digest()


def proof(name, number=0):
    """The given certificate's proof; another number, another proof."""
    digest = hashlib.sha256(f"{name} {number}".encode()).digest()
    return Proven(None, fingerprint(name), digest, NOW + 10_000)


def enrolled(enrolments, name="a"):
    """A device that has a certificate of this name; returns what the operator calls it."""
    invitation = enrolments.invite(now=NOW)
    enrolments.enrol(invitation.token, fingerprint(name), LATER, now=NOW)
    return invitation.device


def reason(function, *args, **kwargs):
    with pytest.raises(IdentityError) as caught:
        function(*args, **kwargs)
    return caught.value.reason
