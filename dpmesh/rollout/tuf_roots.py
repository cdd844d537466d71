"""Which keys a repository of signed policies has: its first root, and the roots that follow it."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

from securesystemslib.signer import Key, Signer
from tuf.api.metadata import (
    Metadata,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)

from dpmesh import files
from dpmesh.errors import ConfigError
from dpmesh.rollout import tuf_keys
from dpmesh.rollout.tuf_folder import (
    APART,
    PolicyFolder,
    expiry,
    keys_of,
    sign,
)
from dpmesh.rollout.tuf_trust import FLEET, UntrustedError, public_key


class KeyRoots(PolicyFolder):
    """A folder of signed policies, and who may change its keys."""

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
        _check_threshold("root", roots, root_threshold)
        _check_threshold("officer", officers, officer_threshold)
        if not fleet.strip():
            raise ConfigError("--fleet: a fleet needs a name")
        root = Root(expires=expiry(Root.type), unrecognized_fields={FLEET: fleet})
        for role, keys, threshold in (
            (Root.type, roots, root_threshold),
            (Targets.type, officers, officer_threshold),
            (Snapshot.type, [online], 1),
            (Timestamp.type, [online], 1),
        ):
            for key in keys:
                root.add_key(key, role)
            root.roles[role].threshold = threshold
        signed = sign(root, root_signers)
        missing = root_threshold - len({each.public_key.keyid for each in root_signers})
        if missing > 0:
            raise ConfigError(f"--root-key: {missing} more private keys have to sign the first root")
        self._write_first(signed, rings)
        return signed

    def _write_first(self, root: bytes, rings: Key | None) -> None:
        """Makes the folder, with its first root and the public key for rings."""
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
                files.create(self._metadata("1.root.json"), root, mode=0o644)
        except OSError as error:
            raise self._unwritable(error) from None

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
        not trust the published files under it, because other keys have to sign those first, `publish` publishes it
        together with these files.

        Args:
            signers: Names of private keys of the role "root", of the root before or of the next one.
            add: Roles and keys to add.
            drop: Roles and keys to take away.
            thresholds: Roles and how many of their keys have to sign. While a root waits, the changes have to be its
                own; without any, it is signed with the changes that `waiting_changes` tells.

        Returns:
            How many signatures are still missing; 0: it is published.

        Raises:
            ConfigError: A role, key or threshold is wrong, a root with other changes waits, or somebody has changed
                more than keys in it.
        """
        with self._changing():
            before = self.state().root
            path = self._folder / "staged" / "root.json"
            metadata = self._waiting_root(before)
            if metadata is None:
                metadata = Metadata(_changed(before, add, drop, thresholds))
            else:
                _check_waiting(path, metadata.signed, before)
                repeated = (add or drop or thresholds) and _changed(before, add, drop, thresholds)
                if repeated and _differences(before, repeated) != _differences(before, metadata.signed):
                    raise ConfigError(
                        f"{path}: another root waits for signatures; sign it without changes, or remove it"
                    )
            root = metadata.signed
            known = {key.keyid: key for each in (before, root) for key in keys_of(each, Root.type)}
            for name in signers:
                metadata.sign(tuf_keys.signer(name, list(known.values()), "root"), append=True)
            data = metadata.to_bytes()
            result = before.get_verification_result(Root.type, metadata.signed_bytes, metadata.signatures)
            own = root.get_verification_result(Root.type, metadata.signed_bytes, metadata.signatures)
            missing = max(0, result.missing) + max(0, own.missing)
            if missing or not self._is_trusted(root):
                files.write(path, data, mode=0o644)
            else:
                self._write_root(root, data)
            return missing

    def waiting_changes(self) -> list[str]:
        """What the next root changes, if one waits for signatures: a line for each key and threshold.

        Raises:
            ConfigError: The repository can't be read, or is damaged.
        """
        before = self.state().root
        metadata = self._waiting_root(before)
        return [] if metadata is None else _differences(before, metadata.signed)


def _differences(before: Root, root: Root) -> list[str]:
    found = []
    for role in sorted(before.roles):
        old, new = before.roles[role], root.roles[role]
        keys = {root.keys[each].keyval.get("public", each) for each in new.keyids}
        known = {before.keys[each].keyval.get("public", each) for each in old.keyids}
        found += [f"{role}: a key less: {' '.join(key.split())}" for key in sorted(known - keys)]
        found += [f"{role}: another key: {' '.join(key.split())}" for key in sorted(keys - known)]
        if old.threshold != new.threshold:
            found.append(f"{role}: {new.threshold} keys have to sign instead of {old.threshold}")
    return found


def _check_waiting(path: Path, root: Root, before: Root) -> None:
    """Checks that a signature on a root that waits is one on its keys and thresholds alone.

    Raises:
        ConfigError: Somebody has changed something else in it.
    """
    alike = copy.deepcopy(before)
    alike.version, alike.expires, alike.keys, alike.roles = root.version, root.expires, root.keys, root.roles
    if alike.to_dict() != root.to_dict() or root.expires > expiry(Root.type) + APART:
        raise ConfigError(f"{path}: more than keys was changed in it: remove it, and begin anew")


def _check_threshold(name: str, keys: Sequence[Key], threshold: int) -> None:
    _check_distinct(f"--{name}", keys)
    if not 1 <= threshold <= len(keys):
        raise ConfigError(f"--{name}-threshold {threshold}: there are {len(keys)} {name} keys")


def _check_distinct(where: str, keys: Sequence[Key]) -> None:
    try:
        distinct = {public_key(key) for key in keys}
    except UntrustedError as error:
        raise ConfigError(f"{where}: {error}") from None
    if len(distinct) < len(keys):
        raise ConfigError(f"{where}: one key was given twice")


def _changed(
    before: Root,
    add: Sequence[tuple[str, Key]],
    drop: Sequence[tuple[str, Key]],
    thresholds: Sequence[tuple[str, int]],
) -> Root:
    """The root after `before`, with other keys and thresholds."""
    root = copy.deepcopy(before)
    root.version = before.version + 1
    root.expires = expiry(Root.type)
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
        _check_distinct(f"role {role}", keys_of(root, role))
        if not 1 <= each.threshold <= len(each.keyids):
            raise ConfigError(
                f"role {role}: its threshold is {each.threshold}, and it has {len(each.keyids)} keys"
            )
    return root
