"""Peer policies: which policy the sender of a request named, for handlers that store it with what they received."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from dpmesh.mesh.attested_policy import AttestedPolicy, attested_policy

_POLICY: ContextVar[AttestedPolicy | None] = ContextVar("dpmesh_peer_policy", default=None)


def peer_policy() -> AttestedPolicy | None:
    """The policy that the sender of this RPC's requests named in their metadata.

    Handlers call it, and functions and tasks that they start. Senders name their policy on methods with
    `require_policy`. They can lie: the name tells law from law, and proves nothing.

    Returns:
        The digest and, where senders say it, the epoch. None if the sender named no policy, or outside of handlers.
    """
    return _POLICY.get()


def serving(context: Any) -> None:
    """Notes what the sender named in the RPC that this task or thread serves from now on.

    Timers and tasks that outlive an RPC keep its context variables, so the variable must not hold the RPC itself.

    Args:
        context: gRPC's, of the RPC.
    """
    _POLICY.set(attested_policy(context.invocation_metadata() or ()))
