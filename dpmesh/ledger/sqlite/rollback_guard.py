"""The witness: a small file beside an SQLite ledger that remembers how far it had come, so that an older copy shows.

An SQLite file that is put back from a copy is whole and consistent, and has forgotten what was spent since. The witness
holds the number of the last commit that was acknowledged. A file with fewer is an older copy, and is refused. Where a
holder saw that its file was overwritten while in use, the witness holds nobody's name, and what is there is refused.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dpmesh import files
from dpmesh.errors import LedgerError, LostChargesError

_FORM = struct.Struct(">16sQ")
_NOBODY = bytes(16)  # instead of a ledger's name: what is there is none
_SYNC_SECONDS = 1.0
_ROUNDS = 3  # One may find none and make it, or find it while somebody else does; the next finds it.


class RollbackGuard:
    """The witness of one ledger, kept open. Several processes may have it open at once.

    A count is written after each commit, before anybody is told of it, so it survives the end of any process. It is
    synchronized to the disk once a second and at the end: after a power cut it may be behind the ledger, which is fine,
    and at most a second behind what was acknowledged.

    Args:
        ledger: The ledger's file.
        read: Reads the ledger's random name (16 bytes) and how many commits it holds.

    Raises:
        LedgerError: The ledger is an older copy, or the witness is missing or another ledger's, or can't be used.
    """

    def __init__(self, ledger: Path, read: Callable[[], tuple[bytes, int]]) -> None:
        self._synced = time.monotonic()
        self._ledger = ledger
        try:
            self._file = self._open(read)
        except OSError as error:
            raise LedgerError(f"{path_of(ledger)} can't be used: {error.strerror}") from error

    def check(self, commits: int) -> None:
        """Checks, within the transaction that is going to be this commit, that nobody has seen it before.

        Args:
            commits: How many there are with this one.

        Raises:
            LedgerError: Somebody has, so the ledger is an older copy, which was put in its place.
            OSError: The witness can't be read.
        """
        with _locked(self._file, fcntl.LOCK_SH):
            name, seen = _read(self._file)
        self._compare(name, seen, commits - 1)

    def reached(self, commits: int) -> None:
        """Remembers that so many commits were made.

        Raises:
            OSError: It can't be written.
        """
        with _locked(self._file, fcntl.LOCK_EX):
            name, seen = _read(self._file)
            if seen < commits and name != _NOBODY:
                os.pwrite(self._file, _FORM.pack(self._name, commits), 0)
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            os.fdatasync(self._file)
            self._synced = time.monotonic()

    def distrust(self) -> None:
        """Remembers that the ledger was overwritten while it was in use: nobody may use what is there.

        Raises:
            OSError: It can't be written.
        """
        with _locked(self._file, fcntl.LOCK_EX):
            os.pwrite(self._file, _FORM.pack(_NOBODY, _read(self._file)[1]), 0)
        os.fdatasync(self._file)

    def close(self) -> None:
        """Synchronizes it to the disk, and lets go of it."""
        try:
            os.fdatasync(self._file)
        finally:
            os.close(self._file)

    def _open(self, read: Callable[[], tuple[bytes, int]]) -> int:
        for _ in range(_ROUNDS):
            # The witness is read first: others may commit in between, and it must not know more than the ledger then.
            file, (name, seen) = _find(path_of(self._ledger))
            try:
                self._name, commits = read()
                if name:
                    self._compare(name, seen, commits)
                    return file
            except BaseException:
                if file >= 0:
                    os.close(file)
                raise
            if file >= 0:
                os.close(file)
            if commits == 0:
                # Nothing to remember yet; and whoever made the ledger may have stopped before the witness was made.
                # It is durable before the first commit, so where there are commits, there was one.
                _write(path_of(self._ledger), self._name, 0, only_new=True)
        raise LedgerError(
            f"{path_of(self._ledger)} is missing, which tells how far {self._ledger.name} had come: put it back, or "
            "see `dpmesh ledger accept --help`"
        )

    def _compare(self, name: bytes, seen: int, commits: int) -> None:
        if name == _NOBODY:
            raise LostChargesError(
                f"{self._ledger} was overwritten by an older copy while it was in use, and may be a mix of both: put a "
                "whole copy in its place, without a log, and see `dpmesh ledger accept --help`"
            )
        if name != self._name:
            raise LostChargesError(
                f"{path_of(self._ledger)} belongs to another ledger than {self._ledger.name}: put back the file that "
                "it belongs to, or see `dpmesh ledger accept --help`"
            )
        if commits < seen:
            raise LostChargesError(
                f"{self._ledger} is an older copy: {seen - commits} commits are missing, and what they charged would "
                "be spent again. Put the newest one back, or see `dpmesh ledger accept --help`"
            )


@contextmanager
def _locked(file: int, how: int) -> Iterator[None]:
    fcntl.flock(file, how)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def _open(path: Path, flags: int = 0) -> int:
    """Opens it; no link is followed, which would lead to a file of somebody else, or make one elsewhere."""
    try:
        return os.open(path, flags | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a symbolic link") from None
        raise


def _find(path: Path) -> tuple[int, tuple[bytes, int]]:
    """The file, or -1 if there is none, and what it says."""
    try:
        file = _open(path)
    except FileNotFoundError:
        return -1, (b"", 0)
    with _locked(file, fcntl.LOCK_SH):
        return file, _read(file)


def _read(file: int) -> tuple[bytes, int]:
    """The name and the count; nothing of an empty file, which was being made."""
    content = os.pread(file, _FORM.size + 1, 0)
    if not content:
        return b"", 0
    return _FORM.unpack(content) if len(content) == _FORM.size else (b"?", 0)


def _write(path: Path, name: bytes, commits: int, *, only_new: bool = False) -> None:
    """Writes it durably, and makes it where there is none. In place: whoever has it open goes on with the same."""
    file = _open(path, os.O_CREAT)
    try:
        with _locked(file, fcntl.LOCK_EX):
            if only_new and _read(file) != (b"", 0):
                return
            os.pwrite(file, _FORM.pack(name, commits), 0)
            os.ftruncate(file, _FORM.size)
            os.fsync(file)
    finally:
        os.close(file)
    files.sync_folder(path.parent)


def path_of(ledger: Path) -> Path:
    """Where the witness of a ledger is."""
    return ledger.with_name(ledger.name + "-witness")


def refusal(ledger: Path, name: bytes, commits: int) -> LedgerError | None:
    """Why nobody may open a ledger that has come so far, or None: it is fine.

    Args:
        ledger: Its file.
        name: Its random name.
        commits: How many it holds.

    Raises:
        LedgerError: The witness can't be used at all.
    """
    try:
        RollbackGuard(ledger, lambda: (name, commits)).close()
    except LedgerError as error:
        if isinstance(error.__cause__, OSError):
            raise
        return error
    return None


def doubt(ledger: Path, name: bytes, commits: int) -> str:
    """Why nobody may charge a ledger that has come so far, for whoever only reads; "" if nothing speaks against it.

    A copy that is read elsewhere has no witness, which is fine.

    Args:
        ledger: The ledger's file.
        name: Its random name.
        commits: How many it holds.

    Raises:
        OSError: The witness can't be read.
    """
    file, (found, count) = _find(path_of(ledger))
    if file >= 0:
        os.close(file)
    if not found or (found == name and count <= commits):
        return ""
    if found == name:
        return f"{ledger} is an older copy of itself, as its witness shows: nobody may charge it"
    why = "it was overwritten while in use" if found == _NOBODY else "the witness is of another ledger"
    return f"{ledger} may be an older copy of itself, because {why}: nobody may charge it"


def seen(ledger: Path, name: bytes) -> int:
    """How many commits the witness of a ledger saw; 0 if it is missing or another ledger's.

    Args:
        ledger: The ledger's file.
        name: The ledger's random name.

    Raises:
        OSError: It can't be read.
    """
    file, (found, commits) = _find(path_of(ledger))
    if file >= 0:
        os.close(file)
    return commits if found in (name, _NOBODY) else 0


def remake(ledger: Path, name: bytes, commits: int) -> None:
    """Makes the witness anew, whatever it said.

    Raises:
        OSError: It can't be written.
    """
    _write(path_of(ledger), name, commits)
