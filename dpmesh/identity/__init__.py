"""Identities that rotate: where they come from, when they are renewed, and what is proved without one."""

from dpmesh.identity.identity import Identity, Source

__all__ = ["Identity", "Source"]
