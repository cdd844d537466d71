"""Which signed files of a policy repository can be trusted: signatures, versions and hashes, without the network.

python-tuf's Updater checks what it downloads. This module checks the whole set once more, because a set on the disk has
to be verified without a network, and because the Updater does not check that the keys of a threshold differ, and does
not know whose fleet a root belongs to. Nothing here looks at a clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from cryptography.hazmat.primitives import serialization
from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, Targets, Timestamp

from dpmesh.rollout.layout import RING_FILE, RINGS

FLEET = "x-dpmesh-fleet"
"""The field of a root that names its fleet."""

_T = TypeVar("_T", Root, Timestamp, Snapshot, Targets)


class UntrustedError(Exception):
    """Signed files that can't be trusted. The text quotes nothing of them."""


class SignedSet(msgspec.Struct, frozen=True):
    """Files of a repository that belong together, byte for byte as they were signed.

    Attributes:
        roots: The roots after that of the image, in the order of their versions.
        timestamp: timestamp.json.
        snapshot: The snapshot that the timestamp names.
        targets: The targets that the snapshot names.
        rings: The metadata of the delegated role "rings", if there is one.
        documents: Targets, by their paths.
    """

    roots: tuple[bytes, ...]
    timestamp: bytes
    snapshot: bytes
    targets: bytes
    rings: bytes | None = None
    documents: dict[str, bytes] = {}


@dataclass(frozen=True, slots=True)
class Trusted:
    """What a set says, after all of its signatures, versions and hashes were checked.

    Attributes:
        root: The newest root.
        timestamp: The timestamp.
        targets: The policies that there are.
        rings: What the role "rings" says; None if there is no such role.
        signers: How many distinct keys of the role "targets" signed `targets`.
        expires: Seconds since 1970 at which the first of these files ends to be in time.
    """

    root: Root
    timestamp: Timestamp
    targets: Targets
    rings: Targets | None
    signers: int
    expires: float

    @property
    def versions(self) -> tuple[int, int]:
        """The versions of root and timestamp: those of a newer set are larger."""
        return self.root.version, self.timestamp.version


def image_root(data: bytes) -> Root:
    """The root of trust that the image has.

    Raises:
        UntrustedError: It is no root, is not signed by its own keys, or names no fleet.
    """
    root, _ = _load(Root, data)
    count_signers(root, Root.type, Metadata[Root].from_bytes(data))
    if not _fleet(root):
        raise UntrustedError(f"the root names no fleet ({FLEET})")
    return root


def verify(signed: SignedSet, image: Root) -> Trusted:
    """Checks a set.

    Args:
        signed: The files.
        image: The root of trust.

    Raises:
        UntrustedError: Something is wrong with them.
    """
    root = image
    for data in signed.roots:
        root = next_root(root, data)
    timestamp, _ = _load(Timestamp, signed.timestamp, root)
    snapshot = _listed(Snapshot, signed.snapshot, root, timestamp.snapshot_meta)[0]
    targets, signers = _listed(Targets, signed.targets, root, snapshot.meta.get("targets.json"))
    rings = None
    if targets.delegations and RINGS in (targets.delegations.roles or {}):
        if signed.rings is None:
            raise UntrustedError("the metadata of the role rings is missing")
        rings = _listed(Targets, signed.rings, targets, snapshot.meta.get(f"{RINGS}.json"), RINGS)[0]
    _check_documents(signed, targets, rings)
    files: list[Signed] = [root, timestamp, snapshot, targets, *([rings] if rings else [])]
    expires = min(file.expires.timestamp() for file in files)
    return Trusted(root, timestamp, targets, rings, signers, expires)


def next_root(root: Root, data: bytes) -> Root:
    """The root that follows another one.

    Args:
        root: The one before.
        data: The file of the next one. If its version is not larger, `root` itself is the answer: an image may have a
            newer root than the disk.

    Raises:
        UntrustedError: It is not the next one, is not signed by the keys of both, or belongs to another fleet.
    """
    following, metadata = _load(Root, data)
    if following.version <= root.version:
        return root
    if following.version != root.version + 1:
        raise UntrustedError("a root's version does not follow that of the root before")
    count_signers(root, Root.type, metadata)
    count_signers(following, Root.type, metadata)
    if _fleet(following) != _fleet(root):
        raise UntrustedError("a root belongs to another fleet")
    return following


def is_signed(root: Root, kind: type[_T], data: bytes) -> bool:
    """Whether a file still has the signatures that a root asks for."""
    try:
        _load(kind, data, root)
    except UntrustedError:
        return False
    return True


def public_key(key: Key) -> bytes:
    """A public key as bytes that are equal for equal keys, however their texts and ids differ.

    Raises:
        UntrustedError: The key has a form that is not known, so nobody can tell whether it equals another one.
    """
    text: Any = key.keyval.get("public")
    try:
        if key.keytype == "ed25519":
            return b"ed25519" + bytes.fromhex(text)
        return serialization.load_pem_public_key(text.encode()).public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    except (AttributeError, TypeError, ValueError):
        raise UntrustedError("a key is neither ed25519 nor in PEM") from None


def _listed(
    kind: type[_T], data: bytes, delegator: Root | Targets, meta: MetaFile | None, role: str = ""
) -> tuple[_T, int]:
    """A file that another one lists by version, and perhaps by length and hash."""
    name = role or kind.type
    if meta is None:
        raise UntrustedError(f"{name}: no snapshot lists it")
    try:
        meta.verify_length_and_hashes(data)
    except Exception:
        raise UntrustedError(f"{name}: is not the file that is listed") from None
    signed, metadata = _load(kind, data)
    if signed.version != meta.version:
        raise UntrustedError(f"{name}: has another version than is listed")
    return signed, count_signers(delegator, name, metadata)


def _load(kind: type[_T], data: bytes, delegator: Root | None = None) -> tuple[_T, Metadata[_T]]:
    """A file of a kind; if a root is given, with the signatures that it asks for."""
    try:
        metadata = Metadata[kind].from_bytes(data)  # type: ignore[valid-type]
    except Exception:  # python-tuf raises many, and their texts quote the file.
        raise UntrustedError(f"{kind.type}: is no metadata") from None
    if not isinstance(metadata.signed, kind):
        raise UntrustedError(f"{kind.type}: is another kind of file")
    if delegator is not None:
        count_signers(delegator, kind.type, metadata)
    return metadata.signed, metadata


def count_signers(delegator: Root | Targets, role: str, metadata: Metadata[_T]) -> int:
    """How many distinct keys of a role signed a file: at least its threshold.

    Raises:
        UntrustedError: There are fewer.
    """
    try:
        payload = metadata.signed_bytes
        result = delegator.get_verification_result(role, payload, metadata.signatures)
    except Exception:
        raise UntrustedError(f"{role}: its signatures can't be checked") from None
    keys = {public_key(key) for key in result.signed.values()}
    if len(keys) < result.threshold:
        raise UntrustedError(f"{role}: {len(keys)} of {result.threshold} keys signed it")
    return len(keys)


def _check_documents(signed: SignedSet, targets: Targets, rings: Targets | None) -> None:
    for path, content in signed.documents.items():
        role = rings if path == RING_FILE else targets
        listed = role.targets.get(path) if role else None
        if listed is None:
            raise UntrustedError("a document is not listed")
        try:
            listed.verify_length_and_hashes(content)
        except Exception:
            raise UntrustedError("a document is not the one that is listed") from None


def _fleet(root: Root) -> str:
    fleet = root.unrecognized_fields.get(FLEET)
    return fleet if isinstance(fleet, str) else ""
