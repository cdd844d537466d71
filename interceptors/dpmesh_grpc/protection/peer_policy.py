"""Peer policies: which policy the sender of a request named, for handlers that store it with what they received."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from dpmesh.mesh.attested_policy import AttestedPolicy, attested_policy

# The context of the RPC that is served.
_CONTEXT: ContextVar[Any] = ContextVar("dpmesh_peer_policy", default=None)


def peer_policy() -> AttestedPolicy | None:
    """The policy that the sender of this RPC's requests named in their metadata.

    Handlers call it, and functions and tasks that they start. Senders name their policy on methods with
    `require_policy`. They can lie: the name tells law from law, and proves nothing.

    Returns:
        The digest and, where senders say it, the epoch. None if the sender named no policy, or outside of handlers.
    """
    context = _CONTEXT.get()
    return None if context is None else attested_policy(context.invocation_metadata() or ())


def serving(context: Any) -> None:
    """Notes the context of the RPC that this task or thread serves from now on."""
    _CONTEXT.set(context)
