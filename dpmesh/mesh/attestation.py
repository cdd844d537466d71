"""Attestation: how a sender says that it protects its requests, and what a receiver that requires this answers.

An attested request carries the metadata key `dpmesh-policy`, with the digest of the sender's policy as its value.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Final

from dpmesh.mesh.flow_table import MethodFlows
from dpmesh.mesh.flows import Flow
from dpmesh.mesh.refusals import Category, Refusal

log = logging.getLogger("dpmesh.grpc")  # Applications may filter by this name.

POLICY_KEY: Final = "dpmesh-policy"

# What a transport adds to the metadata of requests that are protected, under keys of its own.
Added = tuple[tuple[str, str | bytes], ...]


def message_metadata(flow: Flow, message: Any, protected: Any, given: Any, added: Added = ()) -> Any:
    """The metadata of a single request, which is attested if it was protected.

    Args:
        flow: The flow that protected it.
        message: What the application wanted to send.
        protected: What the flow gave instead.
        given: The application's metadata, as pairs. It can neither attest nor set the keys of `added`.
        added: What the transport adds.

    Returns:
        Pairs; `given` itself if the request needed no protection.
    """
    return given if protected is message else _with(given, ((POLICY_KEY, flow.snapshot.digest), *added))


def stream_metadata(flow: Flow, given: Any, added: Added = ()) -> Any:
    """The metadata of a stream of requests, which is attested if its method declares a type that can be protected.

    The arguments are those of `message_metadata`.

    Returns:
        Pairs; `given` itself if no request needs protection.
    """
    if not flow.sensitive():
        return given
    return _with(given, ((POLICY_KEY, flow.snapshot.digest), *added) if flow.attests() else added)


def _with(given: Any, added: Added) -> Any:
    if not given:
        return added
    reserved = (POLICY_KEY, *(key for key, _ in added))
    return (*(pair for pair in given if pair[0] not in reserved), *added)


def is_attested(metadata: Iterable[tuple[str, Any]]) -> bool:
    """Whether a request's metadata say that its sender protects it."""
    return any(key == POLICY_KEY for key, _ in metadata)


def refusal_without(method: MethodFlows) -> Refusal | None:
    """How a receiver refuses requests of a method that are not attested, or None if it takes them.

    To be asked once for each method: observe mode logs that requests would be refused.
    """
    name = method.name
    if not method.requires_attestation:
        return None
    if method.mesh.observing:
        log.warning("observe mode: %s requires protected requests, and takes any", name)
        return None
    text = (
        f"{name} takes requests only from senders that protect them: metadata key {POLICY_KEY!r} is missing"
    )
    return Refusal(Category.PRECONDITION, "NOT_PROTECTED", text, {"method": name})
