"""Identities that rotate, their sources, the embedded CA that issues them, and anonymous tokens."""

from dpmesh.identity.ca.authority import Authority, LocalSource, Root
from dpmesh.identity.identity import Identity, Source
from dpmesh.identity.rotation.rotating_identity import IdentityStatus, RotatingIdentity
from dpmesh.identity.sources.files import FileSource
from dpmesh.identity.sources.workload import WorkloadSource
from dpmesh.identity.tokens import TokenChallenge, Verifier, Wallet

__all__ = [
    "Authority",
    "FileSource",
    "Identity",
    "IdentityStatus",
    "LocalSource",
    "Root",
    "RotatingIdentity",
    "Source",
    "TokenChallenge",
    "Verifier",
    "Wallet",
    "WorkloadSource",
]
