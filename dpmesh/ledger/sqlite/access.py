"""File access: which users besides this one may write or read the files of an SQLite ledger.

A user who may write the files can put back what was spent, and the rollback guard with it, so that nothing shows. A
user who may read them learns the secret that keys pseudonyms and account names. A group that this process belongs to
counts as its own: services share a ledger by a group, and Kubernetes (fsGroup) gives a volume's files to one.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from dpmesh.errors import LedgerError

_SUFFIXES = ("", "-wal", "-shm", "-witness")
# SQLite's rollback journal, which a ledger never has.
_JOURNAL = "-journal"


def check(path: Path) -> None:
    """Checks that the files that a ledger has are plain, and that no other user may write or replace them.

    Otherwise SQLite and dpmesh would follow a link, wait at a pipe for a writer, or apply any journal beside the file.

    Raises:
        LedgerError: Another user may, or one of the files is not a plain file or not this user's.
        OSError: The folder can't be read.
    """
    check_folder(path)
    _check_files(path)
    exposed = _exposed(path, stat.S_IWOTH)
    if exposed:
        raise LedgerError(
            f"{path} is not safe: other users may write {exposed}, and so put back what was spent. "
            f"Run `chmod go-w {path}*`, then `dpmesh ledger verify`"
        )


def check_folder(path: Path) -> None:
    """Checks that no other user may replace files in a ledger's folder. With a sticky bit, only their owner may.

    Raises:
        LedgerError: Another user may.
        OSError: The folder can't be read.
    """
    status = path.parent.stat()
    if _allows(status, stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX:
        raise LedgerError(
            f"{path} is not safe: other users may write its folder, and so put an older ledger in its place. Run "
            f"`chmod go-w {path.parent}`; or, if this user may not, make a folder in it with mode 700, and move the "
            "ledger with all of its files there"
        )


def remark(path: Path) -> str:
    """A warning about other users' access to a ledger's files; "" if they have none.

    Raises:
        OSError: One of the files can't be read.
    """
    try:
        check(path)
    except LedgerError as error:
        return str(error)
    exposed = _exposed(path, stat.S_IROTH)
    if not exposed:
        return ""
    return (
        f"other users may read {exposed}, and so learn the secret of pseudonyms and account names: run "
        f"`chmod go-r {path}*`"
    )


def _check_files(path: Path) -> None:
    """Checks that files beside a ledger that have the names of its files are such files."""
    folder = path.parent.stat()
    shared = bool(folder.st_mode & stat.S_ISVTX) and _allows(folder, stat.S_IWOTH)
    for suffix in (*_SUFFIXES, _JOURNAL):
        file = path.with_name(path.name + suffix)
        try:
            status = file.lstat()
        except FileNotFoundError:
            continue
        if suffix == _JOURNAL:
            raise LedgerError(
                f"{path} is not safe: there is a file {file.name}, which a ledger never has, and SQLite would put back "
                "what is in it. Remove it, then run `dpmesh ledger verify`"
            )
        if not stat.S_ISREG(status.st_mode):
            raise LedgerError(f"{path} is not safe: {file.name} is not a plain file. Remove it")
        if shared and status.st_uid not in (os.geteuid(), 0):
            raise LedgerError(
                f"{path} is not safe: other users may make files in its folder, and {file.name} is another user's. "
                "Make a folder in it with mode 700, and keep the ledger with all of its files there"
            )


def _exposed(path: Path, right: int) -> str:
    """The names of the ledger's files that give other users a right."""
    names = []
    for suffix in _SUFFIXES:
        with suppress(FileNotFoundError):  # The last holder that closes the ledger removes its log.
            file = path.with_name(path.name + suffix)
            if _allows(file.lstat(), right):
                names.append(file.name)
    return ", ".join(names)


def _allows(status: os.stat_result, right: int) -> bool:
    """Whether a file gives a right (S_IROTH or S_IWOTH) to others, or to a group that is not this process's."""
    foreign = status.st_gid not in (os.getegid(), *os.getgroups())
    rights = right | right << 3 if foreign else right  # a group's bits are three to the left of others'
    return not stat.S_ISLNK(status.st_mode) and bool(status.st_mode & rights)
