"""Files: private files that are written whole or not at all, and folders that processes lock.

A writer fills a temporary file beside the target, synchronizes it to the disk, renames it, and synchronizes the folder.
A reader, or a power cut, meets the old content or the new one, never a part. Nobody but the owner may read (0600).
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_OTHERS = 0o077
LONGEST_WAIT = 20.0
"""Seconds for which a folder's lock is waited for."""
_PAUSE = 0.005


class NotPrivateError(Exception):
    """A file is not a plain file that only its owner may use."""


def read_private(path: Path) -> bytes:
    """Reads a plain file that only its owner may use.

    Raises:
        NotPrivateError: Others may use the file, or it is not a plain file.
        OSError: The file is missing, a symbolic link, or can't be read.
    """
    # O_NONBLOCK: opening a pipe would wait for a writer.
    with open(
        path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK | os.O_NOFOLLOW)
    ) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or open_to_others(status):
            raise NotPrivateError(path)
        return file.read()


def open_to_others(status: os.stat_result) -> bool:
    """Whether users other than the owner may read, write or execute a file."""
    return bool(status.st_mode & _OTHERS)


def write(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Writes a file, a private one by default; it replaces one that is there.

    Raises:
        OSError: The file can't be written; the old one is as it was.
    """
    with _temporary(path, data, mode) as temporary:
        temporary.replace(path)
        sync_folder(path.parent)


def write_all(contents: Mapping[Path, bytes]) -> None:
    """Writes several private files. All are on the disk before the first replaces an old one.

    Raises:
        OSError: One of them can't be written.
    """
    with ExitStack() as stack:
        new = {path: stack.enter_context(_temporary(path, data, 0o600)) for path, data in contents.items()}
        for path, temporary in new.items():
            temporary.replace(path)
        for folder in {path.parent: None for path in contents}:
            sync_folder(folder)


def create(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Writes a new file, and never replaces one.

    Raises:
        FileExistsError: There is one already.
        OSError: The file can't be written.
    """
    with _temporary(path, data, mode) as temporary:
        os.link(temporary, path)  # Unlike a rename, this fails where there is a file.
        temporary.unlink()
        sync_folder(path.parent)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Lets the caller fill a private file that replaces `path` at the end of the block, unless the block raises.

    Yields:
        An empty temporary file in the same folder.

    Raises:
        OSError: The file can't be written; the old one is as it was.
    """
    with _temporary(path, b"", 0o600) as temporary:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        sync_folder(path.parent)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Holds a folder's lock, which processes and threads share. Makes the folder (0700) where there is none.

    What the block renamed in the folder is durable when the block has ended without an error.

    Raises:
        OSError: The folder can't be made, locked or synchronized; TimeoutError if somebody else holds it for too long.
    """
    private_folder(folder)
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(file, folder)
        yield
        os.fsync(file)
    finally:
        os.close(file)


def private_folder(folder: Path) -> None:
    """Makes a folder that only its owner may use, and so each folder above it that is missing, whatever the umask is.

    Raises:
        OSError: It can't be made.
    """
    for each in (*reversed(folder.parents), folder):
        if not each.is_dir():
            each.mkdir(mode=0o700, exist_ok=True)


def _lock(file: int, folder: Path) -> None:
    """Waits for the lock of an open folder, but not for ever: its holder may have been stopped."""
    end = time.monotonic() + LONGEST_WAIT
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                text = f"another process has held its lock for {LONGEST_WAIT:g} s"
                raise TimeoutError(errno.ETIMEDOUT, text, str(folder)) from None
            time.sleep(_PAUSE)
        else:
            return


def sync_folder(folder: Path) -> None:
    """Makes what was created, renamed and removed in a folder durable.

    Raises:
        OSError: The folder can't be synchronized.
    """
    _sync(folder, os.O_DIRECTORY)


def _sync(path: Path, flags: int = 0) -> None:
    file = os.open(path, os.O_RDONLY | flags)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextmanager
def _temporary(path: Path, data: bytes, mode: int) -> Iterator[Path]:
    """A synchronized temporary file beside a path. It is removed at the end, unless it was renamed."""
    # A random name: containers that share a folder can have equal ids of processes and threads.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    try:
        with open(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "wb") as file:
            os.fchmod(file.fileno(), mode)  # Whatever the umask is: others have to read what is public.
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
