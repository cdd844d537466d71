"""What a signed set offers to a device: the newest policy, the one before, or nothing for now."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import msgspec
from tuf.api.metadata import TargetFile

from dpmesh.errors import ConfigError
from dpmesh.policy import overlay_file
from dpmesh.rollout.layout import FORMER, POLICY, RING_FILE, named
from dpmesh.rollout.rings import Ring
from dpmesh.rollout.source import LARGEST_DOCUMENT, Offer
from dpmesh.rollout.tuf_cache import Kept
from dpmesh.rollout.tuf_trust import SignedSet, Trusted

LARGEST_STEP = 10**14
"""How far an epoch may be above the one before. Dates with times as numbers fit, and milliseconds since 1970."""


class UnfitError(Exception):
    """A target that its officers signed, and that can't be a policy. The text quotes no more of it than numbers."""


class _Custom(msgspec.Struct, frozen=True):
    """What the officers say of a policy beside it."""

    epoch: int
    not_before: float = 0.0
    reason: str = ""


def listed(trusted: Trusted, name: str) -> TargetFile | None:
    """The target with a name and any suffix that a policy may have.

    Args:
        trusted: What the repository says.
        name: `POLICY` or `FORMER`.

    Raises:
        UnfitError: There are two, or it is larger than any policy.
    """
    found = named(trusted.targets.targets, name)
    if len(found) > 1:
        raise UnfitError(f"there are two targets named {name}")
    if found and found[0].length > LARGEST_DOCUMENT:
        raise UnfitError(f"{found[0].path}: is larger than {LARGEST_DOCUMENT // 1000} kB")
    return found[0] if found else None


def ring(trusted: Trusted) -> TargetFile | None:
    """The target that says which part of the fleet takes the policy; None if there is none."""
    return None if trusted.rings is None else trusted.rings.targets.get(RING_FILE)


def wanted(trusted: Trusted) -> Iterable[TargetFile]:
    """The targets that a device reads.

    Raises:
        UnfitError: There is no policy, or one is named twice or is too large.
    """
    policy, former = listed(trusted, POLICY), listed(trusted, FORMER)
    if policy is None:
        raise UnfitError("there is no policy in it")
    chosen = [policy, former, ring(trusted)]
    return [target for target in chosen if target is not None]


def read(trusted: Trusted, signed: SignedSet, name: str) -> Offer | None:
    """A policy of a set.

    Args:
        trusted: What the set says.
        signed: The set, with the document.
        name: `POLICY` or `FORMER`.

    Returns:
        The offer; None if there is no such document.

    Raises:
        UnfitError: The document is no policy, or its epoch is not the one that its officers signed.
    """
    target = listed(trusted, name)
    if target is None or target.path not in signed.documents:
        return None
    content = signed.documents[target.path]
    try:
        custom = msgspec.convert(target.custom, _Custom)
    except msgspec.ValidationError:
        raise UnfitError(f"{target.path}: its officers signed no epoch for it, or something else") from None
    try:
        document = overlay_file.parse_bytes(content, target.path)
    except ConfigError as error:
        raise UnfitError(str(error)) from None
    if not 0 < custom.epoch == document.epoch:
        raise UnfitError(
            f"{target.path}: has epoch {document.epoch}, and its officers signed epoch {custom.epoch}"
        )
    alone = msgspec.structs.replace(signed, documents={target.path: content})
    return Offer(
        document=document,
        content=content,
        signers=trusted.signers,
        not_before=custom.not_before,
        reason=custom.reason,
        kept=msgspec.json.encode(alone),
    )


def chosen(
    trusted: Trusted, kept: Kept, *, floor: int, taken: int | None, secret: Callable[[], bytes]
) -> Offer | None:
    """What a device is offered of a set.

    A device that has taken an epoch keeps it if the ring shrinks. One that was only offered it, and holds it until its
    time comes, loses it.

    Args:
        trusted: What the set says.
        kept: The set, and what the device was offered before.
        floor: The least epoch of an offer.
        taken: The epoch of the policy that the device took last; None if it has taken none.
        secret: Gives the device's secret.

    Returns:
        The newest policy, or the former one; None if the device goes on with what it has.

    Raises:
        UnfitError: The policy of the set can't be taken.
    """
    policy = read(trusted, kept.signed, POLICY)
    if policy is None:
        raise UnfitError("there is no policy in it")
    _check_epoch(policy, kept, floor)
    epoch = policy.document.epoch
    if epoch == taken or _in_ring(kept.signed, epoch, secret()):
        return policy
    former = read(trusted, kept.signed, FORMER)
    if former is None or former.document.epoch < max(floor, kept.epoch):
        return None
    if former.document.epoch >= epoch:
        raise UnfitError(f"the former policy has epoch {former.document.epoch}, and the newest {epoch}")
    _check_epoch(former, kept, floor)
    return former


def _check_epoch(offer: Offer, kept: Kept, floor: int) -> None:
    epoch = offer.document.epoch
    if epoch < floor:
        raise UnfitError(f"its epoch {epoch} is below that of the image's policy, {floor}")
    if epoch < kept.epoch:
        raise UnfitError(f"its epoch {epoch} is below that of an earlier policy, {kept.epoch}")
    if epoch - max(floor, kept.epoch) > LARGEST_STEP:
        raise UnfitError(f"its epoch {epoch} is more than {LARGEST_STEP} above the one before")
    if epoch == kept.epoch and hashlib.sha256(offer.content).hexdigest() != kept.digest:
        raise UnfitError(f"it has the epoch of an earlier policy, {epoch}, and another content")


def _in_ring(signed: SignedSet, epoch: int, secret: bytes) -> bool:
    """Whether a device takes a policy.

    Args:
        signed: The set, with ring.json if there is one.
        epoch: The policy's.
        secret: The device's.

    Raises:
        UnfitError: ring.json is no ring.
    """
    content = signed.documents.get(RING_FILE)
    if content is None:
        return True
    try:
        said = Ring.parse(content)
    except ValueError:
        raise UnfitError(f"{RING_FILE}: is no ring") from None
    return said.epoch != epoch or said.has(secret)
