"""Writes repositories of policies as tests need them, wrong ones too. Not the officers' own commands."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from dpmesh.errors import ConfigError, PolicyUnavailableError
from dpmesh.rollout.tuf_source import TufSource

ROLES = ("root", "targets", "snapshot", "timestamp")


def later(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def policy(epoch: int, **extra) -> bytes:
    return json.dumps({"epoch": epoch, **extra}).encode()


def settle() -> None:
    """Waits for the threads of refreshes to end: a fork would copy whatever they hold just then."""
    for thread in threading.enumerate():
        if thread.name == "dpmesh policy repository":
            thread.join()


class Device:
    """A device that follows a repository, with a clock that can be wrong.

    Attributes:
        source: Its source; `restart` makes another one on the same cache.
        skew: By how many seconds its clock is ahead.
        slept: Seconds since boot, beside those that pass.
    """

    def __init__(self, folder: Path, repository: Repository, **options) -> None:
        self.cache = folder / "cache"
        self.skew = self.slept = 0.0
        self._options = {"url": f"file://{repository.folder}", "root": repository.image} | options
        self.restart()

    def restart(self, **options) -> None:
        self._options |= options
        self.source = TufSource(
            **self._options,
            cache=self.cache,
            clock=lambda: time.time() + self.skew,
            since_boot=lambda: time.monotonic() + self.slept,
        )

    async def epoch(self, *, takes: bool = False) -> int | None:
        """The epoch that is offered; None if nothing new is.

        Args:
            takes: The device takes what it is offered.
        """
        offer = await self.source.fetch()
        if offer is not None and takes:
            self.source.keep(offer)
        return offer and offer.document.epoch

    async def refusal(self, error=(ConfigError, PolicyUnavailableError)) -> str:
        """Why nothing is offered."""
        try:
            offer = await self.source.fetch()
        except error as raised:
            return str(raised)
        raise AssertionError(f"offered epoch {offer and offer.document.epoch}")


class Repository:
    """A folder of signed files. Each method changes what the next `publish` writes."""

    def __init__(self, folder: Path, *, fleet: str = "cars", thresholds=None) -> None:
        self.folder = folder
        for name in ("metadata", "targets"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.keys = {role: [CryptoSigner.generate_ed25519() for _ in range(2)] for role in ROLES}
        self.keys["rings"] = [CryptoSigner.generate_ed25519()]
        self.root = Root(expires=later(365 * 86400), unrecognized_fields={"x-dpmesh-fleet": fleet})
        for role in ROLES:
            for key in self.keys[role]:
                self.root.add_key(key.public_key, role)
            self.root.roles[role].threshold = (thresholds or {}).get(role, 1)
        self.targets = Targets(expires=later(90 * 86400))
        self.targets.version = 0
        self.rings = None
        self.snapshot_version = self.timestamp_version = 0
        self.write_root()
        self.image = self.read("1.root.json")

    def path(self, name: str) -> Path:
        return self.folder / "metadata" / name

    def read(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    def write(self, name: str, data: bytes) -> bytes:
        return _replace(self.path(name), data)

    def signed(self, signed, keys) -> bytes:
        metadata = Metadata(signed)
        for key in keys:
            metadata.sign(key, append=True)
        return metadata.to_bytes()

    def write_root(self, keys=()) -> None:
        """Signs the root by its own keys and by those given (of the root before)."""
        self.write(f"{self.root.version}.root.json", self.signed(self.root, [*self.keys["root"], *keys]))

    def next_root(self, keys=None) -> None:
        self.root.version += 1
        self.write_root(keys or ())

    def new_keys(self, *roles: str) -> None:
        """A new root with new keys for some roles, signed by the old keys of the root too."""
        old = list(self.keys["root"])
        for role in roles:
            for key in self.keys[role]:
                self.root.revoke_key(key.public_key.keyid, role)
            self.keys[role] = [CryptoSigner.generate_ed25519() for _ in range(2)]
            for key in self.keys[role]:
                self.root.add_key(key.public_key, role)
        self.root.version += 1
        self.write_root(old if "root" in roles else ())

    def add(self, content: bytes, *, path="policy.json", custom=None, **more) -> None:
        """Puts a document in, with what the officers say of it."""
        target = TargetFile.from_data(path, content)
        if custom is None:
            custom = {"epoch": json.loads(content)["epoch"], **more}
        target.unrecognized_fields["custom"] = custom
        self.targets.targets[path] = target
        self.write_target(target, content)

    def write_target(self, target: TargetFile, content: bytes) -> None:
        digest = target.hashes["sha256"]
        _replace(self.folder / "targets" / f"{digest}.{target.path}", content)

    def delegate(self) -> None:
        """Lets the role "rings" have ring.json."""
        key = self.keys["rings"][0].public_key
        role = DelegatedRole("rings", [key.keyid], 1, True, paths=["ring.json"])
        self.targets.delegations = Delegations({key.keyid: key}, {"rings": role})
        self.rings = Targets(expires=later(90 * 86400))
        self.rings.version = 0

    def ring(self, epoch: int, share: float, content: bytes | None = None) -> None:
        if self.rings is None:
            self.delegate()
        if content is None:
            content = json.dumps({"epoch": epoch, "share": share}).encode()
        target = TargetFile.from_data("ring.json", content)
        self.rings.targets["ring.json"] = target
        self.write_target(target, content)

    def publish(
        self, *, targets_keys=None, expires: float = 86400, stale: dict[str, float] | None = None
    ) -> None:
        """Writes new versions of all roles but the root."""
        stale = stale or {}
        self.targets.version += 1
        if "targets" in stale:
            self.targets.expires = later(stale["targets"])
        keys = self.keys["targets"][:1] if targets_keys is None else targets_keys
        self.write(f"{self.targets.version}.targets.json", self.signed(self.targets, keys))
        meta = {"targets.json": MetaFile(self.targets.version)}
        if self.rings is not None:
            self.rings.version += 1
            self.write(f"{self.rings.version}.rings.json", self.signed(self.rings, self.keys["rings"]))
            meta["rings.json"] = MetaFile(self.rings.version)
        self.snapshot_version += 1
        snapshot = Snapshot(
            self.snapshot_version, expires=later(stale.get("snapshot", 30 * 86400)), meta=meta
        )
        self.write(f"{self.snapshot_version}.snapshot.json", self.signed(snapshot, self.keys["snapshot"][:1]))
        self.stamp(expires)

    def stamp(self, expires: float = 86400) -> bytes:
        """Writes a new timestamp alone."""
        self.timestamp_version += 1
        stamp = Timestamp(
            self.timestamp_version, expires=later(expires), snapshot_meta=MetaFile(self.snapshot_version)
        )
        return self.write("timestamp.json", self.signed(stamp, self.keys["timestamp"][:1]))


def _replace(path: Path, data: bytes) -> bytes:
    """Writes a file that readers see whole."""
    new = path.with_name(f".{path.name}")
    new.write_bytes(data)
    new.replace(path)
    return data
