"""The file in which a device keeps the newest signed set that it knows, so that it trusts nothing older later.

It is one file, replaced as a whole and synchronized, because metadata and documents are worth nothing without each
other. It holds the signed bytes themselves: what is written anew has no signature.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from dpmesh import files
from dpmesh.rollout.tuf_trust import SignedSet

log = logging.getLogger("dpmesh")


class Kept(msgspec.Struct, frozen=True):
    """What a device knows of a repository.

    Attributes:
        signed: The newest set.
        latest: The latest time that counts as seen, in seconds since 1970.
        epoch: The largest epoch that was offered; 0 if none was.
        digest: Hex SHA-256 of the document of that epoch.
    """

    signed: SignedSet
    latest: float
    epoch: int
    digest: str


class Cache:
    """The file.

    Args:
        folder: Its folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "signed.json"

    def read(self) -> Kept | None:
        """What was kept; None if there is nothing that can be used, which the log says.

        Its signatures are not checked.
        """
        try:
            return msgspec.json.decode(files.read_private(self._path), type=Kept)
        except FileNotFoundError:
            return None
        except (OSError, files.NotPrivateError, msgspec.MsgspecError, ValueError) as error:
            log.error("%s can't be used, and counts as missing (%s)", self._path, type(error).__name__)  # noqa: TRY400
            return None

    def write(self, kept: Kept) -> None:
        """Replaces what was kept.

        Raises:
            OSError: It can't be written; the old file is as it was.
        """
        files.write(self._path, msgspec.json.encode(kept))
