"""Attestation: how a sender says that it protects its requests, and what a receiver that requires this answers.

An attested request carries the metadata key `dpmesh-policy`, with the digest of the sender's policy as its value. A
single request is attested if it was protected: what leaves is then another object than the application's. A stream is
attested before its first message, by what its method declares (`Flow.attests`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Final

from dpmesh.mesh.flows import MethodFlows
from dpmesh.mesh.refusals import Refusal, not_protected

log = logging.getLogger("dpmesh.grpc")  # Applications may filter by this name.

POLICY_KEY: Final = "dpmesh-policy"

Pair = tuple[str, str | bytes]


def request_metadata(
    given: Iterable[tuple[str, Any]] | None, digest: str | None, transport: tuple[Pair, ...] = ()
) -> list[Pair]:
    """The metadata of a request that is protected. The application can neither attest nor set the transport's keys.

    Args:
        given: The application's metadata.
        digest: The digest of the policy that protects it, or None for a stream that is not attested.
        transport: What the transport adds under its own keys.
    """
    added = transport if digest is None else ((POLICY_KEY, digest), *transport)
    if not given:
        return [*added]
    reserved = (POLICY_KEY, *(key for key, _ in transport))
    return [*(pair for pair in given if pair[0] not in reserved), *added]


def is_attested(metadata: Iterable[tuple[str, Any]]) -> bool:
    """Whether a request's metadata say that its sender protects it."""
    return any(key == POLICY_KEY for key, _ in metadata)


def refusal_without(method: MethodFlows) -> Refusal | None:
    """How a receiver refuses requests of a method that are not attested, or None if it takes them.

    To be asked once for each method: observe mode logs that requests would be refused.

    Args:
        method: The method.
    """
    if not method.requires_attestation:
        return None
    if not method.mesh.observing:
        return not_protected(method.name, POLICY_KEY)
    log.warning("observe mode: %s requires protected requests, and takes any", method.name)
    return None
