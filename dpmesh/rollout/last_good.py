"""LastGood: the policy that was taken last, in one file, byte for byte as it was read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from dpmesh import files
from dpmesh.errors import ConfigError, DpmeshError

_FORM = 1


class LastGood:
    """One private file: a line of JSON with the epoch and the digest of the content, and then the content.

    A crash or a power cut leaves the old content or the new one. Several processes may share the file.

    Args:
        path: The file. Its folder is made when something is stored.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> bytes | None:
        """The content that was stored last; None if nothing was.

        Raises:
            ConfigError: The file can't be read, or is damaged.
        """
        found = self._read()
        return None if found is None else found[1]

    def epoch(self) -> int | None:
        """The epoch of the policy that was stored last; None if none was.

        Raises:
            ConfigError: The file can't be read, or is damaged.
        """
        found = self._read()
        return None if found is None else found[0]

    def store(self, epoch: int, content: bytes, check: Callable[[bytes], None] = lambda _: None) -> None:
        """Stores a content.

        Args:
            epoch: That of the policy.
            content: Its bytes.
            check: Called with another content that is stored, while no other process can change it. What it raises goes
                through, and nothing is stored.

        Raises:
            ConfigError: A policy with a larger epoch is stored, which another process has taken.
            DpmeshError: The file can't be read or written now. The old one is as it was.
        """
        head = {"form": _FORM, "epoch": epoch, "sha256": hashlib.sha256(content).hexdigest()}
        try:
            with files.locked_folder(self._path.parent):
                found = self._found()
                if found == (epoch, content):
                    return
                if found is not None:
                    if found[0] > epoch:
                        raise ConfigError(
                            f"policy: epoch: {epoch} is smaller than {found[0]}, which another process has taken"
                        )
                    check(found[1])
                files.write(self._path, json.dumps(head).encode() + b"\n" + content)
        except OSError as error:
            raise DpmeshError(
                f"policy.cache: {self._path.parent}: can't be written ({error.strerror}), so no other policy is taken: "
                'a restart would not know it (cache = "memory:" keeps none over restarts)'
            ) from None

    def _found(self) -> tuple[int, bytes] | None:
        """As `_read`, but the trouble may pass: somebody may repair the file, or the disk.

        Raises:
            DpmeshError: The file can't be read, or is damaged.
        """
        try:
            return self._read()
        except ConfigError as error:
            raise DpmeshError(str(error)) from None

    def _read(self) -> tuple[int, bytes] | None:
        """Epoch and content."""
        try:
            head, _, content = files.read_private(self._path).partition(b"\n")
            known = json.loads(head)
            if known["form"] == _FORM and known["sha256"] == hashlib.sha256(content).hexdigest():
                return int(known["epoch"]), content
            why = "is damaged, or of another version of dpmesh"
        except FileNotFoundError:
            return None
        except OSError as error:
            why = f"can't be read ({error.strerror})"
        except files.NotPrivateError:
            why = "is no plain file that only its owner may use"
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            why = "is damaged"
        raise ConfigError(
            f"policy.cache: {self._path} {why}. It tells which policy was taken last: remove it only if no older "
            "policy can come back"
        )
