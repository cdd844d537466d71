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

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import UnsignedMetadataError
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
# How many officers have to sign what weakens a promise; devices ask for it, too.
_LOOSER_SIGNERS = 2
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

        It is published as soon as enough keys of the root before and of the next one have signed it. If devices would
        not believe the published files under it, because other keys have to sign those first, `publish` publishes it
        together with these files.

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
            metadata = self._waiting_root(before)
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
            if missing or not self._is_believed(root):
                files.write(path, data, mode=0o644)
            else:
                self._write_root(root, data)
            return missing

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

    def _is_believed(self, root: Root) -> bool:
        """Whether devices believe the published files under a root."""
        try:
            self._state(root, root)
        except ConfigError:
            return False
        return True

    def _write_root(self, root: Root, data: bytes) -> None:
        files.create(self._metadata(f"{root.version}.root.json"), data, mode=0o644)
        with suppress(FileNotFoundError):
            (self._folder / "staged" / "root.json").unlink()

    # -- policies ---------------------------------------------------------------------------------------------------

    def stage(
        self,
        policy: Path | None,
        signer: str,
        *,
        not_before: int = 0,
        reason: str = "",
        looser: bool = False,
        rings: Key | None = None,
    ) -> Staged:
        """Signs a policy that shall be published: a new one, or the one that waits.

        Args:
            policy: The file of a new policy. None, or a file with the content that waits: adds a signature. None if
                nothing waits: renews the time and the keys of the published policy.
            signer: The name of an officer's private key.
            not_before: From when on devices may use it, in seconds since 1970; of a new policy only.
            reason: Why it is published; of a new policy only.
            looser: It is looser than what devices may have, so that two officers have to sign it.
            rings: The public key for rings from this signature on; None: as before.

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
                path, content, metadata = self._new(state, policy, not_before, reason, looser)
            elif waiting is not None:
                path, content, metadata = waiting.path, waiting.content, waiting.metadata
                if rings is not None:
                    raise ConfigError(
                        "--rings: a policy waits for signatures already; publish or remove it first"
                    )
            else:
                path, content, metadata = self._renewed(state)
            if rings is not None:
                metadata.signed.delegations = _delegations(rings)
            root, _ = self._next_root(state.root)
            metadata.sign(tuf_keys.signer(signer, _keys(root, Targets.type)), append=True)
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
        root, _ = self._next_root(state.root)
        result = root.get_verification_result(Targets.type, metadata.signed_bytes, metadata.signatures)
        try:
            signers = len({public_key(key) for key in result.signed.values()})
        except UntrustedError as error:
            raise ConfigError(f"{path}: {error}") from None
        threshold = max(result.threshold, _LOOSER_SIGNERS if (target.custom or {}).get("looser") else 1)
        return Staged(metadata, target.path, content, signers, threshold)

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

    def in_force(self) -> list[tuple[str, bytes]]:
        """The names and contents of the policies that devices may have: two while a part of the fleet has the newest.

        Raises:
            ConfigError: The repository can't be read, or is damaged.
        """
        state = self.state()
        if state.targets is None:
            return []
        names = (POLICY, FORMER) if self._partial(state) else (POLICY,)
        found = [target for name in names if (target := _policy(state.targets, name)) is not None]
        return [(target.path, self._read(self._target(target))) for target in found]

    def ends(self) -> dict[str, float]:
        """When the published files that people have to renew end, in seconds since 1970, by role.

        Raises:
            ConfigError: The repository can't be read, or is damaged.
        """
        state = self.state()
        found = {Root.type: state.root, Targets.type: state.targets, RINGS: state.rings}
        return {role: signed.expires.timestamp() for role, signed in found.items() if signed is not None}

    def publish(
        self,
        online: str,
        *,
        share: float | None = None,
        rings: str = "",
        renew: bool = False,
        before: str = "",
    ) -> int:
        """Publishes the policy that waits, or renews what says that there is nothing newer.

        Args:
            online: The name of the online private key.
            share: Which part of the fleet takes the newest policy; None: as before, or all of it.
            rings: The name of the private key for rings, if `share` is given.
            renew: Leaves what waits, and renews only what says that there is nothing newer.
            before: The name of the online key of the root before, if the next root has another one. Devices that do
                not know the next root yet believe the files by it. Without it, they believe nothing new for a moment.

        Returns:
            The epoch of the newest policy.

        Raises:
            ConfigError: Signatures are missing; there is no policy; the share is too small, or smaller than before.
        """
        with self._changing():
            state, staged = self.state(), None if renew else self.staged()
            root, new_root = (state.root, None) if renew else self._next_root(state.root)
            if staged is not None:
                if staged.signers < staged.threshold:
                    raise ConfigError(
                        f"{staged.path}: {staged.signers} of {staged.threshold} officers signed it: "
                        "the others have to run `dpmesh policy sign`"
                    )
                self._check_partial(state, staged, share)
                self._write_documents(state, staged)
            targets = state.targets if staged is None else staged.metadata.signed
            if targets is None:
                raise ConfigError(f"{self._folder}: there is no policy yet; run `dpmesh policy sign`")
            if staged is None and not self._is_signed(targets, root):
                raise ConfigError(
                    f"{self._folder}: officers of the next root have to sign the policy: run `dpmesh policy sign`"
                )
            epoch = _epoch(targets)
            ring = self._ring(state, targets, epoch, share, rings)
            self._stamp(state, targets, ring, online, root, new_root, before)
            if not renew:
                for name in ("targets.json", *[f"policy{suffix}" for suffix in _SUFFIXES]):
                    with suppress(FileNotFoundError):
                        (self._folder / "staged" / name).unlink()
            return epoch

    def _write_documents(self, state: State, staged: Staged) -> None:
        """Writes what waits, except what names it to devices."""
        targets = staged.metadata.signed
        self._write_target(targets, staged.path, staged.content)
        former = _policy(targets, FORMER)
        for name in (POLICY, FORMER):
            known = None if state.targets is None else _policy(state.targets, name)
            if former is not None and known is not None and known.hashes == former.hashes:
                self._write_target(targets, former.path, self._read(self._target(known)))
        self._create(f"{targets.version}.targets.json", staged.metadata.to_bytes())

    def _check_partial(self, state: State, staged: Staged, share: float | None) -> None:
        """At most two policies may be in force: a third one would be known by the few devices that show it."""
        epoch = self._partial(state)
        if epoch and epoch != _epoch(staged.metadata.signed) and share is not None and share < 1:
            raise ConfigError(
                f"--share {share:g}: a part of the fleet has epoch {epoch}, so this would be a third policy: publish "
                f"it without --share, or publish epoch {epoch} for all first"
            )

    def _is_signed(self, targets: Targets, root: Root) -> bool:
        metadata = self._load(self._metadata(f"{targets.version}.targets.json"), Targets)
        return _is_signed(metadata, root)

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
            self._stamp(state, state.targets, ring, online, state.root)
            return epoch

    def state(self) -> State:
        """What devices read now, if its signatures are those that the root asks for.

        The first root counts as genuine: compare it with that of an image.

        Raises:
            ConfigError: The folder is no repository, is damaged, or was changed by somebody else.
        """
        roots = self._roots()
        root = roots[-1]
        try:
            return self._state(root, root)
        except ConfigError:
            if len(roots) == 1:
                raise
        # A command died after it had written a root, and before it wrote the files that go with it.
        return self._state(root, roots[-2])

    def _state(self, newest: Root, root: Root) -> State:
        """What devices read now, by the signatures that a root asks for."""
        if not self._metadata("timestamp.json").exists():
            return State(newest, None, None, None, None)
        timestamp = self._verified("timestamp.json", Timestamp, root)
        snapshot = self._verified(f"{timestamp.snapshot_meta.version}.snapshot.json", Snapshot, root)
        targets = self._verified(f"{snapshot.meta['targets.json'].version}.targets.json", Targets, root)
        listed, rings = snapshot.meta.get(f"{RINGS}.json"), None
        if listed is not None:
            rings = self._verified(f"{listed.version}.{RINGS}.json", Targets, targets, RINGS)
        return State(newest, targets, snapshot, timestamp, rings)

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
        role = role or metadata.signed.type
        try:
            delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        except Exception:
            raise ConfigError(f"{self._metadata(name)}: is not signed as the root asks: restore it") from None
        return metadata.signed

    # -- parts ------------------------------------------------------------------------------------------------------

    def _new(
        self, state: State, policy: Path, not_before: int, reason: str, looser: bool
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
        if looser:
            custom["looser"] = True
        target.unrecognized_fields["custom"] = custom
        targets.targets[target.path] = target
        if state.targets is None:
            targets.delegations = self._first_delegations()
        else:
            targets.delegations = state.targets.delegations
            self._add_former(state, state.targets, targets)
        return target.path, content, Metadata(targets)

    def _renewed(self, state: State) -> tuple[str, bytes, Metadata[Targets]]:
        """The published targets once more: for another year, or for signatures of other officers."""
        if state.targets is None:
            raise ConfigError(f"{self._folder}: no policy waits for signatures; give the policy's file")
        targets = copy.deepcopy(state.targets)
        targets.version, targets.expires = targets.version + 1, _end(Targets.type)
        target = _policy(targets, POLICY)
        assert target is not None
        return target.path, self._read(self._target(target)), Metadata(targets)

    def _add_former(self, state: State, before: Targets, targets: Targets) -> None:
        """Keeps the policy that the whole fleet may have, for devices that are new and not in the ring."""
        former = _policy(before, FORMER if self._partial(state) else POLICY)
        if former is not None:
            kept = TargetFile.from_dict(former.to_dict(), FORMER + Path(former.path).suffix)
            targets.targets[kept.path] = kept

    def _partial(self, state: State) -> int:
        """The epoch of the published policy if only a part of the fleet may take it; otherwise 0."""
        ring = self._share(state)
        epoch = 0 if state.targets is None else _epoch(state.targets)
        return epoch if ring is not None and ring[0] == epoch and ring[1] < 1 else 0

    def _first_delegations(self) -> Delegations | None:
        path = self._folder / "rings.json"
        if not path.exists():
            return None
        try:
            known = json.loads(self._read(path))
            key = Key.from_dict(known.pop("keyid"), known)
        except Exception:
            raise ConfigError(f"{path}: is no public key") from None
        return _delegations(key)

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
                self._check_rings(state, targets)
                return state.rings
            if before is not None and before[0] == epoch:
                return self._written_ring(state, targets, epoch, before[1], rings)
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

    def _check_rings(self, state: State, targets: Targets) -> None:
        """Checks that the published ring has the signature that the targets ask for."""
        if state.rings is not None:
            metadata = self._load(self._metadata(f"{state.rings.version}.{RINGS}.json"), Targets)
            if targets.delegations is None or not _is_signed(metadata, targets, RINGS):
                raise ConfigError(
                    "--rings-key: the new key for rings has to sign how much of the fleet takes it"
                )

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

    def _stamp(
        self,
        state: State,
        targets: Targets,
        rings: Targets | None,
        online: str,
        root: Root,
        new_root: bytes | None = None,
        before: str = "",
    ) -> None:
        """Writes what names the newest files; devices follow it from the moment at which timestamp.json is replaced.

        A new root is written last if devices with the root before believe the new files, so that they believe the old
        files or the new ones at any moment. Otherwise it is written right before timestamp.json.
        """
        meta = {"targets.json": MetaFile(targets.version)}
        if rings is not None:
            meta[f"{RINGS}.json"] = MetaFile(rings.version)
        old, end = state.snapshot, _end(Timestamp.type)
        if state.timestamp is not None and end < state.timestamp.expires:
            raise ConfigError("the clock of this machine is behind the last publication: set it")
        signers = [tuf_keys.signer(online, _keys(root, Timestamp.type))]
        if before:
            signers.append(tuf_keys.signer(before, _keys(state.root, Timestamp.type)))
        snapshot = Snapshot(_version(old) + 1, expires=_end(Snapshot.type), meta=meta)
        if old is not None and old.meta == meta and old.expires > end and self._is_kept(old, root):
            snapshot = old
        else:
            self._create(f"{snapshot.version}.snapshot.json", _signed(snapshot, signers))
        timestamp = Timestamp(
            _version(state.timestamp) + 1, expires=end, snapshot_meta=MetaFile(snapshot.version)
        )
        if new_root is not None and not before:
            self._write_root(root, new_root)
        files.write(self._metadata("timestamp.json"), _signed(timestamp, signers), mode=0o644)
        if new_root is not None and before:
            self._write_root(root, new_root)

    def _is_kept(self, snapshot: Snapshot, root: Root) -> bool:
        """Whether the published snapshot has the signatures that a root asks for."""
        return _is_signed(self._load(self._metadata(f"{snapshot.version}.snapshot.json"), Snapshot), root)

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


def _delegations(key: Key) -> Delegations:
    """Lets a key choose which part of the fleet takes a policy, and nothing else."""
    return Delegations(
        {key.keyid: key}, {RINGS: DelegatedRole(RINGS, [key.keyid], 1, True, paths=[RING_FILE])}
    )


def _is_signed(metadata: Metadata[Any], delegator: Root | Targets, role: str = "") -> bool:
    try:
        delegator.verify_delegate(role or metadata.signed.type, metadata.signed_bytes, metadata.signatures)
    except UnsignedMetadataError:
        return False
    return True


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
    root = copy.deepcopy(before)
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
