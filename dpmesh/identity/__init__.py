"""Identities that rotate: where they come from, when they are renewed, and what is proved without one."""

from dpmesh.identity.authority import Authority, LocalSource, Root
from dpmesh.identity.files import FileSource
from dpmesh.identity.identity import Identity, Source
from dpmesh.identity.rotating import IdentityStatus, RotatingIdentity
from dpmesh.identity.tokens import TokenChallenge, Verifier, Wallet
from dpmesh.identity.workload import WorkloadSource

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
