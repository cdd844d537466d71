"""PolicyRepository: what officers do with a folder of signed policies that any web server can serve.

The folder:
    metadata/N.root.json, N.targets.json, N.snapshot.json, N.rings.json, timestamp.json    what devices read
    targets/HASH.policy.yaml, ...                                                          the policies themselves
    staged/                                                                                what waits for signatures
    rings.pub                                                                              the public key for rings

Devices read metadata/ and targets/ only. Files with a number or a hash in their names never change. timestamp.json is
replaced last, so that a reader meets the old policy or the new one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from securesystemslib.signer import Key, Signer
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from dpmesh import files
from dpmesh.errors import ConfigError
from dpmesh.policy import overlay_file
from dpmesh.rollout import tuf_keys, tuf_trust
from dpmesh.rollout.admission import REASON_LENGTH
from dpmesh.rollout.tuf_offer import FORMER, LARGEST_DOCUMENT, LARGEST_STEP, POLICY
from dpmesh.rollout.tuf_trust import FLEET, RING_FILE, RINGS, UntrustedError, public_key

LEAST_SHARE = 0.05
"""The smallest ring: a digest that fewer devices show makes them known."""

# How long each role's file can be believed. A device whose timestamp has ended is stale.
_DAYS = {Root.type: 365, Targets.type: 365, Snapshot.type: 365, Timestamp.type: 7, RINGS: 365}
_SUFFIXES = (".yaml", ".yml", ".json")

_T = TypeVar("_T", Root, Timestamp, Snapshot, Targets)


@dataclass(frozen=True, slots=True)
class State:
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


@dataclass(frozen=True, slots=True)
class Staged:
    """A policy that waits for signatures, or has all of them.

    Attributes:
        metadata: The targets that hold it.
        path: The target's name, such as policy.yaml.
        content: The policy.
        signers: How many distinct officers signed it.
        threshold: How many have to sign.
    """

    metadata: Metadata[Targets]
    path: str
    content: bytes
    signers: int
    threshold: int


class PolicyRepository:
    """A folder of signed policies.

    Args:
        folder: The folder. `create` makes it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    # -- keys -------------------------------------------------------------------------------------------------------

    def create(
        self,
        fleet: str,
        *,
        roots: Sequence[Key],
        root_signers: Sequence[Signer],
        root_threshold: int,
        officers: Sequence[Key],
        officer_threshold: int,
        online: Key,
        rings: Key | None,
    ) -> bytes:
        """Makes the folder and its first root.

        Args:
            fleet: The fleet's name. Devices of other fleets refuse the policies.
            roots: The public keys that may sign roots.
            root_signers: Those of them that sign now.
            root_threshold: How many have to sign a root.
            officers: The public keys that may sign policies.
            officer_threshold: How many have to sign a policy. Devices ask for two where it is looser.
            online: The key that says every few days that nothing newer is there.
            rings: The key that chooses how much of the fleet takes a new policy; None: always all of it.

        Returns:
            root.json, which every image needs.

        Raises:
            ConfigError: There is a repository already, or too few or equal keys.
        """
        if not fleet.strip():
            raise ConfigError("--fleet: a fleet needs a name")
        for name, keys, threshold in (
            ("root", roots, root_threshold),
            ("officer", officers, officer_threshold),
        ):
            _check_distinct(name, keys)
            if not 1 <= threshold <= len(keys):
                raise ConfigError(f"--{name}-threshold {threshold}: there are {len(keys)} {name} keys")
        root = Root(expires=_end(Root.type), unrecognized_fields={FLEET: fleet})
        for role, keys, threshold in (
            (Root.type, roots, root_threshold),
            (Targets.type, officers, officer_threshold),
            (Snapshot.type, [online], 1),
            (Timestamp.type, [online], 1),
        ):
            for key in keys:
                root.add_key(key, role)
            root.roles[role].threshold = threshold
        signed = _signed(root, root_signers)
        missing = root_threshold - len(root_signers)
        if missing > 0:
            raise ConfigError(f"--root-key: {missing} more private keys have to sign the first root")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for name in ("metadata", "targets", "staged"):
                (self._folder / name).mkdir(exist_ok=True)
            with self._locked():
                if any((self._folder / "metadata").iterdir()):
                    raise ConfigError(f"{self._folder}: is a repository already")
                if rings is not None:
                    data = json.dumps({"keyid": rings.keyid, **rings.to_dict()}).encode()
                    files.write(self._folder / "rings.json", data, mode=0o644)
                files.create(self._metadata("1.root.json"), signed, mode=0o644)
        except OSError as error:
            raise self._unwritable(error) from None
        return signed

    def rotate(
        self,
        signers: Sequence[str],
        *,
        add: Sequence[tuple[str, Key]] = (),
        drop: Sequence[tuple[str, Key]] = (),
        thresholds: Sequence[tuple[str, int]] = (),
    ) -> int:
        """Makes the next root, or adds signatures to the one that waits for them.

        It is published as soon as enough keys of the root before and of the next one have signed it.

        Args:
            signers: Names of private keys of the role "root", of the root before or of the next one.
            add: Roles and keys to add.
            drop: Roles and keys to take away.
            thresholds: Roles and how many of their keys have to sign.

        Returns:
            How many signatures are still missing; 0: it is published.

        Raises:
            ConfigError: A role, key or threshold is wrong, or changes were given while another root waits.
        """
        with self._changing():
            before = self.state().root
            path = self._folder / "staged" / "root.json"
            metadata = self._load(path, Root) if path.exists() else None
            if metadata is not None and metadata.signed.version != before.version + 1:
                metadata = None  # It was published.
            if metadata is None:
                metadata = Metadata(_changed(before, add, drop, thresholds))
            elif add or drop or thresholds:
                raise ConfigError(
                    f"{path}: another root waits for signatures; sign it without changes, or remove it"
                )
            root = metadata.signed
            known = {key.keyid: key for each in (before, root) for key in _keys(each, Root.type)}
            for name in signers:
                metadata.sign(tuf_keys.signer(name, list(known.values())), append=True)
            data = metadata.to_bytes()
            result = before.get_verification_result(Root.type, metadata.signed_bytes, metadata.signatures)
            own = root.get_verification_result(Root.type, metadata.signed_bytes, metadata.signatures)
            missing = max(0, result.missing) + max(0, own.missing)
            if missing:
                files.write(path, data, mode=0o644)
            else:
                files.create(self._metadata(f"{root.version}.root.json"), data, mode=0o644)
                with suppress(FileNotFoundError):
                    path.unlink()
            return missing

    # -- policies ---------------------------------------------------------------------------------------------------

    def stage(self, policy: Path | None, signer: str, *, not_before: int = 0, reason: str = "") -> Staged:
        """Signs a policy that shall be published: a new one, or the one that waits.

        Args:
            policy: The file of a new policy; None, or a file with the content that waits: adds a signature.
            signer: The name of an officer's private key.
            not_before: From when on devices may use it, in seconds since 1970; of a new policy only.
            reason: Why it is published; of a new policy only.

        Raises:
            ConfigError: The policy is none, is too large, or has no larger epoch than the one before; another one
                waits; nothing waits; or the key is no officer's.
        """
        with self._changing():
            state, waiting = self.state(), self.staged()
            if policy is not None and (waiting is None or not _repeats(waiting, policy, not_before, reason)):
                if waiting is not None:
                    raise ConfigError(
                        f"{self._folder / 'staged'}: another policy waits for signatures, or this one with another "
                        "reason or time; sign that without a file, or remove the folder's files"
                    )
                path, content, metadata = self._new(state, policy, not_before, reason)
            elif waiting is not None:
                path, content, metadata = waiting.path, waiting.content, waiting.metadata
            else:
                raise ConfigError(f"{self._folder}: no policy waits for signatures; give the policy's file")
            metadata.sign(tuf_keys.signer(signer, _keys(state.root, Targets.type)), append=True)
            files.write(self._folder / "staged" / path, content, mode=0o644)
            files.write(self._folder / "staged" / "targets.json", metadata.to_bytes(), mode=0o644)
            staged = self.staged()
            assert staged is not None
            return staged

    def staged(self) -> Staged | None:
        """The policy that waits for signatures or to be published.

        Raises:
            ConfigError: What is there does not fit together.
        """
        path = self._folder / "staged" / "targets.json"
        if not path.exists():
            return None
        state, metadata = self.state(), self._load(path, Targets)
        if metadata.signed.version != _version(state.targets) + 1:
            return None  # It was published.
        target = _policy(metadata.signed, POLICY)
        if target is None:
            raise ConfigError(f"{path}: has no policy")
        content = self._read(self._folder / "staged" / target.path)
        try:
            target.verify_length_and_hashes(content)
        except Exception:
            raise ConfigError(f"{self._folder / 'staged' / target.path}: is not what was signed") from None
        result = state.root.get_verification_result(Targets.type, metadata.signed_bytes, metadata.signatures)
        try:
            signers = len({public_key(key) for key in result.signed.values()})
        except UntrustedError as error:
            raise ConfigError(f"{path}: {error}") from None
        return Staged(metadata, target.path, content, signers, result.threshold)

    def published(self) -> tuple[str, bytes] | None:
        """The name and the content of the policy that devices read; None before the first one.

        Raises:
            ConfigError: The repository can't be read, or is damaged.
        """
        state = self.state()
        target = None if state.targets is None else _policy(state.targets, POLICY)
        if target is None:
            return None
        return target.path, self._read(self._target(target))

    def publish(self, online: str, *, share: float | None = None, rings: str = "") -> int:
        """Publishes the policy that waits, or renews what says that there is nothing newer.

        Args:
            online: The name of the online private key.
            share: Which part of the fleet takes the newest policy; None: as before, or all of it.
            rings: The name of the private key for rings, if `share` is given.

        Returns:
            The epoch of the newest policy.

        Raises:
            ConfigError: Signatures are missing; there is no policy; the share is too small, or smaller than before.
        """
        with self._changing():
            state, staged = self.state(), self.staged()
            if staged is not None:
                if staged.signers < staged.threshold:
                    raise ConfigError(
                        f"{staged.path}: {staged.signers} of {staged.threshold} officers signed it: "
                        "the others have to run `dpmesh policy sign`"
                    )
                self._write_target(staged.metadata.signed, staged.path, staged.content)
                former = _policy(staged.metadata.signed, FORMER)
                if former is not None and state.targets is not None:
                    before = _policy(state.targets, POLICY)
                    assert before is not None
                    self._write_target(staged.metadata.signed, former.path, self._read(self._target(before)))
                self._create(f"{staged.metadata.signed.version}.targets.json", staged.metadata.to_bytes())
            targets = state.targets if staged is None else staged.metadata.signed
            if targets is None:
                raise ConfigError(f"{self._folder}: there is no policy yet; run `dpmesh policy sign`")
            epoch = _epoch(targets)
            ring = self._ring(state, targets, epoch, share, rings)
            self._stamp(state, targets, ring, online)
            for name in ("targets.json", *[f"policy{suffix}" for suffix in _SUFFIXES]):
                with suppress(FileNotFoundError):
                    (self._folder / "staged" / name).unlink()
            return epoch

    def halt(self, online: str, rings: str) -> int:
        """Lets no further device take the newest policy. Those that have taken it keep it.

        Args:
            online: The name of the online private key.
            rings: The name of the private key for rings.

        Returns:
            The epoch of that policy.

        Raises:
            ConfigError: There is no policy, or there are no rings.
        """
        with self._changing():
            state = self.state()
            if state.targets is None:
                raise ConfigError(f"{self._folder}: there is no policy yet")
            epoch = _epoch(state.targets)
            ring = self._written_ring(state, state.targets, epoch, 0.0, rings)
            self._stamp(state, state.targets, ring, online)
            return epoch

    def state(self) -> State:
        """What devices read now, if its signatures are those that the root asks for.

        The first root counts as genuine: compare it with that of an image.

        Raises:
            ConfigError: The folder is no repository, is damaged, or was changed by somebody else.
        """
        root = self._root()
        if not self._metadata("timestamp.json").exists():
            return State(root, None, None, None, None)
        timestamp = self._verified("timestamp.json", Timestamp, root)
        snapshot = self._verified(f"{timestamp.snapshot_meta.version}.snapshot.json", Snapshot, root)
        targets = self._verified(f"{snapshot.meta['targets.json'].version}.targets.json", Targets, root)
        listed, rings = snapshot.meta.get(f"{RINGS}.json"), None
        if listed is not None:
            rings = self._verified(f"{listed.version}.{RINGS}.json", Targets, targets, RINGS)
        return State(root, targets, snapshot, timestamp, rings)

    def _root(self) -> Root:
        """The newest root, which the one before it vouches for, and so on to the first."""
        if not self._metadata("1.root.json").exists():
            raise ConfigError(f"{self._folder}: is no repository; run `dpmesh policy init`")
        root = self._load(self._metadata("1.root.json"), Root).signed
        while self._metadata(f"{root.version + 1}.root.json").exists():
            path = self._metadata(f"{root.version + 1}.root.json")
            try:
                root = tuf_trust.next_root(root, self._read(path))
            except UntrustedError as error:
                raise ConfigError(f"{path}: {error}") from None
        return root

    def _verified(self, name: str, kind: type[_T], delegator: Root | Targets, role: str = "") -> _T:
        """A file of metadata with the signatures that another one asks for."""
        metadata = self._load(self._metadata(name), kind)
        role = role or metadata.signed.type
        try:
            delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        except Exception:
            raise ConfigError(f"{self._metadata(name)}: is not signed as the root asks: restore it") from None
        return metadata.signed

    # -- parts ------------------------------------------------------------------------------------------------------

    def _new(
        self, state: State, policy: Path, not_before: int, reason: str
    ) -> tuple[str, bytes, Metadata[Targets]]:
        """The next targets, with a new policy and the one before."""
        if policy.suffix not in _SUFFIXES:
            raise ConfigError(f"policy file {policy}: its name ends with none of {', '.join(_SUFFIXES)}")
        content = overlay_file.read_bytes(policy)
        if len(content) > LARGEST_DOCUMENT:
            raise ConfigError(f"policy file {policy}: is larger than {LARGEST_DOCUMENT // 1000} kB")
        document = overlay_file.parse_bytes(content, str(policy))
        before = 0 if state.targets is None else _epoch(state.targets)
        if document.epoch <= before:
            raise ConfigError(
                f"policy file {policy}: epoch: {document.epoch} is not larger than {before}, which is published"
            )
        if document.epoch - before > LARGEST_STEP:
            raise ConfigError(
                f"policy file {policy}: epoch: {document.epoch} is more than {LARGEST_STEP} above {before}: "
                "no device would take it"
            )
        if len(reason) > REASON_LENGTH or not (reason.isprintable() or not reason):
            raise ConfigError(f"--reason: one line of at most {REASON_LENGTH} printable characters")
        targets = Targets(version=_version(state.targets) + 1, expires=_end(Targets.type))
        target = TargetFile.from_data(f"{POLICY}{policy.suffix}", content)
        custom = {"epoch": document.epoch, "not_before": not_before, "reason": reason}
        target.unrecognized_fields["custom"] = custom
        targets.targets[target.path] = target
        if state.targets is not None:
            targets.delegations = state.targets.delegations
            self._add_former(state.targets, targets)
        else:
            targets.delegations = self._delegations()
        return target.path, content, Metadata(targets)

    def _add_former(self, before: Targets, targets: Targets) -> None:
        """Keeps the policy before, for devices that are new and not in the ring."""
        former = _policy(before, POLICY)
        if former is not None:
            kept = TargetFile.from_dict(former.to_dict(), FORMER + Path(former.path).suffix)
            targets.targets[kept.path] = kept

    def _delegations(self) -> Delegations | None:
        path = self._folder / "rings.json"
        if not path.exists():
            return None
        try:
            known = json.loads(self._read(path))
            key = Key.from_dict(known.pop("keyid"), known)
        except Exception:
            raise ConfigError(f"{path}: is no public key") from None
        role = DelegatedRole(RINGS, [key.keyid], 1, True, paths=[RING_FILE])
        return Delegations({key.keyid: key}, {RINGS: role})

    def _ring(
        self, state: State, targets: Targets, epoch: int, share: float | None, rings: str
    ) -> Targets | None:
        """What the role "rings" says from now on."""
        before = self._share(state)
        if share is None:
            if state.rings is None and targets.delegations is not None and before is None and not rings:
                raise ConfigError(
                    "--rings-key: the first policy needs it; without --share the whole fleet takes it"
                )
            if not rings:
                return state.rings
            share = 1.0
        if not LEAST_SHARE <= share <= 1:
            raise ConfigError(
                f"--share {share:g}: allowed: {LEAST_SHARE:g} to 1; a smaller part would be known by it"
            )
        if before is not None and before[0] == epoch and share < before[1]:
            raise ConfigError(
                f"--share {share:g}: {before[1]:g} of the fleet may have taken epoch {epoch} already; "
                "`dpmesh policy halt` stops it"
            )
        return self._written_ring(state, targets, epoch, share, rings)

    def _share(self, state: State) -> tuple[int, float] | None:
        """Epoch and share of the ring that devices read."""
        target = None if state.rings is None else state.rings.targets.get(RING_FILE)
        if target is None:
            return None
        known = json.loads(self._read(self._target(target)))
        return int(known["epoch"]), float(known["share"])

    def _written_ring(self, state: State, targets: Targets, epoch: int, share: float, signer: str) -> Targets:
        if targets.delegations is None:
            raise ConfigError(
                "--share: the repository has no key for rings (`dpmesh policy init --rings-key`)"
            )
        if not signer:
            raise ConfigError("--rings-key: the share needs it")
        content = json.dumps({"epoch": epoch, "share": share}).encode()
        rings = Targets(version=_version(state.rings) + 1, expires=_end(RINGS))
        rings.targets[RING_FILE] = TargetFile.from_data(RING_FILE, content)
        keys = list(targets.delegations.keys.values())
        self._write_target(rings, RING_FILE, content)
        self._create(f"{rings.version}.{RINGS}.json", _signed(rings, [tuf_keys.signer(signer, keys)]))
        return rings

    def _stamp(self, state: State, targets: Targets, rings: Targets | None, online: str) -> None:
        """Writes what names the newest files; devices follow it from the moment at which timestamp.json is replaced."""
        meta = {"targets.json": MetaFile(targets.version)}
        if rings is not None:
            meta[f"{RINGS}.json"] = MetaFile(rings.version)
        signers = [tuf_keys.signer(online, _keys(state.root, Timestamp.type))]
        before = state.snapshot
        snapshot = Snapshot(_version(before) + 1, expires=_end(Snapshot.type), meta=meta)
        if before is not None and before.meta == meta and before.expires > _end(Timestamp.type):
            snapshot = before
        else:
            self._create(f"{snapshot.version}.snapshot.json", _signed(snapshot, signers))
        timestamp = Timestamp(
            _version(state.timestamp) + 1,
            expires=_end(Timestamp.type),
            snapshot_meta=MetaFile(snapshot.version),
        )
        files.write(self._metadata("timestamp.json"), _signed(timestamp, signers), mode=0o644)

    def _create(self, name: str, data: bytes) -> None:
        """Writes a file of metadata that is named by nothing yet: a publish before may have ended in its middle."""
        files.write(self._metadata(name), data, mode=0o644)

    def _write_target(self, targets: Targets, path: str, content: bytes) -> None:
        files.write(self._target(targets.targets[path]), content, mode=0o644)

    def _target(self, target: TargetFile) -> Path:
        return self._folder / "targets" / f"{target.hashes['sha256']}.{Path(target.path).name}"

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


def _end(role: str) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + timedelta(days=_DAYS[role])


def _signed(signed: Signed, signers: Sequence[Signer]) -> bytes:
    metadata: Metadata[Any] = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def _version(signed: Signed | None) -> int:
    return 0 if signed is None else signed.version


def _keys(root: Root, role: str) -> list[Key]:
    return [root.keys[keyid] for keyid in root.roles[role].keyids]


def _policy(targets: Targets, name: str) -> TargetFile | None:
    found = [each for path, each in targets.targets.items() if path.rpartition(".")[0] == name]
    return found[0] if found else None


def _epoch(targets: Targets) -> int:
    target = _policy(targets, POLICY)
    custom: Any = None if target is None else target.custom
    return int(custom["epoch"]) if custom else 0


def _repeats(waiting: Staged, policy: Path, not_before: int, reason: str) -> bool:
    """Whether somebody asks for the policy that waits once more."""
    target = waiting.metadata.signed.targets[waiting.path]
    asked = {"not_before": not_before, "reason": reason}
    agrees = all(not value or value == (target.custom or {}).get(name) for name, value in asked.items())
    return agrees and overlay_file.read_bytes(policy) == waiting.content


def _check_distinct(name: str, keys: Sequence[Key]) -> None:
    try:
        distinct = {public_key(key) for key in keys}
    except UntrustedError as error:
        raise ConfigError(f"--{name}-key: {error}") from None
    if len(distinct) < len(keys):
        raise ConfigError(f"--{name}-key: one key was given twice")


def _changed(
    before: Root,
    add: Sequence[tuple[str, Key]],
    drop: Sequence[tuple[str, Key]],
    thresholds: Sequence[tuple[str, int]],
) -> Root:
    """The root after `before`, with other keys and thresholds."""
    root = Root.from_dict(before.to_dict())
    root.version = before.version + 1
    root.expires = _end(Root.type)
    for role, _ in (*add, *drop, *thresholds):
        if role not in root.roles:
            raise ConfigError(f"role {role!r}: allowed: {', '.join(root.roles)}")
    for role, key in add:
        root.add_key(key, role)
    for role, key in drop:
        if key.keyid not in root.roles[role].keyids:
            raise ConfigError(f"--drop: the key is none of the role {role}")
        root.revoke_key(key.keyid, role)
    for role, threshold in thresholds:
        root.roles[role].threshold = threshold
    for role, each in root.roles.items():
        _check_distinct(role, _keys(root, role))
        if not 1 <= each.threshold <= len(each.keyids):
            raise ConfigError(
                f"role {role}: its threshold is {each.threshold}, and it has {len(each.keyids)} keys"
            )
    return root
