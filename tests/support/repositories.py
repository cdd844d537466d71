"""The files of a policy repository as far as a push service reads them, without signatures."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


class UnsignedRepository:
    """A folder with `metadata` and `targets`.

    Args:
        folder: Where it is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.version = 0
        for name in ("metadata", "targets"):
            (folder / name).mkdir(parents=True)

    def publish(
        self,
        epoch: int,
        content: bytes = b"",
        share: float | None = None,
        former: tuple[int, bytes] | None = None,
    ) -> bytes:
        """Publishes a document, for a part of the fleet if there is a share; returns its digest."""
        self.version += 1
        version, digest = self.version, hashlib.sha256(content).digest()
        targets = {"policy.yaml": {"custom": {"epoch": epoch}, "hashes": {"sha256": digest.hex()}}}
        if former is not None:
            targets["former.yaml"] = {"custom": {"epoch": former[0]}, "hashes": {"sha256": former[1].hex()}}
        meta = {"targets.json": {"version": version}}
        self._write(f"{version}.targets", {"targets": targets})
        if share is not None:
            ring = json.dumps({"epoch": epoch, "share": share}).encode()
            name = hashlib.sha256(ring).hexdigest()
            (self.folder / "targets" / f"{name}.ring.json").write_bytes(ring)
            self._write(f"{version}.rings", {"targets": {"ring.json": {"hashes": {"sha256": name}}}})
            meta["rings.json"] = {"version": version}
        self._write(f"{version}.snapshot", {"meta": meta})
        self._write("timestamp", {"version": version, "meta": {"snapshot.json": {"version": version}}})
        return digest

    def _write(self, name: str, signed: dict[str, Any]) -> None:
        path = self.folder / "metadata" / f"{name}.json"
        new = path.with_suffix(".new")
        new.write_text(json.dumps({"signed": signed, "signatures": []}))
        new.replace(path)
