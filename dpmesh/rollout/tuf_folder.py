"""The folder of a repository of signed policies: its files, and whether they can be trusted.

The folder:
    metadata/N.root.json, N.targets.json, N.snapshot.json, N.rings.json, timestamp.json    what devices read
    targets/HASH.policy.yaml, ...                                                          the policies themselves
    staged/                                                                                what waits for signatures
    rings.json                                                                             the public key for rings

Devices read metadata/ and targets/ only. Files with a number or a hash in their names never change. timestamp.json is
replaced last, so that a reader meets the old policy or the new one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import (
    Metadata,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from dpmesh import files
from dpmesh.errors import ConfigError
from dpmesh.rollout import tuf_trust
from dpmesh.rollout.layout import POLICY, RINGS, named, target_file
from dpmesh.rollout.tuf_trust import UntrustedError

APART = timedelta(days=1)
"""How far the clocks of two officers may be apart."""

DAYS = {Root.type: 365, Targets.type: 365, Snapshot.type: 365, Timestamp.type: 7, RINGS: 365}
"""How long each role's file can be trusted. A device whose timestamp has ended is stale."""

_T = TypeVar("_T", Root, Timestamp, Snapshot, Targets)


@dataclass(frozen=True, slots=True)
class PublishedFiles:
    """What devices read now.

    Attributes:
        root: The newest root.
        targets: The published targets; None before the first policy.
        snapshot: The published snapshot; None before the first policy.
        timestamp: The published timestamp; None before the first policy.
        rings: What the role "rings" published; None if it has not yet.
    """

    root: Root
    targets: Targets | None
    snapshot: Snapshot | None
    timestamp: Timestamp | None
    rings: Targets | None


class PolicyFolder:
    """A folder of signed policies.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def state(self) -> PublishedFiles:
        """What devices read now, if its signatures are those that the root asks for.

        The first root counts as genuine: compare it with that of an image.

        Raises:
            ConfigError: The folder is no repository, is damaged, or was changed by somebody else.
        """
        roots = self._roots()
        root = roots[-1]
        try:
            state = self._state(root, root)
        except ConfigError:
            if len(roots) == 1:
                raise
            # A command died after it had written a root, and before it wrote the files that go with it.
            state = self._state(root, roots[-2])
        self._check_targets(state)
        return state

    def _check_targets(self, state: PublishedFiles) -> None:
        """Checks that the published policies, and the ring, are what was signed."""
        for signed in (state.targets, state.rings):
            for target in () if signed is None else signed.targets.values():
                path = self._target(target)
                try:
                    target.verify_length_and_hashes(self._read(path))
                except LengthOrHashMismatchError:
                    raise ConfigError(f"{path}: is not what was signed: restore it") from None

    def _state(self, newest: Root, root: Root) -> PublishedFiles:
        """What devices read now, by the signatures that a root asks for."""
        if not self._metadata("timestamp.json").exists():
            return PublishedFiles(newest, None, None, None, None)
        timestamp = self._verified("timestamp.json", Timestamp, root)
        snapshot = self._verified(f"{timestamp.snapshot_meta.version}.snapshot.json", Snapshot, root)
        targets = self._verified(f"{snapshot.meta['targets.json'].version}.targets.json", Targets, root)
        listed, rings = snapshot.meta.get(f"{RINGS}.json"), None
        if listed is not None:
            rings = self._verified(f"{listed.version}.{RINGS}.json", Targets, targets, RINGS)
        return PublishedFiles(newest, targets, snapshot, timestamp, rings)

    def _roots(self) -> list[Root]:
        """All roots; each one but the first is vouched for by the one before it."""
        if not self._metadata("1.root.json").exists():
            raise ConfigError(f"{self._folder}: is no repository; run `dpmesh policy init`")
        roots = [self._load(self._metadata("1.root.json"), Root).signed]
        while (path := self._metadata(f"{len(roots) + 1}.root.json")).exists():
            try:
                roots.append(tuf_trust.next_root(roots[-1], self._read(path)))
            except UntrustedError as error:
                raise ConfigError(f"{path}: {error}") from None
        return roots

    def _verified(self, name: str, kind: type[_T], delegator: Root | Targets, role: str = "") -> _T:
        """A file of metadata with the signatures that another one asks for."""
        metadata = self._load(self._metadata(name), kind)
        if not is_signed(metadata, delegator, role):
            raise ConfigError(f"{self._metadata(name)}: is not signed as the root asks: restore it")
        return metadata.signed

    def _waiting_root(self, before: Root) -> Metadata[Root] | None:
        """The next root, if it waits for signatures or to be published."""
        path = self._folder / "staged" / "root.json"
        metadata = self._load(path, Root) if path.exists() else None
        return metadata if metadata is not None and metadata.signed.version == before.version + 1 else None

    def _next_root(self, before: Root) -> tuple[Root, bytes | None]:
        """The root that policies are signed for: the next one if it has its signatures.

        Returns:
            The root; and its file, if that is not published yet.
        """
        metadata = self._waiting_root(before)
        if metadata is None:
            return before, None
        data = metadata.to_bytes()
        try:
            return tuf_trust.next_root(before, data), data
        except UntrustedError:
            return before, None

    def _is_trusted(self, root: Root) -> bool:
        """Whether devices trust the published files under a root."""
        try:
            self._state(root, root)
        except ConfigError:
            return False
        return True

    def _write_root(self, root: Root, data: bytes) -> None:
        files.create(self._metadata(f"{root.version}.root.json"), data, mode=0o644)
        with suppress(FileNotFoundError):
            (self._folder / "staged" / "root.json").unlink()

    def _create(self, name: str, data: bytes) -> None:
        """Writes a file of metadata that is named by nothing yet: a publish before may have ended in its middle."""
        files.write(self._metadata(name), data, mode=0o644)

    def _write_target(self, targets: Targets, path: str, content: bytes) -> None:
        files.write(self._target(targets.targets[path]), content, mode=0o644)

    def _target(self, target: TargetFile) -> Path:
        return target_file(self._folder, target.path, target.hashes["sha256"])

    def _metadata(self, name: str) -> Path:
        return self._folder / "metadata" / name

    def _load(self, path: Path, kind: type[_T]) -> Metadata[_T]:
        data = self._read(path)
        try:
            metadata = Metadata[kind].from_bytes(data)  # type: ignore[valid-type]
        except Exception:
            raise ConfigError(f"{path}: is damaged") from None
        if not isinstance(metadata.signed, kind):
            raise ConfigError(f"{path}: is another kind of file")
        return metadata

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: can't be read ({error.strerror})") from None

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Holds the folder, and says clearly why it can't be written."""
        if not (self._folder / "metadata").is_dir():
            raise ConfigError(f"{self._folder}: is no repository; run `dpmesh policy init`")
        try:
            for name in ("targets", "staged"):
                (self._folder / name).mkdir(exist_ok=True)  # Git keeps no empty folders.
            with self._locked():
                yield
        except OSError as error:
            raise self._unwritable(error) from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with files.locked_folder(self._folder):
            yield

    def _unwritable(self, error: OSError) -> ConfigError:
        return ConfigError(f"{error.filename or self._folder}: can't be written ({error.strerror})")


def expiry(role: str) -> datetime:
    """When a file of a role ends that is signed now."""
    return datetime.now(UTC).replace(microsecond=0) + timedelta(days=DAYS[role])


def sign(signed: Signed, signers: Sequence[Signer]) -> bytes:
    """A file of metadata with signatures."""
    metadata: Metadata[Any] = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def version(signed: Signed | None) -> int:
    """The version of a file; 0 if there is none."""
    return 0 if signed is None else signed.version


def keys_of(root: Root, role: str) -> list[Key]:
    """The public keys of a role."""
    return [root.keys[keyid] for keyid in root.roles[role].keyids]


def policy_of(targets: Targets, name: str) -> TargetFile | None:
    """The target "policy" or "former", whatever its suffix is."""
    return next(iter(named(targets.targets, name)), None)


def epoch_of(targets: Targets) -> int:
    """The epoch of the newest policy; 0 if there is none."""
    target = policy_of(targets, POLICY)
    custom: Any = None if target is None else target.custom
    return int(custom["epoch"]) if custom else 0


def is_signed(metadata: Metadata[Any], delegator: Root | Targets, role: str = "") -> bool:
    """Whether a file has the signatures that another one asks for, as devices count them."""
    try:
        tuf_trust.count_signers(delegator, role or metadata.signed.type, metadata)
    except UntrustedError:
        return False
    return True
