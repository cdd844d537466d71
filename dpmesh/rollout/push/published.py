"""Published: what a repository's metadata say is published now, as the push service reads them beside the repository.

Nothing is verified here: devices do that, and take no policy from the push service.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpmesh.errors import ConfigError
from dpmesh.rollout import layout
from dpmesh.rollout.rings import Ring


@dataclass(frozen=True, slots=True)
class Published:
    """What a repository offers.

    Attributes:
        version: That of timestamp.json.
        epoch: The newest policy's; 0 if there is none yet.
        digest: SHA-256 of its document; b"" if there is none yet.
        share: The part of the fleet that shall take it: 1 is all, 0 is nobody new.
        former: Epoch and digest of the policy that the rest of the fleet keeps; None if there is none.
    """

    version: int
    epoch: int = 0
    digest: bytes = b""
    share: float = 1.0
    former: tuple[int, bytes] | None = None

    def epochs(self) -> Iterator[tuple[int, bytes, float]]:
        """Epoch, digest and share of each policy in it."""
        if self.former is not None:
            yield *self.former, 1.0
        if self.epoch:
            yield self.epoch, self.digest, self.share


def timestamp(repository: Path) -> bytes:
    """The content of timestamp.json, which changes with each publication.

    Raises:
        ConfigError: It can't be read.
    """
    return _read(repository / "metadata" / "timestamp.json")


def read(repository: Path) -> Published:
    """What a repository offers.

    Args:
        repository: The folder with `metadata` and `targets`.

    Raises:
        ConfigError: A file is missing, or is not what `dpmesh policy publish` writes.
    """
    metadata = repository / "metadata"
    try:
        stamp = _signed(metadata / "timestamp.json")
        snapshot = _versioned(metadata, "snapshot", stamp["meta"])
        targets = _versioned(metadata, "targets", snapshot["meta"])
        version, newest = int(stamp["version"]), _target(targets, layout.POLICY)
        if newest is None:
            return Published(version)
        share = _share(repository, snapshot["meta"], newest[0])
        return Published(version, *newest, share, _target(targets, layout.FORMER))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{repository}: its metadata are not those of policies ({type(error).__name__})"
        ) from None


def _target(targets: Any, name: str) -> tuple[int, bytes] | None:
    """The epoch and the digest of a policy, by the name of its target without suffix."""
    for target in layout.named(targets["targets"], name):
        return int(target["custom"]["epoch"]), bytes.fromhex(target["hashes"]["sha256"])
    return None


def _share(repository: Path, versions: Any, epoch: int) -> float:
    """The part of the fleet that shall take an epoch, as the role "rings" says."""
    if f"{layout.RINGS}.json" not in versions:
        return 1.0
    rings = _versioned(repository / "metadata", layout.RINGS, versions)
    target = rings["targets"].get(layout.RING_FILE)
    if target is None:
        return 1.0
    ring = Ring.parse(_read(layout.target_file(repository, layout.RING_FILE, target["hashes"]["sha256"])))
    return ring.share if ring.epoch == epoch else 1.0


def _versioned(metadata: Path, role: str, versions: Any) -> Any:
    return _signed(metadata / f"{int(versions[f'{role}.json']['version'])}.{role}.json")


def _signed(path: Path) -> Any:
    return json.loads(_read(path))["signed"]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror})") from None
