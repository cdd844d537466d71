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
        given: The application's metadata, as pairs. It can neither attest nor set the keys of `added`. With a protected
            request, only the keys of an allow-list leave: see `dpmesh.mesh.request_metadata`.
        added: What the transport adds.

    Returns:
        Pairs; `given` itself if the request needed no protection and the method is no trust boundary.
    """
    if protected is message:
        return unattested_metadata(flow, given)
    given = flow.request_metadata.with_protected(given)
    return _with(given, ((POLICY_KEY, flow.snapshot.digest), *added))


def unattested_metadata(flow: Flow, given: Any) -> Any:
    """The metadata of a request that leaves as it is; `given` itself unless the method is a trust boundary.

    In observe mode, where nothing is dropped, this logs what would not leave with protected requests.
    """
    if flow.observes():
        return flow.request_metadata.with_protected(given)
    return flow.request_metadata.with_others(given)


def later_metadata(flow: Flow, given: Any, *, streams: bool) -> Any:
    """What may leave of a request's metadata, once other parts of the transport have added theirs.

    Args:
        flow: The flow of the requests.
        given: All pairs that are to leave, also those that `message_metadata` or `stream_metadata` gave.
        streams: The requests are a stream.
    """
    if is_attested(given or ()) or (streams and flow.sensitive()):
        return flow.request_metadata.with_protected(given)
    return unattested_metadata(flow, given)


def stream_metadata(flow: Flow, given: Any, added: Added = ()) -> Any:
    """The metadata of a stream of requests, which is attested if its method declares a type that can be protected.

    The arguments are those of `message_metadata`.

    Returns:
        Pairs; `given` itself if no request needs protection and the method is no trust boundary.
    """
    if not flow.sensitive():
        return unattested_metadata(flow, given)
    given = flow.request_metadata.with_protected(given)
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
