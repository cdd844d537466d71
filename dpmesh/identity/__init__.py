"""Identities that rotate: where they come from, when they are renewed, and what is proved without one."""

from dpmesh.identity.files import FileSource
from dpmesh.identity.identity import Identity, Source
from dpmesh.identity.rotating import IdentityStatus, RotatingIdentity

__all__ = ["FileSource", "Identity", "IdentityStatus", "RotatingIdentity", "Source"]
