"""What a signed set offers to a device: the newest policy, the one before, or nothing for now."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec
from tuf.api.metadata import TargetFile

from dpmesh.errors import ConfigError
from dpmesh.policy import overlay_file
from dpmesh.rollout.rings import Ring
from dpmesh.rollout.source import Offer
from dpmesh.rollout.tuf_trust import RING_FILE, SignedSet, Trusted

LARGEST_DOCUMENT = 256_000
"""The largest policy in a repository, in bytes."""

LARGEST_STEP = 10**14
"""How far an epoch may be above the one before. Dates with times as numbers fit, and milliseconds since 1970."""

POLICY = "policy"
FORMER = "former"

_SUFFIXES = ("yaml", "yml", "json")


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
    found = [
        target
        for path, target in trusted.targets.targets.items()
        if re.fullmatch(rf"{name}\.({'|'.join(_SUFFIXES)})", path)
    ]
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


def in_ring(signed: SignedSet, epoch: int, secret: bytes) -> bool:
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
        ring = Ring.parse(content)
    except (ValueError, msgspec.DecodeError):
        raise UnfitError(f"{RING_FILE}: is no ring") from None
    return ring.epoch != epoch or ring.has(secret)
