"""RollbackGuard: a small file beside an SQLite ledger (`-witness`) that shows when the ledger is an older copy.

An SQLite file that is put back from a copy is consistent, and has forgotten what was spent since. The guard's file
holds the ledger's random name and the number of its last acknowledged commit.

How it works: what the guard's file says, compared with the ledger's name and commits, decides whether it may be opened.

    guard's file            ledger                    the ledger is
    name, n                 same name, n or more      fine: a process may have died between a commit and `reached`
    name, n                 same name, fewer than n   an older copy: refused
    another name            any                       not the one that the guard belongs to: refused
    nobody's name           any                       overwritten while in use (`distrust`): refused
    missing or empty        no commits                new: the guard's file is made before the first commit
    missing or empty        commits                   missing its guard: refused

Only `dpmesh ledger accept` leads from refused to fine (`remake`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dpmesh import files
from dpmesh.errors import LedgerError, LostChargesError

_FORM = struct.Struct(">16sQ")
_NOBODY = bytes(16)  # instead of a ledger's name: what is there can't be trusted
_SYNC_SECONDS = 1.0
_ROUNDS = 3  # One finds no file and makes it, or meets another process that does; the next finds it.


class RollbackGuard:
    """The guard of one ledger, kept open. Several processes may have it open at once.

    The count is written after each commit and before the commit is acknowledged, so it survives the end of any process.
    It is synchronized to the disk once a second and at the end. After a power cut it is behind the ledger by at most
    a second of commits, which refuses nothing.

    Args:
        ledger: The ledger's file.
        read: Reads the ledger's random name (16 bytes) and how many commits it holds.

    Raises:
        LedgerError: The ledger is an older copy, or the guard's file is missing, another ledger's, or can't be used.
    """

    def __init__(self, ledger: Path, read: Callable[[], tuple[bytes, int]]) -> None:
        self._synced = time.monotonic()
        self._ledger = ledger
        try:
            self._file = self._open(read)
        except OSError as error:
            raise LedgerError(f"{path_of(ledger)} can't be used: {error.strerror}") from error

    def check(self, commits: int) -> None:
        """Checks, within a transaction that is commit number `commits`, that no process has seen this commit before.

        Raises:
            LedgerError: A process has, so an older copy was put in the ledger's place.
            OSError: The guard's file can't be read.
        """
        with _locked(self._file, fcntl.LOCK_SH):
            name, seen = _read(self._file)
        self._compare(name, seen, commits - 1)

    def reached(self, commits: int) -> None:
        """Remembers that so many commits were made; OSError if the guard's file can't be written."""
        with _locked(self._file, fcntl.LOCK_EX):
            name, seen = _read(self._file)
            if seen < commits and name != _NOBODY:
                os.pwrite(self._file, _FORM.pack(self._name, commits), 0)
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            os.fdatasync(self._file)
            self._synced = time.monotonic()

    def distrust(self) -> None:
        """Remembers that the ledger was overwritten while in use; OSError if the guard's file can't be written."""
        with _locked(self._file, fcntl.LOCK_EX):
            os.pwrite(self._file, _FORM.pack(_NOBODY, _read(self._file)[1]), 0)
        os.fdatasync(self._file)

    def close(self) -> None:
        """Synchronizes the file to the disk, and closes it."""
        try:
            os.fdatasync(self._file)
        finally:
            os.close(self._file)

    def _open(self, read: Callable[[], tuple[bytes, int]]) -> int:
        for _ in range(_ROUNDS):
            with ExitStack() as stack:
                # The guard's file is read before the ledger: others may commit in between, and it must not seem ahead.
                file, name, seen = _find(self._ledger, stack)
                self._name, commits = read()
                if name:
                    self._compare(name, seen, commits)
                    stack.pop_all()  # it stays open
                    return file
            if commits == 0:
                # There is nothing to remember yet, and the process that made the ledger may have stopped before it made
                # this file. The file is durable before the first commit: a ledger with commits had one.
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
    """Opens the file without following a link, which could lead to another user's file or make one elsewhere."""
    try:
        return os.open(path, flags | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a symbolic link") from None
        raise


def _find(ledger: Path, stack: ExitStack) -> tuple[int, bytes, int]:
    """Opens a ledger's guard's file (-1 if there is none) until the stack ends, and reads its name and count."""
    try:
        file = _open(path_of(ledger))
    except FileNotFoundError:
        return -1, b"", 0
    stack.callback(os.close, file)
    with _locked(file, fcntl.LOCK_SH):
        return file, *_read(file)


def _read(file: int) -> tuple[bytes, int]:
    """Reads the name and the count. An empty file was being made, and has neither."""
    content = os.pread(file, _FORM.size + 1, 0)
    if not content:
        return b"", 0
    return _FORM.unpack(content) if len(content) == _FORM.size else (b"?", 0)


def _write(path: Path, name: bytes, commits: int, *, only_new: bool = False) -> None:
    """Writes the file durably, and makes it if needed. In place, because other processes have the same file open."""
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
    """Where the guard's file of a ledger is."""
    return ledger.with_name(ledger.name + "-witness")


def refusal(ledger: Path, name: bytes, commits: int) -> LedgerError | None:
    """Why a ledger of this random name, with so many commits, may not be opened, or None if it may.

    Raises:
        LedgerError: The guard's file can't be used at all.
    """
    try:
        RollbackGuard(ledger, lambda: (name, commits)).close()
    except LedgerError as error:
        if isinstance(error.__cause__, OSError):
            raise
        return error
    return None


def doubt(ledger: Path, name: bytes, commits: int) -> str:
    """Why a ledger of this random name, with so many commits, may not be charged, for its readers; "" if it may.

    A copy that is read elsewhere has no guard's file, which is fine.

    Raises:
        OSError: The guard's file can't be read.
    """
    with ExitStack() as stack:
        _, found, count = _find(ledger, stack)
    if not found or (found == name and count <= commits):
        return ""
    if found == name:
        return f"{ledger} is an older copy of itself, as its witness shows: nobody may charge it"
    why = "it was overwritten while in use" if found == _NOBODY else "the witness is of another ledger"
    return f"{ledger} may be an older copy of itself, because {why}: nobody may charge it"


def seen(ledger: Path, name: bytes) -> int:
    """How many commits the guard of a ledger saw; 0 if its file is missing or another ledger's.

    Raises:
        OSError: The guard's file can't be read.
    """
    with ExitStack() as stack:
        _, found, commits = _find(ledger, stack)
    return commits if found in (name, _NOBODY) else 0


def remake(ledger: Path, name: bytes, commits: int) -> None:
    """Writes the guard's file anew, whatever it said.

    Raises:
        OSError: The guard's file can't be written.
    """
    _write(path_of(ledger), name, commits)
