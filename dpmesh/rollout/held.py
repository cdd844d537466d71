"""Held: since when a device has a policy that waits for its time, over restarts."""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import suppress
from pathlib import Path

from dpmesh import files


class Held:
    """Remembers one policy, the one that was held last. A device that is off at midnight takes it when it is on again.

    Without the file, or if it can't be read, a policy that waits counts as new: it waits for another window.

    Args:
        path: Where it is kept; None: as long as the process runs.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known = self._load()

    def since(self, content: bytes, now: float) -> float:
        """When this device first had a policy, in seconds since 1970: `now` if it is another one than that held last.

        Args:
            content: The policy's bytes.
            now: Seconds since 1970, by the ledger's clock.
        """
        digest, since = self._known
        return min(since, now) if digest == _digest(content) else now

    def remember(self, content: bytes, since: float) -> None:
        """Remembers a policy instead of the one before. It blocks."""
        if self._known == (known := (_digest(content), since)):
            return
        self._known = known
        if self._path is not None:
            with suppress(OSError), files.locked_folder(self._path.parent):
                files.write(self._path, json.dumps({"sha256": known[0], "since": since}).encode())

    def _load(self) -> tuple[str, float]:
        if self._path is None:
            return "", 0.0
        try:
            kept = json.loads(files.read_private(self._path))
            digest, since = str(kept["sha256"]), float(kept["since"])
        except (
            OSError,
            files.NotPrivateError,
            ValueError,
            KeyError,
            TypeError,
            OverflowError,
            RecursionError,
        ):
            return "", 0.0
        return (digest, since) if math.isfinite(since) else ("", 0.0)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
