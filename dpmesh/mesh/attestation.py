"""Attestation: how a sender says that it protects its requests, and what a receiver that requires this answers.

An attested request carries the metadata key `dpmesh-policy`. `dpmesh.mesh.attested_policy` explains its values.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dpmesh.mesh.attested_policy import POLICY_KEY, attested_policy
from dpmesh.mesh.flow_table import MethodFlows
from dpmesh.mesh.flows import Flow
from dpmesh.mesh.refusals import Category, Refusal
from dpmesh.policy.required_policy import RequiredPolicy

log = logging.getLogger("dpmesh.grpc")  # Applications may filter by this name.

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
    return _with(given, ((POLICY_KEY, flow.attestation), *added))


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
    return _with(given, ((POLICY_KEY, flow.attestation), *added) if flow.attests() else added)


def _with(given: Any, added: Added) -> Any:
    if not given:
        return added
    reserved = (POLICY_KEY, *(key for key, _ in added))
    return (*(pair for pair in given if pair[0] not in reserved), *added)


def is_attested(metadata: Iterable[tuple[str, Any]]) -> bool:
    """Whether a request's metadata say that its sender protects it."""
    return any(key == POLICY_KEY for key, _ in metadata)


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a receiver asks of the requests of one method.

    Attributes:
        method: Its name.
        policy: What it asks of the sender's policy; None if any will do.
    """

    method: str
    policy: RequiredPolicy | None

    def refusal(self, metadata: Iterable[tuple[str, Any]]) -> Refusal | None:
        """How a request or stream with these metadata is refused, or None if it is taken."""
        metadata = tuple(metadata)
        name, policy = self.method, self.policy
        if not is_attested(metadata):
            text = f"{name} takes requests only from senders that protect them: metadata key {POLICY_KEY!r} is missing"
            return self._refusal("NOT_PROTECTED", text)
        if policy is None:
            return None
        named = attested_policy(metadata)
        if named is None or (policy.min_epoch and named.epoch is None):
            what = "policy's epoch" if named else "policy"
            setting = "require_policy.min_epoch" if named else "require_policy"
            text = f"{name} takes requests only from senders that name their {what}: set {setting} in their policy"
            return self._refusal("POLICY_NOT_NAMED", text)
        if policy.min_epoch > (named.epoch or 0):
            text = f"{name} takes requests that were protected under a policy of epoch {policy.min_epoch} or later"
            return self._refusal("POLICY_TOO_OLD", text, min_epoch=str(policy.min_epoch))
        if policy.digests and named.digest not in policy.digests:
            text = f"{name} does not take requests that were protected under this policy"
            return self._refusal("POLICY_NOT_TAKEN", text, digests=",".join(sorted(policy.digests)))
        return None

    def _refusal(self, reason: str, text: str, **details: str) -> Refusal:
        return Refusal(Category.PRECONDITION, reason, text, {"method": self.method, **details})


def requirement(method: MethodFlows) -> Requirement | None:
    """What a receiver asks of a method's requests, or None if it takes them all.

    To be asked once for each method: observe mode logs that requests would be refused.
    """
    if not method.requires_attestation:
        return None
    if method.mesh.observing:
        log.warning("observe mode: %s requires protected requests, and takes any", method.name)
        return None
    return Requirement(method.name, method.required_policy)
