"""PolicyRepository: what officers do with a folder of signed policies that any web server can serve.

`tuf_folder.py` says what is in the folder.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from securesystemslib.signer import Key
from tuf.api.metadata import (
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from dpmesh import files
from dpmesh.errors import ConfigError
from dpmesh.policy import overlay_file
from dpmesh.rollout import tuf_keys
from dpmesh.rollout.admission import LOOSER_SIGNERS, REASON_LENGTH
from dpmesh.rollout.layout import FORMER, POLICY, RINGS, SUFFIXES
from dpmesh.rollout.source import LARGEST_DOCUMENT
from dpmesh.rollout.tuf_folder import (
    APART,
    PublishedFiles,
    epoch_of,
    expiry,
    is_signed,
    keys_of,
    policy_of,
    sign,
    version,
)
from dpmesh.rollout.tuf_offer import LARGEST_STEP
from dpmesh.rollout.tuf_ring_file import RingFiles, delegations
from dpmesh.rollout.tuf_trust import UntrustedError, public_key


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


class PolicyRepository(RingFiles):
    """A folder of signed policies.

    Args:
        folder: The folder. `create` makes it.
    """

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
            rings: The public key for rings from this signature on; None: as before. Each officer gives it.

        Raises:
            ConfigError: The policy is none, is too large, or has no larger epoch than the one before; another one
                waits; nothing waits; what waits has parts that no officer's command wrote; or the key is no officer's.
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
                self._check_waiting(state, waiting, rings)
            else:
                path, content, metadata = self._renewed(state)
            if rings is not None and waiting is None:
                metadata.signed.delegations = delegations(rings)
            root, _ = self._next_root(state.root)
            metadata.sign(
                tuf_keys.signer(signer, keys_of(root, Targets.type), "targets, the officers"), append=True
            )
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
        if metadata.signed.version != version(state.targets) + 1:
            return None  # It was published.
        target = policy_of(metadata.signed, POLICY)
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
        threshold = max(result.threshold, LOOSER_SIGNERS if (target.custom or {}).get("looser") else 1)
        return Staged(metadata, target.path, content, signers, threshold)

    def published(self) -> tuple[str, bytes] | None:
        """The name and the content of the policy that devices read; None before the first one.

        Raises:
            ConfigError: The repository can't be read, or is damaged.
        """
        state = self.state()
        target = None if state.targets is None else policy_of(state.targets, POLICY)
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
        found = [target for name in names if (target := policy_of(state.targets, name)) is not None]
        return [(target.path, self._read(self._target(target))) for target in found]

    def ends(self) -> dict[str, float]:
        """When the published files end that people have to renew, in seconds since 1970, by role.

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
                not know the next root yet trust the files by it. Without it, they trust nothing new for a moment.

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
            if staged is None and not self._is_still_signed(targets, root):
                raise ConfigError(
                    f"{self._folder}: officers of the next root have to sign the policy: run `dpmesh policy sign`"
                )
            epoch = epoch_of(targets)
            ring = self._ring(state, targets, epoch, share, rings)
            self._stamp(state, targets, ring, online, root, new_root, before)
            if not renew:
                for name in ("targets.json", *[f"{POLICY}{suffix}" for suffix in SUFFIXES]):
                    with suppress(FileNotFoundError):
                        (self._folder / "staged" / name).unlink()
            return epoch

    def _write_documents(self, state: PublishedFiles, staged: Staged) -> None:
        """Writes what waits, except what names it to devices."""
        targets = staged.metadata.signed
        self._write_target(targets, staged.path, staged.content)
        former = policy_of(targets, FORMER)
        for name in (POLICY, FORMER):
            known = None if state.targets is None else policy_of(state.targets, name)
            if former is not None and known is not None and known.hashes == former.hashes:
                self._write_target(targets, former.path, self._read(self._target(known)))
        self._create(f"{targets.version}.targets.json", staged.metadata.to_bytes())

    def _check_partial(self, state: PublishedFiles, staged: Staged, share: float | None) -> None:
        """At most two policies may be in force: a third one would be known by the few devices that show it."""
        epoch = self._partial(state)
        if epoch and epoch != epoch_of(staged.metadata.signed) and share is not None and share < 1:
            raise ConfigError(
                f"--share {share:g}: a part of the fleet has epoch {epoch}, so this would be a third policy: publish "
                f"it without --share, or publish epoch {epoch} for all first"
            )

    def _is_still_signed(self, targets: Targets, root: Root) -> bool:
        metadata = self._load(self._metadata(f"{targets.version}.targets.json"), Targets)
        return is_signed(metadata, root)

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
            epoch = epoch_of(state.targets)
            ring = self._written_ring(state, state.targets, epoch, 0.0, rings)
            self._stamp(state, state.targets, ring, online, state.root)
            return epoch

    def _new(
        self, state: PublishedFiles, policy: Path, not_before: int, reason: str, looser: bool
    ) -> tuple[str, bytes, Metadata[Targets]]:
        """The next targets, with a new policy and the one before."""
        if policy.suffix not in SUFFIXES:
            raise ConfigError(f"policy file {policy}: its name ends with none of {', '.join(SUFFIXES)}")
        content = overlay_file.read_bytes(policy)
        if len(content) > LARGEST_DOCUMENT:
            raise ConfigError(f"policy file {policy}: is larger than {LARGEST_DOCUMENT // 1000} kB")
        document = overlay_file.parse_bytes(content, str(policy))
        before = 0 if state.targets is None else epoch_of(state.targets)
        if not document.epoch:
            raise ConfigError(
                f"policy file {policy}: epoch: is missing: write a whole number above {before}, "
                f"as in `epoch: {before + 1}`"
            )
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
        targets = Targets(version=version(state.targets) + 1, expires=expiry(Targets.type))
        custom = {"epoch": document.epoch, "not_before": not_before, "reason": reason, "looser": looser}
        target = _target(f"{POLICY}{policy.suffix}", content, custom)
        targets.targets[target.path] = target
        if state.targets is None:
            targets.delegations = self._first_delegations()
        else:
            targets.delegations = state.targets.delegations
            self._add_former(state, state.targets, targets)
        return target.path, content, Metadata(targets)

    def _check_waiting(self, state: PublishedFiles, waiting: Staged, rings: Key | None) -> None:
        """Checks that a signature on what waits is one on the policy alone.

        Whoever may write to the folder may have put something else beside the policy: another former policy, another
        key for rings, or a time for which the files are believed for ever.

        Raises:
            ConfigError: It has parts that `stage` does not write.
        """
        signed, target = waiting.metadata.signed, waiting.metadata.signed.targets[waiting.path]
        expected = Targets(version=version(state.targets) + 1, expires=signed.expires)
        if state.targets is None:
            expected.delegations = self._first_delegations()
        else:
            expected.delegations = state.targets.delegations
        if rings is not None:
            expected.delegations = delegations(rings)
        if signed.delegations != expected.delegations:
            raise ConfigError(
                f"{self._folder / 'staged'}: what waits has another key for rings: give that key with --rings, if you "
                "know it"
            )
        expected.targets[target.path] = _target(target.path, waiting.content, target.custom or {})
        found = signed.to_dict()
        for former in (None, *([] if state.targets is None else (POLICY, FORMER))):
            known = None if former is None or state.targets is None else policy_of(state.targets, former)
            if former is not None and known is None:
                continue
            beside = [] if known is None else [_former(known)]
            expected.targets = {each.path: each for each in (expected.targets[target.path], *beside)}
            if found == expected.to_dict() and signed.expires <= expiry(Targets.type) + APART:
                return
        raise ConfigError(
            f"{self._folder / 'staged'}: what waits is more than a policy, so somebody has changed it: remove the "
            "folder's files, and sign the policy anew"
        )

    def _renewed(self, state: PublishedFiles) -> tuple[str, bytes, Metadata[Targets]]:
        """The published targets once more: for another year, or for signatures of other officers."""
        if state.targets is None:
            raise ConfigError(f"{self._folder}: no policy waits for signatures; give the policy's file")
        targets = copy.deepcopy(state.targets)
        targets.version, targets.expires = targets.version + 1, expiry(Targets.type)
        target = policy_of(targets, POLICY)
        assert target is not None
        return target.path, self._read(self._target(target)), Metadata(targets)

    def _add_former(self, state: PublishedFiles, before: Targets, targets: Targets) -> None:
        """Keeps the policy that the whole fleet may have, for devices that are new and not in the ring."""
        if not self._is_still_signed(before, state.root):
            return  # A root was published that no longer vouches for it, and the publisher died then.
        former = policy_of(before, FORMER if self._partial(state) else POLICY)
        if former is not None:
            kept = _former(former)
            targets.targets[kept.path] = kept

    def _first_delegations(self) -> Delegations | None:
        path = self._folder / "rings.json"
        if not path.exists():
            return None
        try:
            known = json.loads(self._read(path))
            key = Key.from_dict(known.pop("keyid"), known)
        except Exception:
            raise ConfigError(f"{path}: is no public key") from None
        return delegations(key)

    def _stamp(
        self,
        state: PublishedFiles,
        targets: Targets,
        rings: Targets | None,
        online: str,
        root: Root,
        new_root: bytes | None = None,
        before: str = "",
    ) -> None:
        """Writes what names the newest files; devices follow it from the moment at which timestamp.json is replaced.

        A new root is written last if devices with the root before trust the new files, so that they trust the old
        files or the new ones at any moment. Otherwise it is written right before timestamp.json.
        """
        meta = {"targets.json": MetaFile(targets.version)}
        if rings is not None:
            meta[f"{RINGS}.json"] = MetaFile(rings.version)
        old, expires = state.snapshot, expiry(Timestamp.type)
        if state.timestamp is not None and expires < state.timestamp.expires:
            raise ConfigError("the clock of this machine is behind the last publication: set it")
        signers = [tuf_keys.signer(online, keys_of(root, Timestamp.type), "timestamp, the online key")]
        if before:
            signers.append(
                tuf_keys.signer(
                    before, keys_of(state.root, Timestamp.type), "timestamp, the online key before"
                )
            )
        snapshot = Snapshot(version(old) + 1, expires=expiry(Snapshot.type), meta=meta)
        if old is not None and old.meta == meta and old.expires > expires and self._is_kept(old, root):
            snapshot = old
        else:
            self._create(f"{snapshot.version}.snapshot.json", sign(snapshot, signers))
        timestamp = Timestamp(
            version(state.timestamp) + 1, expires=expires, snapshot_meta=MetaFile(snapshot.version)
        )
        if new_root is not None and not before:
            self._write_root(root, new_root)
        files.write(self._metadata("timestamp.json"), sign(timestamp, signers), mode=0o644)
        if new_root is not None and before:
            self._write_root(root, new_root)

    def _is_kept(self, snapshot: Snapshot, root: Root) -> bool:
        """Whether the published snapshot has the signatures that a root asks for."""
        return is_signed(self._load(self._metadata(f"{snapshot.version}.snapshot.json"), Snapshot), root)


def _target(path: str, content: bytes, custom: Mapping[str, Any]) -> TargetFile:
    """A policy, with what its officers say of it."""
    target = TargetFile.from_data(path, content)
    kept = {name: custom[name] for name in ("epoch", "not_before", "reason") if name in custom}
    target.unrecognized_fields["custom"] = kept | ({"looser": True} if custom.get("looser") else {})
    return target


def _former(target: TargetFile) -> TargetFile:
    """A policy that was published, as the former one."""
    return TargetFile.from_dict(target.to_dict(), FORMER + Path(target.path).suffix)


def _repeats(waiting: Staged, policy: Path, not_before: int, reason: str) -> bool:
    """Whether somebody asks for the policy that waits once more."""
    target = waiting.metadata.signed.targets[waiting.path]
    asked = {"not_before": not_before, "reason": reason}
    agrees = all(not value or value == (target.custom or {}).get(name) for name, value in asked.items())
    return agrees and overlay_file.read_bytes(policy) == waiting.content
